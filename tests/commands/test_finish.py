"""Captions, then the report, in one process."""

from __future__ import annotations

import pytest

from llava.commands import finish
from llava.errors import UserError


@pytest.fixture
def called(monkeypatch):
    """What was called with which arguments, in order."""
    calls = []
    for name, command, text in (("captions", finish.captioning, "scores"), ("report", finish.page, "path")):

        def main(argv, name=name, text=text):
            calls.append((name, list(argv)))
            print(text)
            return 0

        monkeypatch.setattr(command, "main", main)
    return calls


def test_the_report_comes_after_the_captions_that_it_shows(called, capsys):
    assert finish.main(["output/run", "--model-path", "output/run"]) == 0
    assert called == [("captions", ["--model-path", "output/run"]), ("report", ["output/run"])]
    assert capsys.readouterr().out == "scores\n", "the launch script says where the report is"


def test_a_run_without_held_out_clips_has_a_report_alone(called):
    assert finish.main(["output/run"]) == 0
    assert called == [("report", ["output/run"])]


def test_captions_that_fail_are_said_in_place_of_a_report(called, monkeypatch):
    def fail(argv):
        raise UserError("no such clips")

    monkeypatch.setattr(finish.captioning, "main", fail)
    with pytest.raises(UserError, match="no such clips"):
        finish.main(["output/run", "--limit", "1"])
    assert called == []
