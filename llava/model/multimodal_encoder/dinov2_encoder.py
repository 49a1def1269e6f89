"""The vision tower: any DINOv2 checkpoint that transformers loads, with or without registers, frozen by default.

Letters in shapes: N frames, S pixels, P patches, Dv width of the tower.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from llava.config.video import ProcessorSpec
from llava.foreign import check_sizes, config_values

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
SELECT_FEATURES = ("patch", "cls_patch")
PRECISIONS = ("auto", "fp32", "bf16")
CHECKSUM = "v2:"
"""What a tower's checksum begins with; those of earlier commits are 64 bare hexadecimal digits."""
CONFIG_NUMBERS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels", "patch_size", "hidden_act",
    "layer_norm_eps", "use_swiglu_ffn", "num_register_tokens",
)  # fmt: skip
"""What of a tower's config its features depend on beside the weights; dropout and drop path act in training alone."""
ATTENTION_NAMES = (
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
)
"""Parts of names that transformers has changed: now, and in 5.10."""


def resolve_precision(name: str, device: torch.device | str) -> str:
    """`fp32` or `bf16` for a frozen tower: as named, or under `auto` bf16 where `device` computes in it natively."""
    if name not in PRECISIONS:
        raise ValueError(f"--vision_precision {name}: use one of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # With these instructions DINOv2-large took a third of the time of fp32; without them bf16 is emulated.
        info = Path("/proc/cpuinfo")
        flags = info.read_text() if kind == "cpu" and info.exists() else ""
        native = "avx512_bf16" in flags or "amx_bf16" in flags
    return "bf16" if native else "fp32"


class DINOv2VisionTower(nn.Module):
    """Frames to patch features of one hidden layer.

    `select_layer` indexes transformers' `hidden_states` (0 is the embedding, -1 the last layer's output before the
    final LayerNorm); `select_feature` is `patch`, or `cls_patch` for the class token in front. Registers are dropped.

    A frozen tower computes in its own `precision`, whatever autocast it is called under, so that features are the same
    in extraction, training and evaluation. bf16 is autocast and no cast: the weights keep their checksum and are saved
    as they are, and the residual stream stays in fp32 (error 0.007 instead of 0.013 over 24 layers at the same speed).
    """

    def __init__(self, vision_model: nn.Module, select_layer: int, select_feature: str) -> None:
        super().__init__()
        config = vision_model.config
        problems = []
        if config.model_type not in MODEL_TYPES:
            problems.append(f"vision_tower has model type {config.model_type!r}, expected one of {MODEL_TYPES}")
        else:
            layers = config.num_hidden_layers
            if not -layers - 1 <= select_layer <= layers:
                problems.append(
                    f"mm_vision_select_layer {select_layer} is out of range: the tower has {layers} layers, "
                    f"so {-layers - 1} to {layers}"
                )
        if select_feature not in SELECT_FEATURES:
            problems.append(f"mm_vision_select_feature must be one of {SELECT_FEATURES}, got {select_feature!r}")
        if problems:
            raise ValueError("; ".join(problems))
        self.vision_model = vision_model
        self.select_layer = select_layer
        self.select_feature = select_feature
        self.precision = "fp32"
        self.prefix_tokens = 1 + getattr(config, "num_register_tokens", 0)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, select_layer: int = -2, select_feature: str = "patch"
    ) -> DINOv2VisionTower:
        """Loads a hub name or a local folder in fp32, frozen.

        Raises:
            ValueError: when it is not a DINOv2, or the layer or feature does not exist.
            FileNotFoundError: when the files cannot be found.
        """
        try:
            config = config_values(name_or_path, f"--vision_tower {name_or_path}")
        except OSError as error:
            raise FileNotFoundError(
                f"--vision_tower {name_or_path}: neither a folder with a model nor a hub name that can be reached; on "
                f"a machine without network, fetch it elsewhere first (hf download {name_or_path}) ({error})"
            ) from error
        if config.get("model_type") not in MODEL_TYPES:
            raise ValueError(
                f"--vision_tower {name_or_path}: model type {config.get('model_type')!r}, expected one of {MODEL_TYPES}"
            )
        model, info = AutoModel.from_pretrained(
            name_or_path, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        # The mask token serves DINOv2's own pre-training only, and exports without it exist.
        missing = [key for key in info["missing_keys"] if not key.endswith("mask_token")]
        if missing:
            raise ValueError(f"--vision_tower {name_or_path}: weights are missing for {', '.join(sorted(missing)[:5])}")
        return cls(model, select_layer, select_feature)

    @classmethod
    def from_config(cls, config: PretrainedConfig, select_layer: int, select_feature: str) -> DINOv2VisionTower:
        """A tower with undefined weights, to be filled from a checkpoint that holds them."""
        return cls(AutoModel.from_config(config, dtype=torch.float32), select_layer, select_feature)

    @property
    def frozen(self) -> bool:
        return not any(p.requires_grad for p in self.parameters())

    def unused_parameters(self) -> list[str]:
        """Names of the parameters that the selected layer does not depend on: later layers, the final LayerNorm and
        the mask token of DINOv2's own pre-training.
        """
        layers = self.vision_model.config.num_hidden_layers
        used = self.select_layer if self.select_layer >= 0 else layers + 1 + self.select_layer

        def unused(name: str) -> bool:
            later = re.search(r"(?:^|\.)layers?\.(\d+)\.", name)
            final = name.startswith("vision_model.layernorm.") or name.endswith("mask_token")
            # Without a layer in between, patches do not see the other tokens.
            apart = {"register_tokens"} | ({"cls_token"} if self.select_feature == "patch" else set())
            unseen = used == 0 and name.rsplit(".", 1)[-1] in apart
            return final or unseen or (later is not None and int(later[1]) >= used)

        return [name for name, _ in self.named_parameters() if unused(name)]

    def train(self, mode: bool = True) -> DINOv2VisionTower:
        """A frozen tower stays in evaluation mode, so that its features never depend on drop path."""
        return super().train(mode and not self.frozen)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> (N, P, Dv), or (N, 1 + P, Dv) with the class token."""
        frozen, device = self.frozen, pixel_values.device.type
        own = torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16") if frozen else nullcontext()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen), own:
            hidden = self.vision_model(pixel_values, output_hidden_states=True).hidden_states[self.select_layer]
        patches = hidden[:, self.prefix_tokens :]
        return patches if self.select_feature == "patch" else torch.cat([hidden[:, :1], patches], dim=1)

    def checksum(self) -> str:
        """SHA-256 of what determines the features, the tower's identity wherever its files lie: the values of all
        weights and some numbers of the config, whatever transformers calls the weights.

        Weights of a layer that differ in width are hashed apart, and those of one width end to end, in the order in
        which the layer makes them. So names do not count, nor whether two weights lie in one tensor, as they did in
        DINOv2's gated layers until they were split; two weights that change places do. The mask token serves DINOv2's
        own pre-training only.
        """
        config = self.vision_model.config
        groups: dict[tuple[int, tuple[int, ...]], list[torch.Tensor]] = {}
        for name, tensor in self.vision_model.state_dict().items():
            if not name.endswith("mask_token"):
                layer = re.search(r"\.(\d+)\.", name)
                groups.setdefault((int(layer[1]) if layer else -1, tuple(tensor.shape[1:])), []).append(tensor)
        numbers = [(name, getattr(config, name, None) or 0) for name in CONFIG_NUMBERS]
        digest = hashlib.sha256(repr(numbers).encode())
        for key, tensors in sorted(groups.items()):
            digest.update(f"{key} {sum(len(tensor) for tensor in tensors)}".encode())
            for tensor in tensors:
                digest.update(_bytes(tensor.float()))
        return (CHECKSUM + digest.hexdigest())[:64]

    def old_checksums(self) -> Iterator[str]:
        """What earlier commits gave for these weights: SHA-256 of names, shapes and values, under the names that this
        version of transformers has and those of others.
        """
        weights = self.vision_model.state_dict()
        seen: set[frozenset[str]] = set()
        for renamed in ((), ATTENTION_NAMES, [(old, new) for new, old in ATTENTION_NAMES]):
            names = {_rename(name, renamed): tensor for name, tensor in weights.items()}
            if frozenset(names) not in seen:
                seen.add(frozenset(names))
                digest = hashlib.sha256()
                for name, tensor in sorted(names.items()):
                    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                    digest.update(_bytes(tensor))
                yield digest.hexdigest()

    def has_checksum(self, checksum: str) -> bool:
        """Whether a checksum, of today or of an earlier commit, is this tower's."""
        if checksum.startswith(CHECKSUM):
            return checksum == self.checksum()
        return checksum in self.old_checksums()


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for before, after in pairs:
        name = name.replace(before, after)
    return name


def processor_spec(name_or_path: str) -> ProcessorSpec:
    """The pixel values that a tower's own image processor asks for.

    Raises:
        ValueError: when the processor's crop is not square.
        OSError: from transformers, when there is no `preprocessor_config.json`.
    """
    values, _ = BaseImageProcessor.get_image_processor_dict(name_or_path)
    size = values.get("crop_size") or values.get("size") or {}
    height = size.get("height", size.get("shortest_edge"))
    width = size.get("width", size.get("shortest_edge"))
    if height is None or height != width:
        raise ValueError(f"{Path(name_or_path) / 'preprocessor_config.json'}: no square crop_size or size: {size}")
    check_sizes({"image_size": height}, f"{name_or_path} (preprocessor_config.json)")
    return ProcessorSpec(
        image_size=int(height),
        image_mean=tuple(values["image_mean"]),
        image_std=tuple(values["image_std"]),
        resample=int(values.get("resample", 3)),
        rescale_factor=float(values.get("rescale_factor", 1 / 255)),
    )
