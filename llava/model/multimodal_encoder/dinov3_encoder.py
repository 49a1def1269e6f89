"""DINOv3, as a vision transformer (its convolutional networks have no patches)."""

from __future__ import annotations

from llava.model.multimodal_encoder.base import CONFIG_NUMBERS, VisionTower


class DINOv3VisionTower(VisionTower):
    """A class token, registers, patches; positions are rotations of queries and keys, which have no weights."""

    after_layers = ("norm",)
    config_numbers = (*CONFIG_NUMBERS, "rope_theta")
