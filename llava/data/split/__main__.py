"""Splits a file of records in two, for training and for evaluation, by the content of its clips.

    python -m llava.data.split train.json --video_folder clips

Clips with equal files, clips that look the same (by their features, where the feature cache has all of them, else by a
few small frames), segments of one clip and clips of one record stay on one side. 2 % of the clips are held out, but at
least 32 and never more than a tenth; of fewer than ten, none. The choice depends on the seed and on the names of the
clips below their folder, so that it is the same for records of text and of video.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.config.commands import parse, refuse
from llava.config.groups import CLIP_TIMEOUT, DEFAULT_SEED, PROCESSES, FolderFlags, cpus
from llava.config.ranges import Range
from llava.data.features.content import ContentHashes
from llava.data.json_records import DatasetError, read_values
from llava.data.records import Record, apply_policy, load_records, missing_files
from llava.data.split.clips import (
    Clips,
    clips_of,
    group_clips,
    near_by_features,
    near_by_frames,
    open_features,
    same_content,
)
from llava.data.split.core import FEWEST, FRACTION, MAXIMUM_SHARE, MINIMUM, chained, split_clips, wanted_clips
from llava.errors import run_command, show

COMMAND = "python -m llava.data.split"
COMPARISONS = ("auto", "features", "frames", "none")


@dataclass
class SplitFlags(FolderFlags):
    """What is split, and how."""

    _argument_group_name = "split"
    ranges = {
        "val_fraction": Range(0, 1),
        "val_minimum": Range(0, whole=True),
        "val_maximum_share": Range(0, 1),
        "num_workers": PROCESSES,
    }

    file: str = field(kw_only=True, metadata={"positional": True, "help": "A file of records, LLaVA JSON or JSONL."})
    val_fraction: float = field(default=FRACTION, metadata={"help": "Share of the clips that are held out."})
    val_minimum: int = field(default=MINIMUM, metadata={"help": "At least so many clips are held out ..."})
    val_maximum_share: float = field(default=MAXIMUM_SHARE, metadata={"help": "... but never more than this share."})
    seed: int = field(default=DEFAULT_SEED, metadata={"help": "Of the choice."})
    train_output: str | None = field(default=None, metadata={"help": "FILE_train by default."})
    val_output: str | None = field(default=None, metadata={"help": "FILE_val by default."})
    feature_cache: str | None = field(default=None, metadata={"help": "Folder of vision features, where there is one."})
    near_duplicates: str = field(
        default="auto",
        metadata={
            "choices": list(COMPARISONS),
            "help": "By what clips that look the same are found: features, frames, none, or auto: features where the "
            "cache has all clips, else frames.",
        },
    )
    by_name: bool = field(
        default=False, metadata={"help": "Open no clip: only one name is one clip, and copies are not found."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace files of an earlier split."})
    num_workers: int = field(default_factory=cpus, metadata={"help": "Processes that decode."})

    def outputs(self) -> tuple[Path, Path]:
        """The files that are written: of training, and held out."""
        path = Path(self.file)
        named = ((self.train_output, "train"), (self.val_output, "val"))
        first, second = (Path(p) if p else path.with_name(f"{path.stem}_{side}{path.suffix}") for p, side in named)
        return first, second


def find_groups(flags: SplitFlags, records: Sequence[Record], clips: Clips) -> tuple[list[list[str]], list[str]]:
    """Groups of clips that belong together, and how copies were looked for.

    Raises:
        DatasetError: for clips that are missing or cannot be read.
    """
    if not clips.has_clips:
        return group_clips(clips), ["no record names a clip: texts are held out, equal ones together"]
    if flags.by_name or not any(clips.paths.values()):
        return group_clips(clips), ["by names alone: copies of a clip under another name were not looked for"]
    if flags.feature_cache and not Path(flags.feature_cache).is_dir():
        raise DatasetError(f"--feature_cache {show(flags.feature_cache)}: no such folder")
    if missing := missing_files(records):
        apply_policy(records, missing, "stop")
    with tempfile.TemporaryDirectory() as folder:
        contents = ContentHashes(Path(flags.feature_cache or folder) / "contents")
        equal = same_content(clips, contents, show_progress=sys.stderr.isatty())
    notes = [f"{sum(map(len, equal)):,} clips have the bytes of another"]
    if flags.near_duplicates == "none":
        return group_clips(clips, chained(equal)), [*notes, "clips that look the same were not looked for"]
    cache = None
    if flags.feature_cache and flags.near_duplicates != "frames":
        cache = open_features(flags.feature_cache, records)
    if cache is not None:
        near, how = near_by_features(records, clips, cache), f"features in {show(cache.folder)}"
    elif flags.near_duplicates == "features":
        raise DatasetError(
            f"--near_duplicates features: --feature_cache {show(flags.feature_cache)} does not have all clips; extract "
            "them (python -m llava.data.extract), or leave the flag out to compare frames"
        )
    else:
        near, how = near_by_frames(records, clips, flags.num_workers, CLIP_TIMEOUT), "a few small frames"
    looks = {key for pair in near for key in pair}
    return group_clips(clips, chained(equal), near), [*notes, f"{len(looks):,} clips look like another, by {how}"]


def write_records(path: Path, records: Sequence[Any]) -> None:
    """Writes records as a JSON list, or as lines where the file is called so; whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    aside = path.with_name(f".{path.name}.part")
    try:
        # What is not UTF-8 is kept by JSON's own escape.
        aside.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def split_file(flags: SplitFlags) -> list[str]:
    """Splits, writes both files and says what became of it.

    Raises:
        DatasetError: for records or clips that cannot be used, and for files that are there already.
    """
    outputs = flags.outputs()
    named = [path.resolve() for path in (*outputs, Path(flags.file))]
    if len(set(named)) < 3:
        raise DatasetError(
            f"{show(flags.file)} would be split into {show(outputs[0])} and {show(outputs[1])}: name two "
            "other files by --train_output and --val_output"
        )
    if there := [show(p) for p in outputs if p.exists() and not flags.overwrite]:
        raise DatasetError(f"{' and '.join(there)} exist already: name others, or add --overwrite")
    if Path(flags.file).suffix.casefold() in (".yaml", ".yml"):
        raise DatasetError(f"{show(flags.file)}: is a mixture; split each of its files")
    records, problems = load_records(
        flags.file, flags.image_folder, flags.video_folder, allow_absolute_paths=flags.allow_absolute_paths
    )
    apply_policy(records, problems, "stop")
    clips = clips_of(records)
    groups, notes = find_groups(flags, records, clips)
    sizes = (flags.val_fraction, flags.val_minimum, flags.val_maximum_share)
    held_out = split_clips(groups, *sizes, seed=flags.seed)
    total, noun = len(clips.paths), "clips" if clips.has_clips else "texts"
    lines = [f"{total:,} {noun} in {len(groups):,} groups, the largest of {max(map(len, groups)):,}", *notes]
    if not held_out:
        few = f"of fewer than {FEWEST} {noun} none is held out" if total < FEWEST else "no group is small enough"
        raise DatasetError(f"nothing was split: {few if flags.val_fraction > 0 else '--val_fraction is 0'}; {lines[0]}")
    if len(held_out) < (wanted := wanted_clips(total, *sizes)):
        lines.append(f"{wanted:,} were to be held out: larger groups stay in training whole")
    raw = [value for _, value in read_values(Path(flags.file))]
    sides: tuple[list[Any], list[Any]] = ([], [])
    for value, keys in zip(raw, clips.keys, strict=True):
        sides[any(key in held_out for key in keys)].append(value)
    counts = (total - len(held_out), len(held_out))
    for path, side, count, name in zip(outputs, sides, counts, ("training", "held out"), strict=True):
        write_records(path, side)
        lines.append(f"{name}: {len(side):,} records of {count:,} {noun} ({count / total:.1%}) in {show(path)}")
    folders = [f"{k.upper()}={shlex.quote(v)}" for k in ("video_folder", "image_folder") if (v := getattr(flags, k))]
    experiment = [] if any(clips.paths.values()) else ["EXP_ID=1"]
    first, second = (shlex.quote(str(path)) for path in outputs)
    command = " ".join([*experiment, f"DATA_PATH={first}", f"EVAL_DATA_PATH={second}", *folders])
    return [*lines, f"next: {command} bash train_italian_video.sh"]


def main(argv: Sequence[str] | None = None) -> int:
    """Splits a file and prints counts and groups; returns the exit code."""
    (flags,) = parse(__doc__, SplitFlags, argv=argv, prog=COMMAND)
    try:
        lines = split_file(flags)
    except (DatasetError, OSError) as error:
        refuse(error, COMMAND)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run_command(main)
