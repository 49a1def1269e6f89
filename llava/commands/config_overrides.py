"""Which settings of a config `--config_overrides` may name, and what transformers says of their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from llava.config.known_flags import unknown
from llava.model.language_model.causal_lm import plain_config_class

SAID = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), "--n_layer"),
    **dict.fromkeys(("hidden_size", "n_embd"), "--n_embd"),
    **dict.fromkeys(("num_attention_heads", "n_head"), "--n_head"),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), "--n_positions"),
    "vocab_size": "--vocab_size",
    "model_type": "--model_type",
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), "the tokenizer"),
}
"""Settings of configs, and what says them; besides those of dropout."""


@contextmanager
def refused_overrides(overrides: Mapping[str, Any], model_type: str) -> Iterator[None]:
    """What the config or the model says of settings that it was given by --config_overrides, as their error.

    Raises:
        SystemExit: naming the flag.
    """
    try:
        yield
    except (StrictDataclassError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if not overrides:
            raise
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise SystemExit(f"--config_overrides: {model_type} does not take them: {words}") from error


def override_problems(overrides: Mapping[str, Any], model_type: str) -> list[str]:
    """What is wrong with the names of settings, a line for each.

    Raises:
        ValueError: for a type that has no plain causal language model.
    """
    config_class = plain_config_class(model_type)
    names = config_class.attribute_map
    said = {names.get(k, k): v for k, v in SAID.items()}
    known = {f.name for f in fields(config_class)} | set(names)
    problems = []
    for name in overrides:
        by = said.get(names.get(name, name)) or ("--dropout" if name.endswith(("dropout", "pdrop")) else None)
        if by and (name in known or name in SAID):
            problems.append(f"--config_overrides: {name} is said by {by}")
        elif name not in known:
            problems.append(f"--config_overrides: {name}: {model_type} has no such setting; {_near(name, known)}")
    return problems


def _near(name: str, known: Iterable[str]) -> str:
    found = unknown(name, known)
    return found if found.startswith("did") else f"it has {', '.join(sorted(known))}"
