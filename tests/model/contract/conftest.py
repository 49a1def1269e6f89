"""One tiny model of each family, made once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llava.model.builder import add_visual_tokens, load_language_model, set_trainable
from llava.model.multimodal_encoder.builder import load_vision_tower
from tests.conftest import PROCESSOR, SPEC, make_tokenizer
from tests.model.contract.families import FAMILIES, tiny_config


@dataclass(frozen=True)
class Family:
    """`plain` is transformers' own model, saved in `folder`; `model` is ours, made from that folder, with vision.

    Tests leave both as they are: what trains is a `copy`.
    """

    name: str
    folder: Path
    plain: Any
    model: Any
    tokenizer: PreTrainedTokenizerFast

    def copy(self) -> Any:
        return copy.deepcopy(self.model).train()


@pytest.fixture(scope="session")
def made(assets: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """The `Family` of a name, the same one at each call."""

    @cache
    def make(name: str) -> Family:
        folder, tokenizer = tmp_path_factory.mktemp(name), make_tokenizer()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(tiny_config(name, len(tokenizer))).save_pretrained(folder)
            plain = AutoModelForCausalLM.from_pretrained(folder).eval()
            tokenizer.save_pretrained(folder)
            model = load_language_model(str(folder))
            add_visual_tokens(tokenizer, model)
            tower = load_vision_tower(str(assets.tower))
            model.initialize_vision_modules(tower, str(assets.tower), SPEC, PROCESSOR)
        set_trainable(model, "mm_language_model,mm_mlp_adapter,mm_vision_resampler")
        return Family(name, folder, plain, model.eval(), tokenizer)

    return make


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, made: Callable[[str], Family]) -> Family:
    """Each family in turn."""
    return made(request.param)


@pytest.fixture(scope="session")
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all families: the tower is the same."""
    return tmp_path_factory.mktemp("features")
