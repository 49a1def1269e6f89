"""The spatial-temporal packer of LLaVA-ST (Li et al. 2025, section 3.3), for any grids and factors that divide.

A packer summarises blocks of positions, each by one: the middle of the block looks at the block through cross-attention
and what it finds is added to it, without feed-forward, norm or positions (TokenPacker, Li et al. 2024, section 3.2).
The base packer takes blocks of patches of a frame to the grid of the slow stream; on it stand the slow packer, which
takes blocks of frames at each place, and the fast packer, which takes blocks of that grid to a coarser one.

Letters in shapes: V videos, T frames, P patches (H x W), N latents of a frame, K positions of a block, D width of the
language model, h heads, d width of a head, (...) any others.
"""

from __future__ import annotations

import math
import re

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llava.config.video import VideoSpec, divisors, grid
from llava.errors import UserError
from llava.model.multimodal_resampler.fast_slow import ROW_STD

Grid = tuple[int, int]
GAIN = 0.64
"""Of a matrix at the start: LLaVA-ST's standard deviation of .02 at its attention's width of 1,024. At a width of 32
the same .02 leaves queries and keys so small that their norms get no gradient to speak of."""


def space_blocks(features: torch.Tensor, source: Grid, target: Grid) -> torch.Tensor:
    """(..., H * W, D) of a `source` grid -> (..., N, rows, columns, D): for each cell of `target`, in reading order,
    the positions of its block, where a block has `rows` x `columns`.
    """
    rows, columns = source[0] // target[0], source[1] // target[1]
    cells = features.unflatten(-2, (target[0], rows, target[1], columns))
    return cells.transpose(-4, -3).flatten(-5, -4)


def time_blocks(features: torch.Tensor, frames: int) -> torch.Tensor:
    """(V, T, N, D) -> (V, T / frames, N, frames, D): for each place, what follows each other there."""
    return features.unflatten(1, (-1, frames)).transpose(2, 3)


def middle(blocks: torch.Tensor, dim: int) -> torch.Tensor:
    """The middle of each block along `dim`: the position there, or the mean of the two around it.

    It is what linear resizing by a whole factor gives (both ways: bilinear), whose kernels add up gradients on CUDA in
    an order that changes, which deterministic mode refuses.
    """
    size = blocks.shape[dim]
    return blocks.narrow(dim, (size - 1) // 2, 2 - size % 2).mean(dim)


class Packer(nn.Module):
    """One packer's attention: each query looks at the positions of its own block."""

    gradient_checkpointing = False
    """transformers sets it with that of the language model: what leads to queries, keys and values is computed again in
    the backward pass."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_mlp, self.key_mlp, self.value_mlp = (
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner)) for _ in range(3)
        )
        self.norm_query, self.norm_key, self.norm_value = (nn.LayerNorm(inner) for _ in range(3))
        self.query, self.key, self.value, self.merge = (nn.Linear(inner, inner) for _ in range(4))
        self.out = nn.Linear(inner, width, bias=False)
        self.row_std = ROW_STD
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the matrices so that attention begins alike at any width, and what is added within `row_std`."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                gain = self.row_std if module is self.out else GAIN
                nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_features))

    def attend(self, queries: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """(..., D) queries, (..., K, D) the block of each -> (..., D) what they are with what they found."""

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.heads, -1))

        query = split(self.query(self.norm_query(self.query_mlp(queries))))
        key = split(self.key(self.norm_key(self.key_mlp(blocks))))
        value = split(self.value(self.norm_value(self.value_mlp(blocks))))
        # Kernels of fused attention take some ten thousand sequences at once, and blocks are more and of few positions.
        scores = torch.einsum("...hd,...khd->...hk", query, key) / math.sqrt(query.shape[-1])
        found = torch.einsum("...hk,...khd->...hd", scores.softmax(-1).to(value), value)
        return queries + self.out(self.merge(found.flatten(-2)))

    def pack(self, queries: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """`attend`, with its activations kept or computed again in the backward pass."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self.attend, queries, blocks, use_reentrant=False, preserve_rng_state=False)
        return self.attend(queries, blocks)


class SpacePacker(Packer):
    """Blocks of a frame's grid `source`, by one row for each cell of `target`."""

    def __init__(self, width: int, inner: int, heads: int, source: Grid, target: Grid) -> None:
        super().__init__(width, inner, heads)
        self.source, self.target = source, target
        self.block = math.prod(source) // math.prod(target)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(V, T, H * W, D) -> (V, T * N, D)."""
        blocks = space_blocks(features, self.source, self.target)
        rows = self.pack(middle(middle(blocks, -2), -2), blocks.flatten(-3, -2))
        return rows.flatten(1, 2)


class TimePacker(Packer):
    """Blocks of `frames` frames at each place, by one row; the single frame of an image is a block of its own."""

    def __init__(self, width: int, inner: int, heads: int, frames: int) -> None:
        super().__init__(width, inner, heads)
        self.block = frames

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(V, T, N, D) -> (V, T / frames * N, D)."""
        blocks = time_blocks(features, 1 if features.shape[1] == 1 else self.block)
        return self.pack(middle(blocks, -2), blocks).flatten(1, 2)


class SpatialTemporalPacker(nn.Module):
    """Both streams of a video; the slow one also serves images.

    Args:
        width: D.
        patches: rows and columns of the patches of a frame.
        inner, heads: width and heads of the attention.

    Raises:
        ValueError: naming every grid or number that does not divide, with those that do.
    """

    def __init__(self, width: int, spec: VideoSpec, patches: Grid, inner: int, heads: int) -> None:
        super().__init__()
        slow, fast = grid(spec.slow_latents), grid(spec.fast_latents)
        problems = [
            *_grid_problem("patches", patches, "mm_perceiver_latents", spec.slow_latents),
            *_grid_problem("mm_perceiver_latents", slow, "mm_perceiver_latents_fast", spec.fast_latents),
        ]
        if inner % heads:
            among = ", ".join(map(str, divisors(inner)[:8]))
            problems.append(f"mm_perceiver_width {inner} does not divide into {heads} mm_perceiver_heads: use {among}")
        if problems:
            raise UserError("mm_resampler_type stp: " + "; ".join(problems))
        self.patches, self.factor = patches, spec.temporal_factor
        self.base = SpacePacker(width, inner, heads, patches, slow)
        self.fast = SpacePacker(width, inner, heads, slow, fast)
        self.slow = TimePacker(width, inner, heads, spec.temporal_factor)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(V, T, P, D) -> (V, rows, D), the fast rows and then the slow ones.

        Raises:
            ValueError: for other patches than the module was built for, or frames that do not divide.
        """
        frames = features.shape[1]
        if frames % self.factor:
            raise UserError(f"{frames} frames do not divide into the steps of {self.factor} that the packer has")
        base = self._base(features)
        return torch.cat([self.fast(base), self.slow(base)], dim=1)

    def image(self, features: torch.Tensor) -> torch.Tensor:
        """(V, 1, P, D) -> (V, image_rows, D): base and slow packer, as LLaVA-ST's images with use_downsample_image."""
        return self.slow(self._base(features))

    def _base(self, features: torch.Tensor) -> torch.Tensor:
        """(V, T, P, D) -> (V, T, N, D)."""
        if features.shape[2] != math.prod(self.patches):
            rows, columns = self.patches
            raise UserError(
                f"{features.shape[2]} vision tokens a frame, but the packer was built for {rows}x{columns} patches and "
                "has no place for a class token: the features come from another tower or image size, or from "
                "--mm_vision_select_feature cls_patch"
            )
        return self.base(features).unflatten(1, (features.shape[1], -1))

    def video_only(self) -> set[str]:
        """Names of the parameters that images do not reach: a single frame has nothing to choose among in time."""
        names = {name for name, _ in self.named_parameters()}
        return {name for name in names if name.startswith("fast.") or (name.startswith("slow.") and _chooses(name))}

    def idle(self) -> dict[str, str]:
        """Names of the parameters that cannot learn, with the reason: those that choose in blocks of one position."""
        return {
            f"{part}.{name}": f"what chooses among the positions of a block in the {part} packer, since blocks have one"
            for part, packer in (("base", self.base), ("fast", self.fast), ("slow", self.slow))
            if packer.block == 1
            for name, _ in packer.named_parameters()
            if _chooses(name)
        }


def _chooses(name: str) -> bool:
    """Whether a packer's parameter leads to its queries or keys."""
    return re.search(r"(^|\.)(norm_)?(query|key)", name) is not None


def _grid_problem(what: str, cells: Grid, flag: str, latents: int) -> list[str]:
    """What is wrong with so many latents on `cells` of a grid, and which numbers are right."""

    def fits(number: int) -> bool:
        rows, columns = grid(number)
        return cells[0] % rows == 0 and cells[1] % columns == 0

    if fits(latents):
        return []
    rows, columns = grid(latents)
    right = ", ".join(str(n) for n in range(math.prod(cells), 0, -1) if fits(n))
    return [
        f"{cells[0]}x{cells[1]} {what} do not divide into the {rows}x{columns} of {flag} {latents}: use one of {right}"
    ]
