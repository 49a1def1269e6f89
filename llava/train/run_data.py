"""The data of a run: records and what is wrong with them, then the samples that it trains and is evaluated on."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llava.config.flags import Settings, TrainingArguments
from llava.constants import HELD_OUT_FILE
from llava.data.check import check_files
from llava.data.columns import RecordIds, representatives, standing_at, take
from llava.data.dataset import LazySupervisedDataset, Preprocess, measure_lengths
from llava.data.features.content import ContentHashes
from llava.data.features.extract import FeatureCache, describe_cache, extract_features, open_cache
from llava.data.features.remote import open_folder
from llava.data.hashes import below
from llava.data.record_table import RecordTable
from llava.data.records import (
    Problem,
    Record,
    apply_policy,
    by_modality,
    format_problems,
    missing_files,
    text_alone,
    without,
)
from llava.data.sources import SourceCount, count_sources, format_sources
from llava.data.split.holdout import Holdout, difference, plan
from llava.data.square_numbers import coordinate_problems, loose_times
from llava.data.variables import variables_of
from llava.errors import Stopped, UserError
from llava.model.vlm import VisionCausalLM
from llava.train.checkpoint.resume import on_first_process, record_digests
from llava.train.prepared_data import load_prepared, prepared_tokens
from llava.train.run_model import RunModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The records that a run trains on, or is evaluated on, those with a problem included.

    Attributes:
        name: `training` or `evaluation`, for the log.
        problems: those that need no file to be opened.
        bad_list: the file of the run's folder that lists what was left out.
    """

    name: str
    records: Sequence[Record]
    problems: list[Problem]
    bad_list: str


@dataclass(frozen=True)
class SplitData:
    """The samples of a `Split`: `lengths` in positions as they are served, `summary` for the run's record, `digests` of
    what each is made of, (N,) uint64.
    """

    dataset: LazySupervisedDataset
    lengths: Sequence[int]
    summary: dict[str, Any]
    digests: np.ndarray


def read_splits(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, earlier: Mapping[str, Any] | None = None
) -> tuple[Split, Split | None, dict[str, Any] | None]:
    """The records for training, those for evaluation, and what a run's record keeps of the clips that it holds out.

    Without `--eval_data_path` a run holds out `--val_fraction` of its clips by itself and evaluates on them. One that
    goes on holds out the clips that it did before: none where it recorded no split.

    Args:
        earlier: the record of the run that is resumed.

    Raises:
        ValueError: when other clips would be held out than before, or there is nothing to evaluate on.
    """
    _, data_args, training_args = settings
    records, problems = load_prepared(data_args.data_path, settings, tokenizer)
    train = Split(
        "training", _taught(records, settings), _with_missing(records, problems, settings), "bad_samples.jsonl"
    )
    evaluation = summary = None
    if earlier is not None and not earlier.get("split"):
        if not data_args.eval_data_path:
            logger.info(
                "nothing is held out: the run that is resumed recorded no split, so all its clips stay in training"
            )
    elif earlier is not None or not data_args.eval_data_path:
        train, evaluation, summary = hold_out(train, records, settings, (earlier or {}).get("split"))
    if data_args.eval_data_path:
        found = read_records(data_args.eval_data_path, settings, tokenizer)
        evaluation = Split("evaluation", *found, "bad_eval_samples.jsonl")
    elif evaluation is not None:
        training_args.evaluate_by_itself()
    elif training_args.eval_strategy != "no":
        raise UserError(
            f"--eval_strategy {training_args.eval_strategy} needs --eval_data_path, since nothing is held out"
        )
    return train, evaluation, summary


def hold_out(
    train: Split, named: Sequence[Record], settings: Settings, before: Mapping[str, Any] | None
) -> tuple[Split, Split | None, dict[str, Any]]:
    """Divides records in those for training and those held out, if any, as the first process says, and logs it.

    Args:
        named: the same records with the videos and images that they name, in the same order.
        before: what the run that is resumed recorded of its split.

    Raises:
        ValueError: when that run held out others, unless `--confirm_changes` confirms it.
    """
    _, data_args, training_args = settings
    holdout = on_first_process(lambda: _plan(named, settings), training_args)
    logger.info("%s", holdout)
    summary = holdout.summary()
    if before and (changed := difference(before, summary)):
        message = f"the run that is resumed was split in another way: {changed}"
        if not training_args.confirm_changes:
            raise UserError(
                f"{message}. Resume with the data, --val_fraction and folder of clips that it was started with, start "
                "a new run in another --output_dir, or add --confirm_changes True"
            )
        logger.warning("%s, as --confirm_changes confirms", message)
    if not holdout.chosen:
        if training_args.process_index == 0:
            (Path(training_args.output_dir) / HELD_OUT_FILE).unlink(missing_ok=True)
        return train, None, summary
    is_out = np.array(holdout.held_out, dtype=bool)
    kept, out = np.flatnonzero(~is_out), np.flatnonzero(is_out)
    theirs: list[Problem] = []
    ours = train.problems
    if train.problems:
        sources = {r.source for r in take(train.records, out)}
        theirs = [p for p in train.problems if p.source in sources]
        # A run that stops for them names all at once.
        if data_args.on_bad_sample != "stop":
            ours = [p for p in train.problems if p.source not in sources]
    if training_args.process_index == 0:
        write_held_out(take(named, out), settings)
    evaluation = Split("evaluation", take(train.records, out), theirs, "bad_eval_samples.jsonl")
    return replace(train, records=take(train.records, kept), problems=ours), evaluation, summary


def write_held_out(records: Sequence[Record], settings: Settings) -> None:
    """Writes records into `held_out.json` of the run's folder, for captioning: paths below the folders of the flags."""
    folders = {"video": settings.data.video_folder, "image": settings.data.image_folder}
    name_of = functools.cache(below)  # Clips have several captions.

    def row(record: Record) -> dict[str, Any]:
        made: dict[str, Any] = {"id": record.id, "conversations": record.conversations}
        if record.coordinates:
            text = "".join(turn["value"] for turn in record.conversations)
            made["variables"] = variables_of(text, record.coordinates)
        for kind, paths in (("video", record.videos), ("image", record.images)):
            named = [name_of(p, folders[kind]) for p in paths]
            made |= {kind: named[0] if len(named) == 1 else named} if named else {}
        return made | ({"meta": record.meta} if record.meta else {})

    folder = Path(settings.training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([row(r) for r in records], ensure_ascii=False, indent=1)
    (folder / HELD_OUT_FILE).write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def _plan(named: Sequence[Record], settings: Settings) -> Holdout:
    data_args = settings.data
    with tempfile.TemporaryDirectory() as nowhere:
        root = Path(nowhere) if data_args.feature_cache == "off" else cache_root(settings)
        return plan(named, data_args.val_fraction, ContentHashes(root / "contents"))


def read_records(
    path: str, settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> tuple[Sequence[Record], list[Problem]]:
    """Records of a `--data_path` and the problems that need no file of theirs to be opened."""
    records, problems = load_prepared(path, settings, tokenizer)
    return _taught(records, settings), _with_missing(records, problems, settings)


def _taught(records: Sequence[Record], settings: Settings) -> Sequence[Record]:
    return texts_of(records) if settings.data.text_only else records


def texts_of(records: Sequence[Record]) -> Sequence[Record]:
    """The records as text alone."""
    return records.as_text() if isinstance(records, RecordTable) else [text_alone(r) for r in records]


def _with_missing(records: Sequence[Record], problems: list[Problem], settings: Settings) -> list[Problem]:
    return problems if settings.data.text_only else problems + missing_files(records)


def make_cache(settings: Settings, model: VisionCausalLM) -> FeatureCache | None:
    """The feature cache that the flags ask for; none without a tower, or when the tower trains.

    Raises:
        ValueError: when a cache is asked for by folder while the tower trains.
    """
    _, data_args, training_args = settings
    if model.vision_tower is None or data_args.feature_cache == "off":
        return None
    if not model.vision_tower.frozen:
        if data_args.feature_cache != "auto":
            raise UserError("--feature_cache: the vision tower trains, so its features change; use auto or off")
        return None
    run = None
    if training_args.world_size > 1:
        run = on_first_process(lambda: f"llava-verified-{uuid.uuid4().hex}", training_args)
    cache = open_cache(cache_root(settings), model, data_args.repair_features, run)
    logger.info("%s", describe_cache(cache))
    return cache


def cache_root(settings: Settings) -> Any:
    """The folder of the feature cache: a `Path`, or a folder in a bucket."""
    asked = settings.data.feature_cache
    beside = Path(settings.training.output_dir).absolute().parent / "feature_cache"
    return beside if asked == "auto" else open_folder(asked)


def make_data(
    split: Split,
    settings: Settings,
    made: RunModel,
    cache: FeatureCache | None,
    preprocess: Preprocess,
    should_stop: Callable[[], bool] | None = None,
) -> SplitData:
    """The samples of a split, with their features in the cache; stops or skips bad ones as `--on_bad_sample` says.

    Raises:
        DatasetError: with all problems at once, or when nothing is left.
        Stopped: when `should_stop` said so.
    """
    _, data_args, training_args = settings
    model, limit, timeout = made.model, training_args.model_max_length, data_args.clip_timeout
    spec = model.video_spec if model.config.video_spec else None
    problems, good = split.problems, without(split.records, split.problems)
    if cache is not None:
        problems = problems + fill_cache(cache, good, model, training_args, timeout, should_stop)
    elif spec and data_args.on_bad_sample == "skip":
        # Extraction opens every file; without it, bad ones are found here and not in the middle of training.
        workers = max(training_args.dataloader_num_workers, 1)
        problems = problems + check_files(good, spec, workers, min_frames=1, timeout=timeout)
    good = without(split.records, problems)
    prepared = prepared_tokens(good, made.tokenizer, made.text_format, settings)
    processor = model.processor_spec if spec else None
    lengths, unfit = measure_lengths(good, made.tokenizer, spec, made.text_format, limit, prepared)
    # Text alone predicts what a run on the same records predicts after their videos.
    aspect = spec.image_aspect_ratio if spec else data_args.image_aspect_ratio
    unfit += coordinate_problems(good, aspect, processor)
    if remark := loose_times(good, spec):
        logger.warning("%s", remark)
    kept = _leave_out(split, [*problems, *unfit], settings)
    whole = np.array(lengths, dtype=np.int64)
    if unfit:
        whole = whole[~standing_at(good, {p.source for p in unfit})]
    dataset = LazySupervisedDataset(
        kept,
        made.tokenizer,
        preprocess,
        limit,
        spec,
        processor,
        cache,
        timeout,
        made.text_format,
        num_cut=int((whole > limit).sum()),
        prepared=prepared,
        image_aspect_ratio=aspect,
    )
    if (name := dataset.differs_from_prepared()) is not None:
        logger.warning("record %r has other tokens than were prepared for it: all are made anew in this run", name)
        dataset.prepared = prepared = None
    served = np.minimum(whole, limit)
    summary = summarise(kept, served) | {"cut": dataset.num_cut}
    report_sources(split.name, summary)
    digests = record_digests(kept) if prepared is None else prepared.digests(kept.rows)
    return SplitData(dataset, served, summary, digests)


def _leave_out(split: Split, problems: Sequence[Problem], settings: Settings) -> Sequence[Record]:
    """The records of a split that no problem names, as `--on_bad_sample` says; the others are listed and logged."""
    _, data_args, training_args = settings
    if problems and training_args.process_index == 0:
        folder = Path(training_args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        listed = "\n".join(json.dumps(asdict(p), ensure_ascii=False) for p in problems)
        (folder / split.bad_list).write_text(listed + "\n", encoding="utf-8", errors="backslashreplace")
    kept = apply_policy(split.records, problems, data_args.on_bad_sample)
    if problems:
        bad = {p.source for p in problems}
        total = len(split.records) + len(bad) - int(standing_at(split.records, bad).sum())
        logger.warning(
            "left out %d of %d records, listed in %s:\n%s", len(bad), total, split.bad_list, format_problems(problems)
        )
    return kept


def fill_cache(
    cache: FeatureCache,
    records: Sequence[Record],
    model: VisionCausalLM,
    training_args: TrainingArguments,
    timeout: float,
    should_stop: Callable[[], bool] | None = None,
) -> list[Problem]:
    """Extracts what the cache lacks, divided over the ranks; every rank gets the problems of all.

    Raises:
        Stopped: on all ranks, when `should_stop` said so on one; what it had computed is written.
    """
    tower = model.vision_tower.to(training_args.device)
    problems, stopped = [], None
    try:
        problems = extract_features(
            records,
            cache,
            tower,
            model.video_spec,
            model.processor_spec,
            training_args.device,
            num_workers=max(training_args.dataloader_num_workers, 1),
            timeout=timeout,
            rank=training_args.process_index,
            world_size=training_args.world_size,
            show_progress=training_args.process_index == 0,
            should_stop=should_stop,
        )
    except Stopped as stop:
        stopped = str(stop)
    if training_args.world_size > 1:
        gathered: list[Any] = [None] * training_args.world_size
        torch.distributed.all_gather_object(gathered, (problems, stopped))
        problems = [p for part, _ in gathered for p in part]
        stopped = next((message for _, message in gathered if message), None)
        cache.reload()
    if stopped:
        raise Stopped(stopped)
    return problems


def check_batches(num_samples: int, training_args: TrainingArguments) -> None:
    """Refuses samples that give no step at all: such a run would take none and end as if it had trained.

    Raises:
        ValueError: with both numbers.
    """
    device, accumulated = training_args.train_batch_size, training_args.gradient_accumulation_steps
    size = device * accumulated * training_args.world_size
    if training_args.dataloader_drop_last and num_samples < size:
        raise UserError(
            f"--dataloader_drop_last True leaves nothing to train on: {num_samples} samples are fewer than one global "
            f"batch of {size} ({device} a device x {accumulated} accumulated x {training_args.world_size} processes): "
            "leave it out, or lower --per_device_train_batch_size or --gradient_accumulation_steps"
        )


def summarise(records: Sequence[Record], lengths: Sequence[int]) -> dict[str, Any]:
    """Counts of a data set for the run's record: records by modality and source, distinct clips, longest sample; and
    `ids`, a hash of the records' ids in their order, which experiments on text and on video have in common.
    """
    return {
        "records": len(records),
        "ids": hashlib.sha256(RecordIds(records).hashes.astype("<u8").tobytes()).hexdigest()[:32],
        "by_modality": {kind: len(places) for kind, places in by_modality(records).items()},
        "clips": len({(r.videos, r.images, r.split) for r in representatives(records)[0] if r.videos or r.images}),
        "longest": int(max(lengths, default=0)),
        "sources": [asdict(count) for count in count_sources(records)],
    }


def report_sources(what: str, summary: Mapping[str, Any]) -> None:
    """Logs the sources of a data set and what of them was seen, where there are several."""
    counts = [SourceCount(**values) for values in summary["sources"]]
    if len(counts) > 1:
        logger.info("%s: %s", what, format_sources(counts))
