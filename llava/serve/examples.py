"""Clips to try: of a folder, or those of a run's own data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llava.config.video import VideoSpec
from llava.constants import HELD_OUT_FILE, RUN_RECORD
from llava.data.records import Record, load_records, spread
from llava.data.video import VideoError, read_frames
from llava.errors import UserError, show
from llava.eval.references import clip_of, is_captioned_clip, reference_of
from llava.serve.clips import find_clips

MOST = 8
HELD_OUT = "A clip that the run was evaluated on"
TRAINED = "A clip that the model was trained on, which it may know by heart"


@dataclass(frozen=True)
class Example:
    """A clip to try, with its true caption and what is to be known of it where there are any.

    `frame` is a picture of it, (H, W, 3) uint8.
    """

    path: str
    split: tuple[int, int] | None = None
    caption: str = ""
    note: str = ""
    frame: np.ndarray | None = None

    @property
    def name(self) -> str:
        return Path(self.path).name


def examples_in(folder: str) -> list[Example]:
    """Clips of a folder and those below it, evenly spread.

    Raises:
        ValueError: for a folder without videos, or none of which can be read.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--examples {show(folder)}: no such folder")
    try:
        files, _ = find_clips([folder])
    except ValueError as error:
        raise UserError(str(error).replace("--video", "--examples", 1)) from error
    found = readable([Example(path) for path in spread(files, MOST)])
    if not found:
        raise UserError(f"--examples {show(folder)}: none of {len(files)} videos could be read")
    return found


def examples_of_run(model_path: str) -> tuple[list[Example], str]:
    """Clips that a run was evaluated on, or else trained on, evenly spread; or none, and why not.

    The paths of a run's record are those of where it was started.
    """
    folder = Path(model_path)
    home = next((f for f in (folder, folder.parent) if (f / RUN_RECORD).is_file()), None)
    if home is None:
        return [], f"{show(model_path)} has no {RUN_RECORD}, which names the run's clips"
    try:
        flags = json.loads((home / RUN_RECORD).read_text(encoding="utf-8"))["flags"]
        sources = [(str(home / HELD_OUT_FILE), HELD_OUT), (flags.get("eval_data_path"), HELD_OUT),
                   (flags.get("data_path"), TRAINED)]  # fmt: skip
        path, note = next((p, n) for p, n in sources if p and (n == TRAINED or Path(p).is_file()))
        records, _ = load_records(path, video_folder=flags.get("video_folder"), allow_absolute_paths=True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        return [], f"the data of {show(home / RUN_RECORD)} cannot be read ({show(error) or type(error).__name__})"
    seen = distinct(records)
    found = readable([Example(r.videos[0], r.split, reference_of(r), note) for r in spread(seen, MOST)])
    return found, "" if found else f"no clip of {show(path)} is there"


def distinct(records: Sequence[Record]) -> list[Record]:
    """The first record with a caption of each clip that is shown alone."""
    first: dict[tuple[Any, ...], Record] = {}
    for record in records:
        if is_captioned_clip(record):
            first.setdefault(clip_of(record), record)
    return list(first.values())


def readable(examples: Sequence[Example]) -> list[Example]:
    """Those that can be read, each with the frame in its middle."""
    spec = VideoSpec(num_frames=3, force_sample=True)
    found = []
    for example in examples:
        try:
            found.append(replace(example, frame=read_frames(example.path, spec, example.split)[1]))
        except VideoError:
            continue
    return found
