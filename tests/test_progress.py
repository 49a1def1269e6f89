"""Lines of progress where there is no terminal."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from llava import progress as module
from llava.progress import Lines, progress


@pytest.fixture
def clock(monkeypatch):
    """Time as tqdm reads it, which each look moves on by a second."""
    now = SimpleNamespace(seconds=0.0)

    def tick() -> float:
        now.seconds += 1
        return now.seconds

    monkeypatch.setattr("tqdm.std.time", tick)
    return now


def test_a_file_gets_a_line_every_few_seconds(clock):
    text = io.StringIO()
    list(Lines(range(600), desc="vision features", unit="clip", file=text))
    lines = text.getvalue().splitlines()
    assert 10 < len(lines) < 70 and "\r" not in text.getvalue()
    assert all(line.startswith("vision features: ") and " of 600, " in line for line in lines[:-1])
    assert "clip/s" in lines[0] and lines[0].endswith(" left")
    assert lines[-1].startswith("vision features: 600 in ")


def test_what_is_done_soon_writes_nothing(capsys):
    assert list(progress(range(3), desc="files")) == [0, 1, 2]
    with progress(total=None, desc="rows", disable=True) as bar:
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = SimpleNamespace(isatty=lambda: True, write=lambda text: None, flush=lambda: None)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert type(progress(range(3))) is tqdm and module.SECONDS >= 5
