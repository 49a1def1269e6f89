"""What a run tells about itself while it trains: losses by modality, gradients and updates by group, speed, alarms.

Sums are kept on the device and read only at the steps that are measured: each of the first 20, where most faults
show, then those that are logged, and two at the end, 20 steps apart. Loss and gradient norm of every step are read
then too, for spikes.

Letters in shapes: B batch, L positions.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from llava.constants import ALARMS_FILE, FILLER_ID, IGNORE_INDEX
from llava.model.builder import parameter_groups, part_of
from llava.train.monitor.alarms import LAST_STEPS, WAITING_SECONDS, WAITING_STEPS, Alarm, AlarmRules, Observation
from llava.train.monitor.spikes import SPIKE_STEPS

logger = logging.getLogger(__name__)

FIRST_STEPS = 20
SAMPLED = 16_384
"""Weights of a tensor that the update-to-weight ratio is taken over."""
SETTLING_STEPS = 5
"""Steps whose waiting for data is not judged: workers start."""

KINDS = ("caption", "text", "visual")
_SUMS = (
    "caption_nats", "caption_tokens", "text_nats", "text_tokens", "visual_nats", "visual_tokens",
    "samples", "videos", "images", "positions", "padding",
)  # fmt: skip


def batch_sums(token_losses: torch.Tensor, batch: Mapping[str, Any], visual_ids: torch.Tensor) -> torch.Tensor:
    """The sums that one batch adds, in the order of `_SUMS`, on its device and without waiting for it.

    Args:
        token_losses: (B, L - 1), of `VisionCausalLM.forward`.
        batch: collated, with `input_ids`, `labels`, `attention_mask` (B, L), `num_videos`, `num_images` of the
            samples, and `segment_ids` (B, L) when several may share a row.
        visual_ids: ids of the visual tokens.
    """
    targets = batch["labels"][:, 1:]
    supervised = targets != IGNORE_INDEX
    visual = torch.isin(targets, visual_ids) & supervised
    words = supervised & ~visual
    seen = batch["num_videos"] + batch["num_images"] > 0
    segments = batch.get("segment_ids")
    seen = seen[:, None] if segments is None else seen[segments[:, 1:].clamp(min=0)]
    parts = torch.stack([words & seen, words & ~seen, visual])
    nats = torch.where(parts, token_losses, 0.0).sum((1, 2))
    losses = torch.stack([nats, parts.sum((1, 2)).to(nats)], dim=1).flatten()
    mask = batch["attention_mask"]
    counts = (batch["num_videos"].sum(), batch["num_images"].sum(), mask.numel() - mask.sum())
    videos, images, padding = (c.to(losses) for c in counts)
    records = len(batch["num_videos"]) - batch.get("sample_ids", []).count(FILLER_ID)
    samples, positions = (losses.new_full((), n) for n in (records, mask.numel()))
    return torch.cat([losses, torch.stack([samples, videos, images, positions, padding])])


class RunMonitor(TrainerCallback):
    """Measures, logs and sounds alarms; `LlavaTrainer` feeds it.

    Args:
        model: with the parameters that train already chosen.
        output_dir: where `alarms.jsonl` is written.
        reduce: sums a tensor over all ranks.
        write_text: (tag, text, step) to TensorBoard.
        is_main: whether this process writes.
        sharded: parameters or gradients are spread over ranks (DeepSpeed, FSDP), so that norms cannot be taken here.
        entropies: of the targets, as `llava.train.monitor.alarms.AlarmRules` takes them.
    """

    def __init__(
        self,
        model: nn.Module,
        output_dir: str | Path,
        reduce: Callable[[torch.Tensor], torch.Tensor],
        write_text: Callable[[str, str, int], None],
        is_main: bool = True,
        sharded: bool = False,
        entropies: Mapping[str, float] | None = None,
    ) -> None:
        self.groups: dict[str, list[nn.Parameter]] = {}
        self.parts: dict[str, str] = {}
        groups = parameter_groups(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not sharded:
                self.groups.setdefault(groups[name], []).append(parameter)
                self.parts[groups[name]] = part_of(name)
        if sharded and is_main:
            logger.info("gradients and updates of each group are not measured: they are spread over the processes")
        self.vocabulary, self.entropies = model.config.vocab_size, entropies
        self.visual_ids = torch.tensor(sorted((model.config.visual_token_ids or {}).values()))
        self.path, self.reduce, self.write_text, self.is_main = Path(output_dir), reduce, write_text, is_main
        self.sums: torch.Tensor | None = None
        self.logged = dict.fromkeys(_SUMS, 0.0)
        self.norms: dict[str, float] = {}
        self.ratios: dict[str, float] = {}
        self.rates: dict[str, float] = {}
        self.measuring = False
        self.grad_norm: Any = None
        """Of the step at hand, before clipping; the trainer sets it."""
        self.step_sums: list[torch.Tensor] = []
        self.step_ids: list[str] = []
        self.unread: list[tuple[int, list[torch.Tensor], list[str], Any]] = []
        """Steps whose loss and gradient norm are on the device: step, sums of its batches, sample ids, norm."""
        self.before: dict[str, list[torch.Tensor]] = {}
        self.waited = self.trained = self.own = 0.0
        self.log_times = (0.0, 0.0, 0.0)
        self.window = [0.0, 0.0, 0]
        self.step_start = 0.0
        self.observed_loss = math.nan
        self.alarms: list[Alarm] = []

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the time of a block as the monitor's own."""
        start = time.perf_counter()
        yield
        self.own += time.perf_counter() - start

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rules = AlarmRules(self.vocabulary, args.get_warmup_steps(state.max_steps), self.entropies)
        # The run's own: DeepSpeed and FSDP move the model after the monitor was made.
        self.device = args.device
        self.every = max(1, int(state.logging_steps or 1))
        self.last_step = state.max_steps

    def waiting(self, seconds: float, step: int) -> None:
        """Time that the trainer spent until a step's batches were there."""
        self.waited += seconds
        if step >= SETTLING_STEPS:
            self.window[0] += seconds
            self.window[2] += 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step + 1
        self.measuring = step <= FIRST_STEPS or step % self.every == 0
        self.measuring |= step in (self.last_step - LAST_STEPS, self.last_step)
        self.settled = state.global_step >= SETTLING_STEPS
        self.step_sums, self.step_ids, self.grad_norm = [], [], None
        self.step_start = time.perf_counter()

    def add_batch(self, token_losses: torch.Tensor, batch: Mapping[str, Any]) -> None:
        """Adds the losses and counts of one batch."""
        with self.timed(), torch.no_grad():
            self.visual_ids = self.visual_ids.to(token_losses.device)
            sums = batch_sums(token_losses.float(), batch, self.visual_ids)
            self.sums = sums if self.sums is None else self.sums + sums
            self.step_sums.append(sums)
            self.step_ids += [name for name in batch.get("sample_ids", []) if name != FILLER_ID]

    def measure_gradients(self, scale: float = 1.0) -> None:
        """Norm of each group's gradient as it is now, before clipping; `scale` is what the loss was multiplied by."""
        if not self.measuring:
            return
        with self.timed(), torch.no_grad():
            self.norms = {
                group: value / scale
                for group, value in _norms({g: [p.grad for p in ps] for g, ps in self.groups.items()}).items()
            }

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.measuring:
            with self.timed(), torch.no_grad():
                self.before = {g: [sample_weights(p).clone() for p in ps] for g, ps in self.groups.items()}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if not self.measuring:
            return
        with self.timed(), torch.no_grad():
            weights = _norms(self.before)
            changes = _norms(
                {g: torch._foreach_sub([sample_weights(p) for p in self.groups[g]], b) for g, b in self.before.items()}
            )
            self.before = {}
            self.ratios = {g: changes[g] / weights[g] if weights[g] else math.nan for g in changes}
            rates = {group["name"].split(",")[0]: float(group["lr"]) for group in optimizer.param_groups}
            self.rates = {g: rates[part] for g, part in self.parts.items() if part in rates}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # What is read here waits for the device, so the clock of a measured step stops after it.
        found = []
        with self.timed():
            self.unread.append((state.global_step, self.step_sums, self.step_ids, self.grad_norm))
            if self.measuring:
                observation = self._observe(state.global_step)
                self.observed_loss = observation.loss
                found = self.rules.update(observation)
            if self.measuring or len(self.unread) >= SPIKE_STEPS:
                found += self._read_steps()
        took = time.perf_counter() - self.step_start
        self.trained += took
        if self.settled:
            self.window[1] += took
        for alarm in found:
            self.sound(alarm)

    def _read_steps(self) -> list[Alarm]:
        """The spikes among the steps since the last call, read from the device at once."""
        steps, self.unread = [step for step in self.unread if step[1]], []
        if not steps:
            return []
        rows = torch.stack([sums for _, parts, _, _ in steps for sums in parts])
        owners = [i for i, (_, parts, _, _) in enumerate(steps) for _ in parts]
        sums = rows.new_zeros(len(steps), len(_SUMS)).index_add_(0, torch.tensor(owners, device=rows.device), rows)
        totals = [dict(zip(_SUMS, values, strict=True)) for values in self.reduce(sums).tolist()]
        norms = _read([norm for *_, norm in steps])
        found = []
        for (step, _, ids, _), total, norm in zip(steps, totals, norms, strict=True):
            nats, tokens = (sum(total[f"{kind}_{what}"] for kind in KINDS) for what in ("nats", "tokens"))
            alarm = self.rules.spike(step, nats / max(tokens, 1), norm, tokens, ids)
            found += [alarm] if alarm is not None else []
        return found

    def _observe(self, step: int) -> Observation:
        # Losses are those since the last observation; gradients are this step's, and so is what could give them.
        both = torch.stack([self.sums, torch.stack(self.step_sums).sum(0)])
        sums, shown = (dict(zip(_SUMS, row, strict=True)) for row in self.reduce(both).tolist())
        self.sums = None
        for name, value in sums.items():
            self.logged[name] += value
        waited, trained, steps = self.window
        if steps >= WAITING_STEPS and waited + trained >= WAITING_SECONDS:
            self.window = [0.0, 0.0, 0]
        nats, tokens = (sum(sums[f"{kind}_{what}"] for kind in KINDS) for what in ("nats", "tokens"))
        return Observation(
            step=step,
            loss=nats / max(tokens, 1),
            caption_loss=_ratio(sums["caption_nats"], sums["caption_tokens"]),
            text_loss=_ratio(sums["text_nats"], sums["text_tokens"]),
            visual_targets=int(sums["visual_tokens"]),
            other_targets=int(tokens - sums["caption_tokens"]),
            videos=int(shown["videos"]),
            images=int(shown["images"]),
            grad_norms=self.norms,
            update_ratios=self.ratios,
            learning_rates=self.rates,
            waited=waited / max(waited + trained, 1e-9),
            waited_steps=int(steps),
            waited_window=waited + trained,
            is_last=step == self.last_step,
        )

    def metrics(self) -> dict[str, float]:
        """What was measured since the last call, for the log."""
        sums, self.logged = self.logged, dict.fromkeys(_SUMS, 0.0)
        last, self.log_times = self.log_times, (self.waited, self.trained, self.own)
        waited, trained, own = (now - before for now, before in zip(self.log_times, last, strict=True))
        seconds = max(waited + trained, 1e-9)
        found = {
            "caption_loss": _ratio(sums["caption_nats"], sums["caption_tokens"]),
            "text_loss": _ratio(sums["text_nats"], sums["text_tokens"]),
            "visual_target_loss": _ratio(sums["visual_nats"], sums["visual_tokens"]),
            "supervised_tokens_per_second": (sums["caption_tokens"] + sums["text_tokens"]) / seconds,
            "samples_per_second": sums["samples"] / seconds,
            "padding_share": _ratio(sums["padding"], sums["positions"]),
            "data_wait_share": waited / seconds,
            "monitor_share": own / seconds,
        }
        for name, values in (("grad_norm", self.norms), ("update_ratio", self.ratios), ("learning_rate", self.rates)):
            found |= {f"{name}/{group}": value for group, value in values.items()}
        return {name: value for name, value in found.items() if value is not None}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run logs and warns as one that never stopped; of `sums` each
        process keeps its own.
        """
        for alarm in self._read_steps():
            self.sound(alarm)
        measured = {name: getattr(self, name) for name in ("logged", "norms", "ratios", "rates")}
        return measured | {"rules": self.rules.state()}

    def restore(self, state: Mapping[str, Any], sums: Sequence[float] | None) -> None:
        """Takes up a `state`, after `on_train_begin`, with this process's sums."""
        for name in ("logged", "norms", "ratios", "rates"):
            setattr(self, name, dict(state[name]))
        self.rules.restore(state["rules"])
        self.sums = None if sums is None else torch.tensor(sums, device=self.device)
        path = self.path / ALARMS_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.alarms = [Alarm(**{f.name: json.loads(line)[f.name] for f in fields(Alarm)}) for line in lines]

    def sound(self, alarm: Alarm) -> None:
        """Writes an alarm to the log, TensorBoard and `alarms.jsonl`."""
        self.alarms.append(alarm)
        if not self.is_main:
            return
        logger.warning("%s", alarm)
        self.write_text("alarm", str(alarm), alarm.step)
        self.path.mkdir(parents=True, exist_ok=True)
        line = asdict(alarm) | {"time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        with open(self.path / ALARMS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def keep_until(path: Path, step: int) -> int:
    """Drops the lines of a JSONL file after `step`, written by an attempt that this run does not go on from, and a line
    that a kill left half-written; returns how many.
    """
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and (json.loads(line).get("step") or 0) <= step]
    if len(kept) < len(lines):
        path.write_text("".join(kept), encoding="utf-8")
    return len(lines) - len(kept)


def sample_weights(parameter: nn.Parameter) -> torch.Tensor:
    """At most about `SAMPLED` evenly spaced weights of a tensor: enough for a ratio, and 100 times cheaper than all."""
    flat = parameter.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLED)]


def _norms(tensors: Mapping[str, Sequence[torch.Tensor | None]]) -> dict[str, float]:
    """Euclidean norm of each group of tensors, read from the device at once; None counts as zeros."""
    present = {group: [t for t in listed if t is not None] for group, listed in tensors.items()}
    norms = [
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(listed))) if listed else torch.zeros(())
        for listed in present.values()
    ]
    if not norms:
        return {}
    device = max(norms, key=lambda n: n.device.type != "cpu").device
    return dict(zip(present, torch.stack([n.float().to(device) for n in norms]).tolist(), strict=True))


def _read(values: Sequence[torch.Tensor | float | None]) -> list[float | None]:
    """Numbers of which some are on a device, read from it at once."""
    # Under FSDP a norm is spread over the processes.
    tensors = [getattr(v, "full_tensor", v.detach)().float() for v in values if isinstance(v, torch.Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else [])
    return [next(read) if isinstance(v, torch.Tensor) else None if v is None else float(v) for v in values]


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
