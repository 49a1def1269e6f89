"""Ctrl-C in a real terminal, which sends it to every process of the foreground: launch script and plain torchrun.

`test_stop.py` sends the same signal in the other phases of a run.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from llava.errors import STOPPED_STATUS
from llava.train.checkpoint.files import newest_valid
from llava.train.checkpoint.stop import STOP_FILE, STOPPED_FILE
from tests.cluster.launching import SCRIPT, pause, tiny, wait_for
from tests.train.runs import flags

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[3]
PHASES = {
    "extraction": "llava.data.features.extract:extract_features",
    "training": "llava.train.trainer:LlavaTrainer.training_step",
}
STEPS = {"extraction": None, "training": 1}
OPTIONS = {
    "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
    "resume_from_checkpoint": "auto",
}  # fmt: skip


class Terminal:
    """A command in a terminal of its own, in whose foreground it runs."""

    def __init__(self, command: list[str], variables: dict[str, str], folder: Path, pause_in: str) -> None:
        self.fifo = folder / "go"
        variables = variables | {"OMP_NUM_THREADS": "1"} | pause(folder, pause_in, self.fifo)
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env=variables, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def read(self) -> bool:
        """Waits for output; False at its end."""
        assert select.select([self.ours], [], [], 600)[0], f"nothing happens:\n{self.shown[-3000:]}"
        try:
            part = os.read(self.ours, 65536)
        except OSError:  # Linux says so when no process has the terminal open any more.
            return False
        self.shown += part.decode(errors="replace")
        return bool(part)

    def expect(self, text: str) -> None:
        while text not in self.shown:
            assert self.read(), f"{text!r} was not shown:\n{self.shown[-3000:]}"

    def press_ctrl_c(self) -> None:
        os.write(self.ours, b"\x03")

    def go_on(self) -> None:
        """Ends the pause."""
        os.close(os.open(self.fifo, os.O_WRONLY))

    def status(self) -> int:
        while self.read():
            pass
        os.close(self.ours)
        return self.process.wait(timeout=600)


def check_stopped(run: Path, phase: str, shown: str) -> None:
    assert (run / STOPPED_FILE).is_file(), shown[-3000:]
    note, newest = json.loads((run / STOPPED_FILE).read_text()), newest_valid(run)
    assert note["step"] == STEPS[phase] and note["checkpoint"] == (str(newest) if newest else None)
    assert (newest and newest.name) == (f"checkpoint-{STEPS[phase]}" if STEPS[phase] else None)


def launch(assets, folder: Path, pause_in: str, **settings: str) -> Terminal:
    variables = tiny(assets, folder, OUTPUT_DIR=str(folder / "run"), **{"NUM_WORKERS": "1"} | settings)
    more = ["--eval_strategy", "steps", "--eval_steps", "2", "--vision_precision", "fp32", "--preflight", "off"]
    return Terminal(["bash", str(SCRIPT), *more], variables, folder, pause_in)


@pytest.mark.parametrize("phase", ["extraction", "training"])
def test_ctrl_c_stops_the_launch_script_with_a_checkpoint(assets, tmp_path, phase):
    """With worker processes, which the signal reaches too."""
    terminal = launch(assets, tmp_path, PHASES[phase])
    terminal.expect("PAUSED")
    terminal.press_ctrl_c()
    terminal.expect("Ctrl-C: stopping without loss")
    wait_for((tmp_path / "run" / STOP_FILE).exists, "the stop file")
    terminal.go_on()
    assert terminal.status() == STOPPED_STATUS, terminal.shown[-3000:]
    assert "Stopped on SIGINT; the same command goes on" in terminal.shown and "KeyboardInterrupt" not in terminal.shown
    check_stopped(tmp_path / "run", phase, terminal.shown)
    assert not (tmp_path / "run" / STOP_FILE).exists()


def test_ctrl_c_stops_the_launch_script_while_it_draws(assets, tmp_path):
    small = {"MODEL_PATH": "", "N_LAYER": "1", "N_EMBD": "32", "N_HEAD": "2", "VOCAB_SIZE": "300"}
    terminal = launch(assets, tmp_path, "llava.data.records:load_records", **small)
    terminal.expect("PAUSED")
    terminal.press_ctrl_c()
    assert terminal.status() == STOPPED_STATUS, terminal.shown[-3000:]
    assert "Stopped on SIGINT; the same command goes on" in terminal.shown and "Traceback" not in terminal.shown


def test_a_second_ctrl_c_ends_the_launch_script_at_once(assets, tmp_path):
    """The run waits where it would wait for ever."""
    terminal = launch(assets, tmp_path, PHASES["training"])
    terminal.expect("PAUSED")
    terminal.press_ctrl_c()
    terminal.expect("Ctrl-C: stopping without loss")
    terminal.press_ctrl_c()
    assert terminal.status() == 130, terminal.shown[-3000:]
    assert "Ended at once on the second Ctrl-C" in terminal.shown
    assert not (tmp_path / "run" / STOPPED_FILE).exists() and not (tmp_path / "run" / STOP_FILE).exists()


def torchrun(assets, folder: Path, pause_in: str, processes: int = 1) -> Terminal:
    options = OPTIONS | {"eval_data_path": assets.video_json}
    options |= {"dataloader_num_workers": 1, "per_device_train_batch_size": 2 // processes, "preflight": "off"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["llava/train/train.py", *flags(assets, folder / "run", **options)]
    return Terminal(command, dict(os.environ), folder, pause_in)


def test_ctrl_c_stops_plain_torchrun_with_a_checkpoint(assets, tmp_path):
    """torchrun's own status is 1 whatever its workers end with; `stopped.json` tells."""
    terminal = torchrun(assets, tmp_path, PHASES["training"], processes=2)
    terminal.expect("PAUSED")
    terminal.press_ctrl_c()
    terminal.expect("Ctrl-C once more ends at once")
    terminal.go_on()
    assert terminal.status() == 1, terminal.shown[-3000:]
    assert "stopped (signal SIGINT)" in terminal.shown and "forcefully exiting" not in terminal.shown
    check_stopped(tmp_path / "run", "training", terminal.shown)


def test_a_second_ctrl_c_ends_plain_torchrun_at_once(assets, tmp_path):
    terminal = torchrun(assets, tmp_path, PHASES["training"])
    terminal.expect("PAUSED")
    terminal.press_ctrl_c()
    terminal.expect("Ctrl-C once more ends at once")
    terminal.press_ctrl_c()
    assert terminal.status() == 1, terminal.shown[-3000:]
    assert "forcefully exiting" not in terminal.shown, "torchrun waited its 30 s"
    assert not (tmp_path / "run" / STOPPED_FILE).exists()
