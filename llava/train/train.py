"""Training: `torchrun llava/train/train.py --flags`, or `main([...])` from Python."""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # What is imported stays, and looking through it time and again is a tenth of what imports cost.

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from llava.config.flags import Settings
from llava.data.prompt import preprocess_plain_lm
from llava.data.text_format import preprocess
from llava.errors import UserError, run_command
from llava.train import run_flags, sight
from llava.train.checkpoint import resume
from llava.train.checkpoint.files import write_errors_explained
from llava.train.checkpoint.finished import is_finished
from llava.train.checkpoint.frame_changes import report_frame_changes
from llava.train.checkpoint.lock import only_run
from llava.train.checkpoint.stop import Stop
from llava.train.console import closing, example_question
from llava.train.preflight.run import note_not_run, run_preflight
from llava.train.run_data import report_sources
from llava.train.setup import prepare
from llava.train.trainer import LlavaTrainer

__all__ = ["main", "preprocess", "preprocess_plain_lm"]

logger = logging.getLogger("llava")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the flags say; see `--help`."""
    settings = run_flags.parse_arguments(argv)
    training_args = settings.training
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
        run_all(settings, stop)


def run_all(settings: Settings, stop: Stop) -> None:
    """A run from its checks to its report, in a folder that is its own.

    Raises:
        Stopped: when it was told to stop; the same command goes on.
    """
    start, training_args = time.monotonic(), settings.training
    resume.keep_order(training_args)
    run_record = run_flags.make_run_record(settings)
    if resume.on_first_process(lambda: is_finished(training_args, run_record), training_args):
        return
    checkpoint = resume.on_first_process(lambda: resume.find_checkpoint(training_args), training_args)
    earlier = None
    if checkpoint:
        resume.check_resume(checkpoint, run_record, training_args)
        earlier = resume.recorded(checkpoint)
        logger.info("resuming from %s", checkpoint)
        stop.checkpoint = checkpoint

    run = prepare(settings, run_record, stop.requested, earlier)
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
    elif not checkpoint and run.trainer.is_world_process_zero():
        # A run that goes on keeps what was found before its first step.
        note_not_run(Path(training_args.output_dir))
    run.trainer.train(resume_from_checkpoint=checkpoint)
    check_finished(run.trainer)
    run.trainer.save_state()
    run.trainer.save_model()
    report_sources("trained on", run.trainer.run_record["data"]["train"])
    metrics: dict[str, float] = {}
    if run.trainer.eval_dataset is not None:
        metrics = evaluation_of_last_step(run.trainer) or run.trainer.evaluate()
        run.trainer.save_metrics("eval", metrics)
    sight.measure_at_end(run.trainer, metrics)
    if training_args.run_report and run.trainer.is_world_process_zero():
        # Imported here: a run does not draw before its end.
        from llava.report.card import write_card
        from llava.report.page import write_report

        run.trainer.save_state()  # The final evaluation is part of the log.
        write_report([training_args.output_dir])
        write_card(training_args.output_dir)
    sees = run.trainer.model.config.mm_hidden_size is not None
    took = time.monotonic() - start
    trainer = run.trainer
    asked = example_question(trainer.eval_dataset or trainer.train_dataset) if sees else None
    logger.info("%s", closing(Path(training_args.output_dir), trainer.state, took, sees, asked))


def evaluation_of_last_step(trainer: LlavaTrainer) -> dict[str, float]:
    """What training found at its last step, where it evaluated there and the model is still that one; else nothing."""
    if trainer.args.load_best_model_at_end:
        return {}
    found = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if not found or found[-1]["step"] != trainer.state.global_step:
        return {}
    return {name: value for name, value in found[-1].items() if name.startswith("eval_")}


def check_finished(trainer: LlavaTrainer) -> None:
    """A run that ended before its last step has not trained as its flags say, and must not look as if it had.

    Raises:
        ValueError: with both numbers.
    """
    taken, planned = trainer.state.global_step, trainer.state.max_steps
    if taken < planned:
        raise UserError(
            f"training ended after {taken} of {planned} steps, and the model was not saved: the batches ran out, or a "
            "callback stopped it; look at the number of records, --dataloader_drop_last and the batch size"
        )


if __name__ == "__main__":
    gc.enable()
    gc.freeze()  # Collections leave out what was imported, so that forked data workers share its memory, too.
    # `record` hands the error to torchrun, whose last lines then name it.
    run_command(record(main))
