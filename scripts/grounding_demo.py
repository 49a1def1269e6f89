"""Makes the grounding demo: clips and images whose boxes and times are known exactly, with their records.

    python scripts/make_demo_data.py --grounding --output_dir grounding/data

Some (shape, colour) pairs never occur in training, though each shape and each colour does: `test` is about those alone
and is for the final table; `validation` has others, for choosing a design.

| file | holds |
| --- | --- |
| `train.json`, `validation.json`, `test.json` | records of the trainer, as `llava.data.grounding` makes them |
| `validation_gains.json` | questions of the validation clips, one a record, for the controls of a run |
| `*_benchmark.json` | the same clips in the format of ST-Align's benchmark |
| `visual/clips`, `visual/images` | MP4 and PNG; records name them from `visual` |

A training record asks about everything in its clip or image, one thing a turn, so that the frames are read once;
records for scoring ask one question each. The same settings give the same files, whatever the number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from grounding_scenes import FPS, FRAMES, SIDE, Scene, event_text, file_of, phrase, plan_split, split_pairs, write_scene
from make_demo_data import on_processes, plan_hash, read_manifest, write_json

from llava.data.grounding.annotation import Annotation, Event
from llava.data.grounding.tasks import records_of

IMAGE_TASKS = {"REC": 0.8, "REG": 0.2}
CLIP_TASKS = {"STVG": 0.4, "TVG": 0.25, "SVG": 0.1, "TR": 0.15, "ELC": 0.1}
"""How often a thing in training is asked about in each way."""
DESCRIBED = 0.5
"""Share of the training images that are described instead (DGC): each thing is named, and then it is told where it is.
"""
PER_CLIP = 2
"""Images to train on for each clip, which takes as much time as five of them."""
SIZES = {"validation": 100, "test": 150}
"""Clips of the other splits, and as many images."""
LANGUAGE = "it"
GAINS = ("REC", "TVG", "STVG")


def annotation_of(scene: Scene) -> Annotation:
    """What is where and when in a scene, exactly."""
    clip = scene.frames > 1
    last = max(scene.frames - 1, 1)
    events = [
        Event(
            text=event_text(thing) if clip else phrase(thing),
            span=(thing.first / last, thing.last / last) if clip else None,
            boxes={frame / last: box for frame, box in thing.boxes().items()},
        )
        for thing in scene.things
    ]
    place = {"video": f"clips/{scene.path}", "num_frames": scene.frames} if clip else {"image": f"images/{scene.path}"}
    return Annotation(id=scene.id, width=SIDE, height=SIDE, events=events, **place)  # type: ignore[arg-type]


def scored_records(scene: Scene, rng: random.Random) -> list[dict[str, Any]]:
    """Every task about every thing of a scene, one question a record."""
    tasks = list(CLIP_TASKS) if scene.frames > 1 else [*IMAGE_TASKS, "DGC"]
    return records_of(annotation_of(scene), tasks, LANGUAGE, rng)


def training_record(scene: Scene, rng: random.Random) -> dict[str, Any]:
    """One record about all things of a scene in an order that is drawn, each asked about once."""
    weights = CLIP_TASKS if scene.frames > 1 else IMAGE_TASKS
    found = {(r["meta"]["task"], r["meta"].get("event")): r for r in scored_records(scene, rng)}
    if scene.frames == 1 and rng.random() < DESCRIBED:
        return joined([found["DGC", None]], scene.id)
    events = [event.text for event in annotation_of(scene).events]
    rng.shuffle(events)
    tasks = [rng.choices(list(weights), list(weights.values()))[0] for _ in events]
    return joined([found[task, event] for task, event in zip(tasks, events, strict=True)], scene.id)


def joined(records: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Records about one clip or image as one conversation; the first shows it."""
    first = records[0]
    variables: dict[str, list[float]] = {}
    turns: list[dict[str, str]] = []
    for record in records:
        for key, numbers in record["variables"].items():
            variables.setdefault(key, []).extend(numbers)
        question, answer = record["conversations"]
        if turns:
            question = question | {"value": question["value"].partition("\n")[2]}
        turns += [question, answer]
    visual = {key: first[key] for key in ("video", "image") if key in first}
    tasks = [record["meta"]["task"] for record in records]
    return {"id": name, **visual, "conversations": turns, "variables": variables, "meta": {"tasks": tasks}}


def benchmark_records(scene: Scene) -> list[dict[str, Any]]:
    """A clip's events as ST-Align's benchmark has them: x, y, width, height in pixels by frame, times in frames."""
    records = []
    for thing in scene.things:
        boxes = {
            str(frame): [round(v * SIDE, 3) for v in (b[0], b[1], b[2] - b[0], b[3] - b[1])]
            for frame, b in thing.boxes().items()
        }
        records.append({
            "video_path": f"clips/{scene.path}",
            "conversations": [
                {"from": "human", "value": f"<video>\nQuando e dove si vede \"{event_text(thing)}\"?"},
                {"from": "gpt", "value": "From <s> to <e>, <bboxes>"},
            ],
            "meta": {
                "width": SIDE, "height": SIDE, "split": [0, scene.frames - 1],
                "spatial_token": {"<bboxes>": boxes},
                "time_token": {"<s>": thing.first, "<e>": thing.last},
            },
        })  # fmt: skip
    return records


def plan(seed: int, num_train: int) -> dict[str, list[Scene]]:
    """The scenes of each split: clips, and as many images; in training `PER_CLIP` images for each."""
    pairs, clips = split_pairs(seed), {"train": num_train, **SIZES}
    images = SIZES | {"train": PER_CLIP * num_train}
    return {
        split: [
            scene
            for kind, size in (("clips", clips[split]), ("images", images[split]))
            for scene in plan_split(seed, kind, split, size, pairs[split])
        ]
        for split in clips
    }


def make(folder: Path, seed: int, num_train: int, num_workers: int) -> None:
    """Makes the demo in a folder; what is there already, of the same settings, stays.

    Raises:
        SystemExit: when the folder holds anything else.
    """
    splits = plan(seed, num_train)
    digest = {
        split: {"clips": len(scenes), "plan_sha256": plan_hash(scenes)} for split, scenes in sorted(splits.items())
    }
    manifest = read_manifest(folder, {"grounding": True, "seed": seed, "format": [SIDE, FRAMES, FPS], "splits": digest})
    visual = folder / "visual"
    scenes = [scene for each in splits.values() for scene in each]
    missing = [scene for scene in scenes if not file_of(scene, visual).exists()]
    if set(splits) <= set(manifest["complete"]) and not missing:
        print(f"grounding demo: {len(scenes)} clips and images in {folder}, made before")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "manifest.json", manifest | {"complete": []})
    write_scenes(missing, visual, num_workers)
    for split, each in splits.items():
        rng = random.Random(f"{seed}/{split}/questions")
        if split == "train":
            records = [training_record(scene, rng) for scene in each]
        else:
            records = [record for scene in each for record in scored_records(scene, rng)]
        write_json(folder / f"{split}.json", records)
        if split == "validation":
            write_json(folder / f"{split}_gains.json", [r for r in records if r["meta"]["task"] in GAINS])
        write_json(folder / f"{split}_benchmark.json", [r for s in each if s.frames > 1 for r in benchmark_records(s)])
    write_json(folder / "manifest.json", manifest | {"complete": sorted(splits)})
    print(f"grounding demo: {len(scenes)} clips and images in {folder}")


def write_scenes(scenes: Sequence[Scene], folder: Path, num_workers: int) -> None:
    """Draws scenes on `num_workers` processes (at most one: in this one), with a progress bar."""
    for scene in scenes:
        file_of(scene, folder).parent.mkdir(parents=True, exist_ok=True)
    on_processes(partial(write_scene, folder=folder), scenes, num_workers, "grounding demo")
