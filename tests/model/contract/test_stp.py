"""The contract, asked of a model with STP: both streams, fewer rows of the slow one than frames."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from llava.model.builder import add_visual_tokens, load_language_model, set_trainable
from llava.model.multimodal_encoder.builder import load_vision_tower
from llava.model.multimodal_resampler.stp import Packer
from tests import conftest
from tests.model import test_llava_gpt2 as batches
from tests.model.contract import test_contract as contract
from tests.model.contract.conftest import Family

SPEC = replace(conftest.SPEC, temporal_factor=2)
ASKED = [
    contract.test_a_gradient_reaches_every_tensor_that_trains,
    partial(contract.test_each_stream_alone_reaches_the_words, stream="fast"),
    partial(contract.test_each_stream_alone_reaches_the_words, stream="slow"),
    contract.test_the_loss_at_supervised_positions_is_that_of_the_class_with_its_gradients,
    contract.test_packed_samples_have_the_losses_they_have_alone_or_are_not_packed,
    partial(contract.test_cached_generation_equals_uncached, options={"do_sample": False, "num_beams": 3}),
    contract.test_generation_is_the_plain_loop_and_sees_the_video,
    contract.test_left_padding_does_not_change_what_is_generated,
    contract.test_accumulated_batches_have_the_gradient_of_the_large_one,
    contract.test_a_rank_without_targets_adds_nothing_to_those_of_others,
]


@pytest.fixture(scope="module")
def family(made, assets) -> Family:
    """Qwen 2 with STP."""
    plain = made("qwen2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = load_language_model(str(plain.folder))
        add_visual_tokens(plain.tokenizer, model)
        model.initialize_vision_modules(
            load_vision_tower(str(assets.tower)), str(assets.tower), SPEC, conftest.PROCESSOR, resampler_type="stp"
        )
    set_trainable(model, "mm_language_model,mm_mlp_adapter,mm_vision_resampler")
    return replace(plain, model=model.eval())


@pytest.fixture(autouse=True)
def spec(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (contract, batches):
        monkeypatch.setattr(module, "SPEC", SPEC)


@pytest.mark.parametrize("ask", ASKED, ids=lambda ask: getattr(ask, "func", ask).__name__)
def test_what_training_asks_of_a_model(family, ask):
    assert SPEC.rows == 2 + 4
    ask(family)


def test_a_checkpoint_opens_bit_for_bit_with_its_sizes(family, tmp_path):
    contract.test_a_checkpoint_opens_bit_for_bit_with_its_ties(family, tmp_path)
    config = type(family.model.config).from_pretrained(tmp_path)
    assert (config.mm_resampler_type, config.mm_perceiver_width, config.mm_perceiver_heads) == ("stp", 32, 1)
    assert config.video_spec["temporal_factor"] == 2


def test_what_is_computed_again_gives_the_same_gradients(family, monkeypatch):
    """transformers turns the packers' checkpointing on with that of the language model."""
    calls, attend = [], Packer.attend
    monkeypatch.setattr(Packer, "attend", lambda self, *args: calls.append(1) or attend(self, *args))
    batch = batches.make_batch(family.tokenizer, contract.TEXTS, pixel_values_videos=batches.pixels(2))
    kept, again = family.copy(), family.copy()
    enable = "activation_checkpointing_enable"
    getattr(again, enable if hasattr(again, enable) else "gradient_checkpointing_enable")()
    for model, number in ((kept, 3), (again, 6)):
        calls.clear()
        model(**batch).loss.backward()
        assert len(calls) == number
    contract.assert_same_grads(contract.grads(again), contract.grads(kept))
