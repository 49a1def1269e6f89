"""LLaVA-ST's three stages end to end: what trains in each, at which rate, and each from the last one's folder."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from llava.model.builder import part_of
from llava.train.run_flags import parse_arguments
from tests.conftest import CAPTIONS, record
from tests.train.runs import flags, train

pytest.importorskip("peft", reason='LoRA needs peft: pip install -e ".[lora]"')

QUIET = {"learning_rate": None, "max_steps": 2, "model_max_length": 96}
"""What a stage is to set is left unsaid."""
SMALL = {"lora_r": 4, "lora_alpha": 8}
WORDS = "transformer.wte.weight"


@pytest.fixture(scope="module")
def grounded(tmp_path_factory):
    """Records that ask when, of the clips of the fixtures."""
    records = []
    for i, caption in enumerate(CAPTIONS):
        made = record(f"g{i}", "{<TEMP-OUTPUT><TEMP-OUTPUT>}", f"clip{i}.mp4", f"Quando? {caption}")
        records.append(made | {"variables": {"temporal_output_locations": [i / 10, 0.5 + i / 10]}})
    path = tmp_path_factory.mktemp("grounded") / "grounded.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="module")
def stages(assets, grounded, tmp_path_factory):
    """The folders of the three stages, each of two steps."""
    folder = tmp_path_factory.mktemp("stages")
    train(assets, folder / "1", stage=1, **QUIET)
    later = {**QUIET, **SMALL, "data_path": grounded}
    train(assets, folder / "2", stage=2, model_name_or_path=folder / "1", **later)
    train(assets, folder / "3", stage=3, model_name_or_path=folder / "2", merge_lora=True, **later)
    return folder


def what_trains(run) -> dict[str, float]:
    """The learning rate of each part that trains, as the run's record and its table have it."""
    rows = json.loads((run / "llava_run.json").read_text())["parameters"]
    return {row["part"]: row["learning_rate"] for row in rows if row["trainable"]}


def moved(before, after) -> set[str]:
    """Parts of which a weight has moved; the word embeddings apart."""
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    found = set()
    for name, tensor in new.items():
        was = old.get(name.replace(".base_layer", ""))
        if was is not None and not torch.equal(tensor[: len(was)], was):
            found.add("mm_embeddings" if name == WORDS else part_of(name))
    return found


def test_each_stage_trains_its_parts_at_its_rates(stages):
    assert what_trains(stages / "1") == {"mm_vision_resampler": 1e-4, "mm_embeddings": 1e-4}
    adapted = {
        "mm_language_model": 2e-4, "mm_vision_resampler": 2e-5, "mm_coordinates": 2e-5, "mm_embeddings": 2e-5,
    }  # fmt: skip
    assert what_trains(stages / "2") == what_trains(stages / "3") == adapted
    for stage in "123":
        run = stages / stage
        values = json.loads((run / "llava_run.json").read_text())["flags"]
        assert (values["stage"], values["lr_scheduler_type"], values["warmup_steps"]) == (stage, "cosine", 0.03)
        checks = {c["check"]: c for c in json.loads((run / "preflight.json").read_text())["checks"]}
        assert checks["what trains"]["status"] == checks["optimiser"]["status"] == "ok"
        assert not [c for c in checks.values() if c["status"] == "FAIL"]


def test_nothing_else_moves_and_every_stage_goes_on_from_the_last(stages):
    assert moved(stages / "1", stages / "2") == {"mm_vision_resampler", "mm_embeddings"}
    second, third = (json.loads((stages / s / "config.json").read_text()) for s in "23")
    assert second["lora"] == third["lora"] == {"r": 4, "alpha": 8, "dropout": 0.05, "bias": "none"}
    old, new = (load_file(stages / s / "model.safetensors") for s in "23")
    name = next(n for n in old if n.endswith("c_attn.base_layer.weight"))
    adapter = {k: old[name.replace("base_layer.weight", f"lora_{k}.default.weight")] for k in "AB"}
    assert torch.allclose(new[name], old[name] + 2 * (adapter["B"] @ adapter["A"]).T, atol=1e-6)
    assert not torch.equal(new[name], old[name]), "nothing was merged"


def test_what_the_command_gives_wins(assets, tmp_path, caplog):
    parts = "mm_language_model,mm_vision_resampler"
    with caplog.at_level(logging.INFO):
        settings = parse_arguments(flags(assets, tmp_path, stage=1, mm_tunable_parts=parts, lr_scheduler_type="linear"))
    assert (settings.model.mm_tunable_parts, settings.training.learning_rate) == (parts, 1e-3)
    assert settings.training.lr_scheduler_type == "linear" and settings.training.mm_embeddings_lr is None
    assert f"given and so decided by the command: --mm_tunable_parts {parts} (stage 1: " in caplog.text
    for alone in ({"mm_tunable_parts": "mm_vision_resampler"}, {"tune_mm_vision_resampler": True}):
        settings = parse_arguments(flags(assets, tmp_path, stage=2, **alone))
        assert settings.model.mm_tunable_parts == "mm_vision_resampler"
        assert not settings.model.lora_enable and not settings.model.mm_coordinates, "what the command freezes"
    with pytest.raises(ValueError, match="--stage 7: use 1, 2 or 3"):
        parse_arguments(flags(assets, tmp_path, stage=7))


def test_there_must_be_adapters_to_merge(assets, stages, tmp_path):
    with pytest.raises(ValueError, match="has no LoRA adapters"):
        train(assets, tmp_path, model_name_or_path=stages / "1", merge_lora=True, max_steps=1, model_max_length=96)


def test_what_a_stage_freezes_is_not_said_of_a_flag_that_nobody_gave(assets, tmp_path):
    with pytest.raises(ValueError, match="fresh tables") as said:
        parse_arguments(flags(assets, tmp_path, stage=1, mm_coordinates=True, **QUIET))
    parts = "mm_vision_resampler,mm_embeddings"
    assert f"which --stage 1 freezes, since it trains {parts} alone: leave --mm_coordinates to --stage 2" in str(
        said.value
    )
    assert f"or give --mm_tunable_parts {parts},mm_coordinates" in str(said.value)
    assert "of the command" not in str(said.value)
    own = {"mm_tunable_parts": "mm_vision_resampler"}
    with pytest.raises(ValueError, match="which --mm_tunable_parts, of the command or of its recipe, freezes"):
        parse_arguments(flags(assets, tmp_path, stage=1, mm_coordinates=True, **QUIET, **own))
