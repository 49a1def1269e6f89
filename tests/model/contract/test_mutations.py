"""The contract can be broken: what it is there to notice is planted, and both the suite and pre-flight notice it."""

from __future__ import annotations

import pytest

from llava.model.loss import head_logits
from llava.model.vlm import VisionCausalLM
from llava.train import run_model
from llava.train.preflight.run import PreflightError
from tests.model.contract import test_contract as contract
from tests.train.runs import train


@pytest.fixture
def run(assets, feature_cache, tmp_path):
    """Trains a family as `test_a_run_is_silent` does."""
    return lambda family: train(
        assets, tmp_path / "run", model_name_or_path=family.folder, feature_cache=feature_cache, max_steps=2,
        controls=False,
    )  # fmt: skip


def bare_head(patch: pytest.MonkeyPatch) -> None:
    """The logits are what the head's layer gives, without what the class does to them."""

    def logits_of(self, output, states, multiple=1, tables=None):
        return head_logits(states, self.get_output_embeddings(), multiple)

    patch.setattr(VisionCausalLM, "logits_of", logits_of)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_a_head_without_its_soft_cap_is_noticed(made, run, monkeypatch, name):
    bare_head(monkeypatch)
    with pytest.raises(AssertionError):
        contract.test_the_loss_at_supervised_positions_is_that_of_the_class_with_its_gradients(made(name))
    words = r"(?s)loss of the class, video: the loss is .*what it does after its head"
    with pytest.raises(PreflightError, match=words):
        run(made(name))


def test_a_bare_head_is_that_of_a_class_that_adds_nothing(made, monkeypatch):
    bare_head(monkeypatch)
    contract.test_the_loss_at_supervised_positions_is_that_of_the_class_with_its_gradients(made("llama"))


def test_samples_that_see_each_other_in_a_row_are_noticed(made, run, monkeypatch):
    monkeypatch.setattr(contract, "keeps_samples_apart", lambda model: True)
    monkeypatch.setattr(run_model, "keeps_samples_apart", lambda model: True)
    with pytest.raises(AssertionError):
        contract.test_packed_samples_have_the_losses_they_have_alone_or_are_not_packed(made("opt"))
    with pytest.raises(PreflightError, match="see each other"):
        run(made("opt"))


def test_rows_of_another_spread_than_the_words_are_noticed(made, monkeypatch):
    family = made("llama")
    norm = family.model.vision_resampler.slow.norm
    monkeypatch.setattr(norm, "weight", type(norm.weight)(norm.weight * 10))
    with pytest.raises(AssertionError):
        contract.test_fresh_rows_have_the_spread_of_the_words_beside_them(family)


@pytest.mark.parametrize(("name", "lost"), [("mixtral", "experts"), ("gpt_neox", "lm_head")])
def test_weights_that_are_not_converted_would_be_lost(made, name, lost):
    """Why they are copied from transformers' own class: a model of our type does not get them from the same folder."""
    family = made(name)
    config = type(family.model).config_class.from_dict(family.plain.config.to_dict() | {"model_type": f"llava_{name}"})
    with pytest.raises(ValueError, match=f"weights do not fit the config .*{lost}"):
        type(family.model).from_pretrained(family.folder, config=config)
