"""The token in front of a text, `--text_start`: whether a model learns to say how likely a first word is.

With `eos` the end-of-text token stands directly before the first token of the text, after a video or image that comes
first. It is never a target; what follows it is. Evaluators put it there (lm-eval before a text without context), and a
model that never saw it there gives numbers that mean nothing (docs/formats.md). With `none` nothing stands there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from llava.data.chat_formats import PLAIN

EOS, NONE = "eos", "none"
TEXT_STARTS = (EOS, NONE)


def put_start(
    ids: Sequence[int], labels: Sequence[int], start: int, visual_ids: Collection[int]
) -> tuple[list[int], list[int]]:
    """Ids and labels of a sequence (L,), compact or expanded, with `start` in front of its first text token, (L + 1,).

    Args:
        visual_ids: what is no text.
    """
    place = next((i for i, token in enumerate(ids) if token not in visual_ids), len(ids))
    return [*ids[:place], start, *ids[place:]], [*labels[:place], IGNORE_INDEX, *labels[place:]]


def choose_start(asked: str | None, version: str, recorded: Mapping[str, Any] | None) -> str:
    """What stands in front of a text.

    A chat format writes its own beginning. In plain LM the flag decides; without it what a checkpoint was trained with,
    which is nothing where it does not say; and for a language model that training begins with, `eos`.

    Args:
        asked: the flag.
        version: of the text format, by `llava.data.chat_formats.resolve`.
        recorded: `recorded_text` of the checkpoint that training goes on from; None for a model of others.
    """
    if version != PLAIN:
        return NONE
    if asked is not None:
        return asked
    return EOS if recorded is None else recorded.get("start", NONE)


def recorded_text(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a `config.json` says of the text that its model was trained with; None for a model of others."""
    if not str(config.get("model_type")).startswith("llava_"):
        return None
    return config.get("text_format") or {}


def give_start(tokenizer: PreTrainedTokenizerBase, start: str) -> None:
    """Lets the tokenizer of a checkpoint begin texts as its model was trained, for everybody who calls it as it comes.

    With `eos` that token is also the beginning of text (`bos_token`), which evaluators ask for, and is put in front of
    a text wherever special tokens are asked for (`add_special_tokens`, everywhere but here the default).
    """
    if start == EOS and tokenizer.bos_token != tokenizer.eos_token:
        tokenizer.bos_token = tokenizer.eos_token
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.eos_token_id]
    if tokenizer.is_fast and begins != (start == EOS):
        tokenizer.add_bos_token = start == EOS
