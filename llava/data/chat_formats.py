"""The chat formats by name: their templates, the tokens that they need, and what they need of a tokenizer.

The templates are Jinja, in the form of transformers' chat templates with its `{% generation %}` marks, and lie in
`templates/`.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, cast

from transformers import AddedToken, PreTrainedTokenizerBase

from llava.errors import UserError

PLAIN = "plain"
"""The version without a template, `llava.data.prompt`."""
TOKENIZER = "tokenizer"
"""The version that takes the tokenizer's own template."""


@dataclass(frozen=True)
class Format:
    """A format of `templates/`: tokens that the tokenizer must have, and other marks that a text must not contain."""

    tokens: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


FORMATS = {
    "chatml": Format(("<|im_start|>", "<|im_end|>"), aliases=("qwen_1_5", "qwen_2")),
    "llama_3": Format(
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), aliases=("llava_llama_3",)
    ),
    "llama_2": Format(marks=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), aliases=("llava_llama_2", "llama_v2")),
    "mistral_instruct": Format(marks=("[INST]", "[/INST]")),
    "gemma_instruct": Format(("<start_of_turn>", "<end_of_turn>")),
    "vicuna_v1": Format(aliases=("v1",)),
    "lines": Format(),
    TOKENIZER: Format(),
}
"""By LLaVA's names; beginning and end of text are the tokenizer's own."""


@cache
def template_of(version: str) -> str:
    """The text of a format's template."""
    return (files("llava.data") / "templates" / f"{version}.jinja").read_text(encoding="utf-8").strip()


def pin_template(template: str, now: datetime | None = None) -> str:
    """A template that writes no date but today's, whenever it is rendered: a run that goes on another day, and captions
    that are asked for later, have the words that training began with.

    Args:
        now: today.
    """
    if "strftime_now" not in template or template.startswith(_PIN):
        return template
    # The formats are strings of the template: whichever of them it asks for, the answer is written down.
    now = datetime.now() if now is None else now
    formats = dict.fromkeys(found[1] or found[2] for found in _DATE_FORMATS.finditer(template))
    dates = {form: now.strftime(form) for form in formats}
    unknown = "raise_exception('a date in a form that is not written out in the template')"
    return (
        f"{_PIN}{{%- set dates = {dates} %}}{{{{- dates[format] if format in dates else {unknown} }}}}"
        f"{{%- endmacro %}}{template}"
    )


_PIN = "{%- macro strftime_now(format) %}"
_DATE_FORMATS = re.compile(r"strftime_now\(\s*(?:\"([^\"]*)\"|'([^']*)')\s*\)")


def resolve(version: str) -> str:
    """The name of a format by any of its names.

    Raises:
        ValueError: listing the known ones.
    """
    names = {PLAIN: PLAIN} | {name: main for main, form in FORMATS.items() for name in (main, *form.aliases)}
    if version not in names:
        known = ", ".join(
            f"{name} ({', '.join(form.aliases)})" if form.aliases else name for name, form in FORMATS.items()
        )
        raise UserError(f"--version {version}: there is no such format; use one of {PLAIN}, {known}")
    return names[version]


def reserved(version: str) -> tuple[str, ...]:
    """Strings of a format that a record's text must not contain."""
    return () if version == PLAIN else (*FORMATS[version].tokens, *FORMATS[version].marks)


def add_tokens(version: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Registers the tokens of a format that the tokenizer lacks, as special ones, and returns them."""
    missing = [] if version == PLAIN else unknown_tokens(version, tokenizer)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in missing], special_tokens=True)
    return missing


def unknown_tokens(version: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens of a format that are not one token each in a text."""
    found = {t: tokenizer(t, add_special_tokens=False)["input_ids"] for t in FORMATS[version].tokens}
    return [t for t, ids in found.items() if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != t]


def has_prefix_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a byte-level tokenizer puts a space before every piece of text between special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return any(getattr(part, "add_prefix_space", False) for part in _pre_tokenizers(backend))


def without_prefix_space(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer as chat formats need it: a copy without that space, which would stand in every header."""
    if not has_prefix_space(tokenizer):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    for part in _pre_tokenizers(tokenizer.backend_tokenizer):
        if getattr(part, "add_prefix_space", False):
            part.add_prefix_space = False
    if getattr(tokenizer, "add_prefix_space", False):
        tokenizer.add_prefix_space = False
    if "add_prefix_space" in tokenizer.init_kwargs:
        tokenizer.init_kwargs["add_prefix_space"] = False
    return tokenizer


def _pre_tokenizers(backend: Any) -> list[Any]:
    first = getattr(backend, "pre_tokenizer", None)
    if type(first).__name__ == "Sequence":
        return list(cast(Any, first))
    return [first]
