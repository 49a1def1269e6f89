"""The command runs everywhere: all of it, tiny, on a CPU; what fails is on its page and in its status."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import runs
from benchmarks.gpu.parts import Part, Row, Setting, compared, measured

QUICK = ["machine", "equality", "states", "attention", "fsdp2", "step", "profile", "variants", "loader"]
RUNS = ["resume", "runs", "zero", "compile"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Of a machine that has one, too, these look at what is done without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def rehearse(output: Path, *arguments: str) -> tuple[int, dict, str]:
    status = command.main(["--device", "cpu", "--repeats", "1", "--minutes", "30", "--output", str(output), *arguments])
    return status, json.loads((output / "cpu.json").read_text()), (output / "cpu.md").read_text()


def check(status: int, found: dict, page: str) -> None:
    """Nothing failed, and every row is on the page."""
    assert {part["name"]: part["failures"] for part in found["parts"] if part["failures"]} == {}
    assert status == 0 and "No part failed." in page
    for part in found["parts"]:
        assert f"`{part['name']}`: done" in page
        for row in part["rows"]:
            assert row["measure"] in page, row


def test_measures_run_on_a_cpu(tmp_path, capsys):
    status, found, page = rehearse(tmp_path, "--only", *QUICK)
    check(status, found, page)
    assert [part["name"] for part in found["parts"]] == QUICK
    assert page.startswith("# A rehearsal on CPU: no figure here is one of a GPU\n")
    values = {row["measure"]: row["value"] for part in found["parts"] for row in part["rows"] if "value" in row}
    assert {"torch", "transformers", "commit", "device", "samples a second", "trainer"} <= set(values)
    assert values["MFU, of measured bf16 products"] > 0
    assert capsys.readouterr().out.count(" done ") == len(QUICK)


@pytest.mark.slow
def test_a_run_is_resumed_to_the_bit(tmp_path, monkeypatch):
    """By one optimiser of two."""
    monkeypatch.setattr(runs, "OPTIMISERS", ("muon",))
    check(*rehearse(tmp_path, "--only", "resume"))


@pytest.mark.slow
@pytest.mark.long
def test_all_runs(tmp_path):
    assert sorted(QUICK + RUNS) == sorted(part.name for part in command.PARTS)
    check(*rehearse(tmp_path, "--only", *RUNS))


def fails(_: Setting) -> Iterator[Row]:
    yield measured("speed | of <light>", 3e8, "m/s")
    yield compared("a against b", 0.5, 0.1)
    raise RuntimeError("no more | pipes")


def sound(_: Setting) -> Iterator[Row]:
    yield measured("waits", 2.0, "%", target=("<=", 1))


def test_what_fails_is_on_the_page_and_in_the_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PARTS", (Part("one", "First", fails, 1), Part("two", "Second", sound, 1)))
    status, found, page = rehearse(tmp_path)
    assert status == 1
    assert [part["status"] for part in found["parts"]] == ["failed", "done"]
    assert "0 of 1 comparisons are equal. **Failed parts: one.**" in page
    assert "**Failed**: RuntimeError: no more \\| pipes" in page
    assert "| a against b | 5.0e-01 | 1.0e-01 | NO |" in page
    assert "| speed \\| of &lt;light> | 300,000,000 m/s |" in page
    assert "| waits | at most 1 % | 2 % | not a target of a cpu |" in page
    assert "failed: one" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "before", "inside"), [("cpu", "1,0", ""), ("cuda", "1,0", "1"), ("cuda", "", "0")])
def test_parts_see_one_gpu_and_a_rehearsal_none(monkeypatch, tmp_path, device, before, inside):
    """A process that touched a GPU cannot be forked to use it: the data loader of a rehearsal would try."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with command.surroundings(device, tmp_path):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == inside
        assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == before


def test_a_part_that_is_ended_while_it_builds_leaves_no_lock(monkeypatch, tmp_path):
    """Not in the user's cache."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/the/users")
    with command.surroundings("cpu", tmp_path):
        assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "extensions")
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "/the/users"


def test_docs_take_no_page_without_a_gpu(capsys):
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu", "--output", str(command.DOCS)])
    assert "docs takes no page that was made without a GPU" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_an_error(capsys):
    with pytest.raises(SystemExit):
        command.main(["--device", "cuda"])
    assert "sees no CUDA device" in capsys.readouterr().err
