"""Text to tokens: placeholders become spans, conversations become one plain-LM sequence, visual tokens are masked.

Text is tokenised in a compact form, in which the first token of a span stands for all of it (`compact`); the ids of
the span, which are the same for every sample, are inserted afterwards (`Spans`).

Letters in shapes: L positions of one sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llava.config.video import VideoSpec
from llava.constants import (
    COORDINATE_PLACEHOLDERS,
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_SLOW_VID_END_TOKEN,
    DEFAULT_SLOW_VID_START_TOKEN,
    DEFAULT_VID_END_TOKEN,
    DEFAULT_VID_START_TOKEN,
    DEFAULT_VIDEO_PATCH_TOKEN,
    DEFAULT_VIDEO_TOKEN,
    IGNORE_INDEX,
    PLACEHOLDERS,
    VISUAL_TOKENS,
)
from llava.errors import UserError

Turns = Sequence[Mapping[str, Any]]
"""A conversation: `[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]`."""

MARKERS = {DEFAULT_VIDEO_TOKEN: DEFAULT_VID_START_TOKEN, DEFAULT_IMAGE_TOKEN: DEFAULT_IM_START_TOKEN}
"""Each placeholder, and the token that its span begins with, which stands for the span in compact text."""

_PLACEHOLDERS = rf"(?:{'|'.join(map(re.escape, PLACEHOLDERS))})"
IMAGE_TOO_SMALL = "an image needs two rows or more for its delimiters: raise --mm_perceiver_latents"
_AROUND_PLACEHOLDERS = re.compile(rf"\s*({_PLACEHOLDERS}(?:\s*{_PLACEHOLDERS})*)\s*")
_LEADING_PLACEHOLDERS = re.compile(rf"{_PLACEHOLDERS}+")


def image_tokens(spec: VideoSpec) -> list[str]:
    """The tokens of one image in order, as many as it has rows.

    Raises:
        ValueError: when an image has a single row, which leaves no place for two delimiters.
    """
    if spec.image_rows < 2:
        raise UserError(IMAGE_TOO_SMALL)
    return [DEFAULT_IM_START_TOKEN, *[DEFAULT_IMAGE_PATCH_TOKEN] * (spec.image_rows - 2), DEFAULT_IM_END_TOKEN]


def video_tokens(spec: VideoSpec) -> list[str]:
    """The tokens of one video in order, the fast span and then the slow one, as many as it has rows."""
    fast = [DEFAULT_VIDEO_PATCH_TOKEN] * (spec.fast_rows - 2)
    slow = [DEFAULT_VIDEO_PATCH_TOKEN] * (spec.slow_rows - 2)
    return [
        *(DEFAULT_VID_START_TOKEN, *fast, DEFAULT_VID_END_TOKEN),
        *(DEFAULT_SLOW_VID_START_TOKEN, *slow, DEFAULT_SLOW_VID_END_TOKEN),
    ]


def image_span(spec: VideoSpec) -> str:
    """The text of one image: `image_tokens` without space between."""
    return "".join(image_tokens(spec))


def video_span(spec: VideoSpec) -> str:
    """The text of one video: `video_tokens` without space between."""
    return "".join(video_tokens(spec))


def expand_placeholders(text: str, spec: VideoSpec) -> str:
    """Replaces every `<video>` and `<image>` by its span of visual tokens."""
    text = text.replace(DEFAULT_VIDEO_TOKEN, video_span(spec))
    return text.replace(DEFAULT_IMAGE_TOKEN, image_span(spec)) if DEFAULT_IMAGE_TOKEN in text else text


def compact(text: str) -> str:
    """The text with one token of `MARKERS` for each placeholder."""
    if "<" in text:
        for placeholder, marker in MARKERS.items():
            text = text.replace(placeholder, marker)
    return text


@dataclass(frozen=True)
class Spans:
    """The ids of a video's and an image's span, by the id of their marker; made once and used for every sample."""

    ids: Mapping[int, torch.Tensor]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, spec: VideoSpec) -> Spans:
        """The spans of a `VideoSpec`; ValueError when the tokenizer lacks a visual token."""
        known = visual_token_ids(tokenizer)
        spans = [video_tokens(spec), *([image_tokens(spec)] if spec.image_rows >= 2 else [])]
        rows = [[known[token] for token in span] for span in spans]
        return cls({row[0]: torch.tensor(row, dtype=torch.long) for row in rows} | ({} if len(rows) == 2 else
                   {known[DEFAULT_IM_START_TOKEN]: torch.empty(0, dtype=torch.long)}))  # fmt: skip

    def expand(self, ids: Sequence[int]) -> list[int]:
        """Compact ids with every marker replaced by the ids of its span."""
        row = torch.tensor(list(ids), dtype=torch.long)
        return self.insert(row, row)[0].tolist()

    def insert(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels (L,) of a compact sequence with every marker replaced by its span.

        Where a marker is masked its span is; a marker that is its own label makes its whole span targets.

        Raises:
            ValueError: for an image whose single row leaves no place for two delimiters.
        """
        known = self.ids
        found = [(place, token) for place, token in enumerate(input_ids.tolist()) if token in known]
        if not found:
            return input_ids, labels
        ids_parts, labels_parts, start = [], [], 0
        for place, token in found:
            span, masked, label = known[token], self._masked[token], int(labels[place])
            if not len(span):
                raise UserError(IMAGE_TOO_SMALL)
            if label != IGNORE_INDEX:
                masked = span if label == token else torch.cat([masked[:-1], labels[place : place + 1]])
            ids_parts += [input_ids[start:place], span]
            labels_parts += [labels[start:place], masked]
            start = place + 1
        return torch.cat([*ids_parts, input_ids[start:]]), torch.cat([*labels_parts, labels[start:]])

    @cached_property
    def _masked(self) -> dict[int, torch.Tensor]:
        """The labels of each span where none of it is a target."""
        return {marker: torch.full_like(span, IGNORE_INDEX) for marker, span in self.ids.items()}


def lay_out(text: str) -> str:
    """A turn whose white space around placeholders is none before them and one space after them, where text follows.

    That white space is layout (LLaVA writes `<video>\\n`), and would be learnt beside a video and not without one.
    White space within the text belongs to the text and stays.
    """
    if "<" not in text or text in PLACEHOLDERS or not any(placeholder in text for placeholder in PLACEHOLDERS):
        return text
    return _AROUND_PLACEHOLDERS.sub(lambda found: "".join(found[1].split()) + " ", text).strip()


def plain_turns(conversation: Turns) -> list[dict[str, Any]]:
    """The turns as plain LM joins them: laid out, and with placeholders that open a later turn at the end of the turn
    before, so that the space between the two turns stands after the video, once, as in a text without it.
    """
    turns = [{**turn, "value": lay_out(turn["value"])} for turn in conversation]
    before = None
    for turn in turns:
        found = _LEADING_PLACEHOLDERS.match(turn["value"])
        if found and before is not None:
            before["value"] = before["value"].rstrip() + found[0]
            turn["value"] = turn["value"][found.end() :].lstrip()
        if turn["value"].strip():
            before = turn
    return turns


def plain_text(conversation: Turns) -> str:
    """`join_turns` of `plain_turns`: the text that plain LM learns, with its placeholders."""
    if any("<" in turn["value"] for turn in conversation[1:]):
        return join_turns(plain_turns(conversation))
    # No placeholder opens a later turn, so that none moves.
    return join_turns([{"value": lay_out(turn["value"])} for turn in conversation])


def expand_turns(conversation: Turns, spec: VideoSpec) -> list[dict[str, Any]]:
    """`plain_turns` with every placeholder replaced by its span: what `preprocess_plain_lm` takes."""
    return [{**turn, "value": expand_placeholders(turn["value"], spec)} for turn in plain_turns(conversation)]


def reserved_tokens(
    tokenizer: PreTrainedTokenizerBase | None = None, coordinates: bool | None = None
) -> tuple[str, ...]:
    """Strings that a record's text must not contain: the visual tokens and the tokenizer's own special tokens; and the
    coordinate placeholders, which say that a record may have no coordinates.

    Args:
        coordinates: whether it may; by default where the tokenizer knows them, and without a tokenizer.
    """
    own = ["<|endoftext|>"]
    if tokenizer is not None:
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        own = [*tokenizer.all_special_tokens, *added]
    if coordinates is None:
        coordinates = tokenizer is None or COORDINATE_PLACEHOLDERS[0] in tokenizer.get_added_vocab()
    return tuple(dict.fromkeys((*VISUAL_TOKENS, *own, *(() if coordinates else COORDINATE_PLACEHOLDERS))))


def visual_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids of the eight visual tokens.

    Raises:
        ValueError: when the tokenizer lacks one of them, so that it would become an unknown token or `<|endoftext|>`,
            or when one shares its id with the unknown, end-of-text or padding token.
    """
    # Asked one by one, since this is done for every sample: `get_vocab` copies the whole vocabulary. What a tokenizer
    # does not know it gives the id of another token, often the unknown one.
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in VISUAL_TOKENS}
    missing = [token for token, i in found.items() if i is None or tokenizer.convert_ids_to_tokens(i) != token]
    if missing:
        raise UserError(
            f"the tokenizer does not know the special tokens {', '.join(missing)}: register them first with "
            "llava.model.builder.add_visual_tokens(tokenizer, model)"
        )
    ids: dict[str, int] = {token: int(i) for token, i in found.items()}  # type: ignore[arg-type]
    taken = {tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    shared = [token for token, i in ids.items() if i in taken]
    if shared:
        raise UserError(f"the special tokens {', '.join(shared)} share an id with the unk, eos or pad token")
    return ids


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills the end of short samples; attention never sees it, so EOS serves where there is no pad token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def join_turns(conversation: Turns) -> str:
    """Plain-LM text of a conversation: the values of its turns joined by one space, empty turns left out."""
    return " ".join(value for turn in conversation if (value := turn["value"].strip()))


def mask_visual(input_ids: torch.Tensor, visual_ids: Sequence[int]) -> torch.Tensor:
    """Labels (L,) for `input_ids` (L,): the same ids, with `IGNORE_INDEX` at the positions of visual tokens."""
    visual = torch.isin(input_ids, torch.tensor(list(visual_ids), dtype=input_ids.dtype))
    return input_ids.masked_fill(visual, IGNORE_INDEX)


def tokenized(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    """Ids of texts, with no special tokens but those in them."""
    own = type(tokenizer)
    # A tokenizer's own way of calling may do more than its backend, which knows how to leave offsets out.
    direct = tokenizer.is_fast and own._encode_plus is PreTrainedTokenizerFast._encode_plus
    direct = direct and own.__call__ is PreTrainedTokenizerFast.__call__
    # In parts, since the tokenizer keeps strings of all tokens beside the ids.
    for start in range(0, len(texts), 1000):
        part = list(texts[start : start + 1000])
        if direct:
            backend = tokenizer.backend_tokenizer
            backend.no_padding()
            backend.no_truncation()
            backend.encode_special_tokens = tokenizer.split_special_tokens
            yield from (found.ids for found in backend.encode_batch_fast(part, add_special_tokens=False))
        else:
            yield from tokenizer(part, add_special_tokens=False, return_attention_mask=False, verbose=False)[
                "input_ids"
            ]


def has_visual_token(text: str) -> bool:
    """Whether a text holds one of the eight visual tokens."""
    return "<" in text and any(token in text for token in VISUAL_TOKENS)


def check_visible(text: str, has_image: bool) -> bool:
    """Whether a text shows a video or image; ValueError when one belongs to it and it does not."""
    is_visual = has_visual_token(text)
    if has_image and not is_visual:
        raise UserError(f"a video or image belongs to this text, but it has no visual token: {text[:80]!r}")
    return is_visual


def preprocess_plain_lm(
    sources: Sequence[Turns], tokenizer: PreTrainedTokenizerBase, has_image: bool = False
) -> dict[str, list[torch.Tensor]]:
    """Conversations to plain language-model samples: turns joined by one space, EOS at the end, all text supervised.

    Args:
        sources: conversations `[{"from": ..., "value": ...}, ...]`, placeholders already expanded to visual tokens, or
            to one marker each (`compact`).
        tokenizer: one that knows the visual tokens, when there are any in the text.
        has_image: whether the conversations show a video or an image.

    Returns:
        `input_ids` and `labels`, lists of LongTensors (L,). Labels equal the ids, apart from visual tokens, which are
        `IGNORE_INDEX`. `count_supervised(labels)` counts the targets.

    Raises:
        ValueError: when a visual token is not registered, when a sample has no word to learn, when `has_image` is set
            and a text holds no visual token, or when the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no eos_token, so a caption could never learn to end: set one")
    samples = [plain_lm_sample(conversation, tokenizer, has_image) for conversation in sources]
    return {"input_ids": [ids for ids, _ in samples], "labels": [labels for _, labels in samples]}


def plain_lm_sample(
    conversation: Turns, tokenizer: PreTrainedTokenizerBase, has_image: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `labels` (L,) of one conversation; `preprocess_plain_lm` says how, and what it raises."""
    text = join_turns(conversation)
    is_visual = check_visible(text, has_image)
    visual_ids: Iterable[int] = visual_token_ids(tokenizer).values() if is_visual else ()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    input_ids = torch.tensor([*ids, tokenizer.eos_token_id], dtype=torch.long)
    labels = mask_visual(input_ids, list(visual_ids))
    if count_supervised(labels[:-1]) == 0 and (is_visual or len(ids) == 0):
        raise UserError(f"no word to learn in {conversation!r:.200}: the caption is empty")
    return input_ids, labels


def count_supervised(labels: torch.Tensor) -> int:
    """How many positions of `labels` (..., L) are targets of the loss.

    Position 0 is never predicted, since nothing comes before it, so it does not count whatever its label.
    """
    return int((labels[..., 1:] != IGNORE_INDEX).sum())


def truncate(input_ids: torch.Tensor, labels: torch.Tensor, max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts text at the end of a sequence (L,) so that at most `max_length` positions remain; the last, EOS, is kept.

    Raises:
        ValueError: when the cut would reach into a visual span, or leave no word to learn after the last one.
    """
    if len(input_ids) <= max_length:
        return input_ids, labels
    kept = torch.cat([labels[: max_length - 1], labels[-1:]])
    lost = labels[max_length - 1 : -1]
    spans = (kept == IGNORE_INDEX).nonzero()
    after = kept[int(spans[-1]) :] if len(spans) else kept
    if (lost == IGNORE_INDEX).any() or count_supervised(after) < 2:
        # A start of the text, which is masked too, is the token of the end.
        visual = int(((labels == IGNORE_INDEX) & (input_ids != input_ids[-1])).sum())
        raise UserError(
            f"{len(input_ids)} positions, {visual} of them visual, do not fit model_max_length {max_length}: "
            "no visual span may be cut and a word must remain after it; raise --model_max_length (and the model's "
            "positions), or lower --num_frames or --mm_perceiver_latents"
        )
    return torch.cat([input_ids[: max_length - 1], input_ids[-1:]]), kept
