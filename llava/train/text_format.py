"""The format of a run's text: its tokens in the tokenizer and the model, and its record in the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llava.data.chat_formats import PLAIN, add_tokens, has_prefix_space, without_prefix_space
from llava.data.text_format import TextFormat, record_format, text_format
from llava.data.text_start import EOS, NONE, choose_start, give_start
from llava.errors import UserError
from llava.model.builder import grow_embeddings
from llava.model.lora import settings_of

logger = logging.getLogger(__name__)


START_CHANGES = {
    EOS: "the model was trained without a token before the text; this run puts one there (--text_start eos)",
    NONE: "the model was trained with a token before the text (--text_start eos); this run leaves it out",
}


def prepare_tokenizer(version: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer as the format needs it: in a chat without a space before every piece of text."""
    if version == PLAIN or not has_prefix_space(tokenizer):
        return tokenizer
    logger.info("--version %s: the tokenizer writes no space before a text any more", version)
    return without_prefix_space(tokenizer)


def make_format(
    version: str,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    recorded: Mapping[str, Any] | None = None,
    text_start: str | None = None,
    resumed: Mapping[str, Any] | None = None,
) -> TextFormat:
    """The format of the text, with its tokens registered and written into the config and the tokenizer.

    Args:
        recorded: `llava.data.text_start.recorded_text` of the folder that the model is from.
        text_start: the flag.
        resumed: `text_format` of the run that is resumed: its template, and what stands in front of its texts.

    Raises:
        ValueError: when the model would have to learn new tokens and its embeddings are frozen.
    """
    added = add_tokens(version, tokenizer)
    if added:
        learns = model.get_input_embeddings().weight.requires_grad
        if settings_of(model) is not None and not learns:
            raise UserError(
                f"--version {version}: the tokenizer does not know {', '.join(added)}, and with --lora_enable the "
                "embeddings, which would have to learn them, stay as they are: name the model's own format, or train "
                "the model in this one in full first (leave --lora_enable out), or add mm_embeddings to "
                "--mm_tunable_parts"
            )
        if not learns:
            raise UserError(
                f"--version {version}: the tokenizer does not know {', '.join(added)}, and the language model, which "
                "is frozen, could not learn them: add mm_language_model to --mm_tunable_parts, or name the model's own "
                "format"
            )
        grow_embeddings(tokenizer, model)
        logger.info("--version %s: added %s to the tokenizer, with fresh embeddings", version, ", ".join(added))
    before = (getattr(model.config, "text_format", None) or {}).get("version")
    if before not in (None, version):
        logger.warning("the model was trained in the format %s; this run trains it in %s", before, version)
    start = choose_start(text_start, version, recorded)
    if resumed is not None:
        start = resumed.get("start", NONE)
    elif recorded is not None and version == PLAIN and start != recorded.get("start", NONE):
        logger.warning("%s", START_CHANGES[start])
    form = text_format(version, tokenizer, (resumed or {}).get("template"), start)
    if start == EOS and tokenizer.bos_token not in (None, tokenizer.eos_token):
        logger.info(
            "--text_start eos: %s begins a text in this model, and is the tokenizer's bos_token in place of %s",
            tokenizer.eos_token, tokenizer.bos_token,
        )  # fmt: skip
    give_start(tokenizer, start)
    if start == EOS:
        model.config.bos_token_id = model.generation_config.bos_token_id = tokenizer.eos_token_id
    record_format(form, model.config, tokenizer)
    if version != PLAIN:
        model.generation_config.eos_token_id = list(form.end_ids)
    return form
