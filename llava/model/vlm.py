"""What vision adds to the class of a language model: forward, save and load, whatever its architecture.

The class is asked for what it does and never told apart by its name: `base_model` makes the states, and the logits are
those that the class's own `forward` makes of states, with whatever it puts after its head.

Letters in shapes: B batch, L positions, D width of the states, V vocabulary, N any number of positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.utils import can_return_tuple

from llava.constants import IGNORE_INDEX
from llava.errors import UserError
from llava.foreign import check_sizes
from llava.model.coordinates import CoordinateTables
from llava.model.generation import CACHE, GeneratesWithVideo
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.lora import add_adapters, settings_of
from llava.model.loss import ClassHead, head_logits, supervised_loss
from llava.model.multimodal_resampler.builder import DRAWS_ITSELF
from llava.model.packed import known_layout
from llava.model.packed_attention import NAMES, ready_mask
from llava.model.peft_defaults import teach_peft
from llava.model.permissions import follow_umask
from llava.model.shipped import found_place, give_code, write_code, written_place
from llava.model.vision_batch import VisionBatch

PREFIX = "llava_"
"""What the model type of a language model with vision begins with."""
TOWER_PREFIX = "vision_tower."
TOWER_KEYS = rf"^{TOWER_PREFIX[:-1]}\."


@dataclass(repr=False, eq=False, kw_only=True)
class VisionConfig:
    """What the config of a language model says about tower, projector, resampler and visual tokens.

    `mm_hidden_size` is None on a model without vision. The other `mm_*` fields carry the launch flags of the same
    name; `video_spec`, `mm_processor` and `lora` are `VideoSpec`, `ProcessorSpec` and `LoraSettings` as dictionaries.
    `coordinate_token_ids` has the id of every coordinate token and placeholder, by name.
    """

    mm_vision_tower: str | None = None
    mm_vision_tower_checksum: str | None = None
    mm_vision_tower_storage: str = "reference"
    mm_vision_config: dict | None = None
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_vision_precision: str = "fp32"
    mm_feature_dtype: str = "float16"
    mm_hidden_size: int | None = None
    mm_patch_grid: list | None = None
    mm_processor: dict | None = None
    mm_projector_type: str = "mlp2x_gelu"
    mm_resampler_type: str = "fast_slow_resampler"
    mm_perceiver_depth: int = 1
    mm_perceiver_width: int | None = None
    mm_perceiver_heads: int | None = None
    video_spec: dict | None = None
    visual_token_ids: dict | None = None
    lora: dict | None = None
    mm_coordinates: bool = False
    mm_coordinates_in_vision: bool = True
    mm_coordinates_reparameterized: bool = True
    coordinate_token_ids: dict | None = None

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: layers have the names that transformers' own class knows, which releases 5.15 to 5.17 change in other
        people's configs (`conv` of LFM2, which their LFM2 then looks for in vain).
        """
        return False

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in transformers; PEFT asks for it before it looks for layers."""
        teach_peft(self.model_type, self.model_type.removeprefix(PREFIX))
        return super().to_dict(*args, **kwargs)


@dataclass
class LlavaCausalLMOutput(CausalLMOutputWithCrossAttentions):
    """Args beyond transformers' own: `token_losses` (B, L - 1), the cross-entropy in nats of every target, detached
    and unscaled, with 0 where nothing is supervised; column `i` belongs to the token at position `i + 1`.
    """

    token_losses: torch.Tensor | None = None


class VisionCausalLM(GeneratesWithVideo, LlavaMetaForCausalLM):
    """Mixin before a causal-LM class of transformers; text-only when the config names no tower."""

    accepts_loss_kwargs = True  # What the class says of its own loss does not hold for this one.

    keeps_names = False
    """Whether a tower that came after the model was loaded is stored by the names that its weights have here, by which
    a trainer reads them back."""
    packed_attention = "mask"
    """How samples that share a row are kept apart: see `llava.model.packed_attention.take_way`."""
    class_forward: Callable[..., Any]
    """`forward` of the class of language model, unbound: compiled code cannot look it up."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.class_forward = staticmethod(super().forward)

    def __init__(self, config: Any) -> None:
        check_sizes(config.to_dict(), config.name_or_path or "the model")
        super().__init__(config)
        head = self.get_output_embeddings()
        if self.base_model is self or not any(module is head for module in self.children()):
            raise UserError(
                f"{type(self).__name__}: the class has no body ({self.base_model_prefix!r}) or no head of its own, so "
                "it cannot be given vision here: use another architecture"
            )
        if config.mm_vision_tower_storage != "checkpoint":
            # The tower of a checkpoint that keeps it by reference is absent on purpose.
            own = self._keys_to_ignore_on_load_missing
            self._keys_to_ignore_on_load_missing = [*(own or ()), TOWER_KEYS]
        self.build_vision_modules()
        self.build_coordinates()
        self.post_init()
        lora = settings_of(self)
        if lora is not None:
            add_adapters(self, lora)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DRAWS_ITSELF):
            module.reset_parameters()
        if isinstance(module, CoordinateTables):
            module.fill_ids()  # Their values are drawn when the tokens come, or loaded.

    @classmethod
    def from_pretrained(
        cls, *args: Any, vision_tower: str | None = None, load_vision_tower: bool = True, **kwargs: Any
    ):
        """As in transformers, and then the tower is attached, checked and frozen.

        Args:
            vision_tower: where the tower lies now, when it is not where the checkpoint says.
            load_vision_tower: False leaves it out, for training from cached features.

        Raises:
            ValueError: when weights are missing from the checkpoint, or the tower is another one.
            FileNotFoundError: when the tower cannot be found.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        problems = {k: info[k] for k in ("missing_keys", "mismatched_keys", "unexpected_keys") if info.get(k)}
        if problems:
            listed = "; ".join(f"{k.replace('_', ' ')}: {sorted(map(str, v))[:5]}" for k, v in problems.items())
            raise UserError(f"{args[0] if args else 'checkpoint'}: the weights do not fit the config ({listed})")
        model.config.mm_vision_tower = found_place(model.config.mm_vision_tower, args[0] if args else None)
        if model.vision_tower is not None:
            model.vision_tower.requires_grad_(False)
        elif model.config.mm_hidden_size is not None and load_vision_tower:
            model.attach_vision_tower(vision_tower)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, state_dict: dict | None = None, **kwargs: Any) -> Any:
        """As in transformers; a tower that is kept by reference stays out of the files, which follow the umask."""
        if not self.keeps_names:
            # Found anew, for every part that the model has by now: a tower that came after the model was loaded is
            # stored under the names that all versions of transformers write and read, whatever this one calls its
            # weights.
            self._weight_conversions = None
        if self.config.mm_vision_tower_storage == "reference":
            state_dict = self.state_dict() if state_dict is None else state_dict
            state_dict = {k: v for k, v in state_dict.items() if not k.startswith(TOWER_PREFIX)}
        give_code(self)
        self.limit_generation()
        place = self.config.mm_vision_tower
        self.config.mm_vision_tower = written_place(place, save_directory, self.config.mm_vision_tower_storage)
        try:
            result = super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        finally:
            self.config.mm_vision_tower = place
        if kwargs.get("is_main_process", True):
            write_code(save_directory, self)
        follow_umask(save_directory)
        return result

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        image_scales: torch.Tensor | None = None,
        video_scales: torch.Tensor | None = None,
        num_images: torch.Tensor | None = None,
        num_videos: torch.Tensor | None = None,
        sample_ids: list[str] | None = None,
        image_positions: torch.Tensor | None = None,
        video_positions: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        supervised_positions: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutput:
        """Next-token prediction over text and video.

        Args:
            input_ids: (B, L); visual positions are swapped for features as
                `prepare_inputs_labels_for_multimodal_video` describes. The visual arguments are those of `VisionBatch`.
            coordinates: (B, L) float32, the number at each coordinate placeholder and -1 elsewhere; a target there is
                shared by its two coordinates, of which `labels` hold the nearer.
            segment_ids: (B, L) the sample that each position belongs to, from `llava.data.packing.TrainingCollator`;
                rows are padded on the right. With `position_ids` that restart, attention stays within a sample; of a
                flat row it also gives the `sample_bounds`, which go on to the attention.
            supervised_positions, label_smoothing: as `llava.model.loss.supervised_loss` takes them.
            labels: (B, L), `IGNORE_INDEX` where nothing is predicted; shifted inside, so `labels` may equal the ids.
            return_logits: full logits (B, L, V) beside the loss; by default only in evaluation. In training the head
                sees supervised positions alone.
            num_items_in_batch: supervised tokens of the whole accumulated batch over all ranks; the loss is the sum
                over it. Without it, the mean over this batch's.

        Raises:
            ValueError: when counts do not match, or `labels` supervise nothing.
        """
        if inputs_embeds is None:
            vision = VisionBatch(
                pixel_values=pixel_values,
                pixel_values_videos=pixel_values_videos,
                image_features=image_features,
                video_features=video_features,
                image_scales=image_scales,
                video_scales=video_scales,
                num_images=num_images,
                num_videos=num_videos,
                sample_ids=sample_ids,
                image_positions=image_positions,
                video_positions=video_positions,
            )
            inputs_embeds, labels = self.prepare_inputs_labels_for_multimodal_video(
                input_ids, labels, vision, coordinates
            )
        if segment_ids is not None:
            # Causal attention never reaches the padding on the right, and transformers keeps samples of a row apart
            # where positions restart, but only without a mask and without a cache of keys and values.
            attention_mask, use_cache = None, False
        if labels is not None and use_cache is None:
            use_cache = False
        earlier = past_key_values if cache is None else cache
        bounded = self.packed_attention == "varlen" and "cu_seq_lens_q" in kwargs
        if bounded and self.config._attn_implementation == NAMES["varlen"]:
            attention_mask = ready_mask(inputs_embeds)
        packs = position_ids is not None and not bounded
        layout = nullcontext() if segment_ids is None else known_layout(packs)
        with layout:
            output = self.states(inputs_embeds, attention_mask, position_ids, earlier, use_cache, **kwargs)
        tables = None if self.coordinates is None else self.coordinates()
        to_logits = partial(self.logits_of, output, tables=tables)
        hidden, head = output.last_hidden_state, ClassHead(to_logits, self.config.vocab_size)
        loss = logits = token_losses = None
        if labels is not None:
            soft = None
            if self.coordinates is not None and coordinates is not None:
                soft = self.coordinates.soft_targets(labels, coordinates)
            loss, token_losses = supervised_loss(
                hidden, labels, head, num_items_in_batch, supervised_positions, label_smoothing, soft
            )
        if labels is None or (return_logits if return_logits is not None else not self.training):
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = head(hidden[:, keep])
        return LlavaCausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
            token_losses=token_losses,
            **{CACHE: output.get(CACHE)},
        )

    def states(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The output of the class's body, with `last_hidden_state` (B, L, D), for embeddings (B, L, its width)."""
        taken = _arguments(type(self.base_model))
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": use_cache, **kwargs}
        # Who has no positions (ALiBi, a recurrence) names no such argument.
        given = {k: v for k, v in given.items() if k != "position_ids" or k in taken}
        name = "cache" if "cache" in taken else "past_key_values"
        if cache is not None or name in taken:
            given[name] = cache
        return self.base_model(inputs_embeds=inputs_embeds, **given, return_dict=True)

    def logits_of(
        self, output: Any, states: torch.Tensor, multiple: int = 1, tables: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the class makes of states, with the scale or soft cap of its head: (N, D) or (B, N, D) -> (..., V).

        Its own `forward` is run with the body left out.

        Args:
            output: of `states`, for what else the class reads of it.
            multiple: as `llava.model.loss.head_logits` takes it.
            tables: those of coordinates, whose logits take the place of the head's own for their tokens, where they are
                at hand.
        """
        if tables is None and self.coordinates is not None:
            tables = self.coordinates()
        head = self.get_output_embeddings()
        name = next(name for name, module in self.named_children() if module is head)
        flat = states if states.dim() == 3 else states.unsqueeze(0)
        given = type(output)(last_hidden_state=flat)
        body = _StandIn(self.base_model, lambda *_, **__: given)

        def linear(states: torch.Tensor) -> torch.Tensor:
            found = head_logits(states, head, multiple)
            return found if tables is None else self.coordinates.logits(states, found, tables)

        layer = _StandIn(head, linear)
        others = _With(self, {self.base_model_prefix: body, name: layer})
        logits = type(self).class_forward(others, inputs_embeds=flat, return_dict=True).logits
        return logits if states.dim() == 3 else logits[0]

    def own_loss(self, labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """The loss that the class itself computes from all logits, as a measure for `forward`'s; inputs as there.

        The class knows nothing of coordinates: its head is given their columns, and the targets are all probabilities.
        """
        mask = inputs.pop("attention_mask", None)
        embeds, _ = self.prepare_inputs_labels_for_multimodal_video(**inputs)
        given = {"inputs_embeds": embeds, "attention_mask": mask, "use_cache": False, "return_dict": True}
        if self.coordinates is None:
            return super().forward(labels=labels, **given).loss
        head = self.get_output_embeddings()
        name = next(name for name, module in self.named_children() if module is head)
        layer = _StandIn(head, partial(self.coordinates.whole_logits, head))
        logits = type(self).class_forward(_With(self, {name: layer}), **given).logits.float()
        wanted = self.coordinates.probabilities(labels, inputs.get("coordinates"), logits.shape[-1])
        losses = -(logits.log_softmax(-1)[:, :-1] * wanted[:, 1:]).sum(-1)
        return losses.sum() / (labels[:, 1:] != IGNORE_INDEX).sum()


@cache
def _arguments(body: type[nn.Module]) -> frozenset[str]:
    """Names of what the body of a class is called with, asked once."""
    return frozenset(inspect.signature(body.forward).parameters)


class _StandIn:
    """Is called in place of a module, and is that module in all else."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self.module, self.call = module, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Some classes call the decoder within their body.
        return self if name == "decoder" else getattr(self.module, name)


class _With:
    """A model to its own methods, with other modules in place of some."""

    def __init__(self, model: nn.Module, others: dict[str, Any]) -> None:
        self.__dict__.update(others)
        self.model_itself = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model_itself, name)
