"""The benchmark measures what it says: equal computations, counted work, every measure runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import damage, decoding, first_step, kernels, loader, monitor, preflight, run, startup
from benchmarks.models import SIZES, WORDS, Size, make_step, make_texts
from benchmarks.timing import full_logits, row
from llava.data.token_table import TokenTable
from llava.model.loss import supervised_loss

TINY = Size(2, 32, 2, vocabulary=128, tower=16, image=28, fast=1, slow=4, batch=2, frames=2)


def test_a_ratio_is_the_median_of_pairs_and_not_of_sides():
    found = row("m", "s", [1.0, 4.0, 100.0], [1.0, 1.0, 50.0])
    assert (found["ratio"], found["lowest"], found["highest"]) == (2.0, 1.0, 4.0)
    assert (found["plain"], found["fast"]) == (4.0, 1.0)


def test_texts_have_the_lengths_that_are_asked_for():
    lengths = {kind: [len(t["input_ids"]) for t in make_texts(TINY, 400, kind)] for kind in ("uniform", "short")}
    for found in lengths.values():
        assert min(found) >= 5
        assert max(found) <= 60
    assert 30 < sum(lengths["uniform"]) / 400 < 35
    assert 21 < sum(lengths["short"]) / 400 < 26


def test_flop_of_a_language_model_are_those_of_the_arithmetic():
    model, batch = make_step(TINY, "cpu", vision=False)
    positions = batch["input_ids"].shape[1]
    blocks = 12 * TINY.n_layer * TINY.n_embd**2
    attention = 2 * TINY.n_layer * positions * TINY.n_embd
    head = TINY.vocabulary * TINY.n_embd
    assert run.step_flops(model, batch) == 6 * TINY.batch * (positions * (blocks + attention) + WORDS * head)
    # Projector and resampler come on top.
    assert run.step_flops(*make_step(TINY, "cpu")) > 1.05 * run.step_flops(model, batch)


def test_both_losses_that_are_timed_are_the_same(monkeypatch):
    model, batch = make_step(TINY, "cpu")
    found = []
    for loss in (full_logits, supervised_loss):
        monkeypatch.setattr(run.vlm, "supervised_loss", loss)
        model.zero_grad(set_to_none=True)
        value = model(**batch).loss
        value.backward()
        found.append((value.detach(), model.transformer.wte.weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.long
def test_every_measure_gives_rows(assets: SimpleNamespace, tmp_path: Path, monkeypatch, capsys):
    for name in ("12x768", "4x256"):
        monkeypatch.setitem(SIZES, name, replace(TINY, vocabulary=30_016, image=224))
    clips = tmp_path / "clips"
    clips.mkdir()
    for clip in sorted(assets.clips.glob("*.mp4"))[:2]:
        (clips / clip.name).write_bytes(clip.read_bytes())
    measures = [
        m for m in run.MEASURES if m not in ("compile", "memory", "kernels")
    ]  # These cost the same with small models.
    run.main(
        ["--clips", str(clips), "--output", str(tmp_path), "--repeats", "1", "--tower_layers", "1", "--only", *measures]
    )
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert len(rows) > 25
    for found in rows:
        assert 0 < found["lowest"] <= found["ratio"] <= found["highest"], found
    assert (tmp_path / "benchmark.md").read_text().count("\n| ") == len(rows) + 1
    assert "Traceback" not in capsys.readouterr().err


def test_kernels_are_operations_that_compute():
    a = torch.ones(2, 3)
    with kernels.Kernels() as found:
        torch.addmm(torch.empty(2), a, a.t()).view(4)[1:].detach().relu_()
        torch._foreach_add_([a, a], 1)
    assert found.counts == {"addmm": 1, "relu_": 1, "_foreach_add_": 1}
    code = (
        "def call(self):\n    cpp_fused_add_0(a)\n    extern_kernels.mm(a, b, out=c)\n    buf = torch.ops.aten.x(a)\n"
    )
    assert len(kernels.COMPILED.findall(code + "    del a\n    return (b,)\n")) == 3


def test_a_step_launches_no_more_kernels_than_it_did():
    """Two layers. Where one is needed, the number here is raised and docs/performance.md says what for."""
    plain, found = (kernels.step_parts(TINY, once) for once in (False, True))
    assert found["forward"] + found["backward"] <= 253 < plain["forward"] + plain["backward"]
    assert found["Muon and AdamW"] <= 65 < plain["Muon and AdamW"]
    assert found["AdamW"] == 2 and found["clipping"] <= 8


@pytest.mark.slow
@pytest.mark.parametrize("lines", [False, True])
def test_a_start_is_measured(tmp_path: Path, capfd, lines):
    startup.main(["--records", "40", "--clips", "8", "--keep", str(tmp_path / "data")] + ["--lines"] * lines)
    shown = capfd.readouterr().out
    assert "to the first step" in shown
    assert "cache: what it lacks" in shown


@pytest.mark.slow
@pytest.mark.long
def test_pre_flight_is_measured_against_another_checkout(tmp_path: Path, capfd):
    preflight.main([
        "--clips", "4", "--layers", "2", "--width", "64", "--vocabulary", "600", "--keep", str(tmp_path / "data"),
        "--against", str(preflight.ROOT),
    ])  # fmt: skip
    shown = capfd.readouterr().out
    assert "pre-flight takes" in shown and "CPU-s" in shown


@pytest.mark.slow
@pytest.mark.long
def test_the_way_to_the_first_step_is_measured(tmp_path: Path, capsys):
    first_step.main([
        "--clips", "4", "--layers", "2", "--width", "64", "--vocabulary", "600", "--keep", str(tmp_path / "data")
    ])  # fmt: skip
    shown = capsys.readouterr().out
    assert "fresh" in shown and "goes on" in shown
    assert [p.name for p in (tmp_path / "data").glob("*/here/killed/checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_features_of_a_batch_are_copied_once(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(loader, "SHAPE", (2, 64, 64))
    (tmp_path / "tokenizer").mkdir()
    loader.make_tokenizer(tmp_path / "tokenizer")
    loader.fill(tmp_path, 4, dtype)
    found = loader.measure(tmp_path, clips=4, workers=1, batch=2, epochs=2, dtype=dtype, profile=False)
    scales = 1 + 4 * 64 / (2 * 64 * 64) if dtype == "int8" else 1
    assert found["copies"] == pytest.approx(scales)
    assert found["first"]["cpu"] > 0 and found["later"]["seconds"] > 0 and found["copy"] > 0


def test_text_alone_is_served_from_the_tables(tmp_path, monkeypatch):
    served = []
    take = TokenTable.__getitem__
    monkeypatch.setattr(TokenTable, "__getitem__", lambda self, row: served.append(row) or take(self, row))
    (tmp_path / "tokenizer").mkdir()
    loader.make_tokenizer(tmp_path / "tokenizer")
    settings = {"workers": 0, "batch": 2, "epochs": 2, "dtype": "float16", "profile": False}
    found = loader.measure(tmp_path, clips=4, **settings, text=True)
    assert set(served) == set(range(4)) and found["copies"] == 0 and found["later"]["cpu"] > 0


def test_the_cost_of_the_monitor_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(monitor, "RUNS", {"demo": TINY})
    monitor.main(["--blocks", "1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["blocks"] == 1


def test_clips_are_asked_for_where_they_are_needed(capsys):
    with pytest.raises(SystemExit):
        run.main(["--only", "decode"])
    assert "--clips" in capsys.readouterr().err


def test_clips_without_a_cache_are_measured(assets: SimpleNamespace, capsys):
    pytest.importorskip("torchcodec")
    decoding.main(["--clips", str(assets.clips), "--repeats", "1"])
    assert "read_frames, later epochs" in capsys.readouterr().out


def test_damage_counts_what_is_found(tmp_path, capsys):
    row = damage.measure("clip.mkv", tmp_path, mutants=3)
    assert row["cut"] == row["cut, opened"] == row["cut, decoded"] == len(damage.SHARES)
    assert row["bit"] == row["bit, decoded"] == 3, "every cluster of a Matroska file has a checksum"
    damage.main(["--only", "clip.gif", "--mutants", "0"])
    assert "| clip.gif, gif | 4 | 4 | 4 | 0 | 0 | 0 |" in capsys.readouterr().out
