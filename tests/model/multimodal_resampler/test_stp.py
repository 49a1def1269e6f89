"""STP against the values of LLaVA-ST's own modules, against plain loops, and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from llava.config.video import VideoSpec, grid
from llava.model.builder import KEY_BIASES
from llava.model.multimodal_resampler import stp
from llava.model.multimodal_resampler.builder import build_resampler
from llava.model.multimodal_resampler.llava_st import from_llava_st
from llava.model.multimodal_resampler.stp import SpatialTemporalPacker, middle, space_blocks, time_blocks

GOLDEN = Path(__file__).parents[2] / "assets" / "stp_golden.safetensors"
SPEC = VideoSpec(num_frames=10, fast_latents=1, slow_latents=9, temporal_factor=5)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """Inputs, weights and outputs of LLaVA-ST's modules (Apache-2.0) at 24 features, 10 frames of 9x9 patches."""
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def packer(golden) -> SpatialTemporalPacker:
    module = build_resampler("stp", 24, SPEC, (9, 9), inner=32, heads=4)
    module.load_state_dict(from_llava_st(golden))
    return module.eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def made(frames=4, patches=(4, 6), slow=6, fast=3, factor=2, width=8, inner=12, heads=3) -> SpatialTemporalPacker:
    torch.manual_seed(0)
    spec = VideoSpec(num_frames=frames, fast_latents=fast, slow_latents=slow, temporal_factor=factor)
    return build_resampler("stp", width, spec, patches, inner=inner, heads=heads)


def test_every_packer_gives_the_values_of_llava_st(packer, golden):
    base = packer.base(golden["stp.input"][None])
    close(base, golden["stp.base"].flatten(0, 1)[None])
    rows = packer(golden["stp.input"][None])[0]
    assert rows.shape == (SPEC.rows, 24) == (28, 24)
    close(rows[: SPEC.fast_rows], golden["stp.fast"].flatten(0, 1))
    close(rows[SPEC.fast_rows :], golden["stp.slow"].flatten(0, 1))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_llava_st(packer, golden, checkpointing):
    patches = golden["stp.input"].clone().requires_grad_()
    packer.train(checkpointing)
    try:
        for module in (packer.base, packer.fast, packer.slow):
            module.gradient_checkpointing = checkpointing
        fast, slow = packer(patches[None])[0].split([SPEC.fast_rows, SPEC.slow_rows])
    finally:
        for module in (packer.base, packer.fast, packer.slow):
            del module.gradient_checkpointing
        packer.eval()
    weighed = (fast * golden["stp.weight_of_fast"].flatten(0, 1)).sum()
    (weighed + (slow * golden["stp.weight_of_slow"].flatten(0, 1)).sum()).backward()
    close(patches.grad, golden["stp.gradient_of_input"])


def test_an_image_takes_the_base_packer_and_then_the_slow_one(packer, golden):
    image = golden["stp.image_input"][None]
    base = packer.base(image)
    close(base, golden["stp.image_base"])
    assert packer.image(image).shape == (1, SPEC.image_rows, 24)
    close(packer.image(image), packer.slow.attend(base, base.unsqueeze(-2)))


def test_clips_of_a_batch_are_those_alone(packer, golden):
    clips = torch.stack([golden["stp.input"], golden["stp.input"].flip(0), golden["stp.input"].flip(1)])
    torch.testing.assert_close(packer(clips), torch.cat([packer(clip[None]) for clip in clips]), rtol=0, atol=1e-5)


def test_shorter_clips_have_fewer_rows(packer, golden):
    rows, short = packer(golden["stp.input"][None])[0], packer(golden["stp.input"][None, :5])[0]
    close(short, torch.cat([rows[:5], rows[10:19]]))


def looped(packer, query: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """(D,) query and (K, D) block, by torch's own MultiheadAttention -> (D,)."""
    inner = packer.out.in_features
    attention = torch.nn.MultiheadAttention(inner, packer.heads, batch_first=True)
    layers = (packer.query, packer.key, packer.value)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        attention.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        attention.out_proj.load_state_dict(packer.merge.state_dict())
    queries = packer.norm_query(packer.query_mlp(query))[None, None]
    keys, values = packer.norm_key(packer.key_mlp(block))[None], packer.norm_value(packer.value_mlp(block))[None]
    return query + packer.out(attention(queries, keys, values)[0][0, 0])


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"frames": 6, "patches": (4, 9), "slow": 6, "fast": 3, "factor": 3},
        {"frames": 2, "patches": (4, 4), "slow": 16, "fast": 4, "factor": 1},
    ],
)
def test_blocks_are_those_of_a_loop_over_queries(sizes):
    packer = made(**sizes)
    height, width = packer.patches
    frames, features = 2 * packer.factor, torch.randn(1, 2 * packer.factor, height * width, 8)
    rows, columns = packer.base.target
    tall, wide = height // rows, width // columns
    image = features[0].unflatten(1, (height, width))
    expected = torch.empty(frames, rows, columns, 8)
    resized = F.interpolate(image.permute(0, 3, 1, 2), size=(rows, columns), mode="bilinear").permute(0, 2, 3, 1)
    for t, i, j in torch.cartesian_prod(*map(torch.arange, (frames, rows, columns))).tolist():
        block = image[t, i * tall : (i + 1) * tall, j * wide : (j + 1) * wide].flatten(0, 1)
        expected[t, i, j] = looped(packer.base, resized[t, i, j], block)
    close(packer.base(features)[0], expected.flatten(0, 2))
    base = expected.flatten(1, 2)
    steps = frames // packer.factor
    resized = F.interpolate(base.permute(1, 2, 0), size=(steps,), mode="linear").permute(2, 0, 1)
    slow = [
        looped(packer.slow, resized[s, n], base[s * packer.factor : (s + 1) * packer.factor, n])
        for s in range(steps) for n in range(base.shape[1])
    ]  # fmt: skip
    close(packer.slow(base[None])[0], torch.stack(slow))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_middles_are_what_resizing_gives(rows, columns, tall, wide):
    image = torch.randn(1, 3, rows * tall, columns * wide, generator=torch.Generator().manual_seed(0))
    blocks = space_blocks(image.flatten(2).transpose(1, 2), (rows * tall, columns * wide), (rows, columns))
    assert blocks.shape == (1, rows * columns, tall, wide, 3)
    resized = F.interpolate(image, size=(rows, columns), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(middle(middle(blocks, -2), -2), resized)


def test_a_block_in_time_is_what_follows_each_other_at_a_place():
    features = torch.arange(2 * 6 * 3).view(2, 6, 3, 1)
    blocks = time_blocks(features, 2)
    assert blocks.shape == (2, 3, 3, 2, 1)
    assert blocks[1, 2, 0].flatten().tolist() == features[1, 4:6, 0].flatten().tolist()


def test_a_row_sees_its_block_and_nothing_else():
    packer = made(frames=4, patches=(4, 4), slow=4, fast=1, factor=2)
    before = torch.randn(1, 4, 16, 8)
    after = before.clone()
    after[0, 2, 3] += 1.0  # The upper right block of the third frame.
    moved = (packer(before) != packer(after)).any(-1)[0].nonzero().flatten().tolist()
    assert moved == [2, 4 + 4 + 1], "the third fast row, and the second place of the second slow step"


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("space_blocks", lambda x, s, t: space_blocks(x.unflatten(-2, s).transpose(-3, -2).flatten(-3, -2), s, t)),
        ("time_blocks", lambda x, frames: x.flatten(1, 2).unflatten(1, (-1, x.shape[2], frames))),
    ],
)
def test_transposed_blocks_and_space_for_time_are_noticed(packer, golden, monkeypatch, name, mutant):
    monkeypatch.setattr(stp, name, mutant)
    with pytest.raises(AssertionError):
        test_every_packer_gives_the_values_of_llava_st(packer, golden)
    with pytest.raises(AssertionError):
        test_blocks_are_those_of_a_loop_over_queries({})


def test_patches_and_frames_that_do_not_fit_are_refused(packer):
    with pytest.raises(ValueError, match="82 vision tokens a frame.*9x9 patches.*cls_patch"):
        packer(torch.randn(1, 10, 82, 24))
    with pytest.raises(ValueError, match="9 frames do not divide into the steps of 5"):
        packer(torch.randn(1, 9, 81, 24))


def test_what_does_not_divide_is_named_with_what_would():
    with pytest.raises(ValueError, match=r"16x16 patches.*9x9 of mm_perceiver_latents 81: use one of 256, .*64, .*1; "):
        made(patches=(16, 16), slow=81, fast=9, heads=5)
    with pytest.raises(ValueError, match="12 does not divide into 5 mm_perceiver_heads: use 12, 6, 4, 3, 2, 1"):
        made(heads=5)
    with pytest.raises(ValueError, match="3x3 mm_perceiver_latents .*2x2 of .*_fast 4: use one of 9, 3, 1"):
        made(patches=(9, 9), slow=9, fast=4)
    with pytest.raises(ValueError, match=r"num_frames \(4\) .* steps of 5 frames: .*temporal_factor to 4, 2 or 1"):
        VideoSpec(temporal_factor=5)


def test_published_sizes():
    spec = VideoSpec(num_frames=100, fast_latents=9, slow_latents=81, temporal_factor=5)
    assert (spec.fast_rows, spec.slow_rows, spec.image_rows) == (900, 1620, 81)
    packer = build_resampler("stp", 8, spec, (27, 27), inner=8, heads=2)
    assert [module.block for module in (packer.base, packer.fast, packer.slow)] == [9, 9, 5]


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
def test_what_gets_no_gradient_is_named(factor, image):
    """Exactly: what is frozen for a reason must be what cannot learn."""
    packer = made(frames=2, factor=factor, slow=24, fast=6)
    features = torch.randn(3, 1 if image else 2, 24, 8)
    (packer.image(features) if image else packer(features)).square().sum().backward()
    silent = {n for n, p in packer.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}
    told = {*packer.idle(), *(packer.video_only() if image else ())}
    left = {name for name in silent - told if not name.endswith(KEY_BIASES)}
    assert left == set() and {n for n in told if packer.get_parameter(n).grad is not None} <= silent
    assert all(name.split(".")[0] in reason for name, reason in packer.idle().items())


def test_the_grid_is_that_of_the_spec():
    assert (made(patches=(4, 9), slow=6, fast=3).base.target, grid(6)) == ((2, 3), (2, 3))
