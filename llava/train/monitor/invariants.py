"""What must hold in every run and costs nothing to look at: who is trained, at which rate, on which records.

Pre-flight looks at the run as it is about to start; what follows looks at it while it trains, since code that comes
later can still replace, drop or repeat something. What no good run does ends the run; the rest sounds an alarm.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, get_scheduler

from llava.constants import IGNORE_INDEX
from llava.data.columns import RecordIds
from llava.data.hashes import hash64
from llava.errors import UserError
from llava.model.builder import KEY_BIASES, parameter_groups
from llava.model.multimodal_resampler.fast_slow import StreamResampler
from llava.train.monitor.alarms import Alarm
from llava.train.monitor.run_monitor import FIRST_STEPS, sample_weights
from llava.train.monitor.served import Difference, Served, ServedSamples, served_problem

logger = logging.getLogger(__name__)

LOSS_ERROR = 0.02
"""Share by which the logged loss may differ from the nats of the tokens."""
LEAST_STEPS = 3
"""Steps with a learning rate above 0 that a tensor is given to move."""
SEEN_WORDS, SEEN_COLUMNS = 64, 64
"""Rows of the input embeddings that are watched, of words of the first step, and columns of each."""
BY_VISION = ("resampler base", "resampler fast", "resampler slow", "projector", "tower", "coordinates input")
"""Groups that a step without vision need not reach."""
QUERIES = ("latent_norm", "query")
"""Parts of a resampler's block that choose among the patches of a region, and do nothing where there is one."""
ONLY_DECAY = 3e-6
"""Distance of weights from a multiple of what they were, relative to their norm, that rounding explains."""


class InvariantError(UserError):
    """A run that is not the one that was checked; says what differs and the remedy."""


def owner_problems(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """How the optimiser's parameters differ from the model's trainable ones, each of which it must hold once."""
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    names = {id(p): n for n, p in model.named_parameters()}
    trains = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    problems = [f"{n} trains, but the optimiser does not hold it" for i, n in trains.items() if i not in held]
    problems += [f"{names.get(i, 'a tensor')} is held {n} times" for i, n in held.items() if n > 1]
    foreign = sum(i not in names for i in held)
    return problems + ([f"{foreign} tensors of the optimiser are not the model's"] if foreign else [])


def still_remedy(model: nn.Module, still: Sequence[str]) -> str:
    """What to do about parameters that have not moved."""
    chooseless = tuple(
        f"{name}.blocks." for name, m in model.named_modules() if isinstance(m, StreamResampler) and m.one_patch_each
    )
    if all(name.startswith(chooseless) and any(part in name for part in QUERIES) for name in still):
        return (
            "each latent of that stream sees one patch and has none to choose, so its queries learn nothing; all else "
            "does: lower --mm_perceiver_latents, or take a tower with more patches."
        )
    return "they get no gradient, or the optimiser does not change them: python -m llava.train.preflight."


def tie_problem(model: nn.Module) -> str | None:
    """What is wrong with a head that the config ties to the input embeddings, if anything."""
    head = model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return None
    same = head.weight is model.get_input_embeddings().weight
    return None if same else "the head is no longer tied to the input embeddings, as the config says it is"


def has_moved(before: torch.Tensor, now: torch.Tensor, decayed: bool) -> bool:
    """Whether weights changed by more than weight decay, which shrinks a tensor that learns nothing.

    Args:
        before, now: (..., n) of one tensor.
        decayed: whether decay may have changed them.
    """
    if torch.equal(before, now):
        return False
    if not decayed:
        return True
    before, now = before.double().flatten(), now.double().flatten()
    square = before.dot(before)
    rest = now - before * (now.dot(before) / square) if square > 0 else now
    return bool(rest.norm() > ONLY_DECAY * now.norm())


def rate_problems(groups: Iterable[Mapping[str, Any]], rates: Mapping[str, float], factor: float) -> list[str]:
    """Groups of the optimiser whose learning rate is not that of their part times the schedule's factor."""
    found = []
    for group in groups:
        part = str(group.get("name", "")).split(",")[0]
        if part in rates and not math.isclose(group["lr"], rates[part] * factor, rel_tol=1e-6, abs_tol=1e-15):
            found.append(f"{part} has learning rate {group['lr']:g}, the schedule gives {rates[part] * factor:g}")
    return list(dict.fromkeys(found))


def decay_problems(groups: Iterable[Mapping[str, Any]], weight_decay: float) -> list[str]:
    """Groups of the optimiser whose weight decay is neither 0 nor that of the flags."""
    found = [g for g in groups if g.get("weight_decay", 0.0) not in (0.0, weight_decay)]
    return [
        f"{g.get('name', 'a group')} has weight decay {g['weight_decay']:g}, the flags {weight_decay:g}" for g in found
    ]


def schedule_of(args: Any, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """The schedule that the flags ask for, for a run of so many steps."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
    )


def schedule_factor(args: Any, steps: int) -> Callable[[int], float] | None:
    """The share of the learning rate at each step, apart from the run's own scheduler; None when it depends on more."""
    # Some schedules end at a rate, and not at a share of it: their factor depends on the rate.
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    scheduler = schedule_of(args, alone, steps)
    factors = getattr(scheduler, "lr_lambdas", None)
    return factors[0] if factors else None


class Invariants(TrainerCallback):
    """Looks at a run while it trains; `LlavaTrainer` feeds it.

    Args:
        rates: learning rate of each part, from the flags.
        ids: of the training records; None leaves out what was served.
        sound: takes an alarm.
        reduce: sums a tensor over all ranks.
        gather: lists of all ranks, joined.
        step_losses: what the trainer will log of the steps since the last log, summed, and what the monitor measured in
            the last one, nats over tokens; called on every rank.
        told: what `AlarmRules` has sounded: tensors of a group that is known to be still are not told again.
        sharded: parameters and gradients are spread over ranks.
        samples: compares what is served in the first steps with its records; None leaves it out.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        rates: Mapping[str, float],
        ids: Sequence[str] | None,
        sound: Callable[[Alarm], None],
        reduce: Callable[[torch.Tensor], torch.Tensor],
        gather: Callable[[list[Any]], list[Any]],
        step_losses: Callable[[], tuple[float, float]],
        told: Callable[[], set[str]],
        sharded: bool = False,
        samples: ServedSamples | None = None,
    ) -> None:
        self.model, self.args, self.rates, self.ids = model, args, rates, ids
        self.samples, self.different = samples, list[Difference]()
        self.sound, self.reduce, self.gather, self.sharded = sound, reduce, gather, sharded
        self.step_losses, self.told = step_losses, told
        self.served = Served()
        self.losses: list[float] | None = []
        self.before: dict[str, torch.Tensor] | None = None
        self.rows: torch.Tensor | None = None
        self.rows_before: torch.Tensor | None = None
        self.kinds: Counter[str] = Counter()
        self.given: Counter[str] = Counter()
        self.steps_given: Counter[str] = Counter()
        self.sounded: set[str] = set()
        self.looks = False

    def alarm(self, step: int, kind: str, message: str, remedy: str) -> None:
        """Sounds each kind once."""
        if kind not in self.sounded:
            self.sounded.add(kind)
            self.sound(Alarm(step, kind, message, remedy))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first = state.global_step
        self.factor = schedule_factor(args, state.max_steps)
        self.every = max(1, int(state.logging_steps or 1))
        left_out = []
        if self.sharded:
            left_out.append("owners, movement and learning rates of the tensors: weights are spread over processes")
        elif self.factor is None:
            left_out.append("the applied learning rate: the schedule follows what is measured")
        elif args.fp16:
            left_out.append("the applied learning rate: loss scaling skips steps")
        if args.label_smoothing_factor:
            left_out.append("the logged loss against the nats of tokens: labels are smoothed")
        if self.ids is None or args.dataloader_drop_last:
            left_out.append("the records of an epoch: --dataloader_drop_last leaves some out")
        if left_out and state.is_world_process_zero:
            logger.info("not measured while training: %s", "; ".join(left_out))

    def add_batches(self, batches: Sequence[Mapping[str, Any]], epoch: int = 0) -> None:
        """Takes the batches of a step of an epoch before it is made."""
        for batch in batches:
            self.served.add(batch.get("sample_ids", ()))
        if self.samples is not None:
            self.different += self.samples.differences(batches, epoch)
        if self.before is None or self.looks:
            keys = set().union(*batches) if batches else set()
            self.kinds["video"] += bool(keys & {"video_features", "pixel_values_videos"})
            self.kinds["vision"] += bool(
                keys & {"video_features", "pixel_values_videos", "pixel_values", "image_features"}
            )
        if self.rows is None and batches and not self.sharded:
            batch = batches[0]
            seen = batch["input_ids"][:, :-1][batch["labels"][:, 1:] != IGNORE_INDEX].unique()
            config = self.model.config
            # Visual tokens and coordinates are not looked up in the table of words.
            others = {**(config.visual_token_ids or {}), **(config.coordinate_token_ids or {})}
            seen = seen[~torch.isin(seen, torch.tensor(sorted(others.values()), device=seen.device))]
            self.rows = seen[:: max(1, len(seen) // SEEN_WORDS)]

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        step = state.global_step + 1
        self.looks = state.global_step - self.first < FIRST_STEPS
        if self.sharded or not (self.looks or step % self.every == 0):
            return
        tied = tie_problem(self.model)
        problems = ([tied] if tied else []) + owner_problems(self.model, optimizer)
        kept = [n for n, p in self.model.named_parameters() if p.grad is not None and bool(p.grad.any())]
        problems += [f"{kept[0]} still has the gradient of the step before (and {len(kept) - 1} more)"] if kept else []
        if problems:
            listed = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
            raise InvariantError(
                f"step {step}: {listed}. What was checked before the first step is not what would train: replace, tie "
                "or freeze weights before the trainer is made, and keep its zero_grad and create_optimizer"
            )
        if self.before is None:
            self.before = {n: sample_weights(p).clone() for n, p in self.model.named_parameters() if p.requires_grad}
            table = self.model.get_input_embeddings().weight
            if table.requires_grad and self.rows is not None:
                self.rows_before = table.detach()[self.rows, :SEEN_COLUMNS].clone()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if self.sharded:
            return
        for group in optimizer.param_groups if self.looks else ():
            self.given[str(group.get("name"))] += group["lr"]
            self.steps_given[str(group.get("name"))] += group["lr"] > 0
        if self.factor is not None and not args.fp16:
            problems = rate_problems(optimizer.param_groups, self.rates, float(self.factor(state.global_step)))
            problems += decay_problems(optimizer.param_groups, args.weight_decay)
            if problems:
                remedy = (
                    "nothing but the trainer's own scheduler may set it, once a step; a resumed run keeps its flags"
                )
                self.alarm(state.global_step + 1, "learning rate", "; ".join(problems[:3]) + ".", remedy)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if self.samples is not None:
            self._judge_samples(state.global_step)
        if self.looks and self.losses is not None and not self.sharded and self.first == 0:
            logged, nats = self.step_losses()
            self.losses.append(nats)
            if state.global_step == 1:
                self.check_loss(1, logged, nats)
        if self.before is not None and state.global_step in (self.first + FIRST_STEPS, state.max_steps) and self.looks:
            self._judge_movement(state.global_step, optimizer)
            self.before, self.rows_before = {}, None

    def _judge_samples(self, step: int) -> None:
        """Sounds what differs in the samples of a step on any rank; after the first steps nothing is looked at."""
        for kind, words in self.gather(self.different):
            remedy = (
                "a sample must be that of its record, as pre-flight found it: something changes the dataset, its cache "
                "or the collator after it; what trains is not what was checked."
            )
            self.alarm(step, kind, f"{words}.", remedy)
        self.different = []
        if step - self.first >= FIRST_STEPS:
            self.samples = None

    def _judge_movement(self, step: int, optimizer: Any) -> None:
        groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        still, moved, names = [], 0, parameter_groups(self.model)
        resampler = self.model.vision_resampler
        video_only = {f"vision_resampler.{name}" for name in resampler.video_only()} if resampler is not None else set()
        for name, parameter in self.model.named_parameters():
            group = groups.get(id(parameter))
            if name not in self.before or group is None or name.endswith(KEY_BIASES):
                continue
            if {f"{what} {names[name]}" for what in ("zero gradient", "no update")} & self.told():
                continue
            taking_part = self.kinds["video"] if name in video_only else self.kinds["vision"]
            if names[name] in BY_VISION and taking_part < LEAST_STEPS:
                continue
            if "nesterov" in group:
                continue  # SGD moves a tensor by its gradient alone, however small that is.
            key, before, now = str(group.get("name")), self.before[name], sample_weights(parameter)
            smallest = torch.finfo(before.dtype).eps * float(before.abs().max())
            if self.steps_given[key] < LEAST_STEPS or self.given[key] <= 4 * smallest:
                continue
            if has_moved(before, now, group["weight_decay"] > 0):
                moved += 1
            else:
                still.append(name)
        # Loss scaling may have skipped every step so far.
        if still and (moved or not self.args.fp16):
            words = f"after {step - self.first} steps {len(still)} of {len(still) + moved} tensors have not moved: "
            words += f"{', '.join(still[:3])}."
            self.alarm(step, "tensor without update", words, still_remedy(self.model, still))
        table = self.model.get_input_embeddings().weight
        table_moves = not any(p is table for n, p in self.model.named_parameters() if n in still)
        if moved and table_moves and self.rows_before is not None and id(table) in groups:
            group = groups[id(table)]
            now = table.detach()[self.rows, :SEEN_COLUMNS]
            dead = [
                int(row) for row, a, b in zip(self.rows, self.rows_before, now, strict=True)
                if not has_moved(a, b, group["weight_decay"] > 0)
            ]  # fmt: skip
            if dead and self.steps_given[str(group.get("name"))] >= LEAST_STEPS:
                words = f"the embeddings of {len(dead)} of {len(now)} words of the first step have not moved after "
                words += f"{step - self.first} steps (ids {dead[:5]})."
                self.alarm(step, "word without update", words, "the gradient of the embeddings is cut or masked.")

    def check_log(self, step: int, logged: float) -> None:
        """The first loss of the log against the monitor's mean over its steps, where all of them were measured."""
        losses, self.losses = self.losses, None
        if losses and len(losses) == step:
            self.check_loss(step, logged, sum(losses) / len(losses))

    def check_loss(self, step: int, logged: float, nats: float) -> None:
        """Compares a loss that is logged with the nats over tokens of the same steps."""
        if self.args.label_smoothing_factor or math.isclose(logged, nats, rel_tol=LOSS_ERROR, abs_tol=1e-3):
            return
        words = f"the loss is {logged:.4g}, but its tokens have {nats:.4g} nats on the mean."
        remedy = "it must be the sum over the tokens of the whole step, all accumulated batches and processes, divided "
        remedy += "by their number: gradients are off by the same factor."
        self.alarm(step, "loss", words, remedy)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.epoch is None or not float(state.epoch).is_integer():
            return  # The run ends here, and one that goes on has the rest of the epoch before it.
        served, self.served = self.served, Served()
        if self.ids is None or args.dataloader_drop_last:
            return
        # Sums of 64-bit numbers wrap around, alike on every rank.
        signed = served.total - (1 << 64) if served.total >= 1 << 63 else served.total
        told = torch.tensor([served.count, signed, 0 if served.known else 1], device=args.device)
        count, total, unknown = self.reduce(told).tolist()
        if unknown:
            return
        hashes = self.ids.hashes if isinstance(self.ids, RecordIds) else map(hash64, self.ids)
        wanted = sum(map(int, hashes))
        if count == len(self.ids) and (total - wanted) % (1 << 64) == 0:
            return
        hashes = [h for part in self.gather([served.hashes.tolist()]) for h in part]
        # The ids that were served before a resumption are not kept, their number and sum are.
        which = served_problem(self.ids, hashes) if len(hashes) == count else "which is not known of a resumed epoch"
        words = f"epoch {state.epoch:g} served {count} samples where there are {len(self.ids)} records: {which}."
        remedy = "every record has one turn an epoch: look at the sampler and the loader."
        self.alarm(state.global_step, "records served", words, remedy)
