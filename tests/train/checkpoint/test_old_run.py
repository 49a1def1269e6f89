"""A run of commit 7f1b7ba, cut after step 4 of 6: its checkpoint, feature cache and folders open, and it goes on.

`tests/assets/run_7f1b7ba.zip` was made by that commit with torch 2.13.0 and transformers 5.24.0: the fixtures' clips
and captions, a GPT-2 of 1 x 16 and a DINOv2 of 2 x 24, flags in `flags.json`, and the weights and losses that it ended
with.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.train.train import main
from tests.train.runs import losses

ZIP = Path(__file__).resolve().parents[2] / "assets" / "run_7f1b7ba.zip"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with zipfile.ZipFile(ZIP) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags(folder: Path) -> list[str]:
    values = json.loads((folder / "flags.json").read_text())
    values |= {"output_dir": "output/run", "feature_cache": "output/feature_cache", "resume_from_checkpoint": "auto"}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def test_a_run_of_an_earlier_commit_goes_on(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = {path: path.read_bytes() for path in old.glob("output/feature_cache/*/*.npy")}
    assert rows
    with caplog.at_level("INFO"):
        main(flags(old))
    assert "resuming from" in caplog.text
    wanted = json.loads((old / "losses.json").read_text())
    assert losses(old / "output/run") == pytest.approx(list(wanted.values()), abs=1e-5)
    final, before = load_file(old / "output/run/model.safetensors"), load_file(old / "final.safetensors")
    assert final.keys() == before.keys()
    for name, weights in before.items():
        torch.testing.assert_close(final[name], weights, rtol=0, atol=1e-5)
    # Its clips are seen in the same frames, so that its features are served from where they lie.
    assert {path: path.read_bytes() for path in rows} == rows
    assert not [p for p in old.glob("output/feature_cache/*/*.npy") if p not in rows], "features were computed again"
    assert json.loads((old / "output/run/llava_run.json").read_text())["flags"]["max_steps"] == 6


def test_its_checkpoint_opens_by_the_auto_classes(old: Path) -> None:
    from transformers import AutoModelForCausalLM

    import llava  # noqa: F401

    model = AutoModelForCausalLM.from_pretrained("output/run/checkpoint-4", vision_tower="tower")
    assert model.config.model_type == "llava_gpt2" and model.vision_tower is not None
    torch.load("output/run/checkpoint-4/training_args.bin", weights_only=False)
