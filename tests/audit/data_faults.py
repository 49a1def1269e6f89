"""Faults planted into data: each takes the records of the fixtures and the folder of their clips."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import CAPTIONS, colour_frames, record, write_clip

Change = Callable[[list[dict], Path], list[dict]]


def answers(change: Callable[[str, int], str]) -> Change:
    """Every caption changed: `change(caption, number)`."""

    def changed(records: list[dict], folder: Path) -> list[dict]:
        records = copy.deepcopy(records)
        for i, r in enumerate(records):
            r["conversations"][-1]["value"] = change(r["conversations"][-1]["value"], i)
        return records

    return changed


def one(change: Callable[[dict], object]) -> Change:
    """The first record changed in place, or replaced by what `change` returns when that is a dict."""

    def changed(records: list[dict], folder: Path) -> list[dict]:
        records = copy.deepcopy(records)
        new = change(records[0])
        return [new if isinstance(new, dict) else records[0], *records[1:]]

    return changed


def named(name: str) -> Change:
    return one(lambda r: r.update(video=name))


def prompt(text: str) -> Change:
    return one(lambda r: r["conversations"][0].update(value=text))


def many(number: int, clip_of: Callable[[int], int], spoken: Callable[[int], str] | None = None) -> Change:
    """`number` records over clips of their own: record i names clip `clip_of(i)` and says its own caption."""

    def made(records: list[dict], folder: Path) -> list[dict]:
        for i in range(number):
            write_clip(folder / f"own{i}.mp4", colour_frames(100 + i))
        say = spoken or (lambda i: f"{CAPTIONS[i % 6][:-1]} numero {i}.")
        return [record(f"m{i}", say(i), f"own{clip_of(i)}.mp4") for i in range(number)]

    return made


ENOUGH = 24
"""Clips from which on shares of them are judged."""


def clips_of(frames_of: Callable[[int], np.ndarray], change: Callable[[dict], object] = lambda r: None) -> Change:
    """Records with clips of their own, clip i of the frames `frames_of(i)`, each record changed in place."""

    def made(records: list[dict], folder: Path) -> list[dict]:
        rows = []
        for i in range(ENOUGH):
            write_clip(folder / f"own{i}.mp4", frames_of(i))
            rows.append(record(f"m{i}", f"{CAPTIONS[i % 6][:-1]} numero {i}.", f"own{i}.mp4"))
            change(rows[-1])
        return rows

    return made


black_clips = clips_of(lambda i: colour_frames(i) * (i > ENOUGH // 3))
still_clips = clips_of(lambda i: colour_frames(i)[:1].repeat(8, 0))
splits_in_seconds = clips_of(colour_frames, lambda r: r.update(meta={"split": [0, 0]}))
one_short_segment = clips_of(lambda i: colour_frames(i, frames=24), lambda r: r.update(meta={"split": [0, 1]}))
all_begin_alike = clips_of(
    colour_frames, lambda r: r["conversations"][1].update(value=f"Caption: {r['conversations'][1]['value']}")
)
one_caption = clips_of(colour_frames, lambda r: r["conversations"][1].update(value=CAPTIONS[0]))


def copies_of_one_clip(records: list[dict], folder: Path) -> list[dict]:
    """Different names, one content."""
    for i in range(1, 6):
        (folder / f"clip{i}.mp4").unlink()
        shutil.copy(folder / "clip0.mp4", folder / f"clip{i}.mp4")
    return records


def cut_clip(records: list[dict], folder: Path) -> list[dict]:
    data = (folder / "clip0.mp4").read_bytes()
    (folder / "clip0.mp4").unlink()
    (folder / "clip0.mp4").write_bytes(data[: len(data) * 2 // 3])
    return records


def text_file(records: list[dict], folder: Path) -> list[dict]:
    (folder / "clip0.mp4").unlink()
    (folder / "clip0.mp4").write_text("Questo non è un filmato.\n" * 50, encoding="utf-8")
    return records


def playlist(records: list[dict], folder: Path) -> list[dict]:
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:2,\nclip1.mp4\n#EXT-X-ENDLIST\n")
    return named("list.m3u8")(records, folder)


def postscript(records: list[dict], folder: Path) -> list[dict]:
    (folder / "p.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    return [*records, _image("p.jpg")]


def invisible_image(records: list[dict], folder: Path) -> list[dict]:
    Image.new("RGB", (10_000, 9_000)).save(folder / "big.png")
    return [*records, _image("big.png")]


def _image(name: str) -> dict:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Un quadrato."}]
    return {"id": "image", "image": name, "conversations": turns}
