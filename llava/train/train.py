"""Training: `torchrun llava/train/train.py --flags`, or `main([...])` from Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record
from transformers import PreTrainedTokenizerBase, set_seed

from llava.data.chat_formats import PLAIN
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.forms import targets_digest
from llava.data.prompt import pad_token_id, preprocess_plain_lm
from llava.data.records import modality, without
from llava.data.text_format import preprocess as preprocess
from llava.errors import run_command
from llava.train import resume, run_flags, sight, stages
from llava.train.checkpoints import write_errors_explained
from llava.train.experiments import give_faults, parse_faults
from llava.train.frame_changes import report_frame_changes
from llava.train.llava_trainer import LlavaTrainer
from llava.train.lock import only_run
from llava.train.parameters import parameter_rows, parameter_table
from llava.train.preflight import run_preflight
from llava.train.sharding import built_whole
from llava.train.stop import Stop

logger = logging.getLogger("llava")


@dataclass(frozen=True)
class Run:
    """A run that is ready to start: `parts` train, but for the parameters in `exempt`, with the reason of each."""

    trainer: LlavaTrainer
    tokenizer: PreTrainedTokenizerBase
    parts: list[str]
    exempt: dict[str, str]
    fresh: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the flags say; see `--help`."""
    args = run_flags.parse_arguments(argv)
    training_args = args[2]
    is_main = training_args.process_index == 0
    logging.basicConfig(level=logging.INFO if is_main else logging.WARNING, format="%(message)s")
    folder, rank, ranks = training_args.output_dir, training_args.process_index, training_args.world_size
    asked = str(training_args.resume_from_checkpoint).lower()
    remedy = "the same command goes on" if asked in ("auto", "true") else "--resume_from_checkpoint True goes on"
    with (
        write_errors_explained(folder, limit=training_args.save_total_limit),
        only_run(folder, rank, ranks),
        Stop(folder, rank, ranks, training_args.device, remedy) as stop,
    ):
        run_all(args, stop)


def run_all(args: run_flags.Arguments, stop: Stop) -> None:
    """A run from its checks to its report, in a folder that is its own.

    Raises:
        Stopped: when it was told to stop; the same command goes on.
    """
    training_args = args[2]
    checkpoint = resume.on_first_process(lambda: resume.find_checkpoint(training_args), training_args)
    run_record = run_flags.make_run_record(args)
    if checkpoint:
        resume.check_resume(checkpoint, run_record, training_args)
        run_record["text_format"] = {"template": resume.pinned_template(checkpoint)}
        logger.info("resuming from %s", checkpoint)
        stop.checkpoint = checkpoint

    run = prepare(args, run_record, stop.requested)
    run.trainer.stop = stop
    if checkpoint:
        dataset = run.trainer.train_dataset
        resume.check_data(checkpoint, run.trainer.record_digests, dataset.records, training_args)
        if training_args.process_index == 0:
            report_frame_changes(checkpoint, run_record, dataset.records, dataset.spec)
    stop.check()
    if training_args.preflight != "off":
        run_preflight(run.trainer, run.tokenizer, run.parts, run.exempt, run.fresh)
        stop.check()
    run.trainer.train(resume_from_checkpoint=checkpoint)
    check_finished(run.trainer)
    run.trainer.save_state()
    run.trainer.save_model()
    metrics: dict[str, float] = {}
    if run.trainer.eval_dataset is not None:
        metrics = run.trainer.evaluate()
        run.trainer.log_metrics("eval", metrics)
        run.trainer.save_metrics("eval", metrics)
    sight.measure_at_end(run.trainer, metrics)
    if training_args.run_report and run.trainer.is_world_process_zero():
        # Imported here: a run does not draw before its end.
        from llava.eval.report import write_report

        run.trainer.save_state()  # The final evaluation is part of the log.
        logger.info("report: %s", write_report([training_args.output_dir]))
    logger.info("done: %s", training_args.output_dir)


def check_finished(trainer: LlavaTrainer) -> None:
    """A run that ended before its last step has not trained as its flags say, and must not look as if it had.

    Raises:
        ValueError: with both numbers.
    """
    taken, planned = trainer.state.global_step, trainer.state.max_steps
    if taken < planned:
        raise ValueError(
            f"training ended after {taken} of {planned} steps, and the model was not saved: the batches ran out, or a "
            "callback stopped it; look at the number of records, --dataloader_drop_last and the batch size"
        )


def prepare(
    args: run_flags.Arguments,
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
    model_args, data_args, training_args = args
    run_record = run_flags.make_run_record(args) if run_record is None else run_record
    set_seed(training_args.seed)
    tokenizer = stages.load_tokenizer(model_args, training_args)
    records, problems = stages.read_records(data_args.data_path, data_args, tokenizer, model_args.version)
    eval_records, eval_problems = [], []
    if data_args.eval_data_path:
        eval_records, eval_problems = stages.read_records(
            data_args.eval_data_path, data_args, tokenizer, model_args.version
        )

    with built_whole(training_args):
        model = stages.make_model(args, tokenizer)
        template = run_record.get("text_format", {}).get("template")
        text_format = stages.make_format(model_args.version, tokenizer, model, template)
    run_record["text_format"] = model.config.text_format
    stages.check_modalities(records, model)
    exempt = stages.freeze_unused(records, model)
    plainly = preprocess_plain_lm if text_format.version == PLAIN else text_format.preprocess
    trained = give_faults(parse_faults(training_args.experiment_faults), model, plainly)
    run_record["parameters"] = parameter_rows(model, training_args)
    logger.info("%s", parameter_table(run_record["parameters"]))

    cache = stages.make_cache(args, model)
    if cache is not None:
        timeout = data_args.clip_timeout
        problems += stages.fill_cache(cache, without(records, problems), model, training_args, timeout, should_stop)
        eval_problems += stages.fill_cache(
            cache, without(eval_records, eval_problems), model, training_args, timeout, should_stop
        )
    dataset, lengths = stages.make_dataset(
        records, problems, args, tokenizer, model, cache, trained, text_format=text_format
    )
    stages.check_batches(len(dataset), training_args)
    run_record["data"] = {"train": stages.summarise(dataset.records, lengths), "eval": None}
    eval_dataset = None
    if data_args.eval_data_path:
        eval_dataset, eval_lengths = stages.make_dataset(
            eval_records, eval_problems, args, tokenizer, model, cache, plainly, "bad_eval_samples.jsonl", text_format
        )
        run_record["data"]["eval"] = stages.summarise(eval_dataset.records, eval_lengths)
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
    trainer.record_digests = resume.record_digests(dataset.records, data_args)
    run_record["fingerprint"] = resume.fingerprint(trainer.record_digests)
    return Run(trainer, tokenizer, run_flags.tunable_parts(model_args), exempt, model_args.from_scratch)


if __name__ == "__main__":
    # `record` hands the error to torchrun, whose last lines then name it.
    run_command(record(main))
