"""What a language model can do, found by asking its modules: no list of architectures to keep.

Letters in shapes: B batch, L positions, D width of the states, N entries of the vocabulary that are looked at.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

SEEN_ENTRIES = 1024
PROBE_WORDS = 6
LEAK, NEIGHBOURS_LEAK = 1e-4, 1e-6
"""Changes of states, relative to their size, that rounding does not explain: between rows of other lengths, and between
rows that differ in their first words alone, where all families that keep samples apart differ by exactly 0. Gates of a
short convolution multiply what they let through, so that with fresh weights its leak is of the third order in them."""
PROBED = ("eager", "sdpa", "flex_attention")
"""Attention that runs wherever the weights are."""


@torch.no_grad()
def embedding_std(model: Any) -> float:
    """Standard deviation of what the input embeddings give for a word, after the scale that their module applies."""
    table = model.get_input_embeddings()
    step = max(1, table.num_embeddings // SEEN_ENTRIES)
    ids = torch.arange(0, table.num_embeddings, step, device=table.weight.device)
    return float(table(ids).float().std())


@torch.no_grad()
def head_std(model: Any) -> float:
    """Standard deviation of the head's weights, of a word as it is written."""
    weight = model.get_output_embeddings().weight
    return float(weight[:: max(1, len(weight) // SEEN_ENTRIES)].float().std())


def max_positions(model: Any) -> int:
    """The longest sequence that the model has positions for; `sys.maxsize` where nothing bounds it (ALiBi, Mamba)."""
    return getattr(model.config, "max_position_embeddings", None) or sys.maxsize


@torch.no_grad()
def keeps_samples_apart(model: Any) -> bool:
    """Whether states depend on their own sample alone where several share a row and positions restart, with no mask.

    The states of words must be the same whatever stands before them in their row, and if nothing does. True without a
    measurement under attention that runs on some devices alone: pre-flight compares the losses of both layouts in any
    case.
    """
    if model.config._attn_implementation not in PROBED:
        return True
    table, trained = model.get_input_embeddings(), model.training
    model.eval()
    try:
        ids = torch.arange(3 * PROBE_WORDS, device=table.weight.device) % table.num_embeddings
        first, other, second = table(ids).unsqueeze(0).split(PROBE_WORDS, dim=1)
        rows = torch.cat([torch.cat([first, other]), second.expand(2, -1, -1)], dim=1)
        places = torch.arange(PROBE_WORDS, device=ids.device).repeat(2, 2)
        after = model.states(rows, position_ids=places, use_cache=False).last_hidden_state[:, PROBE_WORDS:].float()
        alone = model.states(second, position_ids=places[:1, :PROBE_WORDS], use_cache=False).last_hidden_state.float()
        changes = (after - alone).flatten(1).norm(dim=1)
        between = (after[0] - after[1]).norm()
        return bool(changes.max() <= LEAK * alone.norm() and between <= NEIGHBOURS_LEAK * alone.norm())
    finally:
        model.train(trained)


def embedding_names(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the parameters of every embedding table of the language model: words, and positions if it has any."""
    vision = ("mm_projector.", "vision_resampler.", "vision_tower.")
    return tuple(
        f"{name}." for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and not name.startswith(vision)
    )  # fmt: skip


def attention_for(model_class: Any, asked: str) -> str:
    """The attention that a class has: `asked`, or eager where that is sdpa and the class has none."""
    return "eager" if asked == "sdpa" and not getattr(model_class, "_supports_sdpa", True) else asked
