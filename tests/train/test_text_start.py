"""Runs put EOS in front of their texts, checkpoints know it, and what begins from a checkpoint goes on so."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoProcessor, AutoTokenizer

from llava.data.packing import TrainingCollator
from llava.eval.captioning import Captioner
from llava.train.run_flags import parse_arguments
from tests.conftest import SPEC
from tests.train.runs import flags, train


def start_of(folder) -> str | None:
    return json.loads((folder / "config.json").read_text())["text_format"].get("start")


def test_a_run_puts_eos_before_its_texts_and_every_checkpoint_knows(assets, tmp_path, monkeypatch):
    seen: list[list[int]] = []
    collate = TrainingCollator.__call__
    monkeypatch.setattr(
        TrainingCollator,
        "__call__",
        lambda self, samples: (seen.extend(s["input_ids"].tolist() for s in samples), collate(self, samples))[1],
    )
    folder = tmp_path / "run"
    train(
        assets,
        folder,
        max_steps=2,
        save_strategy="steps",
        save_steps=2,
        preflight="off",
        controls=False,
        feature_cache="off",
    )
    for place in (folder, folder / "checkpoint-2"):
        assert start_of(place) == "eos"
        assert json.loads((place / "llava_run.json").read_text())["text_format"]["start"] == "eos"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert seen and all(ids[SPEC.rows] == tokenizer.eos_token_id != ids[SPEC.rows + 1] for ids in seen)
    assert tokenizer("Un gatto")["input_ids"][0] == tokenizer.bos_token_id == tokenizer.eos_token_id
    captioner = Captioner.from_pretrained(folder, device="cpu")
    processor = AutoProcessor.from_pretrained(folder)
    asked = captioner.spans.expand(captioner.text_format.prompt([{"from": "human", "value": "<video>"}]))
    assert asked == seen[0][: SPEC.rows + 1]
    assert processor(videos=assets.clips / "clip0.mp4")["input_ids"].tolist() == [asked]


def test_a_run_that_is_resumed_keeps_what_stands_before_its_texts(assets, tmp_path):
    options = {"experiment": 1, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "preflight": "off"}
    for start in ("none", None):
        folder = tmp_path / str(start)
        whole = train(assets, folder, text_start=start, **options)
        shutil.rmtree(folder / "checkpoint-4")
        assert train(assets, folder, resume_from_checkpoint="auto", **options) == whole
        assert start_of(folder) == (start or "eos")
    shutil.rmtree(folder / "checkpoint-4")
    with pytest.raises(ValueError, match="--text_start: was 'eos', is 'none' .cannot change"):
        train(assets, folder, resume_from_checkpoint="auto", text_start="none", **options)


def test_a_flag_that_says_otherwise_than_the_checkpoint_wins_and_is_warned_of(assets, tmp_path, caplog):
    options = {"experiment": 1, "max_steps": 1, "preflight": "off"}
    train(assets, tmp_path / "eos", **options)
    assert "before the text" not in caplog.text
    train(assets, tmp_path / "none", model_name_or_path=tmp_path / "eos", text_start="none", **options)
    assert "was trained with a token before the text (--text_start eos); this run leaves it out" in caplog.text
    assert start_of(tmp_path / "none") == "none"
    train(assets, tmp_path / "back", model_name_or_path=tmp_path / "none", text_start="eos", **options)
    assert "was trained without a token before the text; this run puts one there" in caplog.text
    fresh = {"model_name_or_path": tmp_path / "none", "from_scratch": True}
    train(assets, tmp_path / "fresh", **fresh, **options)
    assert start_of(tmp_path / "fresh") == "eos", "fresh weights begin anew"
    caplog.clear()
    train(assets, tmp_path / "next", model_name_or_path=tmp_path / "eos", **options)
    values = json.loads((tmp_path / "eos" / "config.json").read_text())
    del values["text_format"]["start"]
    (tmp_path / "eos" / "config.json").write_text(json.dumps(values))
    train(assets, tmp_path / "old", model_name_or_path=tmp_path / "eos", **options)
    assert [start_of(tmp_path / name) for name in ("next", "old")] == ["eos", "none"]
    assert "before the text" not in caplog.text
    loaded = AutoTokenizer.from_pretrained(tmp_path / "old")
    assert loaded("Un gatto")["input_ids"] == loaded("Un gatto", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("flags_given", "message"),
    [
        ({"text_start": "bos"}, "--text_start bos: use eos or none"),
        ({"text_start": "eos", "version": "chatml"}, "--text_start eos --version chatml: a chat format writes its own"),
    ],
)
def test_what_cannot_stand_before_a_text_is_said(assets, tmp_path, flags_given, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(flags(assets, tmp_path / "run", **flags_given))
