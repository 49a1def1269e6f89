"""A run of another family than GPT-2 from its folder to captions: trained, stopped, resumed, captioned."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from llava.serve import cli
from tests.train.runs import train


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text", "mixtral", "gpt_neox", "opt"])
def test_a_run_resumes_bit_for_bit_and_captions(made, assets, feature_cache, tmp_path, capsys, name):
    options = {
        "model_name_or_path": made(name).folder, "feature_cache": feature_cache, "max_steps": 4, "controls": False,
        "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip
    run = tmp_path / "run"
    losses = train(assets, run, **options)
    weights = load_file(run / "model.safetensors")
    shutil.rmtree(run / "checkpoint-4")
    assert train(assets, run, resume_from_checkpoint=True, **options)[-2:] == losses[-2:]
    again = load_file(run / "model.safetensors")
    assert weights.keys() == again.keys()
    assert [key for key, tensor in weights.items() if not torch.equal(tensor, again[key])] == []
    capsys.readouterr()
    clips = [str(assets.clips / f"clip{i}.mp4") for i in range(2)]
    assert cli.main(["--model-path", str(run), "--device", "cpu", "--max-new-tokens", "4", "--video", *clips]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == clips


def test_fresh_weights_are_drawn_for_any_family(made, assets, tmp_path):
    folder = made("llama").folder
    losses = train(assets, tmp_path / "run", 1, model_name_or_path=folder, from_scratch=True, max_steps=2)
    assert len(losses) == 2
    plain = made("llama").plain.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert not torch.allclose(
        load_file(tmp_path / "run" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"], plain, atol=1e-2
    )
