"""`python -m llava.commands.merge_lora` refuses what it cannot merge, and a result that is another model."""

from __future__ import annotations

import pytest

from llava.commands import merge_lora
from llava.model.lora import LoraSettings, add_adapters

pytest.importorskip("peft", reason='LoRA needs peft: pip install -e ".[lora]"')


@pytest.fixture
def saved(build, tokenizer, tmp_path):
    """A text-only model whose adapters have learnt something."""
    model = build(vision=False)
    add_adapters(model, LoraSettings(r=2, alpha=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_the_merged_model_gives_the_same_logits(saved, tmp_path):
    layers, difference = merge_lora.merge(saved, tmp_path / "out")
    assert layers == 8 and difference <= 1e-5
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_result_that_is_another_model_is_an_error(saved, tmp_path, monkeypatch):
    merged = merge_lora.merge_adapters

    def lossy(model):
        number = merged(model)
        model.transformer.h[0].mlp.c_fc.weight.data.mul_(2)
        return number

    monkeypatch.setattr(merge_lora, "merge_adapters", lossy)
    with pytest.raises(ValueError, match="do not use it"):
        merge_lora.merge(saved, tmp_path / "out")


def test_what_is_no_run_with_adapters_is_refused(assets, tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        merge_lora.merge(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="model type 'gpt2', expected llava_<type>"):
        merge_lora.merge(assets.gpt2, tmp_path / "out")
