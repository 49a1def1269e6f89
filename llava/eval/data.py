"""Records for an evaluation from the command line: read, checked, and their vision features in the cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import HELD_OUT_FILE, RUN_RECORD
from llava.data.chat_formats import PLAIN, reserved
from llava.data.features.extract import FeatureCache, extract_features
from llava.data.mixture import DEFAULT_SEED, read_mixture, split_paths
from llava.data.prompt import reserved_tokens
from llava.data.records import Record, apply_policy, format_problems, load_records, missing_files, without
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


def record_files(data_path: str) -> list[str]:
    """The files that a `--data_path` names: those of records, mixtures, and what mixtures name.

    Raises:
        ValueError: as `split_paths`.
    """
    found = []
    for path in split_paths(data_path):
        found.append(path)
        if path.casefold().endswith((".yaml", ".yml")):
            found += [entry.path for entry in read_mixture(path)[0]]
    return list(dict.fromkeys(found))


def trained_on(model_path: str | Path, path: str) -> bool:
    """Whether a `--data_path` has a file that the model's run trained on, by its record; False where there is none."""
    try:
        flags = json.loads((Path(model_path) / RUN_RECORD).read_text(encoding="utf-8"))["flags"]
        known = {os.path.realpath(p) for p in record_files(flags["data_path"])}
        return any(os.path.realpath(p) in known for p in record_files(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
