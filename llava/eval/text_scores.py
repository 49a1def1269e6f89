"""Nats of the tokens of texts that nothing is shown beside, by a checkpoint's own rule of the first token.

A text is one plain-LM sample as in training: the start that the checkpoint was trained with (`llava.data.text_start`),
the text's tokens, the end. A checkpoint without a start never learned how likely a first token is, and that token is
not measured. Weights and logits are fp32, and nothing runs under autocast.

Letters in shapes: K tokens of a text, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX, PLACEHOLDERS
from llava.data.chat_formats import PLAIN
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.prompt import pad_token_id, reserved_tokens
from llava.data.text_format import TextFormat, recorded_format
from llava.data.text_start import EOS
from llava.errors import NotFinite, UserError, show
from llava.eval.loss import token_losses
from llava.model.builder import check_embeddings, open_checkpoint
from llava.model.capabilities import max_positions
from llava.model.vlm import VisionCausalLM
from llava.progress import progress

MOST_POSITIONS = 4096
"""Positions that go through the model together, padding included: their logits over 30,000 entries take 0.5 GB."""
LEAST_CONTEXT = 8


@dataclass(frozen=True)
class TextNats:
    """A text's tokens in nats, (K,) float64, NaN where nothing stood before; its end; their characters in the text."""

    nats: np.ndarray
    end: float
    offsets: list[tuple[int, int]]
    windows: int = 1
    """Pieces that the text was read in, more than one where it is longer than the context."""
    unknown: int = 0
    """Tokens that stand for what the tokenizer does not know."""

    @property
    def measured(self) -> tuple[float, int]:
        """Sum of the tokens that were measured, and their number; the end is not among them."""
        known = self.nats[~np.isnan(self.nats)]
        return float(known.sum()), len(known)


@dataclass(frozen=True)
class Window:
    """Positions `start` to `stop` (exclusive) of a sequence; those from `scored` on are measured here."""

    start: int
    stop: int
    scored: int


def windows(length: int, context: int) -> list[Window]:
    """How a sequence of `length` positions is read by a model that has `context`: each position is measured once.

    Windows overlap by half, and the last one ends where the text does, so that what is measured after the first window
    has half a context or more before it. A later window begins within the text, with nothing in front.
    """
    found = [Window(0, min(length, context), 0)]
    while found[-1].stop < length:
        done = found[-1].stop
        stop = min(length, done + context - context // 2)
        found.append(Window(stop - context, stop, done))
    return found


def batches(lengths: Sequence[int], rows: int, positions: int = MOST_POSITIONS) -> Iterator[list[int]]:
    """Places of sequences by length, at most `rows` together, and `positions` with padding where several are."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) == rows or (len(batch) + 1) * lengths[place] > positions):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def load_without_tower(
    model_path: str | Path, device: str | torch.device
) -> tuple[PreTrainedTokenizerBase, VisionCausalLM]:
    """Tokenizer and model of a run or checkpoint in fp32, in evaluation mode; no vision tower is looked for.

    Raises:
        FileNotFoundError, ValueError: as `llava.model.builder.load_pretrained_model`.
    """
    model_class, tokenizer = open_checkpoint(model_path, "RUN")
    model = model_class.from_pretrained(model_path, dtype=torch.float32, load_vision_tower=False)
    check_embeddings(len(tokenizer), model)
    return tokenizer, model.to(device).eval()


def plain_format(model: VisionCausalLM, tokenizer: PreTrainedTokenizerBase, model_path: str | Path) -> TextFormat:
    """The text format of a checkpoint.

    Raises:
        ValueError: for a chat format, which never saw a text that stands alone.
    """
    form = recorded_format(model.config, tokenizer)
    if form.version != PLAIN:
        raise UserError(
            f"{show(model_path)}: was trained in the chat format {form.version}, in which no text stands alone; take a "
            "checkpoint of --version plain"
        )
    return form


class TextScorer:
    """Measures texts without a video.

    Args:
        tokenizer, model: of one checkpoint, in fp32 and evaluation mode; `form`: its text format, plain LM.
        batch_size: texts that go through the model together; results do not depend on it, but for rounding.
        context: the longest sequence, start and end included; the model's positions by default.

    Raises:
        ValueError: for a tokenizer that does not say where its tokens stand, and a context that is too long or short.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: VisionCausalLM,
        form: TextFormat,
        batch_size: int = 32,
        context: int | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} does not say where its tokens stand in a text: the checkpoint needs a "
                "tokenizer.json"
            )
        most = max_positions(model)
        if context is not None and not LEAST_CONTEXT <= context <= most:
            raise UserError(f"--context {context}: the model has {most} positions, and {LEAST_CONTEXT} are needed")
        self.tokenizer, self.model, self.batch_size = tokenizer, model, batch_size
        self.context = min(most, context or most)
        self.has_start = form.text_start == EOS
        self.reserved = reserved_texts(tokenizer)
        self.collate = DataCollatorForSupervisedDataset(pad_token_id(tokenizer))

    def score(self, texts: Sequence[str], names: Sequence[str] | None = None, shown: str = "texts") -> list[TextNats]:
        """The nats of each text; those of the same tokens are measured once, and are equal to the last bit.

        Args:
            names: what messages call each text; itself by default.
            shown: what a progress bar counts.

        Raises:
            ValueError: naming a text that is empty, or holds a special token, which a text cannot say.
            NotFinite: when the model gives no finite number.
        """
        distinct = list(dict.fromkeys(texts))
        called = dict(zip(reversed(texts), reversed(texts if names is None else names), strict=True))
        check_texts(distinct, [called[t] for t in distinct], self.reserved)
        encoded = self.tokenizer(
            distinct, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        rows = [tuple(ids) for ids in encoded["input_ids"]]
        first = {ids: called[text] for ids, text in zip(reversed(rows), reversed(distinct), strict=True)}
        found = dict(zip(first, self._nats([list(ids) for ids in first], list(first.values()), shown), strict=True))
        unknown = self.tokenizer.unk_token_id
        known = {}
        for text, ids, offsets in zip(distinct, rows, encoded["offset_mapping"], strict=True):
            nats, count = found[ids]
            places = [(int(a), int(b)) for a, b in offsets]
            known[text] = TextNats(nats[:-1], float(nats[-1]), places, count, ids.count(unknown))
        return [known[text] for text in texts]

    def _nats(self, rows: Sequence[list[int]], names: Sequence[str], shown: str) -> list[tuple[np.ndarray, int]]:
        """(K + 1,) nats of each row's tokens and its end, and its number of windows."""
        end = self.tokenizer.eos_token_id
        whole = [torch.tensor([*([end] if self.has_start else []), *row, end]) for row in rows]
        parts = [(i, window) for i, ids in enumerate(whole) for window in windows(len(ids), self.context)]
        nats = [np.full(len(ids), np.nan) for ids in whole]
        plan = list(batches([w.stop - w.start for _, w in parts], self.batch_size))
        for batch in progress(plan, desc=shown, unit="batch", disable=len(plan) < 2):
            samples = []
            for i, window in (parts[place] for place in batch):
                ids = whole[i][window.start : window.stop]
                # The label of the first position is no target; the collator sees to that.
                labels = torch.where(torch.arange(len(ids)) < window.scored - window.start, IGNORE_INDEX, ids)
                samples.append({"input_ids": ids, "labels": labels, "sample_id": names[i]})
            losses = token_losses(self.model, to_device(self.collate(samples), self.model.device)).double().cpu()
            for row, place in enumerate(batch):
                i, window = parts[place]
                first = max(window.scored, window.start + 1)
                measured = losses[row, first - window.start - 1 : window.stop - window.start - 1].numpy()
                check_finite(measured, names[i])
                nats[i][first : window.stop] = measured
        counts = np.bincount([i for i, _ in parts], minlength=len(whole)).tolist()
        return [(row[1:] if self.has_start else row, count) for row, count in zip(nats, counts, strict=True)]


def reserved_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What a text cannot say: tokens of the tokenizer that are no words, and the placeholders of records."""
    return (*PLACEHOLDERS, *reserved_tokens(tokenizer))


def check_texts(texts: Sequence[str], names: Sequence[str], reserved: Sequence[str]) -> None:
    """Refuses texts that are none.

    Raises:
        ValueError: naming the first that is empty, or holds what is reserved.
    """
    for text, name in zip(texts, names, strict=True):
        if not text.strip():
            raise UserError(f"{show(name)}: there is no text to measure; write one, or delete it")
        if wrong := [token for token in reserved if token in text]:
            raise UserError(f"{show(name)}: the text contains {wrong[0]!r}, which is a token and no word: take it out")


def check_finite(nats: np.ndarray, name: str) -> None:
    """Refuses a loss that is no number.

    Raises:
        NotFinite: naming the text.
    """
    if not np.isfinite(nats).all():
        raise NotFinite(
            f"{show(name)}: the model gives a loss of {nats[~np.isfinite(nats)][0]}; its weights are broken"
        )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A collated batch on a device."""
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
