"""Everything that a run needs before its first step: data, model, vision features and trainer, each made once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed

from llava.config.flags import Settings
from llava.data.arms import arm_record
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.forms import targets_digest
from llava.data.packing import TrainingCollator
from llava.data.prompt import pad_token_id
from llava.data.records import apply_policy, is_hopeless, modality_codes
from llava.data.target_words import describe_targets, repeated_texts
from llava.train.arm import give_arm
from llava.train.checkpoint.resume import fingerprint
from llava.train.console import plan
from llava.train.experiments import give_faults, parse_faults
from llava.train.optimizer import parameter_rows, parameter_table
from llava.train.run_data import check_batches, make_cache, make_data, read_splits
from llava.train.run_flags import make_run_record
from llava.train.run_model import load_tokenizer, make_model
from llava.train.trainer import LlavaTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that is ready to start: `parts` train, but for the parameters in `exempt`, with the reason of each."""

    trainer: LlavaTrainer
    tokenizer: PreTrainedTokenizerBase
    parts: list[str]
    exempt: dict[str, str]
    fresh: bool


def prepare(
    settings: Settings,
    run_record: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> Run:
    """Data, model, vision features and trainer of a run, as its flags say.

    Args:
        run_record: what checkpoints keep about the flags; the trainer's `run_record` also has the data and parameters.
        should_stop: asked between the clips of extraction.
        earlier: the record of the run that is resumed: its text format and its held-out clips stay.

    Raises:
        ValueError: for data or flags that cannot be trained with.
        Stopped: when `should_stop` said so.
    """
    training_args = settings.training
    set_seed(training_args.seed)
    tokenizer = load_tokenizer(settings)
    train, evaluation, holdout = read_splits(settings, tokenizer, earlier)
    for split in (train, evaluation):
        if split is not None and settings.data.on_bad_sample == "stop" and is_hopeless(split.records, split.problems):
            # Neither the model nor hours of reading clips are waited for.
            apply_policy(split.records, split.problems, settings.data.on_bad_sample)

    resumed = None if earlier is None else earlier.get("text_format") or {}
    made = make_model(settings, tokenizer, train.records, resumed)
    model, text_format = made.model, made.text_format
    preprocess = give_faults(parse_faults(training_args.experiment_faults), model, text_format.preprocess)
    parameters = parameter_rows(model, training_args)
    logger.info("%s", parameter_table(parameters))

    cache = make_cache(settings, model)
    logger.info("%s", plan(settings, train.records, evaluation and evaluation.records, cache is not None))
    data = make_data(train, settings, made, cache, preprocess, should_stop)
    give_arm(data.dataset, settings, earlier)
    check_batches(len(data.dataset), training_args)
    held_out = None
    if evaluation is not None:
        held_out = make_data(evaluation, settings, made, cache, text_format.preprocess, should_stop)

    def supervised(dataset: Any) -> dict[str, dict[str, Any]]:
        return describe_targets(dataset.records, tokenizer, text_format, dataset.numbers, dataset.prepared)

    run_record = make_run_record(settings) if run_record is None else run_record
    resolved = training_args.to_dict()  # The data decides how often a run evaluates, where no flag does.
    run_record = {
        **run_record,
        "flags": run_record["flags"] | {name: resolved[name] for name in ("eval_strategy", "eval_steps")},
        "split": holdout,
        "arm": arm_record(data.dataset),
        "text_format": model.config.text_format,
        "parameters": parameters,
        "tokenizer": {"entries": len(tokenizer), "outputs": model.config.vocab_size},
        "data": {
            "train": data.summary | {"supervised": supervised(data.dataset)},
            "eval": None,
        },
        "fingerprint": fingerprint(data.digests),
    }
    if held_out is not None:
        records = held_out.dataset.records
        run_record["data"]["eval"] = held_out.summary | {
            "targets": targets_digest(records, text_format, held_out.dataset.numbers),
            "supervised": supervised(held_out.dataset),
            "repeated": repeated_texts(records, data.dataset.records),
        }
    pad = pad_token_id(tokenizer)
    trainer = LlavaTrainer(
        model=model,
        args=training_args,
        train_dataset=data.dataset,
        eval_dataset=None if held_out is None else held_out.dataset,
        data_collator=DataCollatorForSupervisedDataset(pad),
        training_collator=TrainingCollator(
            pad,
            templates=model.visual_templates(),
            pack=made.packs,
            flat=made.flat,
            multiple=training_args.pad_to_multiple_of,
            longest=training_args.model_max_length,
        ),
        processing_class=tokenizer,
        lengths=data.lengths,
        modalities=modality_codes(data.dataset.records),
        record_digests=data.digests,
        run_record=run_record,
    )
    return Run(trainer, tokenizer, made.parts, made.exempt, settings.model.from_scratch)
