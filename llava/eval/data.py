"""Records for an evaluation from the command line: read, checked, and their vision features in the cache."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import HELD_OUT_FILE, RUN_RECORD
from llava.data.chat_formats import PLAIN, reserved
from llava.data.features.extract import FeatureCache, extract_features
from llava.data.mixture import DEFAULT_SEED, read_mixture, split_paths
from llava.data.prompt import reserved_tokens
from llava.data.records import Record, apply_policy, format_problems, load_records, missing_files, without
from llava.data.split.text_key import text_key
from llava.data.square_numbers import coordinate_problems
from llava.data.text_format import recorded_format
from llava.errors import UserError, fitted, show
from llava.model.vlm import VisionCausalLM


def device_of(name: str | None) -> torch.device:
    """The device that a flag names; without one, the first GPU when there is one.

    Raises:
        ValueError: for a device that torch does not know.
    """
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {name}: torch knows no such device; use cpu, cuda, cuda:1, mps") from error


def record_files(data_path: str, start: str = "") -> list[str]:
    """The files that a `--data_path` names: those of records, mixtures, and what mixtures name.

    Args:
        start: the folder that relative paths begin in; the working directory where it is empty.

    Raises:
        ValueError: as `split_paths`.
    """
    found = []
    for path in split_paths(data_path):
        found.append(os.path.join(start, path))
        if path.casefold().endswith((".yaml", ".yml")):
            found += [os.path.join(start, entry.path) for entry in read_mixture(found[-1])[0]]
    return list(dict.fromkeys(found))


def trained_on(model_path: str | Path, path: str, records: Sequence[Record] = ()) -> bool:
    """Whether most of a `--data_path` is what the model trained on, as far as is known: `trained_share`."""
    return trained_share(model_path, path, records) >= 0.5


def trained_share(model_path: str | Path, path: str, records: Sequence[Record] = ()) -> float:
    """The share of a `--data_path` that the model's run trained on; NaN where its record does not say, or is not there.

    All of it where the run read one of its files; else, of `records`, those whose clips (or, without clips, whose
    words) are the run's and were not held out by it. A clip that is called otherwise now is not known again.
    """
    home = next((f for f in (Path(model_path), Path(model_path).parent) if (f / RUN_RECORD).is_file()), None)
    try:
        if home is None:
            return math.nan
        recorded = json.loads((home / RUN_RECORD).read_text(encoding="utf-8"))
        flags, start = recorded["flags"], recorded.get("started_in") or ""
        known = {os.path.realpath(p) for p in record_files(flags["data_path"], start)}
        if any(os.path.realpath(p) in known for p in record_files(path)):
            return 1.0
        if not records:
            return 0.0
        folders = [flags.get(f) and os.path.join(start, flags[f]) for f in ("image_folder", "video_folder")]
        held_out = [run / HELD_OUT_FILE for run in (home, home.parent) if (recorded.get("split") or {}).get("held_out")]
        sides = (
            [os.path.join(start, p) for p in split_paths(flags["data_path"])],
            [str(f) for f in held_out if f.is_file()][:1],
        )
        given, kept_out = (_shown_by(tuple(files), *folders) for files in sides)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return math.nan
    trained = given - kept_out
    return sum(not trained.isdisjoint(_shown(r)) for r in records) / len(records)


@functools.lru_cache(2)
def _shown_by(files: tuple[str, ...], image_folder: str | None, video_folder: str | None) -> frozenset[str]:
    """`_shown` of all records of files; kept, since a run may be asked about several files that are scored."""
    read = (load_records(file, image_folder, video_folder, allow_absolute_paths=True)[0] for file in files)
    return frozenset(key for records in read for r in records for key in _shown(r))


def share_label(share: float) -> str:
    """What is put behind the name of a set of clips of which a share was trained on; NaN is not known."""
    if math.isnan(share):
        return " (not known whether trained on)"
    return " (training clips)" if share >= 0.5 else f" ({share:.0%} training clips)" if share else ""


def _shown(record: Record) -> list[str]:
    """The files that a record shows, wherever links lead to; its words where it shows none."""
    files = (*record.videos, *record.images)
    return [os.path.join(_real(os.path.dirname(p)), os.path.basename(p)) for p in files] or [text_key(record)]


_real = functools.lru_cache(1024)(os.path.realpath)


def held_out_of(run: Path, model: Path | None = None) -> Path | None:
    """The records that a run is evaluated on: those that it was given, or held out; None without any.

    Args:
        model: where the run's record is, if not beside its last model: one of its checkpoints or milestones.
    """
    record = json.loads(((model or run) / RUN_RECORD).read_text(encoding="utf-8"))
    if record["flags"].get("eval_data_path"):
        return Path(record["flags"]["eval_data_path"])
    file = run / HELD_OUT_FILE
    return file if (record.get("split") or {}).get("held_out") and file.is_file() else None


def read_for_evaluation(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    model: VisionCausalLM,
    cache: FeatureCache,
    video_folder: str | None = None,
    image_folder: str | None = None,
    num_workers: int = 0,
    limit: int | None = None,
    on_bad_sample: str = "stop",
    allow_absolute_paths: bool = False,
    seed: int = DEFAULT_SEED,
) -> list[Record]:
    """The records of a `--data_path`, or the first `limit`, after extraction of the features that `cache` lacks.

    Raises:
        DatasetError: under `stop`, with all problems of the file at once; under `skip`, when no record is left.
    """
    version = recorded_format(model.config, tokenizer).version
    records, problems = load_records(
        path, image_folder, video_folder, (*reserved_tokens(tokenizer), *reserved(version)), allow_absolute_paths, seed,
        version != PLAIN,
    )  # fmt: skip
    if limit is not None and len(records) > limit:
        print(f"{show(path)}: the first {limit} of {len(records)} records")
        records = records[:limit]
    problems += missing_files(records)
    aspect = model.video_spec.image_aspect_ratio
    problems += coordinate_problems(without(records, problems), aspect, model.processor_spec)
    if not problems or on_bad_sample == "skip":
        problems += extract_features(
            without(records, problems), cache, model.vision_tower, model.video_spec, model.processor_spec, model.device,
            num_workers=num_workers,
        )  # fmt: skip
    kept = apply_policy(records, problems, on_bad_sample)
    if problems:
        print(f"{show(path)}: {len(kept)} of {len(kept) + len({p.source for p in problems})} records; left out:")
        print(fitted(format_problems(problems)))
    return kept
