"""Generation with video: the prompt is encoded once, a cache that holds a part of it is gone on from, and lengths fit.

Letters in shapes: B batch, L positions, D width of the states.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from llava.constants import COORDINATE_PLACEHOLDERS
from llava.errors import UserError
from llava.model.capabilities import max_positions
from llava.model.vision_batch import NAMES, VisionBatch

CACHE = "cache" if hasattr(CausalLMOutputWithCrossAttentions, "cache") else "past_key_values"
"""What transformers calls the keys and values of earlier positions: `cache` since 5.24. Callers may use either name."""
NEW_TOKENS = 64
"""How many tokens are generated at most where nobody says: a few captions' worth, and no more than have a position."""


class GeneratesWithVideo:
    """Mixin of `llava.model.vlm.VisionCausalLM`: transformers' generation, with video."""

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' generation (greedy, sampling, beam search), with video.

        The visual arguments of `forward` are taken beside transformers' own. The prompt is encoded once, so that
        neither a beam nor a step without cache sees the tower again. A batch of prompts is padded on the left. Visual
        tokens, which are places for features and no words, are never generated. Without `max_new_tokens` or
        `max_length` at most as many are as the generation config says, else `NEW_TOKENS`, if there are the positions.

        Args:
            coordinates: (B, L) float32 of the prompt, as `forward` takes them; what is generated are coordinate tokens.
            past_key_values, cache: of an earlier call, to go on from; `inputs` begins with the ids that it holds. What
                was shown then need not be given again (and is not encoded again); new pixels or features are those of
                the ids that it does not hold.

        Raises:
            ValueError: for pixels or features that are not finite, of which a model makes an empty text; for a prompt
                that leaves fewer positions than tokens are to be generated; and from
                `prepare_inputs_labels_for_multimodal_video`.
        """
        input_ids, vision = kwargs.pop("input_ids", inputs), VisionBatch.take(kwargs)
        earlier, kwargs = _taken_cache(kwargs)
        embeds = kwargs.get("inputs_embeds")
        numbers = kwargs.pop("coordinates", None)
        vision.check_finite()
        if not vision.is_empty:
            if self.mm_projector is None:
                raise UserError("this model was trained on text alone: it takes no video or image")
            if input_ids is None:
                raise UserError("a video or image goes with input_ids: inputs_embeds have theirs in them already")
        settings: dict[str, Any] = {}
        if input_ids is not None:
            cached = cached_positions(earlier)
            if cached >= input_ids.shape[1]:
                raise UserError(
                    f"the cache holds {cached} positions and the ids are {input_ids.shape[1]}: give the whole text, "
                    "what the cache holds of it included"
                )
            if self.coordinates is not None:
                self.coordinates.check_numbers(input_ids, numbers)
            if self.mm_projector is not None or self.coordinates is not None or numbers is not None:
                vision = self._not_cached(vision, input_ids, cached)
                prompt, _ = self.prepare_inputs_labels_for_multimodal_video(
                    input_ids[:, cached:], vision=vision, coordinates=None if numbers is None else numbers[:, cached:]
                )
                kwargs.update(prompt_embeds=prompt, prompt_start=cached)
        if (given := embeds if input_ids is None else input_ids) is not None:
            settings |= self._fit(kwargs, given)
        if earlier is not None:
            kwargs[CACHE] = earlier
        config = kwargs.get("generation_config")
        asked = kwargs.pop("suppress_tokens", None) or (config or self.generation_config).suppress_tokens
        never = {*(asked or ()), *(self.config.visual_token_ids or {}).values(), *self._placeholder_ids()}
        settings["suppress_tokens"] = sorted(never) or None
        if config is not None:  # transformers warns about settings in both places.
            kwargs["generation_config"] = config = copy.deepcopy(config)
            for name, value in settings.items():
                setattr(config, name, value)
            settings = {}
        return super().generate(input_ids, **settings, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_start: int = 0,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,  # Named, as transformers looks for it here.
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; while it is not cached, the prompt enters as embeddings with its video in them.

        Args:
            prompt_embeds: (B, L, D), of the prompt from its position `prompt_start` on.
        """
        earlier = past_key_values if cache is None else cache
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        inputs = super().prepare_inputs_for_generation(input_ids, **{CACHE: earlier}, **kwargs)
        cached = cached_positions(earlier)
        if prompt_embeds is None or cached >= prompt_start + prompt_embeds.shape[1]:
            return inputs
        ids = inputs.pop("input_ids")
        if cached != prompt_start or ids.shape[1] < prompt_embeds.shape[1]:
            raise UserError("generation with video takes the prompt in one piece: leave out prefill_chunk_size")
        new = self.embed(ids[:, prompt_embeds.shape[1] :])
        return {**inputs, "input_ids": None, "inputs_embeds": torch.cat([prompt_embeds, new.to(prompt_embeds)], dim=1)}

    def _placeholder_ids(self) -> list[int]:
        """Of the coordinate placeholders, which stand for numbers that are given, and are no words either."""
        return [] if self.coordinates is None else [self.coordinates.ids[name] for name in COORDINATE_PLACEHOLDERS]

    def _not_cached(self, vision: VisionBatch, input_ids: torch.Tensor, cached: int) -> VisionBatch:
        """What is to be encoded of `vision`: nothing of kinds whose items all lie in the cache and are given again."""
        if not cached:
            return vision
        again: dict[str, None] = {}
        for items in vision.items:
            template = self.visual_templates().get(items.kind)
            first = input_ids == template[0] if template else torch.zeros_like(input_ids, dtype=torch.bool)
            if not int(first[:, cached:].sum()) and items.total == int(first.sum()):
                again |= dict.fromkeys(NAMES[items.kind])
        return replace(vision, **again) if again else vision

    def limit_generation(self) -> None:
        """Writes `NEW_TOKENS` into the generation config, for a checkpoint, where it says nothing of lengths."""
        config = self.generation_config
        if config.max_new_tokens is None and config.max_length is None:
            config.max_new_tokens = NEW_TOKENS

    def _fit(self, kwargs: dict[str, Any], given: torch.Tensor) -> dict[str, int | None]:
        """How many tokens are generated at most, after ids (B, L) or embeddings (B, L, D); takes max_length out.

        What the call says must fit. What only the model's generation config says is cut to what fits.

        Raises:
            ValueError: for more than there are positions for, with the numbers.
        """
        asked, own = kwargs.get("generation_config"), self.generation_config
        told, total = (
            getattr(asked, name, None) if kwargs.get(name) is None else kwargs[name]
            for name in ("max_new_tokens", "max_length")
        )
        new = total - given.shape[1] if told is None and total is not None else told
        mask = kwargs.get("attention_mask")
        prompt = given.shape[1] if mask is None or mask.dim() != 2 else int(mask.sum(dim=1).max())
        positions = max_positions(self)
        room = positions - prompt
        if room < 1 or (new is not None and new > room):
            wanted = "" if new is None else f" and {new} new tokens are asked for"
            raise UserError(
                f"the prompt takes {prompt} positions{wanted}, but the model has {positions} "
                "(max_position_embeddings): "
                f"{'give a shorter prompt' if room < 1 else f'ask for max_new_tokens={room} at most'}"
            )
        if told is not None:
            return {}
        if new is None and own.max_new_tokens is None and own.max_length is not None:
            new = own.max_length - given.shape[1]
        elif new is None:
            new = own.max_new_tokens or NEW_TOKENS
        kwargs.pop("max_length", None)  # transformers would take the max_new_tokens of its generation config instead.
        return {"max_new_tokens": min(new, room), "max_length": None}


def cached_positions(cache: Any) -> int:
    """How many positions a cache holds keys and values of; 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())


def _taken_cache(kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The cache of a call's arguments, under either name, and the others."""
    given = [kwargs[name] for name in ("cache", "past_key_values") if kwargs.get(name) is not None]
    if len(given) > 1:
        raise UserError("both cache and past_key_values are given, which are two names of one argument: give one")
    return (given or [None])[0], {k: v for k, v in kwargs.items() if k not in ("cache", "past_key_values")}
