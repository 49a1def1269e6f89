"""The class factory: names, registration, refusals."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest

import llava
from llava.model.language_model import causal_lm
from llava.model.language_model.causal_lm import causal_lm_class
from llava.model.language_model.llava_gpt2 import LlavaGPT2Config, LlavaGPT2ForCausalLM


def test_a_class_is_found_by_its_name_and_pickled_under_it():
    cls = causal_lm.LlavaLlamaForCausalLM
    assert cls is causal_lm_class("llama") is causal_lm_class("llava_llama") is llava.LlavaLlamaForCausalLM
    assert pickle.loads(pickle.dumps(cls)) is cls
    config = pickle.loads(pickle.dumps(causal_lm.LlavaLlamaConfig(hidden_size=32, mm_perceiver_depth=3)))
    assert type(config) is causal_lm.LlavaLlamaConfig is cls.config_class
    assert (config.model_type, config.hidden_size, config.mm_perceiver_depth) == ("llava_llama", 32, 3)


def test_gpt2_has_its_own_file_and_its_names_here_too():
    assert (
        causal_lm_class("gpt2") is causal_lm.LlavaGPT2ForCausalLM is LlavaGPT2ForCausalLM is llava.LlavaGPT2ForCausalLM
    )
    assert causal_lm.LlavaGPT2Config is LlavaGPT2Config


def test_a_name_that_no_model_has_is_an_attribute_error():
    for name in ("LlavaNothingForCausalLM", "LlavaNothingConfig", "LlavaT5ForCausalLM", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(causal_lm, name)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("t5", "'t5', which transformers has no causal language model for: expected one"),
        ("nothing", "'nothing', which transformers has no causal language model for"),
        ("gemma3", "'gemma3', a Gemma3ForConditionalGeneration: expected one .*save its language model alone"),
    ],
)
def test_what_is_no_plain_language_model_is_refused(kind, words):
    with pytest.raises(ValueError, match=words):
        causal_lm_class(kind)


def test_auto_classes_know_a_type_after_import_llava_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_qwen3", "hidden_size": 32}))
    script = (
        "import llava, sys\nfrom transformers import AutoConfig\n"
        "assert 'torch' not in sys.modules or 'llava.model.vlm' not in sys.modules\n"
        f"config = AutoConfig.from_pretrained({str(tmp_path)!r})\n"
        "print(type(config).__name__, config.hidden_size)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("LlavaQwen3Config 32")
