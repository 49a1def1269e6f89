"""The weights of LLaVA-ST's packers, by the names that they have here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from llava.errors import UserError

PACKERS = {"token_packer": "base", "token_packer_slow": "slow", "token_packer_fast": "fast"}
MODULES = {
    **{f"to_{short}.{layer}": f"{name}_mlp.{layer}" for short, name in
       (("q", "query"), ("k", "key"), ("v", "value")) for layer in (0, 2)},
    **{f"ln_{short}": f"norm_{name}" for short, name in (("q", "query"), ("k", "key"), ("v", "value"))},
    "attn.out_proj": "merge",
    "to_out": "out",
}  # fmt: skip
"""Modules of a packer there (`devide_attention.` in front), and here."""
JOINED = ("query", "key", "value")
"""Layers that torch's MultiheadAttention keeps in one tensor, `attn.in_proj_*`, one below the other."""
NAME = re.compile(r"(?:^|\.)(token_packer(?:_slow|_fast)?)\.devide_attention\.(.+)\.?(weight|bias)$")


def from_llava_st(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The packers' weights among those of a checkpoint of LLaVA-ST, as `SpatialTemporalPacker` has them.

    Names may have anything in front of `token_packer`; weights that belong to no packer are left out, and what is
    unknown in a packer keeps its name, so that whoever loads it says so.

    Raises:
        ValueError: for two weights of one place that differ.
    """
    found: dict[str, torch.Tensor] = {}
    named: dict[str, str] = {}
    for name, value in weights.items():
        match = NAME.search(name)
        if match is None:
            continue
        packer, module, kind = PACKERS[match[1]], match[2].rstrip("."), match[3]
        place = match[0].lstrip(".")
        if place in named and not torch.equal(weights[named[place]], value):
            raise UserError(f"{named[place]} and {name} are two weights of one place, and differ: which one is meant?")
        named[place] = name
        if module == "attn.in_proj_" and len(value) % len(JOINED) == 0:
            parts = value.chunk(len(JOINED))
            found |= {f"{packer}.{layer}.{kind}": part.clone() for layer, part in zip(JOINED, parts, strict=True)}
        else:
            found[f"{packer}.{MODULES.get(module, module)}.{kind}"] = value
    return found
