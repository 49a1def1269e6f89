"""Pre-flight: what must hold before the first step, checked on the run's own data, model and optimiser.

Runs before every training (`--preflight quick`, `full` or `off`), and alone with the flags of the run:
`python -m llava.train.preflight --same-flags`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from llava.data.collator import fetched
from llava.data.columns import representatives
from llava.data.records import spread
from llava.errors import UserError
from llava.train import run_flags
from llava.train.console import planned_steps
from llava.train.monitor.invariants import schedule_of
from llava.train.optimizer import part_learning_rates, rate_parts
from llava.train.preflight import arms as preflight_arms
from llava.train.preflight import features as preflight_features
from llava.train.preflight import isolation as preflight_isolation
from llava.train.preflight import model as on_model
from llava.train.preflight import training as on_training
from llava.train.preflight import words as preflight_words
from llava.train.preflight.captions import check_captions
from llava.train.preflight.clips import check_clips
from llava.train.preflight.data import (
    Finding,
    check_format,
    check_labels,
    check_remarks,
    check_text_form,
    check_tokens,
    show_samples,
)
from llava.train.preflight.held_out import check_held_out
from llava.train.setup import prepare
from llava.train.trainer import LlavaTrainer

logger = logging.getLogger(__name__)

PREFLIGHT_FILE = "preflight.json"
SAMPLES_FILE = "preflight_samples.html"
LAYOUT_SAMPLES, LAYOUT_POSITIONS = 8, 1600
"""Samples of all lengths whose layouts are compared, and positions that they may take."""
QUICK_SAMPLES, QUICK_POSITIONS, GRADIENT_POSITIONS = 4, 800, 400
"""Samples of a modality that a quick pre-flight sends through the model's first blocks, and the positions that they may
take, two samples at least; and positions that go through the model there and back, one sample at least."""
COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "FAIL": "bold red"}


class PreflightError(UserError):
    """A run that must not start; says every failed check and its remedy."""


def run_preflight(
    trainer: LlavaTrainer,
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[str],
    exempt: Mapping[str, str],
    fresh: bool,
) -> list[Finding]:
    """Every check that `trainer.args.preflight` asks for, printed as a table and written to `preflight.json`.

    Args:
        parts: the parts that the flags let train.
        exempt: parameters of those parts that cannot learn from this data, with the reason.
        fresh: whether the language model's weights were just drawn.

    Raises:
        PreflightError: when a check fails, on every rank.
    """
    args = trainer.args
    findings: list[Finding] = []
    started = time.perf_counter()
    if trainer.is_world_process_zero():
        devices = [args.device] if args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            with preflight_words.remembered_tokens(trainer.train_dataset):
                findings = _check_data(trainer, tokenizer)
            # A batch with wrong labels or tokens would fail every later check for the same reason.
            if not any(f.status == "FAIL" and f.check == "visual tokens" for f in findings):
                findings += _check_model(trainer, parts, exempt, fresh)
        seconds = time.perf_counter() - started
        _write(Path(args.output_dir), args.preflight, findings, seconds)
        print_table(findings, args.preflight, seconds)
    if args.world_size > 1:
        shared = [findings]
        torch.distributed.broadcast_object_list(shared, src=0)
        findings = shared[0]
    failed = [f for f in findings if f.status == "FAIL"]
    if failed:
        listed = "\n".join(f"  - {f.check}: {f.finding}\n    remedy: {f.remedy}" for f in failed)
        raise PreflightError(f"pre-flight found {len(failed)} reason(s) not to train:\n{listed}")
    return findings


def _check_data(trainer: LlavaTrainer, tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    dataset, config = trainer.train_dataset, trainer.model.config
    ids = config.visual_token_ids or {}
    tokens = check_tokens(tokenizer, ids, trainer.model.get_input_embeddings().num_embeddings)
    if tokens.status == "FAIL":
        return [tokens]
    texts, page = show_samples(dataset, tokenizer, list(ids.values()), trainer.args.show_samples)
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SAMPLES_FILE).write_text(page, encoding="utf-8")
    console = Console(stderr=True)
    for text in texts:
        console.print(text)
    findings = [tokens, *check_format(dataset.text_format, tokenizer)]
    findings += [*check_labels(dataset, trainer.data_collator, tokenizer, list(ids.values()))]
    findings += check_remarks(dataset.records)
    text_form = check_text_form(dataset, tokenizer, list(ids.values()))
    findings += [text_form] if text_form is not None else []
    evaluation = trainer.eval_dataset.records if trainer.eval_dataset is not None else None
    findings += [*check_captions(dataset.records, evaluation, tokenizer, trainer.entropies), *check_clips(dataset)]
    if not any(f.status == "FAIL" for f in findings):
        findings += preflight_words.check_words(dataset, tokenizer)
    if trainer.eval_dataset is not None:
        held_out = check_held_out(
            dataset.records, trainer.eval_dataset.records, getattr(dataset.cache, "contents", None)
        )
        findings += [held_out] if held_out is not None else []
    return findings


def _check_model(trainer: LlavaTrainer, parts: Sequence[str], exempt: Mapping[str, str], fresh: bool) -> list[Finding]:
    # DeepSpeed and FSDP spread the weights when training starts; until then each process has the whole model.
    args, model = trainer.args, trainer.model
    findings = on_training.check_trainable(model, parts, exempt)
    findings += on_training.check_lora(model, trainer.run_record.get("flags", {}))
    model.to(args.device)
    context = trainer.accelerator.autocast
    trained = model.training
    model.eval()
    dataset = trainer.train_dataset
    seen = any(r.videos or r.images for r in dataset.records)
    if dataset.cache is not None and seen and model.vision_tower is not None:
        findings.append(preflight_features.check_cache(dataset, model.vision_tower.to(args.device)))
    passes: list[on_training.Pass] = []
    chosen = real_samples(trainer)
    findings += preflight_arms.check_arm(dataset, {i: s for kind, found in chosen.items() if kind != "text"
                                                   for i, s in found.items()})  # fmt: skip
    for kind, samples in chosen.items():
        found = _check_kind(trainer, kind, samples)
        findings += found
        if not any(f.status == "FAIL" and f.check.startswith("numerics") for f in found):
            passes += _gradient_passes(trainer, kind, list(samples.values())[:QUICK_SAMPLES])
    if not any(f.status == "FAIL" for f in findings):
        findings.append(_check_layout(trainer))
    model.train()
    findings.append(on_training.check_dropout(model))
    if passes:
        wanted = on_training.expected_to_train(model, parts, exempt)

        def loss_of(batch: dict[str, Any]) -> torch.Tensor:
            with context():
                return trainer.compute_loss(model, batch)

        scale = 1024.0 if args.fp16 else 1.0
        found, losses = on_training.check_gradients(model, passes, wanted, loss_of, scale)
        quick = args.preflight != "full"
        findings += [f for f in found if quick or f.status == "FAIL" or not f.check.startswith("numerics")]
        vocabulary = model.config.vocab_size
        findings += [on_model.check_start(loss, kind, fresh, parts, vocabulary) for kind, loss in losses.items()]
    findings += _check_optimizer(trainer)
    if args.preflight == "full" and not any(f.status == "FAIL" for f in findings):
        for kind, batch in real_batches(trainer, args.per_device_train_batch_size).items():
            findings.append(
                on_training.check_overfit(
                    model, batch, kind, lambda twin: _optimizer_of(trainer, twin), context, args.max_grad_norm
                )
            )
    model.train(trained)
    return findings


def _check_kind(trainer: LlavaTrainer, kind: str, samples: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """The checks of one modality that need no gradient; `samples` by their index in the training set."""
    model, context, full = trainer.model, trainer.accelerator.autocast, trainer.args.preflight == "full"
    blocks = None if full else preflight_isolation.quick_blocks(model)
    served = list(samples.values())
    findings = [preflight_words.check_samples(trainer.train_dataset, samples, trainer.training_collator, kind)]
    if findings[0].status == "FAIL":
        return findings
    clips = len({clip for index in samples for clip in trainer.train_dataset.shown(index)})
    findings += on_model.check_vision_inputs(_on_device(trainer, trainer.data_collator(served)), kind, clips)
    if any(f.status == "FAIL" and f.check.startswith("numerics") for f in findings):
        return findings
    some = served[: QUICK_SAMPLES * 4] if full else _within(served[:QUICK_SAMPLES], QUICK_POSITIONS, least=2)
    with preflight_isolation.shallow(model, blocks):
        plain, training = both_layouts(trainer, some)
        numerics, reference = on_model.check_numerics(model, plain, kind, context)
        # A quick pre-flight says so of the whole model, with the gradients.
        findings += [numerics] if full or numerics.status == "FAIL" else []
        if numerics.status == "FAIL":
            return findings
        layout, loss = on_model.check_layout(model, reference, training, context)
        findings += [layout] if layout.status == "FAIL" else []
        findings += on_model.check_loss(reference, loss, kind)
        # All logits of a long sample of a large vocabulary would fill the memory.
        words = min(_words_alone(trainer, some), key=lambda s: len(s["input_ids"]))
        alone = _on_device(trainer, trainer.data_collator([words]))
        findings.append(on_model.check_own_loss(model, alone, kind, context))
        if kind != "text":
            findings += on_model.check_use_of_video(model, reference, kind, context)
    if any(f.status == "FAIL" for f in findings):
        return findings
    own = trainer.args.per_device_train_batch_size
    batch, number = served[:own], min(own, len(served))
    if not full:
        number = preflight_isolation.samples_within(model, max(len(s["input_ids"]) for s in batch), number)
    findings += preflight_isolation.check_apart(
        model, both_layouts(trainer, batch[:number])[1], kind, context, blocks, own
    )
    return findings


def _gradient_passes(trainer: LlavaTrainer, kind: str, samples: Sequence[dict[str, Any]]) -> list[on_training.Pass]:
    """How some samples of a modality go through the model and back.

    Most positions of a sample with vision are no words. In a quick pre-flight the whole model gives its loss, and the
    first blocks the gradients of vision, whose rows meet the words there; those of all blocks come from words alone.
    """

    def batch(of: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return _on_device(trainer, trainer.data_collator(_within(of, GRADIENT_POSITIONS, least=1)))

    whole = batch(samples)
    if kind == "text" or trainer.args.preflight == "full":
        return [on_training.Pass(kind, whole)]
    return [
        on_training.Pass(kind, whole, back=False),
        on_training.Pass(kind, whole, preflight_isolation.quick_blocks(trainer.model)),
        on_training.Pass(kind, batch(_words_alone(trainer, samples))),
    ]


def _words_alone(trainer: LlavaTrainer, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    visual_ids = (trainer.model.config.visual_token_ids or {}).values()
    return [preflight_words.words_alone(sample, list(visual_ids)) for sample in samples]


def _check_layout(trainer: LlavaTrainer) -> Finding:
    """Layouts of samples of all lengths and modalities together."""
    size = LAYOUT_SAMPLES
    by_length = np.argsort(trainer.lengths, kind="stable")
    while size > 2 and sum(trainer.lengths[i] for i in spread(by_length, size)) > LAYOUT_POSITIONS:
        size -= 1
    chosen = spread(by_length, size)
    lengths = [trainer.lengths[i] for i in chosen]
    alone = len(trainer.training_collator.rows_of(lengths)) == len(chosen)
    if alone and len(np.unique(trainer.modalities)) == 1:
        words = f"one sample a row ({len(chosen)} samples of {lengths[0]} to {lengths[-1]} positions)"
        return Finding("layout of batches", "ok", f"{words}: losses are those without the training's layout")
    plain, training = layouts(trainer, size)
    model, context = trainer.model, trainer.accelerator.autocast
    with preflight_isolation.shallow(
        model, None if trainer.args.preflight == "full" else preflight_isolation.quick_blocks(model)
    ):
        return on_model.check_layout(model, on_model.look(model, plain, context), training, context)[0]


def _optimizer_of(trainer: LlavaTrainer, model: Any) -> torch.optim.Optimizer:
    """The optimiser that the trainer would make for a model; the trainer keeps none."""
    trainer.optimizer = None
    try:
        return trainer.create_optimizer(model)
    finally:
        trainer.optimizer = None


def _check_optimizer(trainer: LlavaTrainer) -> list[Finding]:
    args = trainer.args
    optimizer = _optimizer_of(trainer, trainer.model)
    steps = planned_steps(args, len(trainer.train_dataset))
    scheduler = schedule_of(args, optimizer, steps)
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])  # The schedule has already set that of step 0.
    peak, area = on_training.schedule_shape(scheduler, steps)
    by_part = part_learning_rates(args)
    rates = {name: (part, by_part[part]) for name, part in rate_parts(trainer.model, args).items()}
    return on_training.check_optimizer(optimizer, trainer.model, rates, peak, area)


def real_samples(trainer: LlavaTrainer, size: int | None = None) -> dict[str, dict[int, dict[str, Any]]]:
    """Training samples of each modality by their index, of different clips where there are; by default as many as a
    batch of the run has, or `QUICK_SAMPLES`.
    """
    dataset = trainer.train_dataset
    size = max(trainer.args.per_device_train_batch_size, QUICK_SAMPLES) if size is None else size
    firsts, shown = representatives(dataset.records)
    clips: dict[Any, int] = {}
    clip_of = np.array([clips.setdefault((r.videos, r.images, r.split), len(clips)) for r in firsts])[shown]
    found = {}
    for kind, members in dataset.forms().items():
        if kind != "text":
            members = members[np.sort(np.unique(clip_of[members], return_index=True)[1])]
        chosen = spread(members.tolist(), size)
        found[kind] = dict(zip(chosen, fetched([dataset[i] for i in chosen]), strict=True))
    return found


def real_batches(trainer: LlavaTrainer, size: int) -> dict[str, dict[str, Any]]:
    """`real_samples` as one batch of each modality on the trainer's device."""
    return {
        kind: _on_device(trainer, trainer.data_collator(list(samples.values())))
        for kind, samples in real_samples(trainer, size).items()
    }


def _within(samples: Sequence[dict[str, Any]], positions: int, least: int) -> list[dict[str, Any]]:
    """The first samples that take no more than some positions, but `least` of them."""
    longest = max(len(s["input_ids"]) for s in samples)
    return list(samples[: max(least, positions // longest)])


def layouts(trainer: LlavaTrainer, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch of training samples one a row, and in the layout of training; samples of all lengths, in one order."""
    by_length = np.argsort(trainer.lengths, kind="stable")
    return both_layouts(trainer, [trainer.train_dataset[i] for i in spread(by_length, size)])


def both_layouts(trainer: LlavaTrainer, samples: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch of samples one a row, and in the layout of training; in one order."""
    placed = [{**sample, "sample_id": str(n)} for n, sample in enumerate(samples)]  # Ids of records may repeat.
    training = trainer.training_collator(placed)
    order = [int(n) for n in training["sample_ids"]]
    plain = trainer.data_collator([placed[n] for n in order])
    for batch in (plain, training):
        batch["sample_ids"] = [samples[n]["sample_id"] for n in order]
    return _on_device(trainer, plain), _on_device(trainer, training)


def _on_device(trainer: LlavaTrainer, batch: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(trainer.args.device) if torch.is_tensor(v) else v for k, v in batch.items()}


def _write(folder: Path, mode: str, findings: Sequence[Finding], seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "mode": mode,
        "passed": not any(f.status == "FAIL" for f in findings),
        "seconds": round(seconds, 2),
        "checks": [{k: v for k, v in asdict(f).items() if v is not None} for f in findings],
    }
    (folder / PREFLIGHT_FILE).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def note_not_run(folder: Path) -> None:
    """Writes that pre-flight was off, in place of what an earlier run in the folder found."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PREFLIGHT_FILE).write_text(json.dumps({"mode": "off", "checks": []}) + "\n", encoding="utf-8")
    (folder / SAMPLES_FILE).unlink(missing_ok=True)


def print_table(findings: Sequence[Finding], mode: str, seconds: float) -> None:
    """The findings as a table on standard error."""
    table = Table(box=box.SIMPLE_HEAD, title=f"Pre-flight ({mode}, {seconds:.1f} s)", title_justify="left")
    for column in ("check", "status", "finding"):
        table.add_column(column, overflow="fold")
    for f in findings:
        remedy = f"\nremedy: {f.remedy}" if f.remedy else ""
        table.add_row(f.check, f"[{COLOURS[f.status]}]{f.status}[/]", Text(f.finding + remedy))
    Console(stderr=True, width=None if sys.stderr.isatty() else 120).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-flight alone: takes the flags of `llava/train/train.py` and trains nothing."""
    settings = run_flags.parse_arguments(argv)
    training_args = settings.training
    logging.basicConfig(
        level=logging.INFO if training_args.process_index == 0 else logging.WARNING, format="%(message)s"
    )
    if training_args.preflight == "off":
        raise UserError("--preflight off: there is nothing to do; use quick or full")
    run = prepare(settings)
    try:
        run_preflight(run.trainer, run.tokenizer, run.parts, run.exempt, run.fresh)
    except PreflightError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0
