"""How a conversation becomes ids and labels: the interface of all formats, plain LM, and the choice by name.

Letters in shapes: L positions of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX, VISUAL_TOKENS
from llava.data.chat import Chat
from llava.data.chat_formats import PLAIN, resolve
from llava.data.prompt import (
    Turns,
    compact,
    join_turns,
    plain_text,
    plain_turns,
    preprocess_plain_lm,
    tokenized,
    truncate,
)
from llava.data.text_start import EOS, NONE, put_start
from llava.errors import UserError


class TextFormat(Protocol):
    """What a conversation becomes: plain LM here, chat formats in `llava.data.chat`.

    Conversations that it is given have their placeholders, and ids that it returns are compact: `Spans` inserts those
    of videos and images.
    """

    @property
    def version(self) -> str:
        """Its name, by `llava.data.chat_formats.resolve`."""

    @property
    def template(self) -> str | None:
        """The chat template; none for plain LM."""

    @property
    def text_start(self) -> str:
        """What stands in front of the text, one of `llava.data.text_start.TEXT_STARTS`."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Where generation stops: the end of text, and the end of a turn, which are the same in some."""

    def turns(self, conversation: Turns) -> Turns:
        """The turns with markers for placeholders, as `preprocess` takes them."""

    def preprocess(
        self, sources: Sequence[Turns], tokenizer: PreTrainedTokenizerBase, has_image: bool = False
    ) -> dict[str, list[torch.Tensor]]:
        """`input_ids` and `labels`, lists of LongTensors (L,)."""

    def encode(self, conversations: Sequence[Turns]) -> Iterator[tuple[list[int], list[int]]]:
        """Ids and labels of many conversations, one after the other."""

    def prompt(self, conversation: Turns) -> list[int]:
        """Ids up to where the model goes on."""

    def words(self, conversation: Turns) -> str:
        """The text that is supervised, placeholders included."""

    def places(self, conversation: Turns) -> list[str]:
        """Who wrote each id: `assistant`, `user`, `system`, or `markup`, which is nobody."""

    def truncate(
        self, input_ids: torch.Tensor, labels: torch.Tensor, max_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """At most `max_length` positions of an expanded sequence (L,); ValueError when too little would be left."""


@dataclass(frozen=True)
class PlainLM:
    """`TextFormat` without a template: turns joined by one space, EOS at the end, all text supervised, nothing else.

    With `text_start` eos that token stands in front of the text too, and is not supervised there.
    """

    tokenizer: PreTrainedTokenizerBase
    version: str = PLAIN
    template: str | None = None
    text_start: str = NONE

    @property
    def end_ids(self) -> tuple[int, ...]:
        return (self.tokenizer.eos_token_id,)

    def turns(self, conversation: Turns) -> Turns:
        return [{**turn, "value": compact(turn["value"])} for turn in plain_turns(conversation)]

    def preprocess(
        self, sources: Sequence[Turns], tokenizer: PreTrainedTokenizerBase, has_image: bool = False
    ) -> dict[str, list[torch.Tensor]]:
        sample = preprocess_plain_lm(sources, tokenizer, has_image)
        if self.text_start == NONE:
            return sample
        visual = _visual_ids(tokenizer)
        rows = [
            put_start(ids.tolist(), labels.tolist(), tokenizer.eos_token_id, visual)
            for ids, labels in zip(sample["input_ids"], sample["labels"], strict=True)
        ]
        return {"input_ids": [torch.tensor(ids) for ids, _ in rows], "labels": [torch.tensor(row) for _, row in rows]}

    def encode(self, conversations: Sequence[Turns]) -> Iterator[tuple[list[int], list[int]]]:
        texts = [compact(plain_text(c)) for c in conversations]
        visual, end = _visual_ids(self.tokenizer), self.tokenizer.eos_token_id
        for tokens in tokenized(self.tokenizer, texts):
            ids = [*tokens, end]
            labels = ids if visual.isdisjoint(ids) else [IGNORE_INDEX if i in visual else i for i in ids]
            yield self._started(ids, labels, visual)

    def _started(self, ids: list[int], labels: list[int], visual: frozenset[int]) -> tuple[list[int], list[int]]:
        return (ids, labels) if self.text_start == NONE else put_start(ids, labels, self.tokenizer.eos_token_id, visual)

    def prompt(self, conversation: Turns) -> list[int]:
        ids = next(tokenized(self.tokenizer, [join_turns(self.turns(conversation))]))
        return self._started(ids, ids, _visual_ids(self.tokenizer))[0]

    def words(self, conversation: Turns) -> str:
        return join_turns(conversation)

    def places(self, conversation: Turns) -> list[str]:
        ids, _ = next(self.encode([conversation]))
        start = self.tokenizer.eos_token_id if self.text_start == EOS else None
        return ["markup" if i == start and place < len(ids) - 1 else "assistant" for place, i in enumerate(ids)]

    def truncate(
        self, input_ids: torch.Tensor, labels: torch.Tensor, max_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return truncate(input_ids, labels, max_length)


def _visual_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of the visual tokens that a tokenizer knows."""
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in VISUAL_TOKENS}
    return frozenset(i for token, i in found.items() if i is not None and tokenizer.convert_ids_to_tokens(i) == token)  # type: ignore[misc]


def text_format(
    version: str, tokenizer: PreTrainedTokenizerBase, template: str | None = None, text_start: str = NONE
) -> TextFormat:
    """The format of a name, on a tokenizer that knows its tokens; with a template that was pinned, if there is one.

    Args:
        text_start: of plain LM; a chat format writes its own.

    Raises:
        ValueError: for an unknown name, listing the known ones, and from `Chat.of`.
    """
    name = resolve(version)
    return PlainLM(tokenizer, text_start=text_start) if name == PLAIN else Chat.of(name, tokenizer, template)


def preprocess(
    sources: Sequence[Turns], tokenizer: PreTrainedTokenizerBase, has_image: bool = False, version: str = PLAIN
) -> dict[str, list[torch.Tensor]]:
    """Conversations to samples in the format `version`, as `preprocess_plain_lm` makes them in plain LM.

    Args:
        sources: conversations of `from`/`value` or `role`/`content` turns, placeholders already expanded.
        version: LLaVA's name of the format. In a chat format only the assistant's words, and the token that ends each
            of its turns, are supervised.

    Raises:
        ValueError: from `preprocess_plain_lm`, `text_format` and `Chat.preprocess`.
    """
    return text_format(version, tokenizer).preprocess(sources, tokenizer, has_image)


PLAIN_RECORD: Mapping[str, Any] = {"version": PLAIN, "template": None}
"""What a checkpoint means that names no format. One that names no start has none."""


def format_of(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> TextFormat:
    """The format of a `text_format`, as `record_format` writes it."""
    return text_format(record["version"], tokenizer, record["template"], record.get("start", NONE))


def record_format(format: TextFormat, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a format into a model's config, and its template into the tokenizer, so that a checkpoint keeps both."""
    config.text_format = {"version": format.version, "template": format.template, "start": format.text_start}
    if format.template is not None:
        tokenizer.chat_template = format.template


def recorded_format(config: Any, tokenizer: PreTrainedTokenizerBase) -> TextFormat:
    """The format of a checkpoint; plain LM where it names none.

    Raises:
        ValueError: when the tokenizer's chat template is not the one that the model was trained with.
    """
    found = getattr(config, "text_format", None) or PLAIN_RECORD
    if found["template"] is not None and tokenizer.chat_template != found["template"]:
        raise UserError(
            f"the tokenizer's chat template is not the one that the model was trained with ({found['version']}, which "
            "its config.json keeps under text_format): take the checkpoint's own chat_template.jinja"
        )
    return format_of(found, tokenizer)
