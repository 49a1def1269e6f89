"""How far runs are, what is said of it, and runs that are no pair."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llava.errors import UserError
from llava.study.design import runs_of
from llava.study.progress import check_paired, planned_steps, state_of, step_seconds, table

LOG = [{"step": 2, "loss": 1.0, "samples_per_second": 8.0}, {"step": 4, "train_runtime": 10.0}]


def finished(folder: Path, ids: str = "a", steps: int = 4, targets: str = "b", cut: int = 0) -> Path:
    folder.mkdir(parents=True)
    data = {"train": {"ids": ids, "records": 12, "cut": cut}, "eval": {"targets": targets}}
    record = {"flags": {"run_report": True}, "data": data, "batch": {"global": 4}}
    (folder / "llava_run.json").write_text(json.dumps(record))
    state = {"global_step": steps, "max_steps": steps, "log_history": LOG}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    for name in ("report.html", "eval_results.json"):
        (folder / name).write_text("{}")
    return folder


def test_how_far_runs_are(tmp_path):
    runs = runs_of(tmp_path, 2)
    finished(runs[0].folder)
    cut = runs[1].folder
    (cut / "checkpoint-3").mkdir(parents=True)
    (cut / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3, "max_steps": 4}')
    runs[2].folder.mkdir()
    assert [str(state_of(run.folder)) for run in runs[:4]] == [
        "finished, 0:10", "cut at step 3 of 4", "cut", "not begun",
    ]  # fmt: skip
    (runs[0].folder / "tests").mkdir()
    (runs[0].folder / "tests" / "blind_words.csv").touch()
    lines = table(runs).splitlines()
    assert lines[1].split() == ["0", "0", "V", "each", "clip's", "own", "video", "finished,", "0:10", "blind_words"]
    assert lines[-1] == "1 of 6 runs are finished" and len(lines) == 8


@pytest.mark.parametrize("name", ["report.html", "eval_results.json", "trainer_state.json", "llava_run.json"])
def test_a_run_that_lacks_its_end_is_not_finished(name, tmp_path):
    folder = finished(tmp_path / "run")
    (folder / name).unlink()
    assert state_of(folder).kind == "cut"


def test_seconds_of_a_step_and_steps_of_a_run(tmp_path):
    folder = finished(tmp_path / "run")
    assert step_seconds(folder) == 0.5 and math.isnan(step_seconds(tmp_path / "none"))
    assert planned_steps(folder, {"max_steps": "-1", "num_train_epochs": "2"}) == 6
    assert planned_steps(folder, {"max_steps": "7", "num_train_epochs": "2"}) == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": "z"}, "the training records, in their order"),
        ({"steps": 5}, "steps"),
        ({"targets": "c"}, "the words of"),
    ],
)
def test_runs_on_other_data_or_steps_are_no_pair(change, words, tmp_path):
    runs = runs_of(tmp_path, 1)
    finished(runs[0].folder)
    finished(runs[1].folder)
    check_paired(runs)
    finished(runs[2].folder, **change)
    with pytest.raises(UserError, match=f"seed0/V and .*seed0/T are no pair: {words}"):
        check_paired(runs)
