"""Makes the grounding demo: clips and images whose boxes and times are known exactly, with their records.

    python scripts/make_demo_data.py --grounding --output_dir grounding/data

Some (shape, colour) pairs never occur in training, though each shape and each colour does: `test` is about those alone
and is for the final table; `validation` has others, for choosing a design.

| file | holds |
| --- | --- |
| `train_images.json` | questions about images, which come first |
| `train.json` | questions about clips, and some about images, so that places are not forgotten |
| `validation.json`, `test.json`, `*_images.json` | questions that are scored; those about images alone |
| `validation_gains.json` | questions of the validation clips, one a record, for the controls of a run |
| `*_benchmark.json` | the same clips in the format of ST-Align's benchmark |
| `visual/clips`, `visual/images` | MP4 and PNG; records name them from `visual` |

A question ends with what it asks about, so that this stands directly before the answer (docs/grounding.md says why). A
training record of a clip asks about everything in it, one thing a turn, so that its frames are read once; one of an
image asks one question, since which of two things is meant must be told of the first alone. The same settings give the
same files, whatever the number of processes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from grounding_scenes import (
    FPS,
    FRAMES,
    SIDE,
    Scene,
    enough,
    event_text,
    file_of,
    phrase,
    plan_split,
    split_pairs,
    write_scene,
)
from make_demo_data import on_processes, plan_hash, read_manifest, write_json

from llava.data.grounding.annotation import Annotation, Event
from llava.data.grounding.tasks import asked_as

QUESTIONS = {
    "REC": ("Dove si trova {event}", "Dov'è {event}", "Indica {event}"),
    "REG": ("Che cosa si trova in {box}", "Che cosa c'è in {box}"),
    "DGC": ("Descrivi l'immagine", "Che cosa si vede"),
    "TVG": ("Quando {event}", "In che momento {event}"),
    "STVG": ("Quando e dove {event}", "In che momento e in che punto {event}"),
    "SVG": ("Tra {span} dove {event}", "In che punto tra {span} {event}"),
    "TR": ("Che cosa succede tra {span}", "Che cosa si vede tra {span}"),
    "ELC": ("Da {start} che cosa succede in {box}", "Che cosa comincia a {start} in {box}"),
}
IMAGE_TASKS = {"REC": 0.85, "REG": 0.15}
CLIP_TASKS = {"TVG": 0.5, "STVG": 0.25, "SVG": 0.07, "TR": 0.1, "ELC": 0.08}
"""How often a thing in training is asked about in each way."""
DESCRIBED = 0.3
"""Share of the training images that are described besides (DGC): each thing is named, and then it is told where it is.
"""
TOLD = ("REC", "TVG", "STVG", "SVG")
"""Tasks whose question says what is meant; in the others the answer does."""
BY_ONE = 0.5
"""Share of the scenes' things in training for which is drawn how they are called: by their shape, by their colour
(where no other thing is meant then), or by both as all others. So each word means something by itself, and pairs are
not learnt as one.
"""
PER_CLIP = 2
"""Images to train on for each clip, which takes as much time as ten of them."""
BESIDE = 0.5
"""Questions about images beside a clip in `train.json`, so that places are not forgotten."""
SIZES = {"validation": 100, "test": 150}
"""Clips of the other splits, and as many images."""
LANGUAGE = "it"
FORM = 2
"""Counts how records are asked and answered: records of another count are made anew."""
GAINS = ("REC", "TVG", "STVG")


def annotation_of(scene: Scene, by: Sequence[str] = ()) -> Annotation:
    """What is where and when in a scene, exactly; `by` what each thing is called, by default by both."""
    clip = scene.frames > 1
    last = max(scene.frames - 1, 1)
    events = [
        Event(
            text=event_text(thing, called) if clip else phrase(thing, called),
            span=(thing.first / last, thing.last / last) if clip else None,
            boxes={frame / last: box for frame, box in thing.boxes().items()},
        )
        for thing, called in zip(scene.things, by or ["both"] * len(scene.things), strict=True)
    ]
    place = {"video": f"clips/{scene.path}", "num_frames": scene.frames} if clip else {"image": f"images/{scene.path}"}
    return Annotation(id=scene.id, width=SIDE, height=SIDE, events=events, **place)  # type: ignore[arg-type]


def asked_about(annotation: Annotation, task: str, number: int, rng: random.Random) -> dict[str, Any]:
    """The record of a task about the thing with a number; of DGC, about all of them."""
    one = annotation if task == "DGC" else replace(annotation, events=[annotation.events[number]])
    record = asked_as(one, task, LANGUAGE, rng.choice(QUESTIONS[task]))
    return record | {"id": f"{annotation.id}_{task.lower()}_{number}"}


def scored_records(scene: Scene, rng: random.Random) -> list[dict[str, Any]]:
    """Every task about every thing of a scene, one question a record."""
    annotation = annotation_of(scene)
    tasks = CLIP_TASKS if scene.frames > 1 else IMAGE_TASKS
    found = [asked_about(annotation, task, i, rng) for task in tasks for i in range(len(scene.things))]
    return found if scene.frames > 1 else [*found, asked_about(annotation, "DGC", 0, rng)]


def training_records(scene: Scene, rng: random.Random) -> list[dict[str, Any]]:
    """Each thing of a scene is asked about once, in an order that is drawn: of a clip in one record, of an image in a
    record for each, and some images are described besides.
    """
    by = [rng.choice(enough(scene, thing)) if rng.random() < BY_ONE else "both" for thing in scene.things]
    told, annotation, clip = annotation_of(scene, by), annotation_of(scene), scene.frames > 1
    weights = CLIP_TASKS if clip else IMAGE_TASKS
    found = []
    for i in rng.sample(range(len(scene.things)), len(scene.things)):
        task = rng.choices(list(weights), list(weights.values()))[0]
        found.append(asked_about(told if task in TOLD else annotation, task, i, rng))
    if clip:
        return [joined(found, scene.id)]
    if rng.random() < DESCRIBED:
        found.append(asked_about(annotation, "DGC", 0, rng))
    return [joined([record], record["id"]) for record in found]


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
    manifest = read_manifest(
        folder, {"grounding": True, "seed": seed, "format": [SIDE, FRAMES, FPS, FORM], "splits": digest}
    )
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
        asked = training_records if split == "train" else scored_records
        records = [record for scene in each for record in asked(scene, rng)]
        images = [record for record in records if "image" in record]
        write_json(folder / f"{split}_images.json", images)
        if split == "train":
            clips = [record for record in records if "video" in record]
            records = [*clips, *rng.sample(images, min(len(images), math.ceil(BESIDE * len(clips))))]
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
