"""The fast/slow resampler: each latent summarises its own region of its own frame.

A stream lays its latents on a grid over the frame. A latent starts as the maximum over the patches of its region,
then looks at those patches again through `depth` blocks of cross-attention (pooled features as queries over their own
region, as in TokenPacker, Li et al. 2024, section 3.2; the block is Flamingo's perceiver block, Alayrac et al. 2022,
appendix A.1.1). The result is normalised and learned row, column and frame embeddings are added, so that place and
order in time reach the language model. The slow stream has many latents a frame, the fast one few (LLaVA-ST).

Letters in shapes: V videos, T frames, P patches (H x W, with an optional leading class token), N latents of a frame,
D width of the language model.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from llava.config.video import VideoSpec, grid
from llava.errors import UserError

ROW_STD = 0.2
"""Initial standard deviation of the rows, where nobody says what the word embeddings beside them have."""
ROW_PARTS = 4
"""What a row is the sum of, in equal shares: the normalised latent, and embeddings of its row, column and frame."""
PATCH_POSITION_STD = 0.1


@lru_cache(maxsize=64)
def region_mask(patches: tuple[int, int], latents: tuple[int, int], extra: int, device: torch.device) -> torch.Tensor:
    """Boolean (N, extra + P): which patches each latent may attend to; `extra` leading tokens are open to all.

    Regions are those of adaptive pooling (floor of the start, ceiling of the end), so none is empty and every patch
    belongs to one, also when there are more latents than patches.
    """

    def bands(size: int, parts: int) -> torch.Tensor:
        part = torch.arange(parts)
        start, end = part * size // parts, -((part + 1) * size // -parts)
        cell = torch.arange(size)
        return (cell >= start[:, None]) & (cell < end[:, None])

    rows, columns = bands(patches[0], latents[0]), bands(patches[1], latents[1])
    regions = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)
    return F.pad(regions, (extra, 0), value=True).to(device)


def region_maximum(image: torch.Tensor, latents: tuple[int, int]) -> torch.Tensor:
    """The maximum of each region of `region_mask`: (V*T, D, H, W) -> (V*T, D, rows, columns) of `latents`.

    Regions overlap where they do not divide the frame, and CUDA then adds up the gradients of adaptive pooling in an
    order that changes, which deterministic mode refuses: there, maxima are taken along one axis and then the other. At
    equal maxima they share the gradient, which adaptive pooling gives to one of them.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.adaptive_max_pool2d(image, latents)
    for dim, parts in ((-2, latents[0]), (-1, latents[1])):
        size = image.shape[dim]
        edges = [(part * size // parts, -((part + 1) * size // -parts)) for part in range(parts)]
        image = torch.stack([image.narrow(dim, start, end - start).amax(dim) for start, end in edges], dim)
    return image


def default_heads(width: int) -> int:
    """Heads of an attention of some width, each about 64 wide."""
    return next(h for h in range(max(1, width // 64), 0, -1) if width % h == 0)


class RegionBlock(nn.Module):
    """One pre-norm block: cross-attention of latents to the patches of their region, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = default_heads(width)
        self.latent_norm = nn.LayerNorm(width)
        self.patch_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, latents: torch.Tensor, patches: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(V*T, N, D) latents, (V*T, extra + P, D) patches, (N, extra + P) mask -> (V*T, N, D)."""

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query = split(self.query(self.latent_norm(latents)))
        key, value = (split(x) for x in self.key_value(self.patch_norm(patches)).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        latents = latents + self.attention_out(attended.transpose(1, 2).flatten(2))
        return latents + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(latents))))


class StreamResampler(nn.Module):
    """Patches of T frames to `latents` rows a frame, in frame-major and then reading order."""

    def __init__(self, width: int, num_frames: int, latents: int, patches: tuple[int, int], depth: int) -> None:
        super().__init__()
        self.patches, self.grid = patches, grid(latents)
        self.blocks = nn.ModuleList(RegionBlock(width) for _ in range(depth))
        if depth:
            self.patch_row = nn.Parameter(torch.empty(patches[0], 1, width))
            self.patch_column = nn.Parameter(torch.empty(patches[1], width))
        self.norm = nn.LayerNorm(width)
        self.row = nn.Parameter(torch.empty(self.grid[0], 1, width))
        self.column = nn.Parameter(torch.empty(self.grid[1], width))
        self.frame = nn.Parameter(torch.empty(num_frames, 1, width))
        self.row_std = ROW_STD
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the positions and sets the output gain, so that rows begin with `row_std`; linear layers keep the
        language model's own scheme.
        """
        share = self.row_std / math.sqrt(ROW_PARTS)
        nn.init.constant_(self.norm.weight, share)
        for parameter in (self.row, self.column, self.frame):
            nn.init.normal_(parameter, std=share)
        if len(self.blocks):
            for parameter in (self.patch_row, self.patch_column):
                nn.init.normal_(parameter, std=PATCH_POSITION_STD)

    @property
    def one_patch_each(self) -> bool:
        """Whether the region of every latent is a single patch, so that attention without a class token is idle."""
        return self.patches[0] <= self.grid[0] and self.patches[1] <= self.grid[1]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(V, T, extra + P, D) projected patches -> (V, T * N, D) rows.

        Raises:
            ValueError: when the number of patches or frames is not the one that the module was built for.
        """
        videos, frames, tokens, width = features.shape
        height_width = self.patches[0] * self.patches[1]
        extra = tokens - height_width
        if extra not in (0, 1):
            raise UserError(
                f"{tokens} vision tokens a frame, but the resampler was built for {self.patches[0]}x{self.patches[1]} "
                "patches (and at most one class token): the features come from another tower or image size"
            )
        if frames > self.frame.shape[0]:
            raise UserError(f"{frames} frames, but the resampler was built for {self.frame.shape[0]}")
        flat = features.flatten(0, 1)
        image = flat[:, extra:].transpose(1, 2).unflatten(-1, self.patches)
        latents = region_maximum(image, self.grid).flatten(2).transpose(1, 2)
        if len(self.blocks):
            place = F.pad((self.patch_row + self.patch_column).flatten(0, 1), (0, 0, extra, 0))
            # What is traced has no values yet, and must not be kept for others.
            regions = region_mask.__wrapped__ if torch.compiler.is_compiling() else region_mask
            mask = regions(self.patches, self.grid, extra, flat.device)
            placed = flat + place
            for block in self.blocks:
                latents = block(latents, placed, mask)
        rows = self.norm(latents).unflatten(0, (videos, frames))
        place = (self.row + self.column).flatten(0, 1)
        return (rows + place + self.frame[:frames]).flatten(1, 2)


class FastSlowResampler(nn.Module):
    """Both streams of a video; the slow one also serves images, as a single frame."""

    def __init__(self, width: int, spec: VideoSpec, patches: tuple[int, int], depth: int) -> None:
        super().__init__()
        self.fast = StreamResampler(width, spec.num_frames, spec.fast_latents, patches, depth)
        self.slow = StreamResampler(width, spec.num_frames, spec.slow_latents, patches, depth)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(V, T, P, D) -> (V, rows, D), the fast rows and then the slow ones."""
        return torch.cat([self.fast(features), self.slow(features)], dim=1)

    def image(self, features: torch.Tensor) -> torch.Tensor:
        """(V, 1, P, D) -> (V, image_rows, D)."""
        return self.slow(features)

    def video_only(self) -> set[str]:
        """Names of the parameters that images do not reach."""
        return {f"fast.{name}" for name, _ in self.fast.named_parameters()}

    def idle(self) -> dict[str, str]:
        """Names of the parameters that cannot learn, with the reason."""
        return {}
