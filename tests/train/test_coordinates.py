"""Runs with coordinates: flags, what trains, pre-flight and what it notices, resumption, LoRA, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava.data.coordinates import CoordinateTokens
from llava.data.dataset import LazySupervisedDataset
from llava.train.preflight.run import PREFLIGHT_FILE
from tests.conftest import CAPTIONS, record
from tests.train.runs import alarms, train

VALUES = [[0.12 * i, 0.1 + 0.13 * i, 0.05 + 0.15 * i, 0.3 + 0.1 * i] for i in range(len(CAPTIONS))]
BOX = "[<WIDTH-OUTPUT><HEIGHT-OUTPUT>]"


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Six clips, each with a time that is told, and a time and a place that are asked for."""
    records = []
    for i, (caption, values) in enumerate(zip(CAPTIONS, VALUES, strict=True)):
        made = record(f"g{i}", f"{caption} {{<TEMP-OUTPUT>}} {BOX}", f"clip{i}.mp4", prompt="da <TEMP-INPUT>")
        made["variables"] = {
            "temporal_input_locations": values[:1], "temporal_output_locations": values[1:2],
            "spatial_width_output_locations": values[2:3], "spatial_height_output_locations": values[3:],
        }  # fmt: skip
        records.append(made)
    path = tmp_path / "grounding.json"
    path.write_text(json.dumps(records))
    if not hasattr(LazySupervisedDataset, "coordinates"):
        tokens, getitem = LazySupervisedDataset.tokens, LazySupervisedDataset.__getitem__

        def place(self, index):
            ids, labels = tokens(self, index)
            return ids, *CoordinateTokens.of(self.tokenizer).place(ids, labels, VALUES[int(self.record(index).id[1:])])

        monkeypatch.setattr(LazySupervisedDataset, "tokens", lambda self, i: place(self, i)[:2])
        monkeypatch.setattr(
            LazySupervisedDataset, "__getitem__",
            lambda self, i: getitem(self, i) | ({"coordinates": place(self, i)[2]} if i >= 0 else {}),
        )  # fmt: skip
        monkeypatch.setattr("llava.train.preflight.words.check_words", lambda *args: [])
        monkeypatch.setattr("llava.train.monitor.served.ServedSamples.words", lambda *args: None)
    return path


def checks(run: Path) -> list[dict]:
    return json.loads((run / PREFLIGHT_FILE).read_text())["checks"]


def grounded(assets: SimpleNamespace, data: Path, output: Path, **options) -> list[float]:
    defaults = {"data_path": data, "mm_coordinates": True, "controls": False, "model_max_length": 96}
    return train(assets, output, **defaults | {"feature_cache": data.parent / "cache"} | options)


def test_a_run_is_silent(assets, data, tmp_path, caplog):
    with caplog.at_level("INFO"):
        grounded(assets, data, tmp_path / "run", preflight="full", pad_to_multiple_of=8)
    bad = [c for c in checks(tmp_path / "run") if c["status"] in ("FAIL", "warning") and c["check"] != "text form"]
    assert bad == [] and alarms(tmp_path / "run") == []
    assert "is that of the live model" in caplog.text
    assert "gradients, coordinates input" in {c["check"] for c in checks(tmp_path / "run")}
    recorded = json.loads((tmp_path / "run" / "llava_run.json").read_text())
    assert recorded["flags"]["mm_coordinates"] is True
    assert {"mm_coordinates"} <= {row["part"] for row in recorded["parameters"] if row["trainable"]}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["mm_coordinates"] and len(config["coordinate_token_ids"]) == 306
