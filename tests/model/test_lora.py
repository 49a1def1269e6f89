"""Adapters are in the language model alone, begin as nothing, are saved with the model, and can be merged into it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from llava.model import lora
from llava.model.builder import load_language_model, set_trainable, trainable_names
from llava.model.lora import LoraSettings, adapt, adapted_layers, add_adapters, awake, merge_adapters, settings_of
from llava.train.preflight.training import Pass, check_gradients, check_lora, check_trainable, expected_to_train
from tests.conftest import CAPTIONS
from tests.model.contract.families import tiny_config
from tests.model.test_llava_gpt2 import make_batch, pixels

pytest.importorskip("peft", reason='LoRA needs peft: pip install -e ".[lora]"')

SETTINGS = LoraSettings(r=4, alpha=8, dropout=0.0)
PARTS = ["mm_language_model", "mm_mlp_adapter", "mm_vision_resampler"]
TEXTS = [f"<video> {CAPTIONS[0]}", f"<video> {CAPTIONS[4]}"]


@pytest.fixture
def make(build, tokenizer, assets, tmp_path):
    """`make(family, settings, **config)`: a model with vision and adapters, in evaluation mode, with its batch."""

    def made(family: str = "gpt2", settings: LoraSettings | None = SETTINGS, **changes):
        torch.manual_seed(0)
        folder = assets.gpt2
        if family != "gpt2":
            folder = tmp_path / family
            AutoModelForCausalLM.from_config(tiny_config(family, len(tokenizer), **changes)).save_pretrained(folder)
        model = build(folder=folder)
        if settings is not None:
            add_adapters(model, settings)
            set_trainable(model, PARTS)
        return model.eval(), make_batch(tokenizer, TEXTS, pixel_values_videos=pixels(2))

    return made


def stir(model) -> None:
    """Adapters as after some training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            weight = layer.lora_B["default"].weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma3_text"])
def test_every_linear_layer_of_the_body_is_adapted_and_nothing_else(make, family):
    model, batch = make(family, None)
    before, wanted = model(**batch).logits, set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and name.startswith(f"{model.base_model_prefix}."):
            wanted.add(name)
    add_adapters(model, SETTINGS)
    assert set(adapted_layers(model)) == wanted and len(wanted) >= 8
    assert torch.equal(model(**batch).logits, before), "B is zero: the first step's model is the one without adapters"
    stir(model)
    assert (model(**batch).logits - before).abs().max() > 1e-3
    assert not any("lora" in n for n, _ in model.named_parameters() if not n.startswith(model.base_model_prefix))


@pytest.mark.parametrize("bias", lora.BIASES)
def test_what_trains(make, bias):
    model, _ = make("gpt2", LoraSettings(4, 8, 0.0, bias))
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    body = {n for n in trains if n.startswith("transformer.")}
    rest = {n for n in body if "lora_" not in n}
    assert len(body - rest) == 2 * len(adapted_layers(model))
    biases = {n for n, _ in model.named_parameters() if n.startswith("transformer.") and n.endswith("bias")}
    wanted = {"none": set(), "all": biases, "lora_only": {n for n in biases if n.endswith("base_layer.bias")}}
    assert rest == wanted[bias]
    vision = {n for n, _ in model.named_parameters() if n.startswith(("mm_projector", "vision_resampler"))}
    assert trains - body == vision
    set_trainable(model, ["mm_mlp_adapter"])
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.startswith("transformer."))


@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_gradient_reaches_every_adapter_and_the_check_leaves_them_as_they_were(make, family, bias):
    model, batch = make(family, LoraSettings(4, 8, 0.0, bias))
    before = copy.deepcopy(model.state_dict())
    wanted = expected_to_train(model, PARTS, {})
    findings, _ = check_gradients(model, [Pass("video", batch)], wanted, lambda b: model(**b).loss)
    assert {f.status for f in findings} == {"ok"}, findings
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    # One whose A is cut off is still found.
    layer = next(iter(adapted_layers(model).values()))
    layer.lora_A["default"].register_forward_hook(lambda module, inputs, output: output.detach())
    findings, _ = check_gradients(model, [Pass("video", batch)], wanted, lambda b: model(**b).loss)
    assert any(f.status == "FAIL" and "lora_A" in f.finding for f in findings)


def test_adapters_that_have_learnt_stay_as_they_are_while_awake(make):
    model, _ = make()
    stir(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with awake(model):
        assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_preflight_finds_a_base_that_trains_and_an_adapter_that_does_not(make):
    model, _ = make()
    assert [f.status for f in check_trainable(model, PARTS, {})] == ["ok"]
    layer = next(iter(adapted_layers(model).values()))
    layer.base_layer.weight.requires_grad_(True)
    layer.lora_A["default"].weight.requires_grad_(False)
    said = " ".join(f.finding for f in check_trainable(model, PARTS, {}) if f.status == "FAIL")
    assert "base_layer.weight is training, though LoRA" in said and "lora_A.default.weight is frozen" in said


def test_preflight_compares_adapters_with_the_flags(make):
    flags = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_bias": "none"}
    model, _ = make()
    (finding,) = check_lora(model, flags)
    assert finding.status == "ok" and "8 layers have adapters" in finding.finding
    assert check_lora(model, flags | {"lora_r": 5})[0].status == "FAIL"
    assert check_lora(model, {"lora_enable": False})[0].status == "FAIL"
    plain, _ = make(settings=None)
    assert check_lora(plain, flags)[0].status == "FAIL" and check_lora(plain, {}) == []


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_saved_loaded_and_merged(make, family, tmp_path):
    model, batch = make(family)
    stir(model)
    logits = model(**batch).logits
    model.save_pretrained(tmp_path / "saved")
    again = load_language_model(str(tmp_path / "saved")).eval()
    assert settings_of(again) == SETTINGS and type(again) is type(model)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    assert torch.equal(again(**batch).logits, logits)
    assert merge_adapters(again) >= 8
    assert trainable_names(again, ["mm_language_model"]) == {
        n.replace(".base_layer", "") for n, _ in model.named_parameters()
        if "lora_" not in n and not n.startswith(("mm_", "vision_"))
    }  # fmt: skip
    again.save_pretrained(tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["lora"] is None
    merged = load_language_model(str(tmp_path / "merged")).eval()
    torch.testing.assert_close(merged(**batch).logits, logits, rtol=1e-5, atol=1e-5)
    assert not any("lora" in name for name in merged.state_dict())
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_adapters(merged)


def test_a_checkpoint_with_adapters_says_what_it_needs(make, tmp_path, monkeypatch):
    model, _ = make()
    model.save_pretrained(tmp_path / "saved")
    monkeypatch.setattr(lora, "is_installed", lambda: False)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[lora\]".*merge_lora'):
        load_language_model(str(tmp_path / "saved"))
    fresh = load_language_model(str(tmp_path / "saved"), from_scratch=True)
    assert settings_of(fresh) is None and not adapted_layers(fresh)


def test_adapters_that_the_flags_do_not_describe_are_refused(make):
    model, _ = make()
    adapt(model, SETTINGS, "here")
    for other in (None, LoraSettings(r=5)):
        with pytest.raises(ValueError, match="here has LoRA adapters.*--lora_r 4 .*merge_lora"):
            adapt(model, other, "here")
    model.config.lora = {"rank": 4}
    with pytest.raises(ValueError, match="expected r, alpha, dropout, bias"):
        settings_of(model)
