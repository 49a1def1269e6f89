"""The tokenizer, the GPT-2 and the random DINOv2 that `llava-make-model` makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from llava.commands import make_model
from llava.constants import VISUAL_TOKENS
from llava.data.records import DatasetError

CAPTIONS = ["Una stella rossa va verso l'alto.", "Un cerchio blu va verso il basso.", "C'è una stella blu."] * 3
SIZE = ["--n_layer", "2", "--n_embd", "32", "--n_head", "2", "--n_positions", "64"]
TOWER = ["--vision_hidden_size", "24", "--vision_heads", "2", "--image_size", "56"]


@pytest.fixture
def script():
    return make_model


@pytest.fixture
def data(tmp_path) -> Path:
    turns = [[{"from": "human", "value": "<video>"}, {"from": "gpt", "value": text}] for text in CAPTIONS]
    path = tmp_path / "train.json"
    path.write_text(
        json.dumps([{"id": str(i), "video": "a.mp4", "conversations": t} for i, t in enumerate(turns)]),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def make(script, data, tmp_path):
    """`make("name", *options)` -> folder of a small GPT-2."""

    def run(name: str, *options: str) -> Path:
        script.main(["--data_path", str(data), "--output_dir", str(tmp_path / name), *SIZE, *options])
        return tmp_path / name

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_captions_come_without_placeholders(script, data, tmp_path):
    lines = tmp_path / "more.jsonl"
    turns = [{"from": "human", "value": "Che  cosa\nvedi? <image>"}, {"from": "gpt", "value": "Un gatto."}]
    lines.write_text(json.dumps({"id": "x", "image": "a.jpg", "conversations": turns}) + "\n")
    placed = [{"from": "human", "value": "Dove?"}, {"from": "gpt", "value": "Qui: {<TEMP-OUTPUT><TEMP-OUTPUT>}"}]
    numbers = {"temporal_output_locations": [0.1, 0.5]}
    with lines.open("a") as file:
        file.write(json.dumps({"id": "y", "conversations": placed, "variables": numbers}) + "\n")
    assert script.read_captions([data, lines]) == [*CAPTIONS, "Che cosa vedi? Un gatto.", "Dove? Qui:"]


def test_bad_records_stop_or_are_left_out_as_in_training(script, data):
    loaded = json.loads(data.read_text(encoding="utf-8"))
    loaded[0]["conversations"][1]["value"] = "Una <vid_patch> rossa."
    data.write_text(json.dumps(loaded), encoding="utf-8")
    with pytest.raises(DatasetError, match="<vid_patch>"):
        script.read_captions([data])
    assert script.read_captions([data], "skip") == CAPTIONS[1:]


def test_everything_reloads(make):
    folder = make("gpt2")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    assert (config.model_type, config.n_layer, config.n_embd, config.n_head) == ("gpt2", 2, 32, 2)
    assert config.vocab_size == len(tokenizer) == model.get_input_embeddings().num_embeddings
    assert config.n_positions == tokenizer.model_max_length == 64
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    ids = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == ids
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert {config.resid_pdrop, config.embd_pdrop, config.attn_pdrop} == {0.0}
    assert not set(VISUAL_TOKENS) & set(tokenizer.get_vocab())


def test_a_caption_has_the_same_tokens_wherever_it_stands(make):
    tokenizer = AutoTokenizer.from_pretrained(make("gpt2"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<slow_vid_end>"]})
    caption = CAPTIONS[0]
    alone = tokenizer(caption).input_ids
    assert tokenizer(f"<slow_vid_end> {caption}").input_ids[1:] == alone
    assert tokenizer(f"<slow_vid_end>{caption}").input_ids[1:] == alone
    assert tokenizer.decode(alone) == f" {caption}"
    assert "Ġstella" in tokenizer.tokenize(caption)


def test_any_text_survives_the_tokenizer(make):
    tokenizer = AutoTokenizer.from_pretrained(make("gpt2"))
    text = " Perché l'acqua è più blu? ☃ , ok !"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("piu\u0300").input_ids == tokenizer("più").input_ids


def test_a_small_corpus_makes_a_small_vocabulary_and_says_so(make, capsys):
    folder = make("gpt2")
    out = capsys.readouterr().out
    size = len(AutoTokenizer.from_pretrained(folder))
    assert 258 < size < 400
    assert f"no more than {size} of 30,000 entries" in out
    assert len(AutoTokenizer.from_pretrained(make("bounded", "--vocab_size", "265"))) == 265
    assert "no more than" not in capsys.readouterr().out


def test_weights_follow_the_seed_alone(make):
    state = torch.random.get_rng_state()
    first = weights(make("a"))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    assert equal(first, weights(make("b")))
    assert not equal(first, weights(make("c", "--seed", "1")))
    assert (make("a2") / "tokenizer.json").read_bytes() == (make("c2", "--seed", "1") / "tokenizer.json").read_bytes()


def test_an_existing_folder_is_reused_only_on_request_and_with_equal_settings(make, data, capsys):
    folder = make("gpt2")
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    with pytest.raises(SystemExit, match="--exist_ok"):
        make("gpt2")
    with pytest.raises(SystemExit, match="n_layer 2, asked for 3"):
        make("gpt2", "--exist_ok", "--n_layer", "3")
    make("gpt2", "--exist_ok")
    assert "reused" in capsys.readouterr().out
    data.write_text(data.read_text(encoding="utf-8").replace("blu", "viola"), encoding="utf-8")
    with pytest.raises(SystemExit, match="captions_sha256"):
        make("gpt2", "--exist_ok")
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_a_folder_of_somebody_else_is_refused(make, tmp_path):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not made by this command"):
        make("gpt2", "--exist_ok")


def test_a_failed_run_leaves_nothing_behind(make, script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "make_gpt2", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make("gpt2")
    assert [p.name for p in tmp_path.iterdir()] == ["train.json"]


def test_a_job_that_made_the_folder_first_wins(script, tmp_path):
    folder = tmp_path / "made"

    def fill_too_late(temporary: Path) -> None:
        script.make_folder(folder, {"seed": 0}, True, lambda path: None)
        (temporary / "late").touch()

    assert script.make_folder(folder, {"seed": 0}, True, fill_too_late) is False
    assert [p.name for p in folder.iterdir()] == ["make_model.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_the_vision_tower_reloads_with_its_processor(script, tmp_path):
    folder = tmp_path / "tower"
    script.main(["--make_vision_tower", str(folder), *TOWER])
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.image_size) == ("dinov2", 1, 56)
    pixels = processor(torch.zeros(3, 80, 100, dtype=torch.uint8).numpy(), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 56, 56)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert model(pixels).last_hidden_state.shape == (1, 1 + 16, 24)

    torch.rand(3)
    script.main(["--make_vision_tower", str(tmp_path / "again"), *TOWER])
    script.main(["--make_vision_tower", str(tmp_path / "other"), *TOWER, "--vision_seed", "1"])
    state = model.state_dict()
    assert equal(state, AutoModel.from_pretrained(tmp_path / "again").state_dict())
    assert not equal(state, AutoModel.from_pretrained(tmp_path / "other").state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to make"),
        (["--output_dir", "x"], "--data_path go together"),
        (["--make_vision_tower", "x", "--image_size", "125"], "multiple of 14"),
        (["--make_vision_tower", "x", "--vision_heads", "5"], "--vision_heads"),
        (
            ["--make_vision_tower", "x", "--n_head", "5", "--dropout", "1", "--vocab_size", "9"],
            "(?s)--vocab_size 9: a whole number, 258.*--dropout 1.*--n_head",
        ),
    ],
)
def test_wrong_flags_are_reported_together(script, capsys, options, message):
    with pytest.raises(SystemExit):
        script.main(options)
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_that_cannot_be_made_is_one_message(script, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file/tower: cannot be made"):
        script.main(["--make_vision_tower", str(tmp_path / "file" / "tower"), *TOWER])


@pytest.mark.parametrize("token", ["<pad>", "<|endoftext|>", "<vid_patch>"])
def test_captions_with_special_tokens_are_refused(script, data, token):
    rows = json.loads(data.read_text())
    rows[2]["conversations"][1]["value"] = f"Un gatto {token}."
    data.write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match=rf"\[2\] id '2': the text contains '{token.replace('|', '[|]')}'"):
        script.read_captions([data])


def test_paths_are_no_concern_of_a_tokenizer(script, data):
    rows = json.loads(data.read_text())
    rows[2]["video"] = "/elsewhere/a.mp4"
    data.write_text(json.dumps(rows))
    assert len(script.read_captions([data])) == len(rows)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "opt", "bloom"])
def test_another_architecture_has_the_same_sizes(make, kind):
    folder = make(kind, "--model_type", kind, "--seed", "3", "--dropout", "0.25")
    model = AutoModelForCausalLM.from_pretrained(folder)
    config, table = model.config, model.get_input_embeddings()
    assert (config.model_type, config.num_hidden_layers, config.num_attention_heads) == (kind, 2, 2)
    assert (table.embedding_dim, table.num_embeddings) == (32, len(AutoTokenizer.from_pretrained(folder)))
    assert kind == "bloom" or config.max_position_embeddings == 64
    assert table.weight is model.get_output_embeddings().weight
    assert {v for k, v in config.to_dict().items() if k.endswith("dropout")} == {0.25}
    assert equal(weights(make("again", "--model_type", kind, "--seed", "3")), weights(folder))


def test_an_architecture_without_a_language_model_is_refused(make):
    with pytest.raises(SystemExit, match="--model_type: model type 'vit', which transformers has no causal language"):
        make("vit", "--model_type", "vit")


LFM2 = {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "initializer_range": 0.05,
        "intermediate_size": 96, "block_auto_adjust_ff_dim": False}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("lfm2", LFM2),
        ("gpt2", {"initializer_range": 0.05, "activation_function": "relu", "tie_word_embeddings": False}),
    ],
)
def test_other_settings_of_the_config_are_taken_and_recorded(make, kind, overrides):
    asked = ("--model_type", kind, "--config_overrides", json.dumps(overrides))
    folder = make("made", *asked)
    config = AutoModelForCausalLM.from_pretrained(folder).config.to_dict()
    assert {k: config[k] for k in overrides} == overrides
    assert json.loads((folder / "make_model.json").read_text())["config_overrides"] == overrides
    make("made", *asked, "--exist_ok")
    others = (json.dumps(overrides | {"initializer_range": 0.1}),), ()
    for other in others:
        with pytest.raises(SystemExit, match=r"config_overrides \{.*, asked for"):
            make("made", *asked[:2], "--exist_ok", *(("--config_overrides", *other) if other else ()))


def test_without_other_settings_nothing_is_recorded_of_them(make):
    assert "config_overrides" not in json.loads((make("gpt2") / "make_model.json").read_text())


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("gpt2", "{", "--config_overrides: a JSON object is expected, not '{'"),
        ("gpt2", "[1]", r"--config_overrides: a JSON object is expected, not '\[1\]'"),
        ("gpt2", '{"n_iner": 4}', "--config_overrides: n_iner: gpt2 has no such setting; did you mean n_inner"),
        ("gpt2", '{"hidden_size": 4}', "hidden_size is said by --n_embd"),
        ("lfm2", '{"n_layer": 4, "vocab_size": 3}', "(?s)n_layer is said by --n_layer.*vocab_size is said by --vocab"),
        ("gpt2", '{"attn_pdrop": 0.1}', "attn_pdrop is said by --dropout"),
        ("lfm2", '{"eos_token_id": 4}', "eos_token_id is said by the tokenizer"),
        ("lfm2", '{"model_type": "gpt2"}', "model_type is said by --model_type"),
    ],
)
def test_wrong_settings_of_the_config_name_the_flag(make, capsys, kind, overrides, message):
    with pytest.raises(SystemExit):
        make("made", "--model_type", kind, "--config_overrides", overrides)
    assert re.search(message, capsys.readouterr().err)


def test_what_the_config_refuses_names_the_flag(make, tmp_path):
    with pytest.raises(SystemExit, match="--config_overrides: lfm2 does not take them: .*number of `layer_types`"):
        make("made", "--model_type", "lfm2", "--config_overrides", '{"layer_types": ["conv"]}')
    with pytest.raises(SystemExit, match="--config_overrides: gpt2 does not take them: .*nothing"):
        make("made", "--config_overrides", '{"activation_function": "nothing"}')
    assert not (tmp_path / "made").exists()
