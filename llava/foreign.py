"""Models and tokenizers in folders that others made: read without running their code, and measured before they are
built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from llava.errors import MissingFile, UserError

SIZES = {
    **dict.fromkeys(("n_layer", "num_hidden_layers"), (0, 1000)),
    **dict.fromkeys(("n_embd", "hidden_size", "mm_hidden_size"), (1, 65_536)),
    **dict.fromkeys(("n_head", "num_attention_heads"), (1, 1024)),
    **dict.fromkeys(("n_inner", "intermediate_size"), (1, 1_048_576)),
    **dict.fromkeys(("n_positions", "max_position_embeddings"), (1, 1_048_576)),
    "vocab_size": (1, 16_777_216),
    "image_size": (1, 8192),
    "patch_size": (1, 8192),
    "num_channels": (1, 64),
    "num_register_tokens": (0, 1024),
    "mlp_ratio": (1, 64),
    "mm_perceiver_depth": (0, 1000),
    **dict.fromkeys(("num_frames", "fast_latents", "slow_latents", "temporal_factor"), (1, 65_536)),
    "mm_perceiver_width": (1, 65_536),
    "mm_perceiver_heads": (1, 1024),
}
"""Least and most of the whole numbers in a config that say how large a model is."""
PROBES = ("a", "Un gatto nero dorme sul divano.", "1234567890", "è ß 漢 🙂\n\t ")
NO_CODE = (
    "needs code of its own (auto_map), which is never run here: save it again as one that transformers itself knows, "
    "without auto_map"
)


def check_sizes(values: Mapping[str, Any], where: str) -> None:
    """Refuses a config that describes no model, or one that cannot fit, before anything is built from it.

    Args:
        values: the config's fields; those of `video_spec`, `mm_processor` and `mm_vision_config` are looked at too.
        where: the folder or flag, for the message.

    Raises:
        ValueError: naming every field, or the number of weights and the memory of this machine.
    """
    problems = []
    for name, (least, most) in SIZES.items():
        value = values.get(name)
        if isinstance(value, (list, tuple)) and value and name in ("image_size", "patch_size"):
            value = max(value, key=lambda side: side if isinstance(side, int) else -1)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most or value % 1:
            problems.append(f"{name} is {value!r:.60}, expected a whole number from {least} to {most}")
    if not problems and (number := count_weights(values)) * 4 > memory():
        problems.append(
            f"it describes {number:,} weights, {number * 4 / 1e9:,.0f} GB in fp32; this machine has "
            f"{memory() / 1e9:,.0f} GB of memory"
        )
    if problems:
        raise UserError(f"{where}: its config cannot be built: {'; '.join(problems)}")
    for part in ("video_spec", "mm_processor", "mm_vision_config"):
        if isinstance(values.get(part), Mapping):
            check_sizes(values[part], f"{where} ({part})")


def count_weights(values: Mapping[str, Any]) -> int:
    """About how many weights a transformer of these sizes has: 12 widths squared a layer, and its embeddings."""
    width = values.get("n_embd") or values.get("hidden_size") or 0
    layers = values.get("n_layer") or values.get("num_hidden_layers") or 0
    inner = values.get("n_inner") or values.get("intermediate_size") or 4 * width
    rows = (values.get("vocab_size") or 0) + (values.get("n_positions") or values.get("max_position_embeddings") or 0)
    return layers * (4 * width * width + 2 * width * inner) + rows * width


def memory() -> int:
    """Bytes of main memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def config_values(name_or_path: str, where: str) -> dict[str, Any]:
    """The fields of a folder's `config.json`, or of a hub name's, with sizes that can be built.

    Raises:
        ValueError: naming what cannot be built.
        OSError: when there is none.
    """
    values = PretrainedConfig.get_config_dict(name_or_path)[0]
    if not values and not os.path.isfile(os.path.join(name_or_path, "config.json")):  # Of a folder without one.
        raise MissingFile("it holds no config.json")
    check_sizes(values, where)
    return values


def said(error: Exception) -> str:
    """What a library says of what it could not load, on one line: its first sentence."""
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".:") or type(error).__name__


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """A tokenizer of a folder or hub name.

    Raises:
        ValueError: when it needs code of its own, or turns a few letters into thousands of tokens.
        OSError: from transformers, when there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise UserError(f"{name_or_path}: its tokenizer {NO_CODE}") from error
        raise UserError(f"{name_or_path}: holds no tokenizer that transformers can read ({said(error)})") from error
    most = SIZES["vocab_size"][1]
    if len(tokenizer) > most or max(tokenizer.get_vocab().values(), default=0) > most:
        raise UserError(f"{name_or_path}: its tokenizer has more than {most:,} entries, or an id above that")
    for text in PROBES:
        number = len(tokenizer(text)["input_ids"])
        # Bytes are the smallest tokens there are, four of them at most a letter; a template adds a few.
        if number > 16 * len(text) + 64:
            raise UserError(
                f"{name_or_path}: its tokenizer makes {number:,} tokens of {text!r}: it is damaged, or made to fill "
                "the memory; use another"
            )
    return tokenizer
