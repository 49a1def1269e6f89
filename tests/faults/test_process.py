"""Faults of the machine: a killed data worker, no memory, a clock that goes backwards."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.utils.data import get_worker_info

from llava.data import dataset
from llava.data.features.workers import run_tasks
from llava.errors import run_command
from llava.train.train import main
from llava.train.trainer import LlavaTrainer
from tests.data.features.test_workers import double_or_fail
from tests.train.runs import alarms, flags, train


def message_of(argv: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main(argv))
    return str(stop.value.code)


@pytest.mark.parametrize("experiment", [1, 2])
def test_a_killed_data_worker_ends_the_run_and_says_what_to_do(assets, tmp_path, monkeypatch, experiment):
    tokens = dataset.LazySupervisedDataset.tokens

    def dies(self, index):
        if get_worker_info() is not None and index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return tokens(self, index)

    monkeypatch.setattr(dataset.LazySupervisedDataset, "tokens", dies)
    text = message_of(flags(assets, tmp_path / "run", experiment, dataloader_num_workers=2))
    assert text.startswith("\nERROR: a data worker died (process ") and "memory ran out" in text
    assert "--dataloader_num_workers" in text and "--resume_from_checkpoint auto" in text


@pytest.mark.parametrize(
    ("error", "lever"),
    [
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left (28)"), "--shm-size"),
        (OSError(24, "Too many open files"), "ulimit -n"),
    ],
)
def test_a_batch_that_a_worker_cannot_hand_over_ends_the_run(assets, tmp_path, monkeypatch, capfd, error, lever):
    """Python prints the error and drops the batch, and the run waited for it for ever."""

    def fails(batch):
        if get_worker_info() is not None:
            raise error
        return dumps(batch)

    dumps = ForkingPickler.dumps
    monkeypatch.setattr(ForkingPickler, "dumps", fails)
    text = message_of(flags(assets, tmp_path / "run", 1, dataloader_num_workers=1, preflight="off"))
    assert text.startswith("\nERROR: a data worker died (process ") and "or a line above" in text
    shown = capfd.readouterr().err
    assert "a data worker cannot hand over its batch: " in shown and lever in shown


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_out_of_memory_names_the_levers(assets, tmp_path, monkeypatch, error):
    def fails(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(LlavaTrainer, "training_step", fails)
    text = message_of(flags(assets, tmp_path / "run", 1))
    assert text.startswith("\nERROR: out of memory (") and "more" not in text.split(")")[0]
    for lever in ("--per_device_train_batch_size", "--gradient_accumulation_steps", "--dataloader_num_workers"):
        assert lever in text


def test_a_data_worker_without_memory_names_the_levers(assets, tmp_path, monkeypatch):
    def fails(self, index):
        raise MemoryError

    monkeypatch.setattr(dataset.LazySupervisedDataset, "tokens", fails)
    text = message_of(flags(assets, tmp_path / "run", 1, dataloader_num_workers=1, preflight="off"))
    assert text.startswith("\nERROR: out of memory (Caught MemoryError in DataLoader worker") and "--bf16" in text


def test_a_clock_that_goes_backwards_changes_nothing(assets, tmp_path, monkeypatch):
    plain = train(assets, tmp_path / "plain")
    seconds = itertools.count()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600.0 * next(seconds))
    assert train(assets, tmp_path / "back", disable_tqdm=False, report_to="tensorboard") == plain
    log = json.loads((tmp_path / "back" / "trainer_state.json").read_text())["log_history"]
    for key in ("samples_per_second", "supervised_tokens_per_second", "data_wait_share", "monitor_share"):
        assert all(entry[key] >= 0 for entry in log if key in entry) and any(key in entry for entry in log)
    assert alarms(tmp_path / "back") == []
    found = dict(run_tasks(double_or_fail, ["a", "b", "hang"], 2, timeout=5))
    assert (found["a"], found["b"]) == ("aa", "bb") and found["hang"].kind == "took too long"
