"""The experiments of scripts/experiments: tables of small made-up runs, and what a script hands on."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "experiments"))
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


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, ["--output", "output/text_vs_video", "--seeds", "3", "--only", "arm=V"]),
        ({"SEEDS": "0 1", "STEPS": "9", "OUTPUT": "out"},
         ["--output", "out", "--seeds", "2", "--max_steps", "9", "--only", "arm=V"]),
        ({"SEEDS": "1 2"}, None),
    ],
)  # fmt: skip
def test_text_against_video_is_the_older_name_of_a_study(variables, words, tmp_path):
    """The study itself is a stub here, that prints its arguments."""
    experiments = tmp_path / "scripts" / "experiments"
    experiments.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "experiments" / "text_vs_video.sh", experiments)
    (tmp_path / "scripts" / "env.sh").write_text(f'PATH="{tmp_path}:$PATH"\n')
    (tmp_path / "python").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    command = ["bash", str(experiments / "text_vs_video.sh"), "--only", "arm=V"]
    found = subprocess.run(command, env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True)
    if words is None:
        assert found.returncode == 1 and "a study counts its seeds from 0" in found.stderr
    else:
        assert found.stdout.splitlines() == ["-m", "llava.study", *words], found.stderr
