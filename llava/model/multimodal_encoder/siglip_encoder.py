"""SigLIP, and SigLIP 2 of a fixed resolution, which has the same architecture."""

from __future__ import annotations

from llava.model.multimodal_encoder.base import VisionTower


class SigLIPVisionTower(VisionTower):
    """Patches alone, in place of a class token a pooling head after the layers."""

    class_token = False
    after_layers = ("post_layernorm", "head")
    # Only where a frame has another size than the tower was made for.
    forward_options = {"interpolate_pos_encoding": True}
