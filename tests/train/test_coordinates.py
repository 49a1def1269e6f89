"""Runs with coordinates: flags, what trains, pre-flight and what it notices, resumption, LoRA, checkpoints."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.data.json_records import DatasetError
from llava.model.builder import add_coordinate_tokens, load_language_model, set_trainable
from llava.model.coordinates import TABLES, CoordinateTables
from llava.serve import cli
from llava.train.checkpoint.resume import changed_flags
from llava.train.optimizer import make_optimizer
from llava.train.preflight.run import PREFLIGHT_FILE, PreflightError
from tests.conftest import CAPTIONS, record
from tests.train.runs import alarms, losses, train

VALUES = [[0.12 * i, 0.1 + 0.13 * i, 0.05 + 0.15 * i, 0.3 + 0.1 * i] for i in range(len(CAPTIONS))]
BOX = "[<WIDTH-OUTPUT><HEIGHT-OUTPUT>]"


@pytest.fixture
def data(tmp_path) -> Path:
    """Six clips, each with a time that is told, and a time and a place that are asked for."""
    records = []
    for i, (caption, values) in enumerate(zip(CAPTIONS, VALUES, strict=True)):
        made = record(f"g{i}", f"{caption} {{<TEMP-OUTPUT>}} {BOX}", f"clip{i}.mp4", prompt="da <TEMP-INPUT>")
        made["variables"] = {
            "temporal_input_locations": values[:1], "temporal_output_locations": values[1:2],
            "spatial_width_output_locations": values[2:3], "spatial_height_output_locations": values[3:],
        }  # fmt: skip
        made["meta"] = {"width": 64, "height": 64}
        records.append(made)
    path = tmp_path / "grounding.json"
    path.write_text(json.dumps(records))
    return path


def checks(run: Path) -> list[dict]:
    return json.loads((run / PREFLIGHT_FILE).read_text())["checks"]


def grounded(assets: SimpleNamespace, data: Path, output: Path, **options) -> list[float]:
    defaults = {"data_path": data, "mm_coordinates": True, "controls": False, "model_max_length": 96}
    return train(assets, output, **defaults | {"feature_cache": data.parent / "cache"} | options)


def test_a_run_is_silent(assets, data, tmp_path, caplog, capsys):
    with caplog.at_level("INFO"):
        grounded(assets, data, tmp_path / "run", pad_to_multiple_of=8)
    bad = [c for c in checks(tmp_path / "run") if c["status"] in ("FAIL", "warning") and c["check"] != "text form"]
    assert bad == [] and alarms(tmp_path / "run") == []
    assert "is that of the live model" in caplog.text
    assert "gradients, coordinates input" in {c["check"] for c in checks(tmp_path / "run")}
    recorded = json.loads((tmp_path / "run" / "llava_run.json").read_text())
    assert recorded["flags"]["mm_coordinates"] is True
    assert {"mm_coordinates"} <= {row["part"] for row in recorded["parameters"] if row["trainable"]}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["mm_coordinates"] and len(config["coordinate_token_ids"]) == 306
    # What is suggested at the end works as it stands there.
    (line,) = [line for said in caplog.messages for line in said.splitlines() if "llava.serve.cli" in line]
    capsys.readouterr()
    assert cli.main([*shlex.split(line.partition("llava.serve.cli")[2]), "--max_new_tokens", "2"]) == 0
    assert "--prompt 'da <TEMP-000>'" in line and capsys.readouterr().out.startswith(f"{assets.clips / 'clip0.mp4'}\t")
    # The next run keeps them without being told, and what it lacks is said.
    own = load_file(tmp_path / "run" / "model.safetensors")
    follows = {"model_name_or_path": tmp_path / "run", "mm_coordinates": None, "max_steps": 1, "preflight": "off"}
    grounded(assets, data, tmp_path / "next", **follows | {"learning_rate": 1e-9})
    again = load_file(tmp_path / "next" / "model.safetensors")
    tables = [name for name in own if name.startswith("coordinates.")]
    assert own.keys() == again.keys() and len(tables) == 6
    assert all(torch.allclose(own[name], again[name], atol=1e-7) for name in tables)
    with pytest.raises(ValueError, match="--mm_coordinates False: .* was trained with coordinates"):
        grounded(assets, data, tmp_path / "third", **follows | {"mm_coordinates": False})
    model = load_language_model(str(tmp_path / "run"), from_scratch=True)
    assert model.coordinates is None and not model.config.mm_coordinates


def test_a_run_begins_with_the_tables_of_a_file(assets, data, tmp_path, caplog):
    """By LLaVA-ST's names; the rate is so small that they stay."""
    tables = {f"model.{name}.weight": torch.randn(100, 32) for name in TABLES}
    path = tmp_path / "tables.safetensors"
    save_file(tables, path)
    quick = {"max_steps": 1, "preflight": "off", "learning_rate": 1e-9}
    with caplog.at_level("INFO"):
        grounded(assets, data, tmp_path / "run", mm_coordinates_pretrained=path, **quick)
    assert f"loaded from {path}: 6 tables of coordinates" in caplog.text
    own = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.allclose(own[f"coordinates.{n}"], tables[f"model.{n}.weight"], atol=1e-7) for n in TABLES)
    with pytest.raises(ValueError, match="tables.safetensors has tables of coordinates, but there is no --mm_coord"):
        grounded(assets, data, tmp_path / "b", mm_coordinates_pretrained=path, mm_coordinates=None)
    with pytest.raises(ValueError, match="--mm_coordinates_pretrained no.bin: no such file"):
        grounded(assets, data, tmp_path / "b", mm_coordinates_pretrained="no.bin")


def test_a_run_on_text_alone_has_them_too_and_says_which_table_is_idle(assets, data, tmp_path, caplog):
    """The control of grounding by sight; a text that never tells or asks for a height leaves its table as it is."""
    text = data.read_text().replace("<HEIGHT-OUTPUT>", "").replace("<WIDTH-OUTPUT>", "<WIDTH-050>")
    records = json.loads(text)
    for made in records:
        made["variables"] = {k: v for k, v in made["variables"].items() if k.startswith("temporal")}
    data.write_text(json.dumps(records))
    output = tmp_path / "run"
    grounded(assets, data, output, experiment=1, text_only=True, max_steps=4)
    bad = [c for c in checks(output) if c["status"] in ("FAIL", "warning") and c["check"] != "text form"]
    assert bad == [] and alarms(output) == []
    (trains,) = [c for c in checks(output) if c["check"] == "what trains"]
    assert "coordinates that no record tells or asks for (HEIGHT)" in trains["finding"]
    rows = {row["part"]: row for row in json.loads((output / "llava_run.json").read_text())["parameters"]}
    assert rows["mm_coordinates"]["frozen"] == 100 * 32


def test_both_experiments_predict_the_same_numbers(assets, data, tmp_path):
    """A wide frame, padded: without a tower, too, a height is one of the square."""
    wide = [made | {"meta": {"width": 128, "height": 64}} for made in json.loads(data.read_text())]
    data.write_text(json.dumps(wide))
    common = {"eval_data_path": data, "preflight": "off", "max_steps": 1}
    found = {}
    for name, options in {
        "video": {},
        "text": {"experiment": 1, "text_only": True},
        "other": {"experiment": 1, "text_only": True, "image_aspect_ratio": "square"},
    }.items():
        grounded(assets, data, tmp_path / name, **common | options)
        found[name] = json.loads((tmp_path / name / "llava_run.json").read_text())["data"]["eval"]["targets"]
    assert found["video"] == found["text"] != found["other"]
    with pytest.raises(DatasetError, match="without a tower there is none: use pad or square"):
        grounded(assets, data, tmp_path / "crop", **common | options | {"image_aspect_ratio": "crop"})


def test_a_run_resumes_bit_for_bit(assets, data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = {"save_strategy": "steps", "save_steps": 3, "preflight": "off", "optim": "muon"}
    grounded(assets, data, whole, **common)
    shutil.copytree(whole / "checkpoint-3", parts / "checkpoint-3")
    grounded(assets, data, parts, **common | {"resume_from_checkpoint": True})
    ours, theirs = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert losses(whole) == losses(parts)
    started = load_file(whole / "checkpoint-3" / "model.safetensors")
    moved = [name for name in ours if name.startswith("coordinates.") and not torch.equal(ours[name], started[name])]
    assert len(moved) == 6
    with pytest.raises(ValueError, match="--mm_coordinates: was True, is False"):
        grounded(assets, data, parts, **common | {"resume_from_checkpoint": True, "mm_coordinates": False})


@pytest.mark.parametrize("switch", ["mm_coordinates_in_vision", "mm_coordinates_reparameterized"])
def test_a_run_without_an_ingredient_stays_without_it(assets, data, tmp_path, switch, caplog):
    run, other = tmp_path / "run", {"mm_coordinates_in_vision", "mm_coordinates_reparameterized"} - {switch}
    common = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    with caplog.at_level("INFO"):
        grounded(assets, data, run, **common, **{switch: False})
    assert f"fresh tables, {switch} False" in caplog.text
    bad = [c for c in checks(run) if c["status"] in ("FAIL", "warning") and c["check"] != "text form"]
    assert bad == [] and alarms(run) == []
    flags = json.loads((run / "llava_run.json").read_text())["flags"]
    config = json.loads((run / "config.json").read_text())
    assert flags[switch] is False and config[switch] is False and flags[other.pop()] is True
    shutil.rmtree(run / "checkpoint-2")
    common |= {"resume_from_checkpoint": True, "preflight": "off", "confirm_changes": True}
    for value in (None, True):
        with pytest.raises(ValueError, match=rf"--{switch}: was False, is True \(cannot change: a run that had both"):
            grounded(assets, data, run, **common, **{switch: value})
    grounded(assets, data, run, **common, **{switch: False})
    # The next run keeps it without being told, and cannot change it.
    follows = {"model_name_or_path": run, "mm_coordinates": None, "max_steps": 1, "preflight": "off"}
    grounded(assets, data, tmp_path / "next", **follows)
    assert json.loads((tmp_path / "next" / "config.json").read_text())[switch] is False
    with pytest.raises(ValueError, match=f"was trained with --{switch} False: give the same"):
        grounded(assets, data, tmp_path / "third", **follows, **{switch: True})


def test_a_record_from_before_the_switches_had_everything():
    whole = {"mm_coordinates": True, "mm_coordinates_in_vision": True, "mm_coordinates_reparameterized": True}
    off = {"mm_coordinates_in_vision": False}
    assert changed_flags({"flags": {"mm_coordinates": True}}, whole) == {}
    assert changed_flags({"flags": {"mm_coordinates": True}}, whole | off) == {next(iter(off)): (True, False)}
    assert changed_flags({"flags": {}}, whole | {"mm_coordinates": False}) == {}


def test_what_no_record_reads_is_said_where_patches_have_no_places(assets, data, tmp_path):
    """Nothing else would give those tables a gradient."""
    run = tmp_path / "run"
    text = data.read_text().replace("<HEIGHT-OUTPUT>", "").replace("spatial_height_output_locations", "unused")
    records = json.loads(text)
    for made in records:
        del made["variables"]["unused"]
    data.write_text(json.dumps(records))
    grounded(assets, data, run, max_steps=1, mm_coordinates_in_vision=False)
    (trains,) = [c for c in checks(run) if c["check"] == "what trains"]
    assert "coordinates that no record tells or asks for (HEIGHT)" in trains["finding"]
    assert [c for c in checks(run) if c["status"] in ("FAIL", "warning") and c["check"] != "text form"] == []


def test_hard_targets_are_noticed(assets, data, tmp_path, monkeypatch):
    soft = CoordinateTables.soft_targets

    def hard(*args):
        found = soft(*args)
        return type(found)(found.others, torch.zeros_like(found.shares))

    monkeypatch.setattr(CoordinateTables, "soft_targets", hard)
    with pytest.raises(PreflightError, match="loss of a token"):
        grounded(assets, data, tmp_path / "run", max_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mm_tunable_parts": "mm_language_model"}, "give --mm_tunable_parts mm_language_model,mm_coordinates"),
        ({"mm_coordinates": False, "mm_tunable_parts": "mm_coordinates"}, "there is no --mm_coordinates True"),
        ({"mm_tunable_parts": "mm_language_model", "mm_coordinates_lr": 1e-3}, "mm_coordinates does not train"),
        ({"mm_coordinates": False, "mm_coordinates_in_vision": False}, "in_vision False, but there is no --mm_coord"),
    ],
)
def test_flags_that_disagree_are_named(assets, data, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        grounded(assets, data, tmp_path / "run", **options)


def test_every_evaluation_says_what_coordinates_cost_and_what_the_clip_tells_of_them(assets, data, tmp_path):
    run = tmp_path / "run"
    grounded(assets, data, run, eval_data_path=data, eval_strategy="steps", eval_steps=1, max_steps=2, controls=True,
             preflight="off", save_strategy="no")  # fmt: skip
    logged = [e for e in json.loads((run / "trainer_state.json").read_text())["log_history"] if "eval_loss" in e]
    assert len(logged) == 2
    for entry in logged:
        assert entry["eval_coordinate_tokens"] == 3 * len(CAPTIONS) < entry["eval_tokens"]
        assert entry["eval_coordinate_loss"] > entry["eval_loss"] > 0, "300 tokens that were never seen"
        assert "eval_gain_coordinate" in entry
    lines = [json.loads(line) for line in (run / "controls.jsonl").read_text().splitlines()]
    found = lines[-1]["coordinates"]
    assert (found["captions"], found["tokens"]) == (6, 18)
    assert found["losses"]["true"] == pytest.approx(logged[-1]["eval_coordinate_loss"], rel=1e-3)
    assert found["gain"][0] == pytest.approx(found["losses"]["other"] - found["losses"]["true"], abs=1e-6)


@pytest.mark.parametrize("optim", ["muon", "adamw_torch"])
def test_tables_are_trained_by_adamw_without_weight_decay(build, tokenizer, optim):
    model = build()
    add_coordinate_tokens(tokenizer, model)
    set_trainable(model, ["mm_language_model", "mm_coordinates"])
    args = SimpleNamespace(
        optim=optim, weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, learning_rate=1e-3,
        mm_projector_lr=None, mm_vision_resampler_lr=None, mm_vision_tower_lr=None, mm_embeddings_lr=None,
        mm_coordinates_lr=2e-3,
    )  # fmt: skip
    names = {name for name, _ in model.named_parameters()}
    optimizer = make_optimizer(model, args, names, lambda: (torch.optim.AdamW, {"lr": 1e-3}))
    own = [g for g in optimizer.param_groups if any(p is model.coordinates.temporal_input_embeddings
                                                    for p in g["params"])]  # fmt: skip
    (group,) = own
    assert len(group["params"]) == 6 and group["lr"] == 2e-3 and group["weight_decay"] == 0.0
    assert not group.get("muon") and group["name"] == "mm_coordinates, no decay"
