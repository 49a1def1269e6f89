"""Pre-flight of the batch that trains: each sample sees its own video and words that came before, and nothing else.

In training mode, with dropout drawn again alike, the videos of some samples are changed in each of a few forward
passes: exactly the losses of those samples may move. Each sample has its own set of passes, and none of these sets
contains another, so that every pair is told apart both ways (Sperner 1928). Where its video stays, a late word of the
sample is changed instead, and no loss up to that word may move.

Letters in shapes: S samples, V videos, R rows, L positions, D width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations, islice
from typing import Any

import torch
from torch import nn

from llava.constants import COORDINATE_PLACEHOLDERS, IGNORE_INDEX
from llava.data.features.quantised import dequantised
from llava.train.preflight.data import Finding
from llava.train.preflight.model import Batch, Context

QUICK_WORK = {"cpu": 2e10}
"""Multiplications and additions of a quick pre-flight here, by kind of device; of a batch that takes more, a part is
checked."""
QUICK_WORK_ELSEWHERE = 1e12
ROUNDING, ROUNDING_AUTOCAST = 1e-5, 1e-3
"""Change of a loss in nats that counts as none."""


def codes(samples: int) -> torch.Tensor:
    """(passes, samples) boolean: in which forward passes each sample is changed, with no set inside another's."""
    if samples == 1:
        return torch.ones(1, 1, dtype=torch.bool)
    passes = next(m for m in range(2, samples + 2) if math.comb(m, m // 2) >= samples)
    found = torch.zeros(passes, samples, dtype=torch.bool)
    for sample, members in enumerate(islice(combinations(range(passes), passes // 2), samples)):
        found[list(members), sample] = True
    return found


def blocks_of(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """The list of the language model's blocks, with its owner and its name there; None when there is none."""
    number = getattr(model.config, "num_hidden_layers", None)
    for owner in model.base_model.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == number:
                return owner, name, child
    return None


def quick_blocks(model: nn.Module) -> int:
    """The first blocks of the language model that have one of each kind of attention: what keeps samples apart, and
    puts rows and labels in their places, is the same in each block of a kind.
    """
    kinds = list(getattr(model.config, "layer_types", None) or [])
    return max(kinds.index(kind) + 1 for kind in kinds) if kinds else 1


@contextmanager
def shallow(model: nn.Module, blocks: int | None) -> Iterator[None]:
    """While active, the language model has its first `blocks` blocks alone; all with None."""
    found = blocks_of(model) if blocks is not None else None
    if found is None:
        yield
        return
    owner, name, full = found
    setattr(owner, name, nn.ModuleList(full[:blocks]))
    try:
        yield
    finally:
        setattr(owner, name, full)


def told_blocks(model: nn.Module, blocks: int | None) -> str:
    """How many of the model's blocks take part while it is `shallow`; empty where all do."""
    found = blocks_of(model) if blocks is not None else None
    return "" if found is None else f"{blocks} of {len(found[2])} blocks"


def samples_within(model: nn.Module, length: int, wanted: int) -> int:
    """How many samples of a length a quick pre-flight has time for, at least two."""
    found = blocks_of(model)
    weights = sum(p.numel() for b in found[2][: quick_blocks(model)] for p in b.parameters()) if found else 10**8
    work = QUICK_WORK.get(next(model.parameters()).device.type, QUICK_WORK_ELSEWHERE)
    fitting = [n for n in range(2, wanted + 1) if n * (len(codes(n)) + 1) * length * weights <= work]
    return min(wanted, max(fitting, default=2))


@contextmanager
def rows_from(model: nn.Module, kind: str, table: torch.Tensor) -> Iterator[None]:
    """While active, the model's encoder takes (V, 1) numbers as features and gives these of `table` (., rows, D)."""
    name = f"encode_{kind}s"

    def encode(pixels: Any = None, features: torch.Tensor | None = None) -> torch.Tensor:
        return table[features.flatten().long()]

    # On the instance, which hides the method of the class.
    object.__setattr__(model, name, encode)
    try:
        yield
    finally:
        object.__delattr__(model, name)


def check_apart(
    model: nn.Module, batch: Batch, kind: str, context: Context, blocks: int | None = 1, of: int = 0
) -> list[Finding]:
    """Whether changing the video of a sample moves the losses of that sample and of no other, and changing a word those
    of later words; in training mode, in the layout of training.

    Args:
        batch: from `TrainingCollator`, of one modality; `kind` is that.
        blocks: of the language model that take part; None for all.
        of: samples of a batch of the run, where these are fewer.
    """
    batch = dequantised(batch)
    names = batch["sample_ids"]
    segments, labels = batch["segment_ids"], batch["labels"]
    device = labels.device
    members = codes(len(names)).to(device)
    changed_ids, until = _late_words(model, batch)
    with context():
        rounding = ROUNDING_AUTOCAST if torch.is_autocast_enabled(device.type) else ROUNDING
    inputs, table, owners, findings = dict(batch), None, None, []
    trained = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), ExitStack() as stack:
            torch.manual_seed(0)
            if kind != "text":
                key = next(k for k in _keys(kind) if k in batch)
                with torch.no_grad(), context():
                    table = _rows(model, kind, key, batch[key])
                    findings += _check_encoder(model, kind, key, batch[key], table)
                # One vector for all rows of a changed video: their mean is as far from that of the true ones.
                other = torch.randn_like(table[:, :1]) * table.std() * math.sqrt(table.shape[1])
                table = torch.cat([table, table + other])
                number = len(batch[key])
                owners = torch.arange(len(names), device=device).repeat_interleave(batch[f"num_{kind}s"])
                del inputs[key]
                stack.enter_context(rows_from(model, kind, table))
            stack.enter_context(shallow(model, blocks))

            def losses(videos: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
                """(R, L) of every target, with the videos and the late words of some samples (S,) changed."""
                given = dict(inputs)
                if owners is not None:
                    tags = torch.arange(number, device=device) + number * videos[owners]
                    given[f"{kind}_features"] = tags[:, None].float()
                given["input_ids"] = torch.where(words[segments] & (segments >= 0), changed_ids, batch["input_ids"])
                torch.manual_seed(1)
                with torch.no_grad(), context():
                    found = model(**given, return_logits=False, use_cache=False).token_losses
                return torch.nn.functional.pad(found, (1, 0))

            nobody = torch.zeros(len(names), dtype=torch.bool, device=device)
            before = losses(nobody, nobody)
            targets, problem = labels != IGNORE_INDEX, None
            for member in members:
                videos, words = (member, ~member) if kind != "text" else (nobody, member)
                moved = (losses(videos, words) - before).abs()
                for s in range(len(names)):
                    own = targets & (segments == s)
                    early = own & (torch.arange(labels.shape[1], device=device) <= until[s])
                    largest = [
                        float(moved[where].max()) if where.any() else None for where in (own, early, own & ~early)
                    ]
                    what = "video" if videos[s] else "word" if words[s] else "nothing"
                    problem = problem or _problem(what, *largest, rounding, names, s, kind, member)
                if problem is not None:
                    break
            if problem is not None and problem[0] == "moved":
                alone = (losses(nobody, ~nobody) - before).abs()
                s = problem[2]
                early = targets & (segments == s) & (torch.arange(labels.shape[1], device=device) <= until[s])
                if early.any() and float(alone[early].max()) > rounding:
                    words = f"a loss of sample {names[s]!r} moves with a word that comes later, or with itself"
                    problem = ("sees", words, s)
    finally:
        model.train(trained)
    name = f"samples apart, {kind}"
    where = f"{len(names)}{f' of the {of}' if of > len(names) else ''} samples of a batch, {len(members)} groups"
    if problem is not None:
        remedy = "the batch must be spliced in the order of its samples, attention be causal and stay within a sample"
        return [*findings, Finding(name, "FAIL", problem[1], remedy)]
    if any(f.status == "FAIL" for f in findings):
        return findings
    changing = "changing a video moves its own sample and no other" if kind != "text" else "a word moves its own sample"
    layers = f", {told}" if (told := told_blocks(model, blocks)) else ""
    words = f"{where}, in training mode{layers}: {changing}, and no loss before the change"
    return [Finding(name, "ok", words)]


def _problem(
    what: str,
    own: float | None,
    early: float | None,
    late: float | None,
    rounding: float,
    names: Sequence[str],
    sample: int,
    kind: str,
    member: torch.Tensor,
) -> tuple[str, str, int] | None:
    """What is wrong with the largest changes of a sample's losses: of all, up to its changed word, and after it."""
    changed = ", ".join(repr(names[i]) for i in member.nonzero().flatten().tolist()[:3])
    if what == "video":
        if own is not None and own == 0.0:
            return (
                "still",
                f"the {kind} of sample {names[sample]!r} does not move its own losses in training mode",
                sample,
            )
        return None
    quiet = own if what == "nothing" else early
    if quiet is not None and not quiet <= rounding:
        thing = kind if kind != "text" else "words"
        return "moved", f"changing the {thing} of {changed} moves the losses of sample {names[sample]!r}", sample
    if what == "word" and late == 0.0:
        return "deaf", f"a loss of sample {names[sample]!r} does not depend on the word before it", sample
    return None


def _keys(kind: str) -> tuple[str, str]:
    return ("video_features", "pixel_values_videos") if kind == "video" else ("image_features", "pixel_values")


def _rows(model: Any, kind: str, key: str, values: torch.Tensor) -> torch.Tensor:
    """(V, rows, D) of the encoder."""
    encode = model.encode_videos if kind == "video" else model.encode_images
    return encode(None, values) if key.endswith("features") else encode(values, None)


def _check_encoder(model: Any, kind: str, key: str, values: torch.Tensor, rows: torch.Tensor) -> list[Finding]:
    """Whether the first and the last video have the same rows alone as in the batch."""
    if model.vision_tower is not None and not model.vision_tower.frozen:
        return []  # Drop path draws for the batch as a whole.
    for place in {0, len(values) - 1} if len(values) > 1 else ():
        alone = _rows(model, kind, key, values[place : place + 1])[0].float()
        error = float((alone - rows[place].float()).norm() / alone.norm().clamp_min(1e-12))
        if not error <= 0.05:
            words = (
                f"the rows of {kind} {place} of a batch of {len(values)} differ from those it has alone ({error:.1g})"
            )
            remedy = "projector and resampler must treat each item by itself, in the order of the batch"
            return [Finding(f"samples apart, {kind}", "FAIL", words, remedy)]
    return []


def _late_words(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, list[int]]:
    """Ids (R, L) with the last word but one of every sample exchanged, and the position of that word in its row.

    A coordinate placeholder becomes that of another axis: its number stays, and is read from another table.
    """
    ids, labels, segments = batch["input_ids"].clone(), batch["labels"], batch["segment_ids"]
    own = model.config.coordinate_token_ids or {}
    never = {*(model.config.visual_token_ids or {}).values(), *own.values()}
    words = [i for i in range(model.config.vocab_size) if i not in never][:2]
    placeholders = [own[name] for name in COORDINATE_PLACEHOLDERS] if own else []
    until = []
    for s in range(len(batch["sample_ids"])):
        row, place = ((labels != IGNORE_INDEX) & (segments == s)).nonzero()[-2:].T.tolist()
        at, word = place[0], int(ids[row[0], place[0]])
        choices = placeholders[::2] if word in placeholders[::2] else placeholders[1::2]
        first, second = choices[:2] if word in placeholders else words
        ids[row[0], at] = second if word == first else first
        until.append(at)
    return ids, until
