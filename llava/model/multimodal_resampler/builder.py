"""The resampler that a name stands for."""

from __future__ import annotations

from llava.config.video import RESAMPLERS, VideoSpec, temporal_factor
from llava.errors import UserError
from llava.model.multimodal_resampler.fast_slow import FastSlowResampler, StreamResampler, default_heads
from llava.model.multimodal_resampler.stp import Packer, SpatialTemporalPacker

Resampler = FastSlowResampler | SpatialTemporalPacker
DRAWS_ITSELF = (StreamResampler, Packer)
"""Modules that draw weights after the language model's own scheme has, by `reset_parameters` and their `row_std`."""


def build_resampler(
    resampler_type: str,
    width: int,
    spec: VideoSpec,
    patches: tuple[int, int],
    depth: int = 1,
    inner: int | None = None,
    heads: int | None = None,
) -> Resampler:
    """The resampler that `mm_resampler_type` names.

    Args:
        width: of the language model.
        patches: rows and columns of the patches of a frame.
        depth: blocks of each stream, of which a packer of STP always has one.
        inner, heads: width and heads of the attention of STP's packers; by default the language model's width, and
            heads about 64 wide.

    Raises:
        ValueError: for an unknown name, and for numbers that the resampler cannot have, each named.
    """
    if resampler_type not in RESAMPLERS:
        raise UserError(f"unknown mm_resampler_type {resampler_type!r}: use {' or '.join(RESAMPLERS)}")
    attention = attention_of(resampler_type, width, inner, heads)
    if attention is not None:
        return SpatialTemporalPacker(width, spec, patches, *attention)
    if depth < 0:
        raise UserError(f"mm_perceiver_depth must be 0 (pooling only) or more, got {depth}")
    temporal_factor(resampler_type, spec.temporal_factor)
    return FastSlowResampler(width, spec, patches, depth)


def attention_of(
    resampler_type: str, width: int, inner: int | None = None, heads: int | None = None
) -> tuple[int, int] | None:
    """Width and heads of the attention of STP's packers, of which each may be left out; None for another resampler.

    Raises:
        ValueError: when another resampler is given any.
    """
    if resampler_type == "stp":
        inner = width if inner is None else inner
        return inner, default_heads(inner) if heads is None else heads
    if (inner, heads) != (None, None):
        raise UserError(
            f"mm_perceiver_width and mm_perceiver_heads are those of stp: the attention of {resampler_type} is as wide "
            "as the language model; leave them out"
        )
    return None
