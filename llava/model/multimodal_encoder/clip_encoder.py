"""CLIP's image model."""

from __future__ import annotations

from llava.model.multimodal_encoder.base import VisionTower


class CLIPVisionTower(VisionTower):
    """A class token and patches."""

    after_layers = ("post_layernorm",)
    # Only where a frame has another size than the tower was made for.
    forward_options = {"interpolate_pos_encoding": True}
