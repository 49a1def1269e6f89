"""What vision adds to a language model: modules, encoding, splicing, and the record of both in the config.

Letters in shapes: B batch, L positions, D width of the language model, V videos, I images, T frames, S pixels,
P patches, Dv width of the tower.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llava.config.video import ProcessorSpec, VideoSpec
from llava.data.positions import check_positions, visual_positions
from llava.data.prompt import image_tokens, video_tokens
from llava.errors import MissingFile, UserError
from llava.model.capabilities import embedding_std
from llava.model.coordinates import CoordinateTables
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import empty_vision_tower, load_vision_tower
from llava.model.multimodal_projector.builder import build_projector
from llava.model.multimodal_resampler.builder import DRAWS_ITSELF, attention_of, build_resampler
from llava.model.splice import splice
from llava.model.vision_batch import NO_VISION, VisionBatch

TOWER_STORAGE = ("reference", "checkpoint")


class LlavaMetaForCausalLM:
    """Mixin for a causal language model; adds tower, projector and resampler.

    The modules exist when `config.mm_hidden_size` is set, apart from the tower: stored by reference, it is attached
    by `attach_vision_tower`, which training from cached features never needs.
    """

    vision_tower: VisionTower | None
    mm_projector: nn.Module | None
    vision_resampler: nn.Module | None
    coordinates: CoordinateTables | None
    _templates: tuple[Any, dict[str, list[int]]] | None = None
    """What the config said when they were made, and `visual_templates`."""
    row_std: float | None = None
    """Standard deviation that the resampler's rows begin with; None for that of the word embeddings beside them."""
    in_step: Mapping[str, bool] = {}
    """Kinds of vision (`image`, `video`) that every forward pass encodes, a blank one where the batch has none, and
    whether from pixels. Processes that gather weights module by module (ZeRO-3, FSDP) must all run the same modules.
    ZeRO-1 and 2 add up gradients in the order in which they come, a wrong sum unless that is the same everywhere."""

    def build_vision_modules(self) -> None:
        """Builds what `config` describes, with weights still to be drawn or loaded."""
        config = self.config
        self.vision_tower = self.mm_projector = self.vision_resampler = None
        if config.mm_hidden_size is None:
            return
        width = self.get_input_embeddings().embedding_dim
        self.mm_projector = build_projector(config.mm_projector_type, config.mm_hidden_size, width)
        self.vision_resampler = build_resampler(
            config.mm_resampler_type, width, self.video_spec, tuple(config.mm_patch_grid), config.mm_perceiver_depth,
            config.mm_perceiver_width, config.mm_perceiver_heads,
        )  # fmt: skip
        if config.mm_vision_tower_storage == "checkpoint":
            self.vision_tower = empty_vision_tower(
                config.mm_vision_config, config.mm_vision_select_layer, config.mm_vision_select_feature,
                self._tower_attention,
            )  # fmt: skip
            self.vision_tower.precision = config.mm_vision_precision

    def build_coordinates(self) -> None:
        """Makes the tables of coordinates where `config` has them, with values still to be drawn or loaded.

        Raises:
            ValueError: for a model whose head reads states of another width than its embeddings have.
        """
        self.coordinates = None
        if self.config.mm_coordinates:
            width = self.get_input_embeddings().embedding_dim
            out = getattr(self.get_output_embeddings(), "in_features", width)
            if out != width:
                raise UserError(
                    f"{type(self).__name__}: coordinates are read and written in one width, but its embeddings are "
                    f"{width} wide and its head reads {out}: use another language model"
                )
            self.coordinates = CoordinateTables(
                width, self.config.coordinate_token_ids or {}, self.config.mm_coordinates_reparameterized
            )

    def initialize_vision_modules(
        self,
        tower: VisionTower,
        name_or_path: str,
        spec: VideoSpec,
        processor: ProcessorSpec,
        projector_type: str = "mlp2x_gelu",
        resampler_type: str = "fast_slow_resampler",
        depth: int = 1,
        storage: str = "reference",
        inner: int | None = None,
        heads: int | None = None,
        row_std: float | None = None,
    ) -> None:
        """Gives a language model its eyes: writes the settings into the config, draws projector and resampler.

        Args:
            tower: the loaded vision tower, from `name_or_path`.
            storage: `reference` keeps the tower out of checkpoints and remembers its checksum, `checkpoint` keeps it
                in.
            inner, heads: as `build_resampler` takes them.
            row_std: standard deviation that rows begin with; None for that of the word embeddings.

        Raises:
            ValueError: for settings that do not go together, each named.
        """
        grid = tower.grid(processor.image_size)
        if storage not in TOWER_STORAGE:
            raise UserError(f"mm_vision_tower_storage must be one of {TOWER_STORAGE}, got {storage!r}")
        if resampler_type == "stp" and tower.select_feature != "patch":
            raise UserError(
                f"--mm_vision_select_feature {tower.select_feature}: stp has no place for a class token; use patch"
            )
        config = self.config
        config.mm_vision_tower = name_or_path
        config.mm_vision_tower_checksum = tower.checksum()
        config.mm_vision_tower_storage = storage
        described = tower.vision_model.config.to_dict()
        config.mm_vision_config = {k: v for k, v in described.items() if k != "_name_or_path"}
        config.mm_vision_select_layer = tower.select_layer
        config.mm_vision_select_feature = tower.select_feature
        config.mm_vision_precision = tower.precision
        config.mm_hidden_size = tower.width
        config.mm_patch_grid = list(grid)
        config.mm_processor = processor.to_dict()
        config.mm_projector_type = projector_type
        config.mm_resampler_type = resampler_type
        config.mm_perceiver_depth = depth
        attention = attention_of(resampler_type, self.get_input_embeddings().embedding_dim, inner, heads)
        config.mm_perceiver_width, config.mm_perceiver_heads = attention or (None, None)
        config.video_spec = spec.to_dict()
        self.build_vision_modules()
        if row_std is None:
            row_std = embedding_std(self) if self.row_std is None else self.row_std
        for module in self.vision_resampler.modules():
            if isinstance(module, DRAWS_ITSELF):
                module.row_std = row_std
        for module in (self.mm_projector, self.vision_resampler):
            module.apply(self._init_weights)
            module.to(self.device)
        self.vision_tower = tower.to(self.device)

    @property
    def _tower_attention(self) -> str | None:
        """What is asked of the tower: the language model's attention, unless its class has no choice of its own."""
        return self.config._attn_implementation if self._supports_sdpa else None

    def attach_vision_tower(self, name_or_path: str | None = None) -> None:
        """Loads the tower that the config refers to (or the same one from `name_or_path`), frozen.

        Raises:
            ValueError: when the weights found are not the ones that the model was trained with.
            FileNotFoundError: when the folder or hub name cannot be loaded.
        """
        config = self.config
        name = name_or_path or config.mm_vision_tower
        try:
            tower = load_vision_tower(
                name, config.mm_vision_select_layer, config.mm_vision_select_feature, self._tower_attention
            )
        except FileNotFoundError as error:
            raise MissingFile(
                f"the vision tower {name!r} of this model cannot be loaded; the tower is kept by reference: give its "
                "present place with --vision_tower (from Python: from_pretrained(..., vision_tower=PATH))"
            ) from error
        checksum, expected = tower.checksum(), config.mm_vision_tower_checksum
        if checksum != expected and not tower.has_checksum(expected):
            raise UserError(
                f"the vision tower {name!r} is not the one that this model was trained with: its weights have checksum "
                f"{checksum[:12]}, expected {expected[:12]}; point --vision_tower at the original weights"
            )
        config.mm_vision_tower_checksum = checksum
        tower.precision = config.mm_vision_precision
        self.vision_tower = tower.to(self.device)

    @property
    def video_spec(self) -> VideoSpec:
        """The frame and token counts that the model was built with.

        Raises:
            ValueError: on a model without vision.
        """
        if not self.config.video_spec:
            raise UserError("this model was trained on text alone: it has no vision tower and takes no video or image")
        return VideoSpec.from_dict(self.config.video_spec)

    @property
    def processor_spec(self) -> ProcessorSpec:
        """The pixel values that the tower expects."""
        return ProcessorSpec.from_dict(self.config.mm_processor)

    def encode_videos(
        self, pixel_values_videos: torch.Tensor | None = None, video_features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(V, T, 3, S, S) pixels or (V, T, P, Dv) tower features -> (V, rows, D)."""
        return self.vision_resampler(self._project(pixel_values_videos, video_features))

    def encode_images(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(I, 3, S, S) pixels or (I, P, Dv) tower features -> (I, image_rows, D)."""
        pixels = None if pixel_values is None else pixel_values.unsqueeze(1)
        features = None if image_features is None else image_features.unsqueeze(1)
        return self.vision_resampler.image(self._project(pixels, features))

    def _project(self, pixels: torch.Tensor | None, features: torch.Tensor | None) -> torch.Tensor:
        """(V, T, 3, S, S) or (V, T, P, Dv) -> (V, T, P, D)."""
        if self.mm_projector is None:
            raise UserError("this model was trained on text alone: it takes no video or image")
        if features is None:
            if self.vision_tower is None:
                raise ValueError("no vision tower is attached: call attach_vision_tower() or pass tower features")
            flat = self.vision_tower(pixels.flatten(0, 1).to(self.vision_tower.vision_model.dtype))
            features = flat.unflatten(0, pixels.shape[:2])
        parameter = next(self.mm_projector.parameters(), None)
        patches = self.mm_projector(features if parameter is None else features.to(parameter.dtype))
        if self.coordinates is not None and self.config.mm_coordinates_in_vision:
            rows, columns = self.config.mm_patch_grid
            patches = self.coordinates.patches(patches, (rows, columns))
        return patches

    def embed(self, input_ids: torch.Tensor, coordinates: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L) ids -> (B, L, D): embeddings of words, and rows of the tables for coordinates.

        Args:
            coordinates: (B, L) float32, a number from 0 to 1 at each coordinate placeholder and -1 elsewhere.

        Raises:
            ValueError: for numbers to a model without coordinates; from `CoordinateTables.embed`.
        """
        embeds = self.get_input_embeddings()(input_ids)
        if self.coordinates is not None:
            return self.coordinates.embed(embeds, input_ids, coordinates)
        # Its tokenizer may know the tokens, and they are words like any other.
        if coordinates is not None and bool((coordinates >= 0).any()):
            raise UserError("this model was trained without coordinates (--mm_coordinates True): it takes no numbers")
        return embeds

    def prepare_inputs_labels_for_multimodal_video(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        vision: VisionBatch = NO_VISION,
        coordinates: torch.Tensor | None = None,
        **visual: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Swaps the embeddings at visual positions for vision features, and those of coordinates for their rows.

        Args:
            input_ids: (B, L) token ids, placeholders expanded.
            labels: (B, L), passed through: splicing keeps every position where it is.
            vision: what the batch shows; its attributes are taken by their names too, as those of `forward`.
            coordinates: as `embed` takes them.

        Returns:
            `inputs_embeds` (B, L, D) and the labels.

        Raises:
            ValueError: naming the sample and both numbers when its visual positions and feature rows differ.
        """
        vision = replace(vision, **visual)
        embeds = self.embed(input_ids, coordinates)
        connect = self.training and torch.is_grad_enabled() and self._vision_trains()
        templates = self.visual_templates()
        for items in vision.items:
            kind, total, template = items.kind, items.total, templates.get(items.kind)
            if not template:
                if total:
                    raise UserError(f"{total} {kind}(s) given, but this model was built without rows for any")
                continue
            positions, checked = items.positions, items.positions is not None
            if not checked:
                positions = visual_positions(input_ids, sorted(set(template)))
                counts = (input_ids == template[0]).sum(dim=1) if items.counts is None else items.counts
                check_positions(input_ids, positions, counts, template, kind, vision.sample_ids)
                if int(counts.sum()) != total:
                    raise UserError(f"the batch's text has {int(counts.sum())} {kind}(s), but {total} were given")
            if total:
                encode = self.encode_images if kind == "image" else self.encode_videos
                embeds = splice(embeds, positions, encode(*items.inputs).flatten(0, 1), checked)
            elif kind in self.in_step:
                embeds = embeds + self._unused_rows(kind, self.in_step[kind]).sum().to(embeds.dtype)
            if total or kind in self.in_step:
                connect = connect and kind != "video"
        if connect:
            trains = self.vision_tower is not None and not self.vision_tower.frozen
            embeds = embeds + self._unused_rows("video", pixels=trains).sum().to(embeds.dtype)
        return embeds, labels

    def _vision_trains(self) -> bool:
        parts = (self.mm_projector, self.vision_resampler, self.vision_tower)
        return any(p.requires_grad for part in parts if part is not None for p in part.parameters())

    def _unused_rows(self, kind: str, pixels: bool) -> torch.Tensor:
        """Zero rows (0, D) that depend on every vision parameter that a `kind` passes through, from a blank one.

        A batch without video would leave their gradients unset on this rank while other ranks wait to average
        theirs. An empty slice gives exact zeros; multiplying by zero would turn an overflow into NaN.
        """
        config, size = self.config, self.config.mm_processor["image_size"]
        tokens = config.mm_patch_grid[0] * config.mm_patch_grid[1] + (config.mm_vision_select_feature != "patch")
        shape = (3, size, size) if pixels else (tokens, config.mm_hidden_size)
        if kind == "video":
            shape = (config.video_spec["num_frames"], *shape)
        blank = torch.zeros(1, *shape, device=self.device)
        encode = self.encode_videos if kind == "video" else self.encode_images
        return (encode(blank) if pixels else encode(None, blank)).flatten(0, 1)[:0]

    def visual_templates(self) -> dict[str, list[int]]:
        """Token ids of one item in order, as many as it has rows, by kind: `video` and `image`, as far as the model
        takes them; empty on a model without vision.
        """
        if self.mm_projector is None:
            return {}
        known = (self.config.video_spec, self.config.visual_token_ids)
        if self._templates is None or self._templates[0] != known:
            spec = self.video_spec
            templates = {"video": self._token_ids(video_tokens(spec))}
            if spec.image_rows >= 2:
                templates["image"] = self._token_ids(image_tokens(spec))
            # Compiled code asks in every forward, and cannot make a `VideoSpec`.
            self._templates = (copy.deepcopy(known), templates)
        return self._templates[1]

    def _token_ids(self, tokens: Sequence[str]) -> list[int]:
        ids = self.config.visual_token_ids
        if not ids:
            raise UserError(
                "the model does not know the ids of the visual tokens: register them with "
                "llava.model.builder.add_visual_tokens(tokenizer, model)"
            )
        return [ids[token] for token in tokens]
