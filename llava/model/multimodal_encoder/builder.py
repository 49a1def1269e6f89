"""Which class serves which vision model: the one place that knows towers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from llava.errors import UserError
from llava.model.multimodal_encoder.base import VisionTower, tower_config_values
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.dinov2_encoder import DINOv2VisionTower
from llava.model.multimodal_encoder.dinov3_encoder import DINOv3VisionTower
from llava.model.multimodal_encoder.siglip_encoder import SigLIPVisionTower

TOWERS: dict[str, type[VisionTower]] = {
    "dinov2": DINOv2VisionTower,
    "dinov2_with_registers": DINOv2VisionTower,
    "dinov3_vit": DINOv3VisionTower,
    "siglip": SigLIPVisionTower,
    "siglip_vision_model": SigLIPVisionTower,
    "clip": CLIPVisionTower,
    "clip_vision_model": CLIPVisionTower,
}
"""Classes by `model_type`, of a vision model or of a whole checkpoint with a `vision_config`."""
NAFLEX = (
    "it is a SigLIP 2 of free resolution (NaFlex), which gives every frame a grid of its own: use one of a fixed "
    "resolution, such as google/siglip2-base-patch16-224"
)
REFUSED = {
    "siglip2": NAFLEX,
    "siglip2_vision_model": NAFLEX,
    "dinov3_convnext": "it is a convolutional network, which has no patches: use a DINOv3 ViT",
}


def tower_class(model_type: Any, where: str) -> type[VisionTower]:
    """The class of a `model_type`.

    Args:
        where: the flag or file that named it, for the message.

    Raises:
        ValueError: listing the known ones.
    """
    if model_type not in TOWERS:
        why = f": {REFUSED[model_type]}" if model_type in REFUSED else ""
        raise UserError(f"{where}: model type {model_type!r}, expected one of {', '.join(TOWERS)}{why}")
    return TOWERS[model_type]


def load_vision_tower(
    name_or_path: str, select_layer: int = -2, select_feature: str = "patch", attention: str | None = None
) -> VisionTower:
    """A hub name or a local folder as a tower in fp32, frozen.

    Args:
        attention: of the language model beside it; see `llava.model.multimodal_encoder.base.attention_option`.

    Raises:
        ValueError: for an unknown model type, incomplete weights, or a layer or feature that does not exist.
        FileNotFoundError: when the files cannot be found.
    """
    model_type = tower_config_values(name_or_path).get("model_type")
    return tower_class(model_type, f"--vision_tower {name_or_path}").from_pretrained(
        name_or_path, select_layer, select_feature, attention
    )


def empty_vision_tower(
    values: Mapping[str, Any], select_layer: int, select_feature: str, attention: str | None = None
) -> VisionTower:
    """A tower with undefined weights, to be filled from a checkpoint that holds them.

    Args:
        values: the vision model's config as a dictionary, `mm_vision_config` of that checkpoint.
        attention: as in `load_vision_tower`.
    """
    tower = tower_class(values.get("model_type"), "mm_vision_config")
    return tower.from_config(AutoConfig.for_model(**values), select_layer, select_feature, attention)
