"""The launch script, as a user calls it, with settings small enough for a test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.launching import SCRIPT, environment, wait_for


def launch(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with its output under `folder`."""
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env=environment(folder, **settings),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_both_experiments_and_a_second_call(tmp_path):
    small = {"N_LAYER": "1", "N_EMBD": "32", "N_HEAD": "2", "OMP_NUM_THREADS": "1"}
    video = launch(tmp_path, **small)
    assert video.returncode == 0, video.stderr[-3000:]
    assert "DATA_PATH is not set: running the built-in demo" in video.stdout
    assert "\nMAX_STEPS=4 sets --max_steps\n" in video.stdout
    for expected in ("heldout_combinations_vi_it, true video", "heldout_clips_vi_it, other video", "reference: "):
        assert expected in video.stdout
    scores = json.loads((tmp_path / "output" / "demo_exp2_seed0" / "captions.json").read_text())["scores"]
    assert set(next(iter(scores.values()))) >= {"shape", "colour", "size", "background", "direction", "all"}

    run = tmp_path / "output" / "demo_exp2_seed0"
    page = (run / "report.html").read_text()
    assert "data:image/jpeg;base64," in page, "captions stand beside frames of their clips"
    assert json.loads((run / "preflight.json").read_text())["passed"]

    again = launch(tmp_path, **small)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "already finished" in again.stdout + again.stderr

    text = launch(tmp_path, EXP_ID="1", **small)
    assert text.returncode == 0, text.stderr[-3000:]
    results = json.loads((tmp_path / "output" / "demo_exp1_seed0" / "eval_results.json").read_text())
    assert results["eval_samples"] == 240


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"EXP_ID": "3"}, "EXP_ID=3; use 1 (text only) or 2 (video and text)"),
        ({"DATA_PATH": "/nowhere.json"}, "DATA_PATH=/nowhere.json: no such file"),
        ({"DATA_PATH": "/"}, "DATA_PATH=/: is a folder. It is a LLaVA JSON or JSONL file"),
        ({"DATA_PATH": "/nowhere/{a,b}.json"}, "/nowhere/b.json: no such file"),
        ({"USE_PLAIN_LM": "0"}, "USE_PLAIN_LM=0; 1 is the only mode"),
        ({"LEARNING_RATE": "fast", "LR": "1"}, "LR=1: no such variable; did you mean LEARNING_RATE?"),
        ({"RECIPE": "none"}, "--recipe none: no such file"),
        ({"LR_SCHEDULER_TYPE": "cosinus"}, "invalid choice: 'cosinus'"),
        ({"NNODES": "2"}, "NNODES=2 needs MASTER_ADDR"),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "localhost"}, "NODE_RANK=2; with NNODES=2 it is 0 to 1"),
    ],
)
def test_wrong_settings_are_one_message(tmp_path, settings, message):
    result = launch(tmp_path, **settings)
    assert result.returncode == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was made"


def test_help_starts_nothing(tmp_path):
    result = launch(tmp_path, "--help", EXP_ID="9")
    assert result.returncode == 0 and result.stderr == "" and list(tmp_path.iterdir()) == []
    for part in (
        "Variables of the launch script:",
        "LEARNING_RATE",
        "LLAVA_VERSION",
        "transformers.TrainingArguments:",
    ):
        assert part in result.stdout


def test_a_copy_of_the_script_needs_the_repository(tmp_path):
    copy = tmp_path / "script.sh"
    copy.write_text(SCRIPT.read_text())
    variables = environment(tmp_path, SLURM_SUBMIT_DIR="/tmp")
    result = subprocess.run(["bash", copy], env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "/tmp is not the repository" in result.stderr


def write_python(folder: Path, torchrun: str) -> None:
    """A `python` that does something else where it is asked for torchrun."""
    text = f'#!/bin/bash\n[[ "$1" == llava/train/torchrun.py ]] || exec {sys.executable} "$@"\n{torchrun}'
    (folder / "python").write_text(text)
    (folder / "python").chmod(0o755)


def test_a_later_node_makes_neither_data_nor_model(tmp_path):
    """It trains on what the first makes, and leaves the captions and the report to it."""
    write_python(tmp_path, "touch $FOLDER/trained\n")
    variables = environment(tmp_path, FOLDER=str(tmp_path), NNODES="2", NODE_RANK="1", MASTER_ADDR="localhost")
    variables |= {"PATH": f"{tmp_path}:{variables['PATH']}", "VIRTUAL_ENV": sys.prefix}
    result = subprocess.run(["bash", SCRIPT], env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    # The script makes the run's own folder, for the stop file.
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == {"python", "trained"}


TORCHRUN = """
# Trains until it is told to stop, as a run that removes an old stop file while it starts.
printf '%s\\n' "$@" >"$FOLDER/arguments"
while [[ ! -f "$OUTPUT_DIR/STOP" ]]; do read -t 0.1 <> <(:); done
rm "$OUTPUT_DIR/STOP"
while [[ ! -f "$OUTPUT_DIR/STOP" ]]; do read -t 0.1 <> <(:); done
echo '{"step": 3}' >"$OUTPUT_DIR/stopped.json"
exit 1
"""


@pytest.mark.parametrize(
    ("name", "job", "requeues"), [("USR1", "7", True), ("TERM", "7", False), ("USR1", "", False), ("INT", "", False)]
)
def test_a_signal_stops_training_and_a_warning_requeues_the_job(tmp_path, name, job, requeues):
    programs = tmp_path / "programs"
    programs.mkdir()
    # Two processes, since one runs without torchrun.
    write_python(programs, TORCHRUN)
    (programs / "scontrol").write_text('#!/bin/bash\necho "$@" >"$FOLDER/scontrol"\n')
    (programs / "scontrol").chmod(0o755)
    data = tmp_path / "data.json"
    data.write_text("[]")
    variables = environment(tmp_path, FOLDER=str(tmp_path), DATA_PATH=str(data), MODEL_PATH="model", EXP_ID="1",
                            NUM_GPUS="2", OUTPUT_DIR=str(tmp_path / "run"))  # fmt: skip
    variables |= {"PATH": f"{programs}:{variables['PATH']}", "VIRTUAL_ENV": sys.prefix}
    if job:
        variables["SLURM_JOB_ID"] = job
    process = subprocess.Popen(["bash", str(SCRIPT)], env=variables, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "arguments").exists() or process.poll() is not None, "the start of training")
    process.send_signal(getattr(signal, f"SIG{name}"))
    shown = process.communicate(timeout=600)[0]
    assert process.returncode == 85
    assert (tmp_path / "scontrol").exists() == requeues
    if requeues:
        assert (tmp_path / "scontrol").read_text() == "requeue 7\n" and "job 7 is back in the queue" in shown
    else:
        assert f"Stopped on SIG{name}; the same command goes on" in shown
    assert not (tmp_path / "run" / "STOP").exists()
