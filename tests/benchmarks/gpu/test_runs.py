"""Runs are compared step by step with the plain one, and a mode that cannot be had is named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.gpu import runs
from benchmarks.gpu.__main__ import TINY
from benchmarks.gpu.parts import Setting, trying

PLAIN = [5.0, 4.0, 3.0]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting("cpu", tmp_path, TINY, True, 2, 2)


def compare(setting: Setting, monkeypatch: pytest.MonkeyPatch, losses: list[float], allowed: float = 0.1) -> dict:
    """What is said of a run with these losses."""
    made = []

    def run(_: Setting, output: Path, **flags: object) -> list[float]:
        made.append(output.name)
        return PLAIN if output.name == "plain" else losses

    monkeypatch.setattr(runs, "run", run)
    row = next(trying("m", lambda: runs.beside_plain("other way", setting, {}, allowed)))
    assert made == ["plain", "other_way"]
    return row


def test_the_step_that_is_off_most_counts(setting, monkeypatch):
    row = compare(setting, monkeypatch, [5.0, 5.0, 3.0])
    assert row["value"] == pytest.approx(0.25) and not row["equal"]
    assert compare(setting_of(setting, "b"), monkeypatch, PLAIN)["equal"]


def setting_of(setting: Setting, name: str) -> Setting:
    """The same with a folder of its own, where no plain run was made."""
    folder = setting.folder / name
    folder.mkdir()
    return Setting("cpu", folder, TINY, True, 2, 2)


def test_a_loss_that_is_no_number_differs(setting, monkeypatch):
    row = compare(setting, monkeypatch, [5.0, math.nan, 3.0], allowed=math.inf)
    assert math.isnan(row["value"]) and not row["equal"]


def test_a_run_that_ended_early_is_no_equal(setting, monkeypatch):
    row = compare(setting, monkeypatch, PLAIN[:2])
    assert row["kind"] == "broke" and "2 losses were logged, 3 in the plain run" in row["note"]


def test_what_a_cpu_cannot_run_is_said(setting):
    for name in ("fp16", "torch.compile"):
        row = next(trying(name, lambda name=name: runs.in_this_way(name, setting)))
        assert row["kind"] == "not here" and row["note"]
