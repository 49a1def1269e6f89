"""A run that is told to stop: by signal or file, in every phase, with workers, in several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from llava.errors import STOPPED_STATUS, Stopped
from llava.train import sight
from llava.train import train as train_module
from llava.train.checkpoint import files as checkpoints
from llava.train.checkpoint.files import newest_valid
from llava.train.checkpoint.stop import SIGNALS, STOP_FILE, STOPPED_FILE, Stop
from llava.train.trainer import LlavaTrainer
from scripts.chaos import history
from tests.cluster.launching import pause, wait_for
from tests.train.checkpoint.test_resume import assert_same_run
from tests.train.processes import SEVERAL, TRAIN
from tests.train.runs import flags, train

REPOSITORY = Path(__file__).resolve().parents[3]
OPTIONS = {
    "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3,
    "resume_from_checkpoint": "auto", "preflight": "off", "max_steps": 6, "per_device_eval_batch_size": 2,
    "controls_samples": 6,
}  # fmt: skip


def call_then(original: Callable, when: Callable[[Any], bool], act: Callable[[], None]) -> Callable:
    """`original`, which acts once, at the first call for which `when` holds of its first argument."""
    done = []

    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        if not done and when(first):
            done.append(True)
            act()
        return original(first, *args, **kwargs)

    return call


PHASES: dict[str, tuple[object, str, Callable[[Any], bool]]] = {
    "train": (LlavaTrainer, "training_step", lambda trainer: trainer.state.global_step == 3),
    "evaluate": (LlavaTrainer, "evaluate", lambda trainer: trainer.state.global_step == 3),
    "controls": (sight, "measure", lambda trainer: trainer.state.global_step == 3),
    "save": (checkpoints, "write_manifest", lambda folder: True),
    "the last evaluation": (LlavaTrainer, "evaluate", lambda trainer: not trainer.is_in_train),
    "preflight": (train_module, "run_preflight", lambda trainer: True),
}


@pytest.fixture(scope="module")
def whole(assets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(assets, folder, **OPTIONS, eval_data_path=assets.video_json)
    return folder


@pytest.mark.parametrize(
    ("means", "phase"),
    [
        *(("SIGTERM", phase) for phase in PHASES),
        ("SIGUSR1", "train"),
        ("file", "train"),
        ("file", "evaluate"),
        *(("SIGINT", phase) for phase in PHASES if phase != "the last evaluation"),
    ],  # fmt: skip
)
def test_told_to_stop_in_every_phase(assets, whole, tmp_path, monkeypatch, means, phase):
    """Pre-flight, where there is one, changes nothing of the run."""
    run = tmp_path / "run"
    options = OPTIONS | {"eval_data_path": assets.video_json}
    options |= {"preflight": "quick"} if phase == "preflight" else {}
    if phase == "the last evaluation":  # Where training ended with one, there is no other.
        options, whole = options | {"eval_strategy": "no"}, tmp_path / "whole"
        train(assets, whole, **options)

    def act() -> None:
        if means == "file":
            (run / STOP_FILE).touch()
            monkeypatch.setattr("llava.train.checkpoint.stop.LOOK_SECONDS", 0.0)
        else:
            os.kill(os.getpid(), getattr(signal, means))

    owner, name, when = PHASES[phase]
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, call_then(getattr(owner, name), when, act))
        with pytest.raises(Stopped, match=f"stopped .*{means if means != 'file' else STOP_FILE}.*same command goes on"):
            train(assets, run, **options)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    note = json.loads((run / STOPPED_FILE).read_text())
    steps = {"train": 4, "evaluate": 3, "controls": 3, "save": 3, "the last evaluation": 6, "preflight": None}
    assert note["step"] == steps[phase]
    newest = newest_valid(run)
    assert note["checkpoint"] == (str(newest) if newest else None)
    assert (newest and newest.name) == (f"checkpoint-{note['step']}" if note["step"] else None)
    if phase in ("evaluate", "controls"):
        logged = json.loads((newest / "trainer_state.json").read_text())["log_history"]
        assert not any("eval_loss" in entry for entry in logged) and not (run / "controls.jsonl").exists()

    train(assets, run, **options)
    assert not (run / STOPPED_FILE).exists() and not (run / STOP_FILE).exists()
    assert_same_run(whole, run)


def test_stopped_after_training_without_checkpoints_keeps_the_training(assets, tmp_path, monkeypatch):
    """Nothing was to be saved, and the last evaluation is cut short: the training is not done again."""
    options = {"eval_data_path": assets.text_json, "resume_from_checkpoint": "auto", "preflight": "off"}
    train(assets, tmp_path / "whole", 1, **options)
    with monkeypatch.context() as patch:
        act = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        patch.setattr(LlavaTrainer, "evaluate", call_then(LlavaTrainer.evaluate, lambda trainer: True, act))
        with pytest.raises(Stopped, match=r"checkpoint-6 was written"):
            train(assets, tmp_path / "run", 1, **options)
    monkeypatch.setattr(LlavaTrainer, "training_step", None)
    train(assets, tmp_path / "run", 1, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_epoch_strategies_and_the_best_model(assets, tmp_path, monkeypatch):
    """Stopped before and in the evaluation of an epoch's end, which decides what is saved and loaded at the end."""
    options = {
        "save_strategy": "epoch", "eval_strategy": "epoch", "logging_strategy": "epoch", "num_train_epochs": 3,
        "max_steps": -1, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "save_total_limit": 1,
        "eval_data_path": assets.text_json, "resume_from_checkpoint": "auto", "preflight": "off",
    }  # fmt: skip
    train(assets, tmp_path / "whole", 1, **options)
    for step, phase in ((3, "train"), (3, "evaluate"), (6, "evaluate"), (9, "train")):
        with monkeypatch.context() as patch:
            act = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
            name = "evaluate" if phase == "evaluate" else "_maybe_log_save_evaluate"
            at = lambda trainer, step=step: trainer.state.global_step == step  # noqa: E731
            patch.setattr(LlavaTrainer, name, call_then(getattr(LlavaTrainer, name), at, act))
            with pytest.raises(Stopped):
                train(assets, tmp_path / "run", 1, **options)
        assert json.loads((tmp_path / "run" / STOPPED_FILE).read_text())["step"] == step
    train(assets, tmp_path / "run", 1, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    whole, run = (json.loads((tmp_path / n / "trainer_state.json").read_text()) for n in ("whole", "run"))
    assert whole["best_metric"] == run["best_metric"] and Path(run["best_model_checkpoint"]).parent == tmp_path / "run"


def test_nobody_asks_the_other_processes_when_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", None)
    with Stop(tmp_path) as stop:
        assert not stop.agreed() and not stop.agreed(wait=True)
        stop.reason = "the test"
        with pytest.raises(Stopped, match="nothing was lost"):
            stop.check()


def test_a_stop_file_from_before_does_not_stop_the_next_run(tmp_path):
    (tmp_path / STOP_FILE).touch()
    (tmp_path / STOPPED_FILE).write_text("{}")
    with Stop(tmp_path) as stop:
        assert not stop.requested()
    assert not list(tmp_path.iterdir())


def test_a_stop_file_may_say_who_asks(tmp_path):
    with Stop(tmp_path) as stop:
        (tmp_path / STOP_FILE).write_text("SIGINT\n")
        assert stop.requested() and stop.reason == "SIGINT"


def start(
    command: list[str], variables: Mapping[str, str] = MappingProxyType({}), **options: Any
) -> tuple[subprocess.Popen, list[str], threading.Event]:
    """A process, its lines, and an event that is set when it has taken its first step."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    environment |= variables
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    lines: list[str] = []
    trains = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if re.match(r"step .* loss ", line):
                trains.set()
        trains.set()

    threading.Thread(target=read, daemon=True).start()
    return process, lines, trains


def finish(process: subprocess.Popen, lines: list[str]) -> int:
    try:
        return process.wait(timeout=600)
    finally:
        if process.poll() is None:
            process.kill()
            print("".join(lines))


def test_signals_to_the_whole_group_and_twice(assets, tmp_path):
    """As a scheduler sends them: to the run and to its data workers, which must not die of them; and again while the
    run saves.
    """
    options = {"max_steps": 100_000, "dataloader_num_workers": 2, "preflight": "off", "resume_from_checkpoint": "auto"}
    command = [sys.executable, "llava/train/train.py", *flags(assets, tmp_path, 1, **options)]
    process, lines, trains = start(command, start_new_session=True)
    assert trains.wait(600), "".join(lines)
    os.killpg(process.pid, signal.SIGTERM)
    while process.poll() is None and not list(tmp_path.glob("*checkpoint-*")):
        threading.Event().wait(0.001)
    for _ in range(20):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    assert finish(process, lines) == STOPPED_STATUS, "".join(lines)
    note = json.loads((tmp_path / STOPPED_FILE).read_text())
    assert note["checkpoint"] == str(newest_valid(tmp_path)) and note["reason"] == "signal SIGTERM"
    last = [line for line in lines if line.strip()][-1]
    assert last == f"stopped (signal SIGTERM): {note['checkpoint']} was written; the same command goes on\n"


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_exactly(assets, tmp_path):
    """Stopped by file, then by SIGTERM to torchrun, then finished by two processes and by one."""
    options = {
        "max_steps": 100, "per_device_train_batch_size": 1, "preflight": "off", "resume_from_checkpoint": "auto",
        "dataloader_num_workers": 1, "learning_rate": 1e-4, "eval_data_path": assets.text_json,
        "eval_strategy": "steps", "eval_steps": 20, "save_strategy": "steps", "save_steps": 100,
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    whole, run = tmp_path / "whole", tmp_path / "run"

    def expect(word: str) -> None:
        wait_for(lambda: any(word in line for line in lines) or process.poll() is not None, word)
        assert process.poll() is None, "".join(lines)

    steps = []
    for means in ("file", "signal"):
        (tmp_path / means).mkdir()
        fifo = tmp_path / means / "go"
        variables = pause(tmp_path / means, "llava.train.trainer:LlavaTrainer.training_step", fifo)
        process, lines, _ = start([*command, TRAIN, *flags(assets, run, 1, **options)], variables)
        expect("PAUSED")
        if means == "file":
            (run / STOP_FILE).touch()
        else:
            process.send_signal(signal.SIGTERM)
            expect("closing signal SIGTERM")
        os.close(os.open(fifo, os.O_WRONLY))
        assert finish(process, lines) != 0
        note = json.loads((run / STOPPED_FILE).read_text())
        assert note["checkpoint"] == str(newest_valid(run)), "".join(lines)
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= {p.name for p in Path(note["checkpoint"]).iterdir()}
        steps.append(note["step"])
    assert 0 < steps[0] < steps[1] < 100

    one = tmp_path / "one"
    shutil.copytree(note["checkpoint"], one / Path(note["checkpoint"]).name)

    runs = [flags(assets, folder, 1, **options) for folder in (run, whole)]
    process, lines, _ = start([*command, SEVERAL, json.dumps(runs)])
    assert finish(process, lines) == 0, "".join(lines)
    assert_same_run(whole, run)
    train(assets, one, 1, **options | {"per_device_train_batch_size": 2})
    for ours, theirs in zip(history(one), history(whole), strict=True):
        assert ours.get("epoch") == theirs.get("epoch")
        assert ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), abs=1e-3)


def test_no_worker_outlives_the_run(assets, tmp_path, monkeypatch):
    """Workers ignore SIGTERM, so one that is left would keep Python from ending; also after an error."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ArithmeticError("the test")

    before = multiprocessing.active_children()
    monkeypatch.setattr(LlavaTrainer, "training_step", fail)
    with pytest.raises(ArithmeticError, match="the test") as error:
        train(assets, tmp_path, 1, dataloader_num_workers=2, preflight="off")
    assert error.traceback, "the loader still lives in it"
    assert multiprocessing.active_children() == before
