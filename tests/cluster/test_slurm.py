"""A real SLURM: a job that is pre-empted, requeued and resumed ends as one that never was."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from llava.train.checkpoint.stop import STOP_FILE
from tests.cluster.launching import ROOT, SCRIPT, pause, tiny, wait_for
from tests.train.runs import losses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The configuration of a cluster that runs here."""
    if os.geteuid() != 0:
        pytest.skip("only root can install and start SLURM")
    folder, helper = tmp_path_factory.mktemp("slurm"), Path(__file__).with_name("slurm.sh")
    try:
        # The daemons would keep a pipe open.
        with (folder / "start.log").open("w") as log:
            started = subprocess.run(["bash", helper, "start", folder], stdout=log, stderr=log, check=False).returncode
        if started:
            pytest.skip(f"SLURM could not be installed or started: {(folder / 'start.log').read_text()[-300:]}")
        yield folder / "slurm.conf"
    finally:
        subprocess.run(["bash", helper, "stop", folder], check=False)


def result(run: Path) -> tuple[str, float, list[float]]:
    weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    final = json.loads((run / "eval_results.json").read_text())["eval_loss"]
    return weights, final, losses(run)


def test_a_preempted_job_is_requeued_and_ends_as_one_that_never_was(assets, slurm, tmp_path):
    """The job waits in its first step until it has been told to stop."""
    settings = {"MAX_STEPS": "6", "SAVE_STEPS": "1000"}
    plain = subprocess.run(["bash", SCRIPT, "--preflight", "off"], capture_output=True, text=True, check=False,
                           env=tiny(assets, tmp_path, OUTPUT_DIR=str(tmp_path / "plain"), **settings))  # fmt: skip
    assert plain.returncode == 0, plain.stderr[-3000:]

    log, run, fifo = tmp_path / "job.log", tmp_path / "job", tmp_path / "go"
    variables = tiny(assets, tmp_path, OUTPUT_DIR=str(run), SLURM_CONF=str(slurm), **settings)
    variables |= pause(tmp_path, "llava.train.trainer:LlavaTrainer.training_step", fifo)

    def call(*command: str) -> str:
        return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    job = call("sbatch", "--parsable", "--gpus-per-node=0", "--mem=0", "--cpus-per-task=1", f"--output={log}",
               str(SCRIPT), "--preflight", "off").strip()  # fmt: skip
    wait_for(lambda: log.exists() and "PAUSED" in log.read_text(), f"the first step; {log}")
    call("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap", "true")
    wait_for((run / STOP_FILE).exists, f"the stop file; {log}")
    waiting = os.open(fifo, os.O_WRONLY)
    fifo.unlink()
    fifo.touch()  # The resumed run does not wait.
    os.close(waiting)
    wait_for(lambda: job not in call("squeue", "--noheader", "--format=%i").split(), f"the end of the job; {log}")
    shown, words = call("scontrol", "show", "job", job), log.read_text()
    assert "JobState=COMPLETED" in shown and "Restarts=1" in shown, words[-3000:]
    assert f"job {job} is back in the queue" in words
    note = words.index("resuming from")
    assert "checkpoint-1" in words[note : note + 300]
    assert result(run) == result(tmp_path / "plain")
