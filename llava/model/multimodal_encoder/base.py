"""What every vision tower does: frames to the patch features of one hidden layer, frozen by default.

A tower wraps one of transformers' own vision models. A subclass says where its architecture differs from the base
class, and `builder.py` which `model_type` it serves; nothing else knows architectures by name.

Letters in shapes: N frames, S pixels, P patches, Dv width of the tower.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from llava.config.video import ProcessorSpec
from llava.errors import MissingFile, UserError
from llava.foreign import check_sizes, config_values, said
from llava.model.multimodal_encoder.processor import processor_spec

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
        raise UserError(f"--vision_precision {name}: use one of {', '.join(PRECISIONS)}")
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


def attention_option(attention: str | None) -> dict[str, str]:
    """How transformers is told a tower's attention, where a language model's is `attention`.

    Eager is eager. For any other the tower's own default stands (sdpa, where its class has it): kernels of flash
    attention compute in half precision, and a frozen tower's weights are fp32.
    """
    return {"attn_implementation": "eager"} if attention == "eager" else {}


class VisionTower(nn.Module):
    """Frames to patch features of one hidden layer of a transformers vision model.

    `select_layer` indexes transformers' `hidden_states` (0 is the embedding, -1 the last layer's output before any
    final LayerNorm); the layers after it, and what follows the layers, do not run. `select_feature` is `patch`, or
    `cls_patch` for the class token in front. Registers are dropped.

    A frozen tower computes in its own `precision`, whatever autocast it is called under, so that features are the same
    in extraction, training and evaluation. bf16 is autocast and no cast: the weights keep their checksum and are saved
    as they are, and the residual stream stays in fp32 (error 0.007 instead of 0.013 over 24 layers at the same speed).

    Extraction needs of it: the call, `checksum`, `old_checksums`, `name`, `width`, `grid`, `processor` and `precision`.

    Raises:
        ValueError: at construction, as `check_config` says.
    """

    class_token: ClassVar[bool] = True
    """Whether one stands before the patches; register tokens are counted from the config."""
    after_layers: ClassVar[tuple[str, ...]] = ()
    """Attributes of the transformers model that follow the layers (a final LayerNorm, a pooling head): never run."""
    forward_options: ClassVar[Mapping[str, Any]] = {}
    """What the transformers model is called with beside pixels."""
    config_numbers: ClassVar[tuple[str, ...]] = CONFIG_NUMBERS
    """What counts for the checksum beside the weights."""

    def __init__(self, vision_model: nn.Module, select_layer: int, select_feature: str, name: str = "") -> None:
        super().__init__()
        config = vision_model.config
        self.check_config(config, select_layer, select_feature, name)
        self.vision_model = vision_model
        self.select_layer = select_layer
        self.select_feature = select_feature
        self.name = name or config.name_or_path or config.model_type
        self.precision = "fp32"
        self.layers_run = select_layer if select_layer >= 0 else config.num_hidden_layers + 1 + select_layer
        self.prefix_tokens = int(self.class_token) + (getattr(config, "num_register_tokens", None) or 0)
        for module in self._unused_modules():
            module.forward = _unchanged
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def check_config(cls, config: PretrainedConfig, select_layer: int, select_feature: str, name: str = "") -> None:
        """Refuses what a tower of this class cannot be, before transformers builds it or fails to.

        Raises:
            ValueError: naming everything about the model, the layer and the feature that does not fit.
        """
        layers = config.num_hidden_layers
        problems = [
            f"{field} is {value}: only squares can be seen"
            for field in ("image_size", "patch_size")
            if len(set(_sides(value := getattr(config, field, None)))) > 1
        ]
        if (channels := getattr(config, "num_channels", 3)) != 3:
            problems.append(f"num_channels is {channels}: frames have 3")
        if not -layers - 1 <= select_layer <= layers:
            problems.append(
                f"mm_vision_select_layer {select_layer} is out of range: the tower has {layers} layers, "
                f"so {-layers - 1} to {layers}"
            )
        if select_feature not in SELECT_FEATURES:
            problems.append(f"mm_vision_select_feature must be one of {SELECT_FEATURES}, got {select_feature!r}")
        elif select_feature == "cls_patch" and not cls.class_token:
            problems.append(f"mm_vision_select_feature cls_patch: {config.model_type} has no class token, use patch")
        if problems:
            raise UserError((f"--vision_tower {name}: " if name else "") + "; ".join(problems))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, select_layer: int = -2, select_feature: str = "patch", attention: str | None = None
    ) -> VisionTower:
        """Loads a hub name or a local folder in fp32, frozen: a vision model, or a whole checkpoint that has one.

        Args:
            attention: transformers' `attn_implementation`; None for the class's own.

        Raises:
            ValueError: when weights are missing or of other shapes, or the layer or feature does not exist.
            FileNotFoundError: when the files cannot be found.
        """
        where = f"--vision_tower {name_or_path}"
        values = tower_config_values(name_or_path)
        if whole := "vision_config" in values:
            # By itself, since transformers warns about the token ids of some text models.
            vision = {"model_type": f"{values['model_type']}_vision_model", **values["vision_config"]}
            config = AutoConfig.for_model(**vision)
        else:
            config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        cls.check_config(config, select_layer, select_feature, name_or_path)
        with _without_report() if whole else nullcontext():
            model, info = AutoModel.from_pretrained(
                name_or_path, config=config, dtype=torch.float32, output_loading_info=True,
                ignore_mismatched_sizes=True, trust_remote_code=False, **attention_option(attention),
            )  # fmt: skip
        # The mask token serves the pre-training of DINOv2 and DINOv3 only, and exports without it exist.
        missing = [key for key in info["missing_keys"] if not key.endswith("mask_token")]
        if missing:
            raise UserError(f"{where}: weights are missing for {', '.join(sorted(missing)[:5])}")
        if info["mismatched_keys"]:
            listed = ", ".join(str(key) for key in sorted(info["mismatched_keys"])[:5])
            raise UserError(f"{where}: weights have other shapes than the config says: {listed}")
        return cls(model, select_layer, select_feature, name_or_path)

    @classmethod
    def from_config(
        cls, config: PretrainedConfig, select_layer: int, select_feature: str, attention: str | None = None
    ) -> VisionTower:
        """A tower with undefined weights, to be filled from a checkpoint that holds them; arguments as above."""
        model = AutoModel.from_config(config, dtype=torch.float32, **attention_option(attention))
        return cls(model, select_layer, select_feature)

    @property
    def frozen(self) -> bool:
        return not any(p.requires_grad for p in self.parameters())

    @property
    def width(self) -> int:
        """Dv, features of a patch."""
        return self.vision_model.config.hidden_size

    @cached_property
    def processor(self) -> ProcessorSpec:
        """The pixel values that the image processor beside the weights asks for; see `processor_spec`."""
        return processor_spec(self.name)

    def grid(self, image_size: int) -> tuple[int, int]:
        """Rows and columns of patches of a frame of `image_size` pixels a side.

        Raises:
            ValueError: when patches do not fill the frame, unless it is the size that the tower was made for: such a
                tower has never seen the pixels that are left over.
        """
        config = self.vision_model.config
        patch = _sides(config.patch_size)[0]
        if image_size % patch and [image_size] * 2 != _sides(getattr(config, "image_size", None)):
            raise UserError(f"{self.name}: image size {image_size} is not a multiple of patch size {patch}")
        return image_size // patch, image_size // patch

    def feature_shape(self, image_size: int) -> tuple[int, int]:
        """(P, Dv) of a frame's features, with the class token where it is taken too."""
        rows, columns = self.grid(image_size)
        return rows * columns + (self.select_feature != "patch"), self.width

    def flops(self, image_size: int) -> int:
        """Floating-point operations of a frame up to the selected layer: matrix products and attention, a multiply-add
        as two.
        """
        patches = self.grid(image_size)[0] ** 2
        tokens = patches + self.prefix_tokens
        layer = [p.numel() for module in self._layers()[:1] for p in module.parameters() if p.ndim == 2]
        embedding = next(p for p in self.vision_model.parameters() if p.ndim == 4)
        return 2 * (patches * embedding.numel() + self.layers_run * tokens * (sum(layer) + 2 * tokens * self.width))

    def describe(self, image_size: int) -> str:
        """What sees, how finely, and what a frame costs, in one line."""
        config = self.vision_model.config
        rows, columns = self.grid(image_size)
        made_for = _sides(getattr(config, "image_size", None))
        other = "" if not made_for or image_size in made_for else f" (made for {made_for[0]})"
        return (
            f"vision tower {self.name} ({config.model_type}): {self.layers_run} of {config.num_hidden_layers} layers "
            f"run, {rows} x {columns} patches of {image_size} pixels{other}, {self.width} features each, "
            f"{self.flops(image_size) / 1e9:.3g} GFLOP a frame"
        )

    def _layers(self) -> nn.ModuleList:
        number = self.vision_model.config.num_hidden_layers
        found = [m for m in self.vision_model.modules() if isinstance(m, nn.ModuleList) and len(m) == number]
        if len(found) != 1:
            raise ValueError(f"{self.name}: {len(found)} lists of {number} layers, expected one")
        return found[0]

    def _unused_modules(self) -> list[nn.Module]:
        """The modules after the selected layer, in order."""
        ends = [getattr(self.vision_model, name, None) for name in self.after_layers]
        return [*self._layers()[self.layers_run :], *(module for module in ends if module is not None)]

    def unused_parameters(self) -> list[str]:
        """Names of the parameters that the selected layer does not depend on: later layers, what follows the layers and
        the mask token of a tower's own pre-training.
        """
        after = {id(p) for module in self._unused_modules() for p in module.parameters()}
        apart = {"mask_token"}
        if not self.layers_run:
            # Without a layer in between, patches do not see the other tokens.
            apart |= {"register_tokens"}
            apart |= {"cls_token", "class_embedding"} if self.select_feature == "patch" else set()
        return [n for n, p in self.named_parameters() if id(p) in after or n.rsplit(".", 1)[-1] in apart]

    def train(self, mode: bool = True) -> VisionTower:
        """A frozen tower stays in evaluation mode, so that its features never depend on drop path."""
        return super().train(mode and not self.frozen)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> (N, P, Dv), or (N, 1 + P, Dv) with the class token.

        Raises:
            ValueError: when the model gives another number of tokens than its class says.
        """
        frozen, device = self.frozen, pixel_values.device.type
        own = torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16") if frozen else nullcontext()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen), own:
            # What follows the selected layer passes its input on, so this is that layer's output.
            hidden = self.vision_model(pixel_values, **self.forward_options).last_hidden_state
        patches = hidden[:, self.prefix_tokens :]
        patch = _sides(self.vision_model.config.patch_size)[0]
        expected = (pixel_values.shape[-2] // patch) * (pixel_values.shape[-1] // patch)
        if patches.shape[1] != expected:
            raise UserError(
                f"{self.name}: {hidden.shape[1]} tokens a frame, expected {self.prefix_tokens} and {expected} patches: "
                f"{type(self).__name__} is the class of another model"
            )
        return patches if self.select_feature == "patch" else torch.cat([hidden[:, :1], patches], dim=1)

    def checksum(self) -> str:
        """SHA-256 of what determines the features, the tower's identity wherever its files lie: the values of all
        weights and some numbers of the config, whatever transformers calls the weights.

        Weights of a layer that differ in width are hashed apart, and those of one width end to end, in the order in
        which the layer makes them. So names do not count, nor whether two weights lie in one tensor, as they did in
        DINOv2's gated layers until they were split; two weights that change places do. The mask token serves a tower's
        own pre-training only.
        """
        config = self.vision_model.config
        groups: dict[tuple[int, tuple[int, ...]], list[torch.Tensor]] = {}
        for name, tensor in self.vision_model.state_dict().items():
            if not name.endswith("mask_token"):
                layer = re.search(r"\.(\d+)\.", name)
                groups.setdefault((int(layer[1]) if layer else -1, tuple(tensor.shape[1:])), []).append(tensor)
        numbers = [(name, getattr(config, name, None) or 0) for name in self.config_numbers]
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


def tower_config_values(name_or_path: str) -> dict[str, Any]:
    """The fields of a tower's `config.json`, with sizes that can be built, those of a `vision_config` included.

    Raises:
        ValueError: naming what cannot be built.
        FileNotFoundError: when there is none.
    """
    where = f"--vision_tower {name_or_path}"
    try:
        values = config_values(name_or_path, where)
    except OSError as error:
        raise MissingFile(
            f"{where}: neither a folder with a model nor a hub name that can be reached; on a machine without network, "
            f"fetch it elsewhere first (hf download {name_or_path}), or, to try everything out, make a random tower "
            f"(python -m llava.commands.make_model --make_vision_tower DIR) ({said(error)})"
        ) from error
    if isinstance(values.get("vision_config"), Mapping):
        check_sizes(values["vision_config"], f"{where} (vision_config)")
    return values


def _unchanged(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The `forward` of a module that does not run."""
    return hidden


def _sides(size: Any) -> list[int]:
    """Height and width, of a number or a pair; nothing for None."""
    if size is None:
        return []
    return list(size) if isinstance(size, (list, tuple)) else [size, size]


@contextmanager
def _without_report() -> Iterator[None]:
    """Inside, transformers does not list the weights of the text model that are left in the file."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for before, after in pairs:
        name = name.replace(before, after)
    return name
