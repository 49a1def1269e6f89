"""Random towers of every kind: 24 features, 3 layers, 56 px and 4x4 patches, with their image processors' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
TEXT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50,
    "max_position_embeddings": 8,
}  # fmt: skip
PREFIX = {
    "dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 3, "siglip": 0, "siglip_vision_model": 0, "clip": 1,
    "clip_vision_model": 1,
}  # fmt: skip
"""Tokens before the patches of each kind."""
ALONE = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}
"""Whole checkpoints, and the kind of their vision model alone."""
HALF = [0.5, 0.5, 0.5]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS: dict[str, dict[str, Any]] = {
    "dinov2": {
        "size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True, "resample": 3,
        **IMAGENET,
    },
    "dinov3": {
        "size": {"height": 56, "width": 56}, "crop_size": None, "do_center_crop": None, "resample": 2, **IMAGENET,
    },
    "siglip": {"size": {"height": 56, "width": 56}, "resample": 2, "image_mean": HALF, "image_std": HALF},
    "clip": {
        "size": 56, "crop_size": 56, "do_center_crop": True, "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
}  # fmt: skip
"""As in facebook/dinov2-large, facebook/dinov3-vits16-pretrain-lvd1689m, google/siglip2-base-patch16-224 and
openai/clip-vit-large-patch14, for frames of 56 px."""


def make_vision_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A fresh model of transformers: `kind` is a `model_type`, and `changes` are fields of the vision config."""
    sizes = {**SIZES, **({} if kind.startswith("dinov2") else {"intermediate_size": 40}), **changes}
    if kind == "dinov2":
        return Dinov2Model(Dinov2Config(**sizes))
    if kind == "dinov2_with_registers":
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes))
    if kind == "dinov3_vit":
        return DINOv3ViTModel(DINOv3ViTConfig(**{"num_register_tokens": 2, **sizes}))
    if kind == "siglip":
        return SiglipModel(SiglipConfig(text_config=TEXT, vision_config=sizes))
    if kind == "clip":
        return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=sizes, projection_dim=8))
    if kind == "siglip_vision_model":
        return SiglipVisionModel(SiglipVisionConfig(**sizes))
    return CLIPVisionModel(CLIPVisionConfig(**sizes))


def save_tower(kind: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random tower of a kind on disk, with its image processor's file; returns the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_vision_model(kind, **changes)
        # Biases, and in some models tokens too, start as zeros, which would hide one that is forgotten.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder)
    write_processor(folder, PROCESSORS[next(name for name in PROCESSORS if kind.startswith(name))])
    return folder


def write_processor(folder: Path, values: dict[str, Any]) -> None:
    values = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, **values}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def edit_config(folder: Path, **changes: Any) -> Path:
    """Changes fields of a tower's `config.json`, those of the vision config of a whole checkpoint."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values.get("vision_config", values).update(changes)
    path.write_text(json.dumps(values))
    return folder
