"""transformers' own common tests of a model class, asked of ours.

They are the `tests/` folder of transformers' source distribution, of the installed version; `bash
scripts/test_versions.sh` fetches it. Another place for it: `LLAVA_TRANSFORMERS_TESTS=FOLDER`. A source distribution
lacks the generation tests (`generation/test_utils.py`), which are run too where FOLDER, the `tests/` of a clone at that
version's tag, has them.
"""

from __future__ import annotations

import importlib
import sys
import types
import unittest
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, GPT2Config, LlamaConfig, set_seed

from llava.config.video import VideoSpec
from llava.constants import VISUAL_TOKENS
from llava.data.prompt import video_tokens
from llava.model.language_model.causal_lm import causal_lm_class
from tests.conftest import PROCESSOR
from tests.model.conftest import TRANSFORMERS_TESTS

PACKAGE = "transformers_tests"
MIXINS = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
"""What the common tests import from folders that a source distribution lacks."""

if not (TRANSFORMERS_TESTS / "test_modeling_common.py").is_file():
    WHY = f"no tests of transformers at {TRANSFORMERS_TESTS}: bash scripts/test_versions.sh"
    pytest.skip(WHY, allow_module_level=True)
pytest.importorskip("parameterized", reason="transformers' tests need it")


def _common_tests() -> Any:
    """The module of the common tests, with empty classes for what the folder lacks."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(TRANSFORMERS_TESTS)]
    sys.modules[PACKAGE] = package
    for name, mixin in MIXINS.items():
        if not (TRANSFORMERS_TESTS / f"{name.replace('.', '/')}.py").is_file():
            module = types.ModuleType(f"{PACKAGE}.{name}")
            setattr(module, mixin, type(mixin, (), {}))
            sys.modules[module.__name__] = module
    return importlib.import_module(f"{PACKAGE}.test_modeling_common")


common = _common_tests()
Generation = sys.modules[f"{PACKAGE}.generation.test_utils"].GenerationTesterMixin

SPEC = VideoSpec(num_frames=2, fast_latents=1, slow_latents=4, force_sample=True)
"""10 rows a video."""
WORDS, BATCH, TEXT = 99, 7, 9


class TinyModel:
    """A tiny model with vision and a batch for it, as transformers' tests ask for them."""

    batch_size, seq_length, num_hidden_layers, hidden_size = BATCH, len(video_tokens(SPEC)) + TEXT, 2, 32
    num_attention_heads, is_training = 2, True

    def __init__(self, parent: unittest.TestCase, language: Any) -> None:
        self.parent, self.language = parent, language

    def get_config(self) -> Any:
        config_class = causal_lm_class(self.language.model_type).config_class
        tower = Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
            layerscale_value=1.0,
        )  # fmt: skip
        return config_class(
            **{k: v for k, v in self.language.to_dict().items() if k not in ("model_type", "transformers_version")},
            mm_vision_config=tower.to_dict(), mm_vision_tower="tower", mm_vision_tower_storage="checkpoint",
            mm_hidden_size=24, mm_patch_grid=[4, 4], mm_processor=PROCESSOR.to_dict(), video_spec=SPEC.to_dict(),
            visual_token_ids={token: 2 + i for i, token in enumerate(VISUAL_TOKENS)},  # The tests cut off high ids.
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        config = self.get_config()
        span = torch.tensor([config.visual_token_ids[token] for token in video_tokens(SPEC)])
        text = torch.randint(2 + len(VISUAL_TOKENS), WORDS, (BATCH, TEXT))
        pixels = torch.randn(BATCH, SPEC.num_frames, 3, PROCESSOR.image_size, PROCESSOR.image_size)
        ids = torch.cat([span.expand(BATCH, -1), text], dim=1)
        return config, {
            "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels,
        }  # fmt: skip


class Common(common.ModelTesterMixin, Generation):
    """The tests, for one language model."""

    language: Any
    additional_model_inputs = ["pixel_values_videos"]
    test_all_params_have_gradient = False  # The layers of a tower after the selected one never run.

    def _prepare_for_class(self, inputs: dict[str, Any], model_class: Any, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs, model_class, return_labels)
        if return_labels:  # By the names of transformers' own classes there are none.
            inputs["labels"] = torch.full((BATCH, self.model_tester.seq_length), TEXT)
        return inputs

    def test_correct_missing_keys(self) -> None:
        """A checkpoint without all weights is an error of ours, where transformers says so and draws others."""
        with self.assertRaisesRegex(ValueError, "weights do not fit the config"):
            super().test_correct_missing_keys()

    def test_model_weights_reload_no_missing_tied_weights(self) -> None:
        """As above."""
        with self.assertRaisesRegex(ValueError, "weights do not fit the config"):
            super().test_model_weights_reload_no_missing_tied_weights()

    @unittest.skip("`past_key_values` is no deprecated name here: older versions of transformers have no other")
    def test_bc_cache_name_forward(self) -> None:
        pass

    def setUp(self) -> None:
        set_seed(0)
        self.all_model_classes = (causal_lm_class(self.language.model_type),)
        self.model_tester = TinyModel(self, self.language)


class GPT2Test(Common, unittest.TestCase):
    language = GPT2Config(
        vocab_size=WORDS, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip


class LlamaTest(Common, unittest.TestCase):
    language = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
