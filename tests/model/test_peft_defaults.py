"""What PEFT adapts when nobody says which layers."""

from __future__ import annotations

import re

import pytest
import torch

from llava.model.language_model.causal_lm import causal_lm_class
from llava.model.peft_defaults import of_the_language_model

peft = pytest.importorskip("peft")
# PEFT sets what fits a layer by itself, and asks transformers for a name that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set", "ignore:`is_gradient_checkpointing`")


def adapted(model) -> set[str]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name for name, module in model.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)}


def test_the_default_layers_are_those_of_the_language_model(build, tokenizer):
    model = build()
    lora = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM"))
    assert adapted(lora) == {f"transformer.h.{i}.attn.c_attn" for i in range(2)}
    ids = torch.tensor([tokenizer("Un gatto")["input_ids"]])
    lora(input_ids=ids, labels=ids).loss.backward()
    assert lora.generate(input_ids=ids, max_new_tokens=2, eos_token_id=-1, pad_token_id=0).shape[1] == ids.shape[1] + 2


def test_all_linear_layers_leave_the_tower_alone(build):
    lora = peft.get_peft_model(build(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    found = adapted(lora)
    assert not [name for name in found if name.startswith("vision_tower.")]
    assert {"transformer.h.0.mlp.c_fc", "mm_projector.1"} <= found and "lm_head" not in found


def test_models_of_others_are_adapted_as_before(assets):
    from transformers import Dinov2Model

    tower = peft.get_peft_model(Dinov2Model.from_pretrained(assets.tower), peft.LoraConfig(target_modules="all-linear"))
    assert any("mlp.fc1" in name for name in adapted(tower))


@pytest.mark.parametrize("given", [["q_proj", "v_proj"], r".*\.(q_proj|v_proj)"])
def test_a_layer_of_the_tower_by_the_same_name_is_none_of_them(given):
    pattern = of_the_language_model(given)
    assert re.fullmatch(pattern, "model.layers.0.self_attn.q_proj")
    assert not re.fullmatch(pattern, "vision_tower.vision_model.encoder.layer.0.attention.q_proj")
    assert not re.fullmatch(pattern, "model.layers.0.self_attn.o_proj")


def test_every_method_that_knows_the_language_model_knows_ours():
    from peft.utils import constants

    causal_lm_class("llama").config_class().to_dict()
    tables = {name: table for name, table in vars(constants).items() if name.endswith("_MODULES_MAPPING")}
    lacking = [name for name, table in tables.items() if ("llama" in table) != ("llava_llama" in table)]
    assert tables and not lacking
