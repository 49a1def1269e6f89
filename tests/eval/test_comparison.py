"""Runs that may stand on one page."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.eval.comparison import comparable, different_targets
from llava.report.page import Run, write_report


def run(video: bool, tokens: int | None = None, targets: str | None = None) -> Run:
    record = {"flags": {"vision_tower": "tower" if video else None}, "data": {"eval": {"targets": targets}}}
    log = [{"step": 5, "eval_common_tokens": n} for n in (1, tokens) if tokens is not None]
    return Run(Path("run"), record, {"log_history": log}, None, None, None, None)


@pytest.mark.parametrize(
    ("text", "video", "problem"),
    [
        (run(False), run(True), None),
        (run(False, 90, "a"), run(True, 90, "a"), None),
        (run(False, 90), run(True, 90, "a"), None),
        (run(False, 90, "a"), run(True, 91, "a"), "90 (t), 91 (v)"),
        (run(False, 90, "a"), run(True, 90, "b"), "other words of the evaluation set: t and v"),
    ],
)
def test_both_experiments_predict_the_same(text: Run, video: Run, problem: str | None) -> None:
    runs = {"t": text, "v": video}
    assert (different_targets(runs) is None) == (problem is None)
    if problem is None:
        assert comparable(runs) is runs
    else:
        with pytest.raises(ValueError) as error:
            comparable(runs)
        assert problem in str(error.value)
    assert comparable({"a": video, "b": run(True, 7, "c")})


def test_a_report_of_both_refuses_what_is_not_comparable(tmp_path: Path) -> None:
    from tests.scripts.test_experiments import write_run

    folders = [write_run(tmp_path / "t", [2.0], video=False), write_run(tmp_path / "v", [2.0], tokens=91)]
    with pytest.raises(ValueError, match="cannot be compared"):
        write_report(folders, tmp_path / "page.html")
    write_report(folders[:1], tmp_path / "page.html")
