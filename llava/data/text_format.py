"""How a conversation becomes ids and labels: the interface of all formats, plain LM, and the choice by name.

Letters in shapes: L positions of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from llava.data.chat import Chat
from llava.data.chat_formats import PLAIN, resolve
from llava.data.prompt import (
    MARKERS,
    Turns,
    compact,
    join_turns,
    plain_turns,
    preprocess_plain_lm,
    tokenized,
    truncate,
)
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
    """`TextFormat` without a template: turns joined by one space, EOS at the end, all text supervised, nothing else."""

    tokenizer: PreTrainedTokenizerBase
    version: str = "plain"
    template: str | None = None

    @property
    def end_ids(self) -> tuple[int, ...]:
        return (self.tokenizer.eos_token_id,)

    def turns(self, conversation: Turns) -> Turns:
        return [{**turn, "value": compact(turn["value"])} for turn in plain_turns(conversation)]

    def preprocess(
        self, sources: Sequence[Turns], tokenizer: PreTrainedTokenizerBase, has_image: bool = False
    ) -> dict[str, list[torch.Tensor]]:
        return preprocess_plain_lm(sources, tokenizer, has_image)

    def encode(self, conversations: Sequence[Turns]) -> Iterator[tuple[list[int], list[int]]]:
        texts = [join_turns(self.turns(c)) for c in conversations]
        found = {marker: self.tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS.values()}
        visual = {
            i for marker, i in found.items() if i is not None and self.tokenizer.convert_ids_to_tokens(i) == marker
        }
        for tokens in tokenized(self.tokenizer, texts):
            ids = [*tokens, self.tokenizer.eos_token_id]
            yield ids, [IGNORE_INDEX if i in visual else i for i in ids]

    def prompt(self, conversation: Turns) -> list[int]:
        return next(tokenized(self.tokenizer, [join_turns(self.turns(conversation))]))

    def words(self, conversation: Turns) -> str:
        return join_turns(conversation)

    def places(self, conversation: Turns) -> list[str]:
        return ["assistant"] * len(next(self.encode([conversation]))[0])

    def truncate(
        self, input_ids: torch.Tensor, labels: torch.Tensor, max_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return truncate(input_ids, labels, max_length)


def text_format(version: str, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> TextFormat:
    """The format of a name, on a tokenizer that knows its tokens; with a template that was pinned, if there is one.

    Raises:
        ValueError: for an unknown name, listing the known ones, and from `Chat.of`.
    """
    name = resolve(version)
    return PlainLM(tokenizer) if name == PLAIN else Chat.of(name, tokenizer, template)


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


def record_format(format: TextFormat, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a format into a model's config, and its template into the tokenizer, so that a checkpoint keeps both."""
    config.text_format = {"version": format.version, "template": format.template}
    if format.template is not None:
        tokenizer.chat_template = format.template


def recorded_format(config: Any, tokenizer: PreTrainedTokenizerBase) -> TextFormat:
    """The format of a checkpoint; plain LM where it names none.

    Raises:
        ValueError: when the tokenizer's chat template is not the one that the model was trained with.
    """
    found = getattr(config, "text_format", None) or {"version": PLAIN, "template": None}
    if found["template"] is not None and tokenizer.chat_template != found["template"]:
        raise UserError(
            f"the tokenizer's chat template is not the one that the model was trained with ({found['version']}, which "
            "its config.json keeps under text_format): take the checkpoint's own chat_template.jinja"
        )
    return text_format(found["version"], tokenizer, found["template"])
