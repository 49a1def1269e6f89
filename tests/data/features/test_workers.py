"""Tasks that hang, crash, raise or die: each is reported, and no other task suffers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from llava.data.features.workers import WorkerFailure, _take, _Worker, ahead, run_tasks


def double_or_fail(task: str) -> str:
    if task == "hang":
        threading.Event().wait()
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "exit":
        os._exit(3)
    if task == "raise":
        raise ValueError("no such clip")
    return task * 2


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_every_task_has_its_result(num_workers):
    tasks = [f"t{i}" for i in range(20)]
    assert dict(run_tasks(double_or_fail, tasks, num_workers, timeout=60)) == {t: t * 2 for t in tasks}


def test_a_crash_is_that_of_its_task_alone():
    found = dict(run_tasks(double_or_fail, ["a", "crash", "b", "exit", "c", "d"], 2))
    assert {k: v for k, v in found.items() if k not in ("crash", "exit")} == {t: t * 2 for t in "abcd"}
    assert found["crash"].kind == found["exit"].kind == "reader crashed"
    assert f"signal {signal.SIGSEGV.value}" in found["crash"].message
    assert "status 3" in found["exit"].message


def test_a_process_that_dies_in_the_middle_of_its_message_is_a_crash():
    ours, theirs = multiprocessing.Pipe()
    os.write(theirs.fileno(), struct.pack("!i", 100) + b"half")
    theirs.close()
    dead = SimpleNamespace(join=lambda: None, exitcode=-signal.SIGTERM)
    result = _take(_Worker(dead, ours))
    assert result.kind == "reader crashed" and f"signal {signal.SIGTERM.value}" in result.message


def test_a_task_that_hangs_is_ended_and_the_others_go_on():
    found = dict(run_tasks(double_or_fail, ["hang", "a", "b"], 1, timeout=5))
    assert found["a"] == "aa" and found["b"] == "bb"
    assert isinstance(found["hang"], WorkerFailure) and found["hang"].kind == "took too long"
    assert "no result after 5 s" in found["hang"].message


def test_an_exception_is_raised_here():
    with pytest.raises(ValueError, match="no such clip"):
        list(run_tasks(double_or_fail, ["raise"], 1))


def test_a_slow_taker_costs_no_task_its_time():
    """Results that wait to be taken, larger than a pipe holds, are no reason to end their worker."""
    taken = []
    for task, result in run_tasks(len_of_many, [1, 2, 3], 2, timeout=2):
        threading.Event().wait(2.2)
        taken.append((task, len(result)))
    assert sorted(taken) == [(i, i * 500_000) for i in (1, 2, 3)]


def len_of_many(task: int) -> bytes:
    return bytes(task * 500_000)


def test_results_are_taken_while_the_caller_works_on_others():
    third, closed = threading.Event(), threading.Event()

    def results():
        try:
            yield from (0, 1)
            third.set()
            yield 2
            yield 3
        finally:
            closed.set()

    found = ahead(results(), 2)
    assert next(found) == 0
    assert third.wait(60), "before the caller asked for them"
    assert not closed.is_set() and list(found) == [1, 2, 3] and closed.is_set()


def test_what_is_abandoned_is_closed_and_what_is_raised_is_raised():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    found = ahead(endless(), 2)
    assert next(found) == 1
    found.close()
    assert closed.is_set()

    def broken():
        yield 1
        raise RuntimeError("no worker")

    taken = []
    with pytest.raises(RuntimeError, match="no worker"):
        taken.extend(ahead(broken(), 2))


PROGRAM = """
import os, sys
with open(sys.argv[1], "a") as file:
    file.write("imported ")
from llava.data.features.workers import run_tasks

def shout(task):
    return task.upper()

if __name__ == "__main__":
    print([list(run_tasks(work, ["a/b"], 1)) for work in (os.path.basename, shout)])
"""


def test_a_worker_imports_the_program_only_where_its_work_is_defined_there(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "log")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str([[("a/b", "b")], [("a/b", "A/B")]]) and shown.stderr == ""
    assert (tmp_path / "log").read_text().split() == ["imported"] * 2, "here, and by the second worker"
