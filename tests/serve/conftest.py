"""A model to be served. It is not trained: what it writes is odd, which what shows it has to bear."""

from __future__ import annotations

import pytest
import torch

from llava.model.builder import add_visual_tokens, load_language_model
from llava.model.multimodal_encoder.builder import load_vision_tower
from tests.conftest import PROCESSOR, SPEC, make_tokenizer


@pytest.fixture(scope="session")
def run(assets, tmp_path_factory):
    """The folder of a model with vision and its tokenizer, as training leaves them."""
    folder, tokenizer = tmp_path_factory.mktemp("served") / "run", make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = load_language_model(str(assets.gpt2))
        add_visual_tokens(tokenizer, model)
        tower = load_vision_tower(str(assets.tower), -2)
        model.initialize_vision_modules(tower, str(assets.tower), SPEC, PROCESSOR)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
