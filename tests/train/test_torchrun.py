"""The end of runs that torchrun starts: what the run said, once, and nothing of torchrun's."""

from __future__ import annotations

import os
import subprocess
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from llava.train import torchrun
from tests.train.processes import REPOSITORY

PROCESS = """
from llava.errors import UserError, run_command

def main():
    raise UserError("--data_path d.json: no such file; correct it")

run_command(main)
"""


def test_an_error_of_the_user_is_said_once_and_nothing_after_it(tmp_path):
    (tmp_path / "script.py").write_text(PROCESS)
    command = [sys.executable, "llava/train/torchrun.py", "--standalone", "--nproc_per_node=2", tmp_path / "script.py"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False, **streams)
    assert (done.returncode, done.stdout) == (1, "\nERROR: --data_path d.json: no such file; correct it\n")


def failing(monkeypatch, codes: dict[int, int]) -> int:
    failures = {rank: ProcessFailure(rank, 10 + rank, code, "none") for rank, code in codes.items()}

    def fails(argv):
        raise ChildFailedError("train.py", failures)

    monkeypatch.setattr(torchrun, "torchrun", fails)
    return torchrun.main([])


def test_after_a_process_that_said_why_it_ended_nothing_is_said(monkeypatch, capsys):
    assert failing(monkeypatch, {0: -15, 1: 85}) == 85
    assert capsys.readouterr() == ("", "")


def test_a_process_that_was_killed_is_named_and_not_those_that_torchrun_ended(monkeypatch, capsys):
    assert failing(monkeypatch, {0: -15, 1: -9}) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].startswith("ERROR: ended from outside: rank 1 (process 11) by SIGKILL.")
    assert "--resume_from_checkpoint auto" in lines[1]
