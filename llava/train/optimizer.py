"""What trains at which learning rate, by part, and by which optimiser."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from llava.config.flags import MUON
from llava.model.builder import COORDINATE_PART, EMBEDDING_PART, MM_PARTS, parameter_groups, part_of, word_embeddings
from llava.train.muon import MuonAdamW, muon_cuts


def part_learning_rates(args: Any) -> dict[str, float]:
    """The learning rate of each part; one that has none of its own takes `learning_rate`."""
    own = {
        "mm_mlp_adapter": args.mm_projector_lr,
        "mm_vision_resampler": args.mm_vision_resampler_lr,
        "mm_vision_tower": args.mm_vision_tower_lr,
        COORDINATE_PART: args.mm_coordinates_lr,
        EMBEDDING_PART: args.mm_embeddings_lr,
    }
    parts = (*MM_PARTS, EMBEDDING_PART)
    return {part: args.learning_rate if own.get(part) is None else own[part] for part in parts}


def rate_parts(model: nn.Module, args: Any) -> dict[str, str]:
    """By whose learning rate each parameter trains: its part's, or that of the word embeddings where they have one."""
    words = set() if args.mm_embeddings_lr is None else word_embeddings(model)
    return {name: EMBEDDING_PART if name in words else part_of(name) for name, _ in model.named_parameters()}


def parameter_rows(model: nn.Module, args: Any) -> list[dict[str, Any]]:
    """What trains and what is frozen: number of parameters and learning rate of each part."""
    rates, parts = part_learning_rates(args), rate_parts(model, args)
    rows = []
    for part in rates:
        parameters = [p for n, p in model.named_parameters() if parts[n] == part]
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        frozen = sum(p.numel() for p in parameters if not p.requires_grad)
        if parameters:
            rate = rates[part] if trainable else None
            rows.append({"part": part, "trainable": trainable, "frozen": frozen, "learning_rate": rate})
    return rows


def parameter_table(rows: list[dict[str, Any]]) -> str:
    """`parameter_rows` as aligned text."""
    cells = [("part", "trainable", "frozen", "learning rate")]
    for row in rows:
        rate = "-" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        cells.append((row["part"], f"{row['trainable']:,}", f"{row['frozen']:,}", rate))
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )


def make_optimizer(
    model: nn.Module,
    args: Any,
    decayed: Collection[str],
    library: Callable[[], tuple[type[torch.optim.Optimizer], dict[str, Any]]],
) -> torch.optim.Optimizer:
    """The optimiser that `--optim` names, with a group for each part and weight decay, and each half of Muon.

    Args:
        decayed: names of the parameters that weight decay acts on; those of Muon are none of them.
        library: transformers' class for `--optim` and its options.

    Raises:
        ValueError: for a fused matrix that Muon does not know how to cut.
    """
    rates, parts = part_learning_rates(args), rate_parts(model, args)
    cuts = muon_cuts(model, parameter_groups(model)) if args.optim == MUON else {}
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = parts[name]
        decays = name in decayed and part != COORDINATE_PART  # A row that is seldom read would fade.
        kind = "muon" if name in cuts else "" if decays else "no decay"
        group = groups.setdefault(
            (part, kind),
            {
                "params": [],
                "lr": rates[part],
                "weight_decay": 0.0 if kind else args.weight_decay,
                "name": f"{part}, {kind}" if kind else part,
            }
            | ({"muon": True, "cuts": []} if kind == "muon" else {}),
        )
        group["params"].append(parameter)
        if kind == "muon":
            group["cuts"].append(cuts[name])
    if args.optim == MUON:
        betas = (args.adam_beta1, args.adam_beta2)
        return MuonAdamW(groups.values(), lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=True)
    optimizer_class, options = library()
    return optimizer_class(list(groups.values()), **options)
