"""The grounding demo: what is drawn is where the records say, and held-out pairs never occur in training."""

from __future__ import annotations

import hashlib
import importlib
import json
from itertools import pairwise
from pathlib import Path

import decord
import numpy as np
import pytest
from PIL import Image

from llava.data.coordinates import nearest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FEW = {"validation": 2, "test": 2}


@pytest.fixture(scope="module")
def modules():
    """The scripts as modules: scenes, demo, and the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        scenes, demo, command = map(importlib.import_module, ("grounding_scenes", "grounding_demo", "make_demo_data"))
        patch.setattr(demo, "SIZES", FEW)
        yield scenes, demo, command


@pytest.fixture(scope="module")
def folder(modules, tmp_path_factory):
    """A small demo: 8 clips and 16 images to train on."""
    return make(modules, tmp_path_factory.mktemp("grounding") / "data")


def make(modules, folder: Path, *options: str) -> Path:
    command = ["--grounding", "--output_dir", str(folder), "--num_train", "8", "--num_workers", "1", *options]
    modules[2].main(command)
    return folder


def records(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def shown(frame: np.ndarray, background: tuple[int, ...]) -> tuple[float, ...] | None:
    """The box of what is not background, as shares of the side."""
    there = np.abs(frame.astype(float) - background).max(-1) > 60
    if not there.any():
        return None
    rows, columns = np.nonzero(there)
    size = len(frame)
    return columns.min() / size, rows.min() / size, (columns.max() + 1) / size, (rows.max() + 1) / size


@pytest.mark.parametrize("seed", range(3))
def test_held_out_pairs_are_disjoint_and_each_of_their_values_is_trained(modules, seed):
    scenes = modules[0]
    pairs = scenes.split_pairs(seed)
    sets = {name: set(members) for name, members in pairs.items()}
    assert {name: len(members) for name, members in sets.items()} == {"test": 6, "validation": 4, "train": 22}
    assert len(set().union(*sets.values())) == 32
    for place in range(2):
        assert len({pair[place] for pair in sets["train"]}) == (4, 8)[place]
    for kind in ("clips", "images"):
        for split in pairs:
            seen = {
                (t.shape, t.colour) for s in scenes.plan_split(seed, kind, split, 40, pairs[split]) for t in s.things
            }
            assert seen <= sets[split]


def test_events_are_a_share_of_the_clip_and_two_shapes_never_touch(modules):
    scenes = modules[0]
    planned = scenes.plan_split(0, "clips", "train", 120, scenes.split_pairs(0)["train"])
    assert {len(s.things) for s in planned} == {1, 2}
    assert {t.event for s in planned for t in s.things} == {"appear", "move"}
    for scene in planned:
        assert len({(t.shape, t.colour) for t in scene.things}) == len(scene.things)
        for thing in scene.things:
            assert 0.15 <= (thing.last - thing.first) / (scene.frames - 1) <= 0.45
            boxes = [thing.box(frame) for frame in range(scene.frames)]
            assert all(0 <= v <= 1 for box in boxes if box for v in box)
            if thing.event == "move":
                moved = [a != b for a, b in pairwise(boxes)]
                assert moved == [thing.first <= t < thing.last for t in range(scene.frames - 1)]
            else:
                assert [box is not None for box in boxes] == [
                    thing.first <= t <= thing.last for t in range(scene.frames)
                ]
        if len(scene.things) == 2:
            assert scenes.apart(*scene.things, scene.frames)


def test_times_lie_on_coordinate_tokens(modules):
    last = modules[0].FRAMES - 1
    assert all(nearest(t / last) / 99 == pytest.approx(t / last, abs=1e-12) for t in range(last + 1))


def test_what_is_drawn_is_where_it_is_planned(modules):
    """To a pixel, by what is not background, in every frame of an event and outside it."""
    scenes = modules[0]
    planned = scenes.plan_split(0, "clips", "train", 24, scenes.split_pairs(0)["train"])
    for scene in (s for s in planned if len(s.things) == 1):
        frames = scenes.draw(scene)
        assert frames.shape == (10, 112, 112, 3)
        for t, frame in enumerate(frames):
            box = scene.things[0].box(t)
            found = shown(frame, scene.background)
            assert (found is None) == (box is None)
            if box is not None:
                assert found == pytest.approx(box, abs=1.01 / 112)


def test_a_small_demo(modules, folder):
    train = records(folder, "train")
    assert [sum(kind in r for r in train) for kind in ("video", "image")] == [8, 16]
    for split in ("validation", "test"):
        found = records(folder, split)
        assert {r["meta"]["task"] for r in found} == {"REC", "REG", "DGC", "STVG", "TVG", "SVG", "TR", "ELC"}
        assert all(len(r["conversations"]) == 2 for r in found)
        assert len({r["id"] for r in found}) == len(found)
    gains = records(folder, "validation_gains")
    assert {r["meta"]["task"] for r in gains} == {"REC", "TVG", "STVG"}
    for record in records(folder, "train"):
        turns = record["conversations"]
        assert [t["value"].count("\n") for t in turns[::2]] == [1, *[0] * (len(turns) // 2 - 1)]
        assert len(record["meta"]["tasks"]) == len(turns) // 2 <= 2
        kind = "video" if "video" in record else "image"
        assert turns[0]["value"].startswith(f"<{kind}>\n") and (folder / "visual" / record[kind]).is_file()
        words = "".join(t["value"] for t in turns)
        numbers = sum(map(len, record["variables"].values()))
        assert numbers == words.count("-OUTPUT>") + words.count("-INPUT>") > 0


def test_the_truth_of_a_record_is_what_its_file_shows(folder):
    checked = 0
    for record in records(folder, "test"):
        truth, meta = record["meta"]["truth"], record["meta"]
        if meta["task"] == "REC":
            frame = np.array(Image.open(folder / "visual" / record["image"]))
            alone = sum(r.get("image") == record["image"] and r["meta"]["task"] == "REC"
                        for r in records(folder, "test")) == 1  # fmt: skip
            if alone:
                assert shown(frame, tuple(frame[0, 0].astype(float))) == pytest.approx(truth["box"], abs=1.5 / 112)
                checked += 1
        if meta["task"] == "SVG":
            reader = decord.VideoReader(str(folder / "visual" / record["video"]))
            assert (len(reader), round(reader.get_avg_fps())) == (10, 5)
            times = [round(t * 9) for t in truth["span"]]
            assert list(truth["boxes"]) == [str(11 * t) for t in range(times[0], times[1] + 1)]
    assert checked == 1, "index 0 has one shape"


def test_the_benchmark_says_the_same_in_pixels_and_frames(folder):
    spans = {
        (r["video"], r["meta"]["event"]): r["meta"]["truth"]
        for r in records(folder, "test") if r["meta"]["task"] == "STVG"
    }  # fmt: skip
    found = records(folder, "test_benchmark")
    assert len(found) == len(spans)
    for record in found:
        meta, event = record["meta"], record["conversations"][0]["value"].split('"')[1]
        truth = spans[record["video_path"], event]
        assert (meta["width"], meta["height"], meta["split"]) == (112, 112, [0, 9])
        times = meta["time_token"]
        assert [times["<s>"] / 9, times["<e>"] / 9] == pytest.approx(truth["span"], abs=1e-6)
        for frame, (x, y, w, h) in meta["spatial_token"]["<bboxes>"].items():
            box = [v / 112 for v in (x, y, x + w, y + h)]
            assert box == pytest.approx(truth["boxes"][str(11 * int(frame))], abs=1e-4)


def test_files_do_not_depend_on_the_number_of_processes(modules, folder, tmp_path, monkeypatch):
    assert contents(make(modules, tmp_path / "two", "--num_workers", "2")) == contents(folder)


def test_a_finished_demo_is_left_alone_and_other_settings_are_refused(modules, folder, capsys):
    make(modules, folder)
    assert "made before" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings"):
        make(modules, folder, "--seed", "1")


def result_of(folder: Path, value: float) -> dict:
    """What `llava.eval.grounding` writes, with made-up figures, of a run whose answers are true."""
    chosen = [r for r in records(folder, "test") if r["meta"]["task"] in ("REC", "STVG")]
    examples = []
    for r in chosen:
        truth = {"box": None, "span": None, "boxes": {}} | r["meta"]["truth"]
        examples.append({
            "task": r["meta"]["task"], "path": str(folder / "visual" / (r.get("image") or r["video"])),
            "is_image": "image" in r,
            "truth": truth, "said": truth,
        })  # fmt: skip
    floors = {"another clip's video": [0.1, 0.0, 0.2], "best constant answer": [0.2, 0.1, 0.3]}
    figures = {name: {"value": [value, 0.0, 1.0], "floors": floors} for name in ("mean", "≥ 0.5")}
    return {"summary": {"tasks": {"REC": {"measures": {"IoU": {"figures": figures}}}}, "examples": examples}}


def test_the_page_s_table_and_picture_are_made_of_the_runs_results(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS / "experiments"))
    script = importlib.import_module("grounding")
    runs = []
    for seed, value in enumerate((0.9, 0.5, 0.7)):
        tests = tmp_path / str(seed) / "tests"
        tests.mkdir(parents=True)
        (tests / "grounding.json").write_text(json.dumps(result_of(folder, value)))
        runs.append(str(tmp_path / str(seed)))
    script.main([*runs, "--picture", str(tmp_path / "page.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [f"| REC | {name} | .70 | .90 / .50 / .70 | .10 | .20 |" for name in ("mean IoU", "IoU ≥ 0.5")]
    with Image.open(tmp_path / "page.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert script.SAID in colours, "the answers' boxes cover the true ones where they are right"
