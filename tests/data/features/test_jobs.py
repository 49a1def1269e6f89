"""A list of work that jobs share: one job a part, dead ones replaced, no clock of another trusted."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from llava.data.features.jobs import BEATS, WorkList, list_name, status, work_through
from llava.errors import UserError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(folder: Path, items: int = 5, size: int = 2, lease: float = 100.0) -> WorkList:
    work = WorkList(folder, items, size, lease, Clock())
    work.create({"title": "features"})
    return work


def test_parts_cover_every_item_once(tmp_path):
    work = make(tmp_path)
    assert [i for part in range(work.parts) for i in range(5)[work.slice(part)]] == [*range(5)]


def test_a_part_is_claimed_by_one_job_alone(tmp_path):
    jobs = [make(tmp_path) for _ in range(3)]
    claims = [job.claim() for job in jobs]
    assert sorted(claim.part for claim in claims) == [0, 1, 2]
    assert {claim.turn for claim in claims} == {0}
    assert jobs[0].claim() is None, "all are claimed and alive"


def test_a_finished_part_is_not_repeated(tmp_path):
    work = make(tmp_path, items=2)
    work.finish(work.claim(), ["problem"], 1.0)
    again = make(tmp_path, items=2)
    assert again.finished() and again.claim() is None and again.outcomes() == [["problem"]]
    done = []
    assert work_through(again, lambda *_: done.append(1), lambda: False, done.append) == 0 and not done


def test_a_part_without_a_sign_of_life_for_a_lease_is_taken_over_once(tmp_path):
    dead, one, two = (make(tmp_path, items=2) for _ in range(3))
    claim = dead.claim()
    for job in (one, two):
        assert job.claim() is None
        job.clock.now += 99.0
        assert job.claim() is None, "the lease is not over"
        job.clock.now += 2.0
    taken = one.claim()
    assert (taken.part, taken.turn) == (claim.part, 1)
    assert two.claim() is None, "another was quicker"


@pytest.mark.parametrize("moved", [-86400.0, 0.001, 86400.0])
def test_a_sign_of_life_counts_whatever_the_clock_of_its_job_says(tmp_path, moved):
    """Its time is compared with itself: a job whose clock is a day off is neither dead nor immortal."""
    owner, other = make(tmp_path, items=2), make(tmp_path, items=2)
    path = owner.claim().path
    for _ in range(5):
        assert other.claim() is None
        other.clock.now += 99.0
        beat = path.stat().st_mtime + moved
        os.utime(path, (beat, beat))
    assert other.claim() is None
    other.clock.now += 101.0
    assert other.claim() is not None


def test_a_job_at_work_shows_signs_of_life(tmp_path):
    work = make(tmp_path, items=2, lease=0.01 * BEATS)
    claim = work.claim()
    before = claim.path.stat().st_mtime_ns
    with work.working(claim):
        while claim.path.stat().st_mtime_ns == before:
            os.sched_yield()


def test_a_part_of_a_job_that_was_stopped_is_free_at_once(tmp_path):
    work, other = make(tmp_path, items=2), make(tmp_path, items=2)

    def stopped(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_through(work, stopped, lambda: False, lambda _: None)
    assert other.claim().turn == 1


def test_who_waits_is_asked_to_stop(tmp_path):
    make(tmp_path, items=2).claim()
    waits = []
    done = work_through(make(tmp_path, items=2), lambda *_: None, lambda: len(waits) == 3, lambda _: None, waits.append)
    assert done == 0 and len(waits) == 3


def test_other_clips_are_another_list():
    assert list_name("cache", 2, [("a", None, False)]) != list_name("cache", 2, [("b", None, False)])
    assert list_name("cache", 2, [("a", None, False)]) == list_name("cache", 2, [("a", None, False)])


def test_status_shows_what_is_finished_and_who_is_at_what(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    work = make(tmp_path / "list", items=6)
    work.finish(work.claim(), ["problem"], 4.0)
    claim = work.claim()
    os.utime(claim.path, (1000.0, 1000.0))
    shown = status(tmp_path, clock=lambda _: 1012.0)
    assert "2 of 6 (33.3%), 1 problem(s)" in shown
    assert "1 finished, 1 claimed, 1 free, of 3" in shown
    assert "0.5 clips/s a job" in shown and "77_3 on " in shown and "12 s ago" in shown
    assert status(tmp_path), "with the clock of the file system"
    with pytest.raises(UserError, match="no list of work there"):
        status(tmp_path / "list")


def killed_in_its_second_part(folder: Path) -> None:
    count = []

    def do(*_):
        count.append(1)
        if len(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return []

    work = WorkList(folder, 6, 2, 0.05)
    work.create({})
    work_through(work, do, lambda: False, lambda _: None)


def test_what_a_killed_process_left_is_done_by_another(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed_in_its_second_part, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    work, did = WorkList(tmp_path, 6, 2, 0.05), []

    def do(some: slice, taken_over: bool) -> list:
        did.append((some.start, taken_over))
        return []

    assert work_through(work, do, lambda: False, lambda _: None) == 2
    assert work.finished() and len({start for start, _ in did}) == 2
    assert sorted(taken for _, taken in did) == [False, True]
