"""Folders that others made: their code is never run, and what cannot be built is refused before it is."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llava import foreign
from llava.commands import make_model
from llava.data import check
from llava.foreign import check_sizes, load_tokenizer
from llava.model.builder import load_language_model, load_pretrained_model
from llava.model.multimodal_encoder.builder import load_vision_tower
from llava.model.multimodal_encoder.processor import processor_spec
from tests.train.runs import train


def edited(folder: Path, place: Path, name: str, **changes) -> Path:
    """A copy of a folder with other values in one of its JSON files."""
    shutil.copytree(folder, place)
    path = place / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return place


@pytest.fixture
def no_questions(monkeypatch):
    """transformers asks the terminal whether it may run code."""

    def ask(*args):
        raise AssertionError("the terminal was asked")

    monkeypatch.setattr(builtins, "input", ask)
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 0)


HOSTILE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
"""


@pytest.mark.parametrize("model_type", ["llava_gpt2", "gpt2"])
def test_code_of_a_tokenizer_is_never_run(assets, tmp_path, no_questions, model_type):
    folder = edited(assets.gpt2, tmp_path / "gpt2", "tokenizer_config.json", tokenizer_class="NobodysTokenizer",
                    auto_map={"AutoTokenizer": ["hostile.NobodysTokenizer", "hostile.NobodysTokenizer"]})  # fmt: skip
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": model_type}))
    (folder / "hostile.py").write_text(HOSTILE)
    if model_type == "llava_gpt2":
        with pytest.raises(ValueError, match=r"its tokenizer needs code of its own \(auto_map\), which is never run"):
            train(assets, tmp_path / "run", 1, model_name_or_path=folder)
    else:
        assert isinstance(load_tokenizer(str(folder)), PreTrainedTokenizerFast), "transformers has the class itself"
    assert not (folder / "ran").exists()


def test_code_of_a_model_or_tower_is_never_run(assets, tmp_path, no_questions):
    hostile = {name: f"hostile.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")}
    gpt2 = edited(assets.gpt2, tmp_path / "gpt2", "config.json", auto_map=hostile)
    tower = edited(assets.tower, tmp_path / "tower", "config.json", auto_map=hostile)
    for folder in (gpt2, tower):
        (folder / "hostile.py").write_text(HOSTILE)
    load_language_model(str(gpt2))
    check._tokenizer(str(gpt2), None)
    load_vision_tower(str(tower))
    unknown = edited(assets.tower, tmp_path / "unknown", "config.json", auto_map=hostile, model_type="nobodys")
    with pytest.raises(ValueError, match="model type 'nobodys', expected one of"):
        load_vision_tower(str(unknown))
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 10**9}, "n_layer is 1000000000, expected a whole number from 0 to 1000"),
        ({"n_embd": -32}, "n_embd is -32, expected a whole number from 1"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000"),
        ({"n_positions": "many"}, "n_positions is 'many'"),
        ({"n_layer": 2.5}, "n_layer is 2.5"),
        ({"n_layer": 1000, "n_embd": 65536}, "it describes .* weights, .* GB in fp32; this machine has"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_before_it_is(assets, tmp_path, monkeypatch, changes, message):
    folder = edited(assets.gpt2, tmp_path / "gpt2", "config.json", **changes)
    monkeypatch.setattr("llava.model.language_model.llava_gpt2.LlavaGPT2ForCausalLM.__init__", None)
    for load in (
        lambda: load_language_model(str(folder)),
        lambda: load_pretrained_model(folder),
        lambda: check._tokenizer(str(folder), None),
    ):
        with pytest.raises(ValueError, match=message):
            load()


def test_the_sizes_of_vision_are_looked_at_too(assets, tmp_path):
    tower = edited(assets.tower, tmp_path / "tower", "config.json", num_hidden_layers=10**9)
    with pytest.raises(ValueError, match="--vision_tower .*num_hidden_layers is 1000000000"):
        load_vision_tower(str(tower))
    big = edited(
        assets.tower, tmp_path / "big", "preprocessor_config.json", crop_size={"height": 10**6, "width": 10**6}
    )
    with pytest.raises(ValueError, match="image_size is 1000000, expected a whole number from 1 to 8192"):
        processor_spec(str(big))
    with pytest.raises(ValueError, match=r"\(video_spec\): .*slow_latents is 1000000000"):
        check_sizes({"n_layer": 2, "video_spec": {"slow_latents": 10**9}}, "x")


@pytest.mark.parametrize("flag", ["n_layer", "vision_layers"])
def test_a_fresh_model_of_absurd_size_is_refused(assets, tmp_path, flag):
    place = {"n_layer": ["--data_path", str(assets.text_json), "--output_dir", str(tmp_path / "gpt2")],
             "vision_layers": ["--make_vision_tower", str(tmp_path / "tower")]}[flag]  # fmt: skip
    with pytest.raises(ValueError, match="is 1000000000, expected a whole number from"):
        make_model.main([*place, f"--{flag}", "1000000000", *(["--vocab_size", "300"] if flag == "n_layer" else [])])


def test_a_tokenizer_that_blows_up_is_refused(assets, tmp_path):
    grow = {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 2,
    }
    folder = edited(assets.gpt2, tmp_path / "gpt2", "tokenizer.json", normalizer=grow)
    with pytest.raises(ValueError, match=r"its tokenizer makes 10,\d+ tokens of 'a'"):
        load_tokenizer(str(folder))
    load_tokenizer(str(assets.gpt2))


def test_weights_are_counted_as_they_are(build):
    model = build(vision=False)
    counted, real = foreign.count_weights(model.config.to_dict()), sum(p.numel() for p in model.parameters())
    assert abs(counted - real) < 0.05 * real
