"""Parts end in time, take none along, and what became of them is told."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from benchmarks.gpu import parts
from benchmarks.gpu.__main__ import TINY
from benchmarks.gpu.parts import (
    NotHereError,
    Outcome,
    Part,
    Row,
    Setting,
    broke,
    compared,
    fact,
    measured,
    method_for,
    not_here,
    run_part,
    run_parts,
    trying,
)

LONG = 600.0


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting("cpu", tmp_path, TINY, True, 2, 2)


def part(work, share: float = 1.0, name: str = "a") -> Part:
    return Part(name, "A part", work, share)


def sound(setting: Setting) -> Iterator[Row]:
    yield measured("speed", 1.0, "m/s")
    yield compared("a against b", 1e-6, 1e-5)
    yield not_here("c", "there is none")


def test_a_sound_part_is_done(setting):
    outcome = run_part(part(sound), setting, LONG)
    assert [row["kind"] for row in outcome.rows] == ["measured", "compared", "not here"]
    assert outcome.failures == [] and outcome.as_dict()["status"] == "done"


@pytest.mark.parametrize("error", [1e-4, float("nan")])
def test_what_differs_fails(setting, error):
    outcome = run_part(part(lambda _: iter([compared("a against b", error, 1e-5)])), setting, LONG)
    assert "a against b: differs by" in outcome.failures[0]
    assert outcome.as_dict()["status"] == "failed"


def test_a_part_that_raises_keeps_its_rows_and_says_why(setting):
    def work(_: Setting) -> Iterator[Row]:
        yield measured("speed", 1.0, "m/s")
        print("the last words")
        raise ValueError("no such kernel")

    outcome = run_part(part(work), setting, LONG)
    assert [row["measure"] for row in outcome.rows] == ["speed"]
    assert outcome.failures == ["ValueError: no such kernel"]
    assert "the last words" in outcome.log and "Traceback" in outcome.log


def test_one_row_that_raises_does_not_end_its_part(setting):
    def breaks() -> Iterator[Row]:
        raise RuntimeError("out of order")
        yield

    def absent() -> Iterator[Row]:
        raise NotHereError("no bf16")
        yield

    def work(_: Setting) -> Iterator[Row]:
        yield from trying("first", breaks)
        yield from trying("second", absent)
        yield measured("third", 1.0, "")

    outcome = run_part(part(work), setting, LONG)
    assert [(row["kind"], row["measure"]) for row in outcome.rows] == [
        ("broke", "first"), ("not here", "second"), ("measured", "third")
    ]  # fmt: skip
    assert outcome.failures == ["first: RuntimeError: out of order"]


def test_a_part_that_dies_is_told(setting):
    def work(_: Setting) -> Iterator[Row]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield measured("never", 1.0, "")

    outcome = run_part(part(work), setting, LONG)
    assert outcome.failures == ["its process ended with status -9 and without a word"]


def test_nothing_said_is_no_success(setting):
    assert run_part(part(lambda _: iter([])), setting, LONG).failures == ["it ended without a single row"]


def test_a_part_that_hangs_is_ended_with_its_children(setting):
    """Both hold the pipe open as long as they live."""
    reading, writing = os.pipe()

    def work(_: Setting) -> Iterator[Row]:
        if not os.fork():
            signal.pause()
        yield measured("before", 1.0, "")
        signal.pause()

    outcome = run_part(part(work), setting, 3.0)
    assert [row["measure"] for row in outcome.rows] == ["before"]
    assert outcome.failures == ["ended after its 3 s: give more --minutes, or it hangs"]
    os.close(writing)
    assert select.select([reading], [], [], 60)[0], "somebody lives"
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_parts_share_what_time_is_left(setting, monkeypatch):
    """Ten minutes; the first part takes none of its share, which the others then have."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    found = run_parts([part(sound, 1), part(sound, 1), part(sound, 2)], setting, 10)
    assert [outcome.limit for outcome in found] == [150.0, 200.0, 600.0]


@pytest.mark.parametrize(("tiny", "limit"), [(True, 450.0), (False, 150.0)])
def test_a_rehearsal_shares_time_in_its_own_way(setting, monkeypatch, tiny, limit):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    first = Part("a", "A part", sound, 1, tiny=9)
    assert run_parts([first, part(sound, 3)], replace(setting, tiny=tiny), 10)[0].limit == limit


def test_without_time_a_part_is_not_begun(setting):
    outcome = run_part(part(sound), setting, 0.5)
    assert outcome.rows == [] and outcome.failures == ["not begun: no time was left; give more --minutes"]


def test_later_parts_are_told_what_earlier_ones_found(setting):
    def finds(_: Setting) -> Iterator[Row]:
        yield measured("batch", 8, "", sets={"batch": 8})

    def says(setting: Setting) -> Iterator[Row]:
        yield measured("told", setting.batch, "")

    assert run_parts([part(finds), part(says)], setting, 10)[1].rows[0]["value"] == 8


def says_its_parent(_: Setting) -> Iterator[Row]:
    yield measured("parent", os.getppid(), "")


def in_this_process(setting: Setting) -> tuple[list[Outcome], int, str]:
    """What two parts said, the process that began them, and what it printed."""
    with redirect_stdout(StringIO()) as printed:
        outcomes = run_parts([part(says_its_parent), part(says_its_parent)], setting, 10)
    return outcomes, os.getpid(), printed.getvalue()


def test_on_a_device_parts_are_forks_of_a_server_that_imported_all(setting):
    """`meta` in the place of a GPU, which the server does not touch. In a process of its own, as the command has one: a
    server imports nothing more once data workers of an earlier test have begun it.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        (first, second), asked, printed = alone.submit(in_this_process, replace(setting, device="meta")).result()
    assert first.failures == [] and first.rows[0]["value"] == second.rows[0]["value"]
    assert first.rows[0]["value"] != asked
    assert printed == ""


@pytest.mark.parametrize(
    ("probe", "problem"),
    [
        (None, "cuda:99 cannot be reached"),
        (Outcome("probe", "", 1.0, rows=[fact("imported", ["torch"])]), f"{__name__} is not imported there"),
    ],
)
def test_where_a_fork_does_not_reach_the_device_each_part_imports(setting, monkeypatch, capsys, probe, problem):
    failed = Outcome("probe", "", 1.0, failures=["cuda:99 cannot be reached"])
    monkeypatch.setattr(parts, "run_part", lambda *_: probe or failed)
    assert method_for([part(says_its_parent)], replace(setting, device="cuda:99")) == "spawn"
    assert problem in capsys.readouterr().out


def test_an_error_is_named_with_its_kind():
    assert broke("x", KeyError("y"))["note"] == "KeyError: 'y'"
