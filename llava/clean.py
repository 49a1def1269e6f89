"""Lists what in folders of runs and caches can go, with sizes; deletes it with --yes.

    python -m llava.clean output              what could go
    python -m llava.clean output --yes        deletes it
    python -m llava.clean output --caches     also features that no run in these folders uses

Checkpoints go but for the newest whole one and the best of each run, and so does what was never written to its end.
No run that lives, no milestone (`chck_...`), no model and no report is touched. Links are neither followed nor deleted.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.config.commands import parse
from llava.config.ranges import COUNT
from llava.constants import ASIDE, RUN_RECORD
from llava.data.features.room import shown_bytes
from llava.data.features.store import caches_beside
from llava.errors import UserError, run_command, show
from llava.train.checkpoint.files import INVALID, checkpoint_problems, list_checkpoints, remove
from llava.train.checkpoint.lock import LOCK_FILE, is_held, only_run
from llava.train.checkpoint.resumable import TRAINER_STATE_FILE

PROG = "python -m llava.clean"
YOUNG_SECONDS = 3600
"""A file that is being written may look like one that was left behind; extraction takes no lock."""
HALF_WRITTEN = re.compile(r"\..+[.-][0-9a-f]{32}")
"""Names under which files of a cache and fresh models are written before they are renamed."""
SAME = {
    "select_layer": "mm_vision_select_layer", "select_feature": "mm_vision_select_feature",
    "precision": "mm_vision_precision", "dtype": "mm_feature_dtype",
}  # fmt: skip
"""Settings of a cache, and what a model's config calls them."""


@dataclass(frozen=True)
class Waste:
    """Something that can go.

    Attributes:
        bytes: that it takes on the disk.
        why: why it is not needed.
        run: the folder of the run that it belongs to, whose lock is held while it is deleted; None for none.
    """

    path: Path
    bytes: int
    why: str
    run: Path | None = None


@dataclass
class Found:
    """What a look at some folders gives.

    Attributes:
        notes: what was left alone although it might be looked for here, and why.
    """

    waste: list[Waste] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class CleanFlags:
    """What is looked at, and what happens."""

    _argument_group_name = "cleaning"
    ranges = {"keep": COUNT}

    folders: list[Path] = field(metadata={"positional": True, "help": "Folders of runs, caches, or of both."})
    keep: int = field(default=1, metadata={"help": "Newest whole checkpoints that each run keeps."})
    caches: bool = field(
        default=False, metadata={"help": "Also vision features that fit no run in these folders. They cost GPU time."}
    )
    yes: bool = field(default=False, metadata={"help": "Delete what is listed."})

    def __post_init__(self) -> None:
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"{folder}: is no folder; name one with runs or caches, such as output")


def look(folders: Sequence[Path], keep: int = 1, caches: bool = False) -> Found:
    """What can go below some folders.

    Args:
        keep: newest whole checkpoints that each run keeps.
        caches: whether to look for features that fit no run here.
    """
    found = Found()
    roots = list(dict.fromkeys(folder.resolve() for folder in folders))
    places = list(dict.fromkeys(place for root in roots for place in _walk(root, found.notes)))
    running = {place for place in places if is_held(place / LOCK_FILE)}
    for place in sorted(running):
        found.notes.append(f"{place}: a run lives here; left alone")
    for place in places:
        if any(place == run or run in place.parents for run in running):
            continue
        found.waste += _of_run(place, keep, found.notes)
        found.waste += _half_written(place)
        found.waste += _without_index(place)
    if caches:
        found.waste += _unused_caches(places, running, found.notes)
    begun = _begun_from(places)
    found.notes += [f"{item.path}: another run began from it" for item in found.waste if item.path in begun]
    going = {item.path for item in found.waste} - begun
    found.waste = [item for item in found.waste if item.path in going and not going & set(item.path.parents)]
    return found


def _begun_from(places: Sequence[Path]) -> set[Path]:
    """What runs name as the model, the tower or the adapter that they began from."""
    flags = ("model_name_or_path", "vision_tower", "pretrain_mm_mlp_adapter")
    records = [_json(place / RUN_RECORD).get("flags") for place in places]
    named = [
        Path(str(record[flag])) for record in records if isinstance(record, dict) for flag in flags if record.get(flag)
    ]
    return {folder for path in named for folder in (path.resolve(), *path.resolve().parents)}


def _walk(root: Path, notes: list[str]) -> Iterator[Path]:
    """A folder and those below it that may hold runs or caches; what is inside a checkpoint is part of it."""
    for place, names, files in os.walk(root):
        yield Path(place)
        links = [name for name in (*names, *files) if (Path(place) / name).is_symlink()]
        notes += [f"{Path(place) / name}: a link; left alone" for name in sorted(links)]
        names[:] = sorted(
            name for name in names
            if name not in links and not re.fullmatch(r"checkpoint-\d+|chck_.*", name)
            and not name.startswith((ASIDE, INVALID)) and not HALF_WRITTEN.fullmatch(name)
        )  # fmt: skip


def _of_run(run: Path, keep: int, notes: list[str]) -> Iterator[Waste]:
    """Checkpoints of a run beyond the newest and the best, and what is left of half-written ones."""
    checkpoints = [path for _, path in list_checkpoints(run) if not path.is_symlink()]
    whole = [path for path in checkpoints if not checkpoint_problems(path, contents=False)]
    best = _best(run, whole)
    for path in sorted(set(checkpoints) - set(whole)):
        notes.append(f"{path}: {checkpoint_problems(path, contents=False)[0]}; left alone")
    for path in whole[: max(len(whole) - keep, 0)]:
        if path.name not in best:
            yield Waste(path, size(path), f"older than {whole[-1].name}", run)
    if not checkpoints and not (run / RUN_RECORD).exists():
        return
    for path in sorted(run.iterdir()):
        if path.name.startswith(ASIDE) and not path.is_symlink():
            yield Waste(path, size(path), "not written, or not removed, to its end", run)
        if path.name.startswith(INVALID) and not path.is_symlink():
            yield Waste(path, size(path), "damaged, and replaced by a whole one since", run)


def _best(run: Path, checkpoints: Sequence[Path]) -> set[str]:
    """Names of the checkpoints that the run, or one of its checkpoints, calls its best."""
    names = set()
    for folder in (run, *checkpoints):
        state = _json(folder / TRAINER_STATE_FILE)
        if state.get("best_model_checkpoint"):
            names.add(Path(str(state["best_model_checkpoint"])).name)
        if state.get("best_global_step"):
            names.add(f"checkpoint-{state['best_global_step']}")
    return names


def _half_written(place: Path) -> Iterator[Waste]:
    """Files of a cache and folders of fresh models under the names of what is being written."""
    for path in sorted(place.iterdir()):
        if HALF_WRITTEN.fullmatch(path.name) and not path.is_symlink() and _is_old(path):
            yield Waste(path, size(path), "not written to its end")


def _without_index(place: Path) -> Iterator[Waste]:
    """Arrays of a cache that no index names, which are never read."""
    if not (place / "settings.json").is_file():
        return
    named = {path.stem for path in place.glob("*.json")}
    named |= {Path(name).stem for other, _ in caches_beside(place) for name in _borrowed(other)}
    for path in sorted(place.glob("*.npy")):
        if path.stem not in named and not path.is_symlink() and _is_old(path):
            yield Waste(path, size(path), "features without an index, which are never read")


def _borrowed(cache: Path) -> Iterator[str]:
    """The arrays of other caches that indexes of this one name, as `FOLDER/NAME.npy`."""
    for index in cache.glob("*.json"):
        if "array" in (values := _json(index)):
            yield str(values["array"])


def _unused_caches(places: Sequence[Path], running: set[Path], notes: list[str]) -> Iterator[Waste]:
    """Features that none of the runs in `places` was trained on, as far as their records say."""
    roots = {place.parent for place in places if (place / "settings.json").is_file()}
    configs = [config for place in places if "mm_vision_tower_checksum" in (config := _json(place / "config.json"))]
    if running or not configs:
        reason = "a run lives in these folders" if running else "there is no run with vision in these folders"
        notes += [f"{root}: {reason}, so that nobody can say which features are used; left alone" for root in roots]
        return
    for root in sorted(roots):
        known = [cache for cache in caches_beside(root / "any") if cache[0] in places]
        used = {folder for folder, settings in known if any(_may_use(config, settings) for config in configs)}
        # What a used cache borrows from.
        used |= {root / name.split("/")[0] for folder in used for name in _borrowed(folder)}
        for folder, settings in known:
            if folder not in used and not folder.is_symlink():
                what = f"{settings.get('dtype')}, {settings.get('precision')}, layer {settings.get('select_layer')}"
                yield Waste(folder, size(folder), f"features ({what}) that fit no run in these folders")


def _may_use(config: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a run with this config may have been trained on features with these settings; in doubt, yes."""
    tower = str(settings.get("tower", ""))
    named = str(config["mm_vision_tower_checksum"])
    if config.get("mm_vision_tower_storage") == "checkpoint" or (":" in tower) != (":" in named):
        return True  # A tower that the run has changed, or one that an earlier commit knew by another checksum.
    return tower == named and all(
        here not in settings or there not in config or settings[here] == config[there] for here, there in SAME.items()
    )


def size(path: Path) -> int:
    """Bytes that a file, or all files below a folder, take on the disk; what links lead to is not counted."""
    if path.is_symlink() or not path.is_dir():
        return _blocks(path)
    return sum(_blocks(Path(place) / name) for place, _, names in os.walk(path) for name in names)


def _blocks(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_blocks * 512
    return 0


def _is_old(path: Path) -> bool:
    with suppress(OSError):
        return time.time() - path.lstat().st_mtime > YOUNG_SECONDS
    return False


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    return {}


def delete(waste: Sequence[Waste], roots: Sequence[Path]) -> tuple[int, list[str]]:
    """Deletes what can go: how many bytes, and what was left alone after all, with the reason.

    A checkpoint goes after a newer one of its run was read to its end and found whole, while no run can start there.
    """
    freed, left = 0, []
    inside = [root.resolve() for root in roots]
    sound: dict[Path, bool] = {}
    for item in waste:
        parent = item.path.parent.resolve()
        if item.path.is_symlink() or not any(parent == root or root in parent.parents for root in inside):
            left.append(f"{item.path}: leads out of the folders that were named")
            continue
        try:
            with only_run(item.run) if item.run else nullcontext():
                if item.run and item.why.startswith("older") and not _newest_is_sound(item.run, sound):
                    left.append(f"{item.path}: no newer checkpoint is whole")
                    continue
                remove(item.path)
                freed += item.bytes
        except OSError as error:
            left.append(f"{item.path}: {error}")
    return freed, left


def _newest_is_sound(run: Path, sound: dict[Path, bool]) -> bool:
    if run not in sound:
        whole = [path for _, path in list_checkpoints(run) if not checkpoint_problems(path, contents=False)]
        sound[run] = bool(whole) and not checkpoint_problems(whole[-1])
    return sound[run]


def main(argv: Sequence[str] | None = None) -> int:
    """Lists, or deletes; exit status 1 when something that was to go could not be deleted."""
    (flags,) = parse(__doc__, CleanFlags, argv=argv, prog=PROG)
    found = look(flags.folders, flags.keep, flags.caches)
    for note in found.notes:
        print(f"kept: {show(note)}")
    for item in found.waste:
        print(f"{shown_bytes(item.bytes):>9}  {show(item.path)}: {item.why}")
    total = shown_bytes(sum(item.bytes for item in found.waste))
    if not found.waste:
        print("nothing to delete")
        return 0
    if not flags.yes:
        print(f"{total} in all; nothing was deleted: add --yes to delete what is listed")
        return 0
    freed, left = delete(found.waste, flags.folders)
    for line in left:
        print(f"not deleted: {show(line)}")
    print(f"deleted: {shown_bytes(freed)}")
    return int(bool(left))


if __name__ == "__main__":
    run_command(main)
