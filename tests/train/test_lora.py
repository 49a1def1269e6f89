"""LoRA end to end: a frozen Qwen learns to describe clips through its adapters, goes on, captions, and is merged."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llava.commands.merge_lora import main as merge_lora
from llava.eval import controls
from llava.eval.captioning import Captioner
from llava.model.builder import part_of
from llava.serve.cli import main as cli
from llava.train import lora_flags, run_flags, run_model
from llava.train.preflight.run import PreflightError
from tests.conftest import CAPTIONS, make_tokenizer, record
from tests.model.contract.families import tiny_config
from tests.train.runs import alarms, flags, train

pytest.importorskip("peft", reason='LoRA needs peft: pip install -e ".[lora]"')

QUESTION = "Che cosa si vede?"
LORA = {"lora_enable": True, "lora_r": 8, "lora_alpha": 16}
STEPS = {"model_max_length": 128, "per_device_train_batch_size": 6, "learning_rate": 1e-2, "version": "chatml"}


def save_base(folder: Path, family: str) -> Path:
    """A model of fresh weights whose tokenizer knows ChatML."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(tiny_config(family, len(tokenizer))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "questions.json"
    path.write_text(json.dumps([record(f"q{i}", text, f"clip{i}.mp4", QUESTION) for i, text in enumerate(CAPTIONS)]))
    return path


@pytest.fixture(scope="module")
def qwen(assets, questions, tmp_path_factory):
    """One that has learnt the words of the captions, and not which clip each belongs to."""
    folder = tmp_path_factory.mktemp("qwen2")
    base = save_base(folder / "fresh", "qwen2")
    options = {"data_path": questions, "text_only": True, "model_name_or_path": base, "max_steps": 60}
    train(assets, folder / "base", 1, **STEPS | options)
    return folder / "base"


@pytest.fixture(scope="module")
def run(assets, qwen, questions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    train(
        assets, folder, data_path=questions, model_name_or_path=qwen, max_steps=150, save_strategy="steps",
        save_steps=75, **STEPS, **LORA,
    )  # fmt: skip
    return folder


def test_a_run_learns_through_its_adapters_in_silence(run, qwen):
    assert alarms(run) == []
    checks = {c["check"]: c for c in json.loads((run / "preflight.json").read_text())["checks"]}
    assert {c["status"] for c in checks.values()} <= {"ok", "note"}, checks
    assert "14 layers have adapters" in checks["LoRA"]["finding"]
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    weights, base = load_file(run / "model.safetensors"), load_file(qwen / "model.safetensors")
    for name, tensor in weights.items():
        if "lora_" in name:
            assert tensor.any(), f"{name} has not moved"
        elif part_of(name) == "mm_language_model":
            was = base[name.replace(".base_layer", "")]
            assert torch.equal(tensor[: len(was)], was), f"{name} has moved"
    config = json.loads((run / "config.json").read_text())
    assert config["lora"] == {"r": 8, "alpha": 16, "dropout": 0.05, "bias": "none"}


def test_it_captions_and_is_merged_into_a_model_that_needs_no_peft(assets, run, questions, tmp_path, capsys):
    clips = [assets.clips / f"clip{i}.mp4" for i in range(6)]
    captions = Captioner.from_pretrained(run, device="cpu")(clips, QUESTION)
    assert captions == CAPTIONS
    assert merge_lora([str(run), str(tmp_path / "merged")]) == 0
    assert "14 adapters merged" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="is there already"):
        merge_lora([str(run), str(tmp_path / "merged")])
    with pytest.raises(ValueError, match="has no LoRA adapters"):
        merge_lora([str(tmp_path / "merged"), str(tmp_path / "again")])
    command = ["--model-path", str(tmp_path / "merged"), "--video", str(clips[1]), "--prompt", QUESTION]
    assert cli([*command, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{clips[1]}\t{CAPTIONS[1]}\n"
    without = "import sys; sys.modules['peft'] = None; from llava.serve.cli import main; main(sys.argv[1:])"
    alone = [sys.executable, "-c", without, *command, "--device", "cpu"]
    assert CAPTIONS[1] in subprocess.run(alone, check=True, capture_output=True, text=True).stdout
    output = tmp_path / "controls.json"
    for folder in (run, tmp_path / "merged"):
        assert controls.main(
            ["--model-path", str(folder), "--data_path", str(questions), "--video_folder", str(assets.clips),
             "--feature_cache", str(tmp_path / "cache"), "--num_workers", "0", "--output", str(output)]
        ) == 0  # fmt: skip
        assert json.loads(output.read_text())["gains"]["video"]["per_caption"][0] > 1


def test_training_goes_on_from_a_merged_model_and_from_adapters(assets, run, questions, tmp_path):
    merge_lora([str(run), str(tmp_path / "merged")])
    options = {"data_path": questions, "max_steps": 3, "feature_cache": tmp_path / "cache", **STEPS}
    learnt = train(assets, tmp_path / "a", model_name_or_path=tmp_path / "merged", **options)
    assert train(assets, tmp_path / "b", model_name_or_path=run, **options, **LORA)[0] < 0.5 > learnt[0]
    with pytest.raises(ValueError, match="has LoRA adapters.*merge"):
        train(assets, tmp_path / "c", model_name_or_path=run, **options)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3, "lora_bias": "all"}),
        ("gpt2", {"lora_bias": "lora_only", "gradient_checkpointing": True}),
        ("llama", {"packing": False}),
    ],
)
def test_resuming_equals_never_having_stopped(assets, questions, tmp_path, family, options):
    base = save_base(tmp_path / "base", family)
    options = {
        **STEPS, **LORA, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "data_path": questions,
        "model_name_or_path": base, **options,
    }  # fmt: skip
    whole = train(assets, tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "cut" / "checkpoint-4")
    assert train(assets, tmp_path / "cut", resume_from_checkpoint=True, **options) == whole
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert alarms(tmp_path / "whole") == []
    with pytest.raises(ValueError, match="--lora_r.*: was 8, is 4"):
        train(assets, tmp_path / "cut", resume_from_checkpoint=True, **options | {"lora_r": 4})
    with pytest.raises(ValueError, match="--lora_enable.*: was True, is False"):
        train(assets, tmp_path / "cut", resume_from_checkpoint=True, **options | {"lora_enable": False})


def test_text_alone_trains_in_silence(assets, tmp_path):
    options = {**LORA, "max_steps": 4, "gradient_checkpointing": True}
    losses = train(assets, tmp_path, 1, **options)
    assert len(losses) == 4 and not (tmp_path / "alarms.jsonl").exists()


def test_a_base_that_is_not_frozen_is_found_by_preflight(assets, questions, qwen, tmp_path, monkeypatch):
    def everything(model, parts):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part_of(name) in parts)

    monkeypatch.setattr(run_model, "set_trainable", everything)
    with pytest.raises(PreflightError, match="training, though LoRA"):
        train(assets, tmp_path, data_path=questions, model_name_or_path=qwen, **STEPS, **LORA)


def test_adapters_that_were_never_given_are_found_by_preflight(assets, questions, qwen, tmp_path, monkeypatch):
    monkeypatch.setattr(run_model, "adapt", lambda *_: None)
    with pytest.raises(PreflightError, match="LoRA: the flags ask for --lora_r 8"):
        train(assets, tmp_path, data_path=questions, model_name_or_path=qwen, **STEPS, **LORA)


def test_words_that_embeddings_would_have_to_learn_are_refused(assets, questions, tmp_path):
    with pytest.raises(ValueError, match="does not know <|im_start|>.*with --lora_enable"):
        train(assets, tmp_path, data_path=questions, **STEPS, **LORA)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"from_scratch": True}, "--from_scratch True --lora_enable True: weights"),
        ({"lora_bias": "some"}, "--lora_bias some: use none, all or lora_only"),
        ({"lora_r": 0}, "--lora_r 0: a whole number from 1"),
        ({"lora_dropout": 1}, "--lora_dropout 1: a number from 0 to below 1"),
        ({"mm_tunable_parts": "mm_mlp_adapter"}, "add mm_language_model"),
        ({"bits": 4}, "--bits 4: .*CUDA and bitsandbytes"),
        ({"deepspeed": "scripts/zero2.json"}, "with --deepspeed or --fsdp has not been tried"),
    ],
)
def test_flags_that_do_not_go_together(assets, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run_flags.parse_arguments(flags(assets, tmp_path, **LORA | options))


def test_without_peft_the_flags_say_how_to_get_it(assets, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_flags, "is_installed", lambda: False)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[lora\]"'):
        run_flags.parse_arguments(flags(assets, tmp_path, **LORA))


def test_flags_without_lora_enable_have_no_effect_and_say_so(assets, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run_flags.parse_arguments(flags(assets, tmp_path, lora_r=128))
    assert "--lora_r 128: belongs to --lora_enable" in caplog.text
