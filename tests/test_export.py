"""`python -m llava.export` makes folders that open elsewhere, and says what it cannot export."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from llava import export
from llava.errors import UserError
from llava.model.builder import add_coordinate_tokens, load_pretrained_model
from llava.report.card import CARD, write_card
from tests.report.made import record, write_run


def test_the_language_model_alone_is_a_plain_one(saved, tmp_path, capsys):
    assert export.main([str(saved), str(tmp_path / "out"), "--text-only"]) == 0
    assert "a plain GPT2LMHeadModel" in capsys.readouterr().out
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(plain) is GPT2LMHeadModel
    assert not [key for key in json.loads((tmp_path / "out" / "config.json").read_text()) if key.startswith("mm_")]
    words = AutoTokenizer.from_pretrained(tmp_path / "out")("Un gatto nero", return_tensors="pt")["input_ids"]
    _, model = load_pretrained_model(saved)
    assert torch.equal(plain(words).logits, model(input_ids=words).logits)
    assert plain.generation_config.suppress_tokens == sorted(model.config.visual_token_ids.values())
    assert model.generation_config.suppress_tokens is None


@pytest.mark.parametrize("tied", [True, False])
def test_coordinates_go_into_the_words_where_head_and_embeddings_are_two(
    build, assets, tokenizer, tmp_path, capsys, tied
):
    folder = tmp_path / "gpt2"
    shutil.copytree(assets.gpt2, folder)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    untied = GPT2LMHeadModel.from_pretrained(folder)
    untied.lm_head.weight.data.normal_(0, 0.02) if not tied else None
    untied.save_pretrained(folder)
    model = build(folder=str(folder))
    add_coordinate_tokens(tokenizer, model)
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    assert export.main([str(tmp_path / "run"), str(tmp_path / "out"), "--text-only"]) == 0
    said = capsys.readouterr().out
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(plain) is GPT2LMHeadModel
    assert said.count("one row cannot hold both") == tied
    text = "Un gatto" if tied else "Un gatto <TEMP-012> dorme [<WIDTH-099><HEIGHT-000>]"
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(text, return_tensors="pt")["input_ids"]
    found, expected = plain(ids).logits, model(input_ids=ids).logits
    words = torch.ones(found.shape[-1], dtype=torch.bool)
    words[model.coordinates.token_ids] = False
    assert torch.equal(found[..., words], expected[..., words])
    never = set(plain.generation_config.suppress_tokens)
    if tied:
        assert set(model.coordinates.ids.values()) <= never
    else:
        torch.testing.assert_close(found, expected)
        rows = plain.transformer.wte.weight[model.coordinates.token_ids].view(3, 100, -1)
        assert torch.equal(rows, model.coordinates()[0])
        assert torch.equal(plain.lm_head.weight[model.coordinates.token_ids].view(3, 100, -1), model.coordinates()[1])
        assert len(never & set(model.coordinates.ids.values())) == 6


def test_the_card_of_the_language_model_alone_promises_no_video(saved, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(saved, source)
    write_run(source, llava_run=record(vision_tower="/home/me/towers/dino"))
    write_card(source)
    (source / CARD).write_text((source / CARD).read_text() + "CC BY 4.0\n")
    export.export(source, tmp_path / "out", text_only=True)
    card = (tmp_path / "out" / CARD).read_text()
    assert "pipeline_tag: text-generation" in card and "AutoProcessor" not in card and "trust_remote_code" not in card
    assert "language model alone" in card and card.endswith("CC BY 4.0\n") and "\n- video\n" not in card
    assert "/home" not in card and "`--vision_tower` | dino |" in card


def test_the_tower_goes_with_it(saved, tmp_path, assets):
    export.main([str(saved), str(tmp_path / "out")])
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    assets.tower.rename(assets.root / "gone")
    try:
        _, model = load_pretrained_model(moved)
    finally:
        (assets.root / "gone").rename(assets.tower)
    assert model.config.mm_vision_tower == "tower" and model.vision_tower is not None
    assert (moved / "modeling_llava.py").is_file() and (moved / "processor_config.json").is_file()


def test_a_tower_by_reference_is_named_by_the_way_to_it(saved, assets):
    place = json.loads((saved / "config.json").read_text())["mm_vision_tower"]
    assert place.startswith("..") and (saved / place).resolve() == assets.tower.resolve()
    _, model = load_pretrained_model(saved)
    assert model.vision_tower is not None


def test_what_cannot_be_exported_is_said(saved, tmp_path, assets):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(FileExistsError, match="is there already"):
        export.export(saved, tmp_path / "full")
    with pytest.raises(ValueError, match="model type 'gpt2'"):
        export.export(assets.gpt2, tmp_path / "out")


def test_a_result_that_is_another_model_is_an_error(saved, tmp_path, monkeypatch):
    write = export.write_text_only

    def lossy(model, target):
        model.transformer.wte.weight.data[0].add_(1)
        write(model, target)
        model.transformer.wte.weight.data[0].sub_(1)

    monkeypatch.setattr(export, "write_text_only", lossy)
    with pytest.raises(ValueError, match="do not use it"):
        export.export(saved, tmp_path / "out", text_only=True)


def test_it_can_be_uploaded(saved, tmp_path, monkeypatch):
    sent = {}

    class Api:
        def create_repo(self, repository, exist_ok):
            sent["made"] = repository

        def upload_folder(self, folder_path, repo_id):
            sent["folder"] = folder_path
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    export.main([str(saved), str(tmp_path / "out"), "--text_only", "--push", "me/model"])
    assert sent == {"made": "me/model", "folder": tmp_path / "out"}


def test_an_upload_that_fails_says_how_to_do_it_later(saved, tmp_path):
    """Nothing is reached: the tests are offline."""
    for i, name in enumerate(("me/model", "me/../model")):
        folder = tmp_path / f"out{i}"
        with pytest.raises(UserError) as caught:
            export.main([str(saved), str(folder), "--text_only", "--push", name])
        text = str(caught.value)
        assert f"{folder} is whole, and was not uploaded to {name} (" in text and len(text.splitlines()) == 1
        assert text.endswith(f"then give hf upload {name} {folder}") and (folder / "model.safetensors").is_file()
