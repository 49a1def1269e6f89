"""What a batch shows a model: its images and videos, and where in the text their rows go.

Letters in shapes: B batch, L positions, I images, V videos, T frames, S pixels, P patches, Dv width of the tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from llava.data.features.quantised import dequantise
from llava.errors import UserError


@dataclass(frozen=True)
class VisualItems:
    """The images of a batch, or its videos, in reading order.

    Attributes:
        kind: `image` or `video`.
        pixels, features: one of the two, with as many rows as there are items; neither where there are none.
        scales: beside features in int8.
        counts: (B,) how many of them each sample brings; None where the text's own spans tell.
        positions: (B, L) boolean, where the rows go, when it is known and was checked already.
    """

    kind: str
    pixels: torch.Tensor | None
    features: torch.Tensor | None
    scales: torch.Tensor | None
    counts: torch.Tensor | None
    positions: torch.Tensor | None

    @property
    def total(self) -> int:
        """How many there are."""
        given = self.pixels if self.pixels is not None else self.features
        return 0 if given is None else given.shape[0]

    @property
    def inputs(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Pixels and features as an encoder takes them."""
        if self.features is None or self.scales is None:
            return self.pixels, self.features
        return self.pixels, dequantise(self.features, self.scales)


NAMES = {
    "image": ("pixel_values", "image_features", "image_scales", "num_images", "image_positions"),
    "video": ("pixel_values_videos", "video_features", "video_scales", "num_videos", "video_positions"),
}
"""The visual arguments of each kind, in the order of the fields of `VisualItems`."""


@dataclass(frozen=True)
class VisionBatch:
    """The visual arguments of a model's `forward`, under their names there; what is None was not given.

    Attributes:
        pixel_values: (I, 3, S, S), the images of the batch in reading order; or `image_features` (I, P, Dv).
        pixel_values_videos: (V, T, 3, S, S), the videos likewise; or `video_features` (V, T, P, Dv).
        image_scales, video_scales: (I, Dv) and (V, Dv), beside features in int8 (`llava.data.features.quantised`).
        num_images, num_videos: (B,) how many of them each sample brings; without them the text's own spans are
            counted and the total is checked.
        sample_ids: names of the samples for error messages.
        image_positions, video_positions: (B, L) boolean, where the rows go, when `TrainingCollator` has found and
            checked them already.
    """

    pixel_values: torch.Tensor | None = None
    pixel_values_videos: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    video_features: torch.Tensor | None = None
    image_scales: torch.Tensor | None = None
    video_scales: torch.Tensor | None = None
    num_images: torch.Tensor | None = None
    num_videos: torch.Tensor | None = None
    sample_ids: Sequence[str] | None = None
    image_positions: torch.Tensor | None = None
    video_positions: torch.Tensor | None = None

    @classmethod
    def take(cls, arguments: dict[str, Any]) -> VisionBatch:
        """The visual ones of a call's keyword arguments, which are taken out of them."""
        return cls(**{field.name: arguments.pop(field.name) for field in fields(cls) if field.name in arguments})

    @property
    def items(self) -> tuple[VisualItems, VisualItems]:
        """The images and the videos."""
        images, videos = (VisualItems(kind, *(getattr(self, n) for n in names)) for kind, names in NAMES.items())
        return images, videos

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing beyond the names of samples."""
        return all(getattr(self, field.name) is None for field in fields(self) if field.name != "sample_ids")

    def check_finite(self) -> None:
        """Refuses pixels and features that are not finite, of which a model makes an empty text.

        Raises:
            ValueError: naming the argument and the items.
        """
        for name in ("pixel_values", "pixel_values_videos", "image_features", "video_features"):
            values = getattr(self, name)
            if values is not None and not torch.isfinite(values).all():
                bad = (~torch.isfinite(values)).flatten(1).any(dim=1).nonzero().flatten().tolist()
                raise UserError(f"{name}: items {bad} of {len(values)} hold NaN or infinite values; read them again")


NO_VISION = VisionBatch()
"""Of a batch of text alone."""
