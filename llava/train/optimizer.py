"""What trains at which learning rate, by part."""

from __future__ import annotations

from typing import Any

from torch import nn

from llava.model.builder import MM_PARTS, part_of


def part_learning_rates(args: Any) -> dict[str, float]:
    """The learning rate of each part; one that has none of its own takes `learning_rate`."""
    own = {
        "mm_mlp_adapter": args.mm_projector_lr,
        "mm_vision_resampler": args.mm_vision_resampler_lr,
        "mm_vision_tower": args.mm_vision_tower_lr,
    }
    return {part: args.learning_rate if own.get(part) is None else own[part] for part in MM_PARTS}


def parameter_rows(model: nn.Module, args: Any) -> list[dict[str, Any]]:
    """What trains and what is frozen: number of parameters and learning rate of each part."""
    rates = part_learning_rates(args)
    rows = []
    for part in MM_PARTS:
        parameters = [p for n, p in model.named_parameters() if part_of(n) == part]
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
