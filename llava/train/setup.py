"""Everything that a run needs before its first step: data, model, vision features and trainer, each made once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed

from llava.config.flags import Settings
from llava.data.chat_formats import PLAIN
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.forms import targets_digest
from llava.data.prompt import pad_token_id, preprocess_plain_lm
from llava.data.records import modality, without
from llava.train import run_flags, stages
from llava.train.checkpoint import resume
from llava.train.checkpoint.sharding import built_whole
from llava.train.experiments import give_faults, parse_faults
from llava.train.optimizer import parameter_rows, parameter_table
from llava.train.text_format import make_format
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
) -> Run:
    """Data, model, vision features and trainer of a run, as its flags say.

    Args:
        run_record: what checkpoints keep about the run; the data and the parameters are added to it.
        should_stop: asked between the clips of extraction.

    Raises:
        Stopped: when `should_stop` said so.
    """
    model_args, data_args, training_args = settings
    run_record = run_flags.make_run_record(settings) if run_record is None else run_record
    set_seed(training_args.seed)
    tokenizer = stages.load_tokenizer(model_args, training_args)
    data_seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    version = model_args.version
    read = partial(stages.read_records, data_args=data_args, tokenizer=tokenizer, seed=data_seed, version=version)
    records, problems = read(data_args.data_path)
    eval_records, eval_problems = [], []
    if data_args.eval_data_path:
        eval_records, eval_problems = read(data_args.eval_data_path)

    with built_whole(training_args):
        model = stages.make_model(settings, tokenizer)
        template = run_record.get("text_format", {}).get("template")
        text_format = make_format(version, tokenizer, model, template)
    run_record["text_format"] = model.config.text_format
    stages.check_modalities(records, model)
    exempt = stages.freeze_unused(records, model)
    preprocess = preprocess_plain_lm if text_format.version == PLAIN else text_format.preprocess
    trained = give_faults(parse_faults(training_args.experiment_faults), model, preprocess)
    run_record["parameters"] = parameter_rows(model, training_args)
    logger.info("%s", parameter_table(run_record["parameters"]))

    cache = stages.make_cache(settings, model)
    if cache is not None:
        timeout = data_args.clip_timeout
        problems += stages.fill_cache(cache, without(records, problems), model, training_args, timeout, should_stop)
        eval_problems += stages.fill_cache(
            cache, without(eval_records, eval_problems), model, training_args, timeout, should_stop
        )
    dataset, lengths = stages.make_dataset(
        records, problems, settings, tokenizer, model, cache, trained, text_format=text_format
    )
    stages.check_batches(len(dataset), training_args)
    run_record["data"] = {"train": stages.summarise(dataset.records, lengths), "eval": None}
    stages.report_sources("training", run_record["data"]["train"])
    eval_dataset = None
    if data_args.eval_data_path:
        eval_dataset, eval_lengths = stages.make_dataset(
            eval_records, eval_problems, settings, tokenizer, model, cache, preprocess, "bad_eval_samples.jsonl",
            text_format,
        )  # fmt: skip
        run_record["data"]["eval"] = stages.summarise(eval_dataset.records, eval_lengths)
        stages.report_sources("evaluation", run_record["data"]["eval"])
        run_record["data"]["eval"]["targets"] = targets_digest(eval_dataset.records, text_format)

    trainer = LlavaTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        data_collator=DataCollatorForSupervisedDataset(pad_token_id(tokenizer)),
        processing_class=tokenizer,
        lengths=lengths,
        modalities=[modality(r) for r in dataset.records],
        run_record=run_record,
    )
    trainer.record_digests = resume.record_digests(dataset.records)
    run_record["fingerprint"] = resume.fingerprint(trainer.record_digests)
    return Run(trainer, tokenizer, run_flags.tunable_parts(model_args), exempt, model_args.from_scratch)
