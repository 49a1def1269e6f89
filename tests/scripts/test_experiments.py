"""The tables of scripts/experiments from small made-up runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "scripts" / "experiments"))
    return importlib.import_module


def write_run(folder, losses, video=True, seed=0, tokens=90, steps=100, every=50, targets=None, **flags):
    """A finished run whose held-out loss is `losses` at every `every` steps."""
    log = []
    for i, loss in enumerate(losses):
        step = every * (i + 1)
        log.append({"step": step, "loss": loss / 2, "caption_loss": loss, "grad_norm": 0.5})
        log.append(
            {"step": step, "eval_loss": loss, "eval_common_loss": loss, "eval_common_tokens": tokens,
             "eval_common_accuracy": 1 - loss / 10}
        )  # fmt: skip
    folder.mkdir(parents=True)
    tower = "tower" if video else None
    flags = {"seed": seed, "vision_tower": tower, "model_name_or_path": "gpt2", **flags}
    data = {"eval": {"targets": targets}} if targets else None
    (folder / "llava_run.json").write_text(json.dumps({"flags": flags, "data": data}))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": log}))
    return folder


def test_text_against_video_in_pairs(script, tmp_path, capsys):
    module = script("text_vs_video")
    folders = []
    for seed in (0, 1, 2):
        folders.append(write_run(tmp_path / f"t{seed}", [4.0, 2.0 + seed / 10], video=False, seed=seed))
        folders.append(write_run(tmp_path / f"v{seed}", [3.0, 1.0 + seed / 10], seed=seed))
    module.main([*map(str, folders), "--output", str(tmp_path), "--target", "2.5"])
    result = json.loads((tmp_path / "text_vs_video.json").read_text())
    final = result["held-out loss at the end, nats a token"]
    assert final["text"] == pytest.approx([2.0, 2.1, 2.2]) and final["video"] == pytest.approx([1.0, 1.1, 1.2])
    assert final["video - text"] == pytest.approx([-1, -1, -1])
    assert result["mean held-out loss over training (area under the curve)"]["text"][0] == pytest.approx(3.0)
    assert result["steps to held-out loss 2.500"]["text"][0] == pytest.approx(87.5)
    assert result["steps to held-out loss 2.500"]["video"][0] == pytest.approx(62.5)
    assert "| -1.000 [-1.000, -1.000] |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 91}, "tokens that both predict"),
        ({"targets": "b"}, "other words of the evaluation set"),
        ({"steps": 99}, "number of steps"),
        ({"model_name_or_path": "other"}, "--model_name_or_path"),
        ({"seed": 7}, "both experiments are needed"),
    ],
)
def test_what_is_no_pair_is_refused(script, tmp_path, change, message):
    module = script("text_vs_video")
    folders = [
        write_run(tmp_path / "t", [2.0, 1.0], video=False, targets="a"),
        write_run(tmp_path / "v", [2.0, 1.0], **change),
    ]
    with pytest.raises(ValueError, match=message):
        module.pair_runs(folders)


def test_a_mismatch_is_refused_before_anything_trains(script, assets, tmp_path, capsys):
    from transformers import AutoTokenizer

    module = script("text_vs_video")
    rows = json.loads(assets.video_json.read_text())
    rows[0]["conversations"][0]["value"] = "<video>\nDescrivi."
    rows[1]["conversations"][1]["value"] = "Una palla\nrotola."
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    module.main(["--check", str(assets.gpt2), str(assets.video_json), str(data), str(assets.text_json)])
    tokenizer = AutoTokenizer.from_pretrained(assets.gpt2)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ValueError, match=r"predict other tokens with video.*id 'v\d'.*add_prefix_space=True"):
        module.check_forms(tokenizer, [str(data)])
    with pytest.raises(SystemExit):
        module.main([])
    assert "output folders" in capsys.readouterr().err


def test_a_target_that_is_never_reached_is_no_number(script, tmp_path):
    module = script("text_vs_video")
    run = module.read_run(write_run(tmp_path / "v", [3.0, 2.0]))
    assert str(module.steps_to(run, 1.0)) == "nan"
    with pytest.raises(ValueError, match="1 evaluation"):
        module.curve(module.read_run(write_run(tmp_path / "short", [3.0])))


def test_the_masking_table_and_figure(script, tmp_path):
    module = script("masking")
    for name, losses in (("masked_trainable", [2.0, 0.2]), ("unmasked_frozen", [5.0, 4.0])):
        for seed in (0, 1):
            folder = write_run(tmp_path / f"{name}_seed{seed}", losses)
            for place, share in ((folder, 0.9), (folder / "checkpoint-100", 0.8 + seed / 10)):
                place.mkdir(exist_ok=True)
                (place / "captions.json").write_text(json.dumps({"scores": {module.SET: {"all": share}}}))
    module.main(str(tmp_path))
    lines = (tmp_path / "masking.md").read_text().splitlines()
    assert lines[2].startswith("| masked, vocabulary trains | 0.10 (0.10, 0.10) | 0.20 (0.20, 0.20) |")
    assert lines[2].endswith("| 100 (100, 100) | 100 (100, 100) | 0.20 (0.20, 0.20) | 0.85 (0.80, 0.90) |")
    assert "| never | never |" in lines[3]
    assert (tmp_path / "masking.svg").read_text().startswith("<?xml")
    with pytest.raises(SystemExit, match="no finished run"):
        module.main(str(tmp_path / "none"))


def test_toy_pairs_differ_in_one_word_and_were_held_out(script, tmp_path):
    module = script("text_start")
    sentences, pairs = module.split()
    assert len(sentences) == 768 and {part: len(listed) for part, listed in pairs.items()} == {
        "article": 192, "adjective": 192, "verb": 192,
    }  # fmt: skip
    places = {"article": 0, "adjective": 2, "verb": 3}
    for part, listed in pairs.items():
        for pair in listed:
            good, bad = pair["good"].split(), pair["bad"].split()
            assert [i for i, words in enumerate(zip(good, bad, strict=True)) if len(set(words)) > 1] == [places[part]]
            assert pair["good"] not in sentences
    assert module.sentence("fp", "cas", "ross", 0) == "Le case rosse dormono."
    assert module.sentence("ms", "gatt", "ner", 0, "article", "fs") == "La gatto nero dorme."
    records = json.loads(module.write_data(tmp_path).read_text())
    assert len(records) == len(sentences) and (tmp_path / "tasks" / "verb.yaml").read_text().count("toy_verb") == 1


def test_one_seed_has_no_interval_and_what_was_not_logged_is_not_measured(script):
    nan, row = float("nan"), {"text": [1.0], "video": [0.5], "video - text": [-0.5, float("nan"), float("nan")]}
    absent = {"text": [nan], "video": [nan], "video - text": [nan, nan, nan]}
    rows = {"loss": row, "norm": absent, "steps to 1": absent}
    text = script("text_vs_video").table(rows, [0])
    assert text.startswith("Seed 0 alone: no interval") and "| loss | 1.000 | 0.500 | -0.500 |" in text
    assert "| norm | not measured | not measured | not measured |" in text
    assert "| steps to 1 | not reached | not reached | not reached |" in text
