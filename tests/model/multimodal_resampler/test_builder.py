"""Names of resamplers, and what goes with each."""

from __future__ import annotations

import pytest

from llava.config.video import VideoSpec
from llava.model.multimodal_resampler.builder import build_resampler
from llava.model.multimodal_resampler.fast_slow import FastSlowResampler
from llava.model.multimodal_resampler.stp import SpatialTemporalPacker

SPEC = VideoSpec(num_frames=2, fast_latents=1, slow_latents=4)


def test_names():
    assert isinstance(build_resampler("fast_slow_resampler", 16, SPEC, (4, 4)), FastSlowResampler)
    packer = build_resampler("stp", 192, SPEC, (4, 4))
    assert isinstance(packer, SpatialTemporalPacker)
    assert (packer.base.out.in_features, packer.base.heads) == (192, 3), "the model's width, heads 64 wide"


def test_what_a_name_cannot_have_is_an_error():
    with pytest.raises(ValueError, match="'perceiver': use fast_slow_resampler or stp"):
        build_resampler("perceiver", 16, SPEC, (4, 4))
    with pytest.raises(ValueError, match="mm_perceiver_depth"):
        build_resampler("fast_slow_resampler", 16, SPEC, (4, 4), -1)
    with pytest.raises(ValueError, match="mm_perceiver_heads are those of stp"):
        build_resampler("fast_slow_resampler", 16, SPEC, (4, 4), heads=2)
    steps = VideoSpec(num_frames=2, fast_latents=1, slow_latents=4, temporal_factor=2)
    with pytest.raises(ValueError, match="mm_perceiver_temporal_factor 2: .*stp"):
        build_resampler("fast_slow_resampler", 16, steps, (4, 4))
