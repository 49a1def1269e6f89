"""Commands of a study: run, failed, stopped by the file of a run or a signal, ended at once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from llava.errors import STOPPED_STATUS, Stopped, UserError
from llava.study.jobs import Jobs, trainer_command
from llava.train.checkpoint.stop import STOP_FILE

WAITS = """
import os, signal, sys, time
folder, parent, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
signal.signal(signal.SIGINT, signal.SIG_IGN if times > 1 else signal.SIG_DFL)
for _ in range(times):
    os.kill(parent, signal.SIGINT)
    time.sleep(0.05)
while not os.path.exists(os.path.join(folder, "STOP")) or times > 1:
    time.sleep(0.01)
sys.exit(85)
"""


def waiting(folder: Path, times: int = 1) -> list[str]:
    return [sys.executable, "-c", WAITS, str(folder), str(os.getpid()), str(times)]


def test_a_command_gets_its_variables_and_says_why_it_failed(tmp_path):
    with Jobs() as jobs:
        code = "import os, pathlib; pathlib.Path(os.environ['WHERE'], 'done').touch()"
        jobs.run([sys.executable, "-c", code], "a file", env={"WHERE": str(tmp_path)})
        assert (tmp_path / "done").exists()
        with pytest.raises(UserError, match="a fault ended with status 3: what it said is above"):
            jobs.run([sys.executable, "-c", "import sys; sys.exit(3)"], "a fault")
        with pytest.raises(Stopped, match="seed 0, V was stopped from elsewhere"):
            jobs.run([sys.executable, "-c", f"import sys; sys.exit({STOPPED_STATUS})"], "seed 0, V")


def test_ctrl_c_stops_a_run_by_its_file_and_the_study_after_it(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with Jobs() as jobs:
        with pytest.raises(Stopped, match=r"stopped \(SIGINT\): nothing was lost; the same command goes on"):
            jobs.run(waiting(tmp_path), "a run", folder=tmp_path)
        assert not (tmp_path / STOP_FILE).exists(), "the next one trains on"
        with pytest.raises(Stopped):
            jobs.run([sys.executable, "-c", "raise SystemExit(1)"], "what would come next")
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_ctrl_c_ends_what_does_not_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("llava.study.jobs.AT_ONCE_SECONDS", 0.0)
    with Jobs() as jobs, pytest.raises(Stopped):
        jobs.run(waiting(tmp_path, times=3), "a run that hangs", folder=tmp_path)


def test_a_stop_that_an_earlier_study_left_is_none(tmp_path):
    (tmp_path / STOP_FILE).write_text("SIGINT")
    with Jobs() as jobs:
        code = "import os, sys; sys.exit(os.path.exists(sys.argv[1]))"
        jobs.run([sys.executable, "-c", code, str(tmp_path / STOP_FILE)], "a run", folder=tmp_path)


def test_several_gpus_take_torchrun_as_the_launch_script_does():
    alone, variables = trainer_command(0, False, {})
    assert alone[0] == sys.executable and alone[1].endswith("llava/train/train.py") and len(alone) == 2
    assert variables["OMP_WAIT_POLICY"] == "passive" and "CUDA_VISIBLE_DEVICES" not in variables
    several, variables = trainer_command(4, False, {"OMP_NUM_THREADS": "3"})
    assert several[1].endswith("torchrun.py") and several[2:5] == ["--nproc_per_node", "4", "--standalone"]
    assert variables["OMP_NUM_THREADS"] == "3"
    one, variables = trainer_command(4, False, {"NUM_GPUS": "1", "CUDA_VISIBLE_DEVICES": "2,3"})
    assert one == alone and variables["CUDA_VISIBLE_DEVICES"] == "2"
    assert trainer_command(1, True, {})[0][1].endswith("torchrun.py"), "DeepSpeed wants a launcher for one too"
