"""The resampler: shapes for any spec, regions, time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llava.config.video import VideoSpec, grid
from llava.model.multimodal_resampler.fast_slow import (
    FastSlowResampler,
    StreamResampler,
    region_mask,
    region_maximum,
)


@pytest.mark.parametrize("width", [12, 48, 64, 100, 768])
@pytest.mark.parametrize(("frames", "fast", "slow"), [(4, 9, 81), (1, 2, 16), (3, 5, 7), (2, 1, 400)])
def test_any_width_frames_and_latents(width, frames, fast, slow):
    spec = VideoSpec(num_frames=frames, fast_latents=fast, slow_latents=slow)
    resampler = FastSlowResampler(width, spec, (4, 4), depth=1)
    assert resampler(torch.randn(2, frames, 16, width)).shape == (2, spec.rows, width)
    assert resampler(torch.randn(1, frames, 17, width)).shape == (1, spec.rows, width)
    assert resampler.image(torch.randn(3, 1, 16, width)).shape == (3, spec.image_rows, width)


@pytest.mark.parametrize(("latents", "expected"), [(81, (9, 9)), (9, (3, 3)), (6, (2, 3)), (7, (1, 7)), (1, (1, 1))])
def test_grid_is_the_most_square_one(latents, expected):
    assert grid(latents) == expected


@pytest.mark.parametrize("patches", [(4, 4), (16, 16), (5, 7)])
@pytest.mark.parametrize("latents", [(1, 1), (3, 3), (9, 9), (2, 5)])
def test_regions_are_those_of_adaptive_pooling(patches, latents):
    mask = region_mask(patches, latents, 0, torch.device("cpu"))
    image = torch.randn(1, 1, *patches)
    pooled = F.adaptive_max_pool2d(image, latents).flatten()
    by_mask = image.flatten().masked_fill(~mask, -torch.inf).amax(dim=1)
    assert torch.equal(pooled, by_mask)
    assert mask.any(dim=0).all(), "every patch belongs to a region"
    assert mask.any(dim=1).all(), "no region is empty"


def test_a_class_token_is_open_to_every_latent():
    assert region_mask((4, 4), (2, 2), 1, torch.device("cpu"))[:, 0].all()


@pytest.mark.parametrize("depth", [0, 2])
def test_a_latent_sees_only_its_region_of_its_frame(depth):
    torch.manual_seed(0)
    stream = StreamResampler(16, num_frames=3, latents=4, patches=(4, 4), depth=depth)
    features = torch.randn(1, 3, 16, 16)
    changed = features.clone()
    changed[0, 1, 0] += 5.0
    differs = (stream(features) != stream(changed)).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [4], "row 4 is region 0 of frame 1"


def test_the_order_of_frames_matters():
    torch.manual_seed(0)
    stream = StreamResampler(16, num_frames=3, latents=4, patches=(4, 4), depth=1)
    features = torch.randn(1, 3, 16, 16)
    rows, reverse = stream(features), stream(features.flip(1))
    assert not torch.allclose(rows.unflatten(1, (3, 4)).flip(1).flatten(1, 2), reverse, atol=1e-4)


def test_features_of_another_grid_are_refused():
    stream = StreamResampler(16, num_frames=2, latents=4, patches=(4, 4), depth=1)
    with pytest.raises(ValueError, match="25 vision tokens"):
        stream(torch.randn(1, 2, 25, 16))
    with pytest.raises(ValueError, match="3 frames"):
        stream(torch.randn(1, 3, 16, 16))


def test_the_fast_rows_come_first_and_the_slow_ones_after_them():
    torch.manual_seed(0)
    resampler = FastSlowResampler(16, VideoSpec(num_frames=2, fast_latents=1, slow_latents=4), (4, 4), depth=1)
    features = torch.randn(2, 2, 16, 16)
    rows = resampler(features)
    torch.testing.assert_close(rows[:, :2], resampler.fast(features))
    torch.testing.assert_close(rows[:, 2:], resampler.slow(features))


@pytest.mark.parametrize(("patches", "latents"), [((16, 16), (9, 9)), ((4, 4), (1, 1)), ((3, 5), (5, 2))])
def test_maxima_in_deterministic_mode_are_those_of_adaptive_pooling(patches, latents):
    """CUDA has no deterministic backward pass of adaptive pooling, so the mode takes the maxima in another way."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, *patches, requires_grad=True)
    weight = torch.randn(2, 3, *latents)
    expected = region_maximum(image, latents)
    assert "AdaptiveMaxPool2D" in type(expected.grad_fn).__name__
    torch.use_deterministic_algorithms(True)
    try:
        found = region_maximum(image, latents)
    finally:
        torch.use_deterministic_algorithms(False)
    assert "AdaptiveMaxPool2D" not in str(type(found.grad_fn))
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad((x * weight).sum(), image)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)
