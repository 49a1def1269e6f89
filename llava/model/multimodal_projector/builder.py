"""The projector from the vision tower's width to the language model's."""

from __future__ import annotations

import re

from torch import nn

from llava.errors import UserError


def build_projector(projector_type: str, in_features: int, out_features: int) -> nn.Module:
    """A module (..., Dv) -> (..., D).

    `linear` is one layer; `mlp<N>x_gelu` is a LayerNorm and N layers with GELU between (the MLP of LLaVA-1.5, section
    3, behind the norm of InternVL's, since hidden layers of a vision tower have no common scale); `identity` passes
    features through.

    Raises:
        ValueError: for another name, or for `identity` between different widths.
    """
    if projector_type == "linear":
        return nn.Linear(in_features, out_features)
    if projector_type == "identity":
        if in_features != out_features:
            raise UserError(
                f"mm_projector_type identity needs equal widths, got {in_features} and {out_features}: use mlp2x_gelu"
            )
        return nn.Identity()
    match = re.fullmatch(r"mlp([1-9])x_gelu", projector_type)
    if match is None:
        raise UserError(f"unknown mm_projector_type {projector_type!r}: use linear, identity or mlp<N>x_gelu")
    layers: list[nn.Module] = [nn.LayerNorm(in_features), nn.Linear(in_features, out_features)]
    for _ in range(int(match.group(1)) - 1):
        layers += [nn.GELU(), nn.Linear(out_features, out_features)]
    return nn.Sequential(*layers)
