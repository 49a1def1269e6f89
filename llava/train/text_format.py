"""The format of a run's text: its tokens in the tokenizer and the model, and its record in the checkpoint."""

from __future__ import annotations

import logging

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llava.data.chat_formats import PLAIN, add_tokens, has_prefix_space, without_prefix_space
from llava.data.text_format import TextFormat, record_format, text_format
from llava.errors import UserError
from llava.model.builder import grow_embeddings
from llava.model.lora import settings_of

logger = logging.getLogger(__name__)


def prepare_tokenizer(version: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer as the format needs it: in a chat without a space before every piece of text."""
    if version == PLAIN or not has_prefix_space(tokenizer):
        return tokenizer
    logger.info("--version %s: the tokenizer writes no space before a text any more", version)
    return without_prefix_space(tokenizer)


def make_format(
    version: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, template: str | None = None
) -> TextFormat:
    """The format of the text, with its tokens registered and written into the config and the tokenizer.

    Args:
        template: of the run that is resumed, in a chat format.

    Raises:
        ValueError: when the model would have to learn new tokens and its embeddings are frozen.
    """
    added = add_tokens(version, tokenizer)
    if added:
        if settings_of(model) is not None:
            raise UserError(
                f"--version {version}: the tokenizer does not know {', '.join(added)}, and with --lora_enable the "
                "embeddings, which would have to learn them, stay as they are: name the model's own format, or train "
                "the model in this one in full first (leave --lora_enable out)"
            )
        if not model.get_input_embeddings().weight.requires_grad:
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
    form = text_format(version, tokenizer, template)
    record_format(form, model.config, tokenizer)
    if version != PLAIN:
        model.generation_config.eos_token_id = list(form.end_ids)
    return form
