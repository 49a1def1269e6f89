"""A checkpoint is used with its own tower and its own tokenizer, or not at all."""

from __future__ import annotations

import shutil

import pytest
from transformers import AutoTokenizer

from llava.constants import VISUAL_TOKENS
from llava.model.builder import add_visual_tokens, load_language_model, load_pretrained_model, open_checkpoint
from tests.conftest import save_tower
from tests.train.runs import train


@pytest.fixture(scope="module")
def stored(assets, tmp_path_factory):
    """A run whose checkpoint holds its tower, which was trained."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    train(assets, folder, max_steps=2, mm_tunable_parts="mm_vision_tower,mm_language_model",
          mm_vision_tower_storage="checkpoint", mm_vision_tower_lr=1e-2)  # fmt: skip
    return folder


def test_another_tower_than_the_stored_one_is_refused(assets, stored, tmp_path):
    save_tower(tmp_path / "other", seed=5)
    options = {"model_name_or_path": stored, "mm_vision_tower_storage": "checkpoint", "max_steps": 1}
    with pytest.raises(ValueError, match=r"other' \(checksum .* began as '.*tower' \(checksum"):
        train(assets, tmp_path / "run", vision_tower=tmp_path / "other", **options)
    with pytest.raises(ValueError, match=r"other' \(checksum .* began as '.*tower' \(checksum"):
        load_pretrained_model(stored, vision_tower=str(tmp_path / "other"))
    assert train(assets, tmp_path / "run", **options)
    _, model = load_pretrained_model(stored, vision_tower=str(assets.tower))
    assert model.vision_tower.checksum() != model.config.mm_vision_tower_checksum, "the trained tower is kept"


def test_a_tokenizer_with_more_entries_than_embeddings_is_refused(assets, stored, tokenizer, build, tmp_path):
    model = build(vision=False)
    tokenizer.add_tokens(["supercalifragilistico"])
    with pytest.raises(ValueError, match="329 entries and the model 328 embeddings"):
        add_visual_tokens(tokenizer, model)
    _enlarged(assets.gpt2, tmp_path / "gpt2")
    with pytest.raises(ValueError, match="entries and the model"):
        train(assets, tmp_path / "run", 1, model_name_or_path=tmp_path / "gpt2")
    with pytest.raises(ValueError, match="entries and the model"):
        load_pretrained_model(_enlarged(stored, tmp_path / "stored"))


def test_a_folder_that_training_did_not_write_is_refused_by_the_name_that_it_was_given(assets, stored, tmp_path):
    model_class, tokenizer = open_checkpoint(stored, "DIR")
    assert model_class.__name__ == "LlavaGPT2ForCausalLM" and "<vid_start>" in tokenizer.get_vocab()
    with pytest.raises(FileNotFoundError, match=r"no config.json; DIR is the folder of a finished run"):
        open_checkpoint(tmp_path, "DIR")
    with pytest.raises(ValueError, match=r"model type 'gpt2', expected llava_<type>: --model-path is what training"):
        load_pretrained_model(assets.gpt2)


def test_the_visual_tokens_may_be_in_the_tokenizer_before_the_model(assets, tokenizer):
    tokenizer.add_tokens(list(VISUAL_TOKENS), special_tokens=True)
    model = load_language_model(str(assets.gpt2))
    rows = model.get_input_embeddings().num_embeddings
    ids = add_visual_tokens(tokenizer, model)
    assert sorted(ids.values()) == list(range(rows, rows + 8))
    assert add_visual_tokens(tokenizer, model) == ids


def _enlarged(source, target):
    """A copy of a model's folder whose tokenizer has words that the model lacks."""
    shutil.copytree(source, target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_tokens([f"parola{i}" for i in range(400)])
    tokenizer.save_pretrained(target)
    return target
