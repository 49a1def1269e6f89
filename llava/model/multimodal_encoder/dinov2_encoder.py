"""DINOv2, with or without registers."""

from __future__ import annotations

from llava.model.multimodal_encoder.base import VisionTower


class DINOv2VisionTower(VisionTower):
    """A class token, registers where the config counts some, patches; positions are fitted to any frame."""

    after_layers = ("layernorm",)
