"""A run that is cut and goes on is the run that never was: weights, optimiser, order, random numbers, logs, metrics."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel

from llava.errors import Stopped
from llava.train.checkpoint import resume
from llava.train.checkpoint.files import write_manifest
from llava.train.checkpoint.stop import Stop
from scripts.chaos import differences, same
from tests.conftest import record
from tests.train.runs import losses, train


def assert_same_run(a: Path, b: Path) -> None:
    """Everything that two finished runs wrote, times apart, with their last checkpoints."""
    assert differences(a, b) == []


class StopAt:
    """Asks a run to stop when it looks for the n-th time; one look follows each step and precedes each batch of an
    evaluation.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, look: int) -> None:
        self.looks = 0

        def requested(stop: Stop) -> bool:
            self.looks += 1
            if self.looks >= look:
                stop.reason = "the test"
            return stop.reason is not None

        monkeypatch.setattr(Stop, "requested", requested)


@pytest.fixture(scope="module")
def lively(assets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The assets with a model that drops out, so that random numbers count, and with seven records."""
    root = tmp_path_factory.mktemp("lively")
    config = AutoConfig.from_pretrained(assets.gpt2)
    config.resid_pdrop = config.embd_pdrop = 0.2
    torch.manual_seed(1)
    GPT2LMHeadModel(config).save_pretrained(root / "gpt2")
    AutoTokenizer.from_pretrained(assets.gpt2).save_pretrained(root / "gpt2")
    paths = {"gpt2": root / "gpt2"}
    for kind in ("video", "text"):
        records = json.loads(getattr(assets, f"{kind}_json").read_text())
        records.append(record("seventh", "Una nave lenta.", "clip0.mp4" if kind == "video" else None))
        path = paths[f"{kind}_json"] = root / f"{kind}.json"
        path.write_text(json.dumps(records))
    return SimpleNamespace(**{**vars(assets), **paths})


OPTIONS = {
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 10, "logging_steps": 3,
    "save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 4,
    "resume_from_checkpoint": "auto",
    "preflight": "off", "controls_samples": 4, "per_device_eval_batch_size": 3,
}  # fmt: skip


def evaluated(assets: SimpleNamespace, experiment: int) -> dict[str, Any]:
    return OPTIONS | {"eval_data_path": assets.video_json if experiment == 2 else assets.text_json}


@pytest.mark.parametrize(
    ("experiment", "workers", "looks", "every"),
    [(1, 0, (3, 4, 6), 2), (1, 2, (4, 7), 2), (2, 0, (3, 6, 8), 1), (2, 2, (5, 9), 1)],
)
def test_stopped_again_and_again(lively, tmp_path, monkeypatch, experiment, workers, looks, every):
    """Seven records in steps of two: four steps an epoch, the last one uneven. Stopped after steps, at the end of an
    epoch and in evaluations, later and later, so that the run advances.
    """
    options = evaluated(lively, experiment) | {"dataloader_num_workers": workers}
    train(lively, tmp_path / "whole", experiment, **options)
    reasons = []
    for attempt in range(60):
        with monkeypatch.context() as patch:
            # The first look comes before training.
            StopAt(patch, looks[attempt % len(looks)] + attempt // every)
            try:
                train(lively, tmp_path / "cut", experiment, **options)
                break
            except Stopped:
                note = json.loads((tmp_path / "cut" / "stopped.json").read_text())
                progress = json.loads((Path(note["checkpoint"]) / "progress.json").read_text())
                reasons.append((note["step"], progress["evaluation_due"]))
    assert not (tmp_path / "cut" / "stopped.json").exists()
    assert len(reasons) > 2 and {due for _, due in reasons} == {False, True}
    assert {4, 8} & {step for step, _ in reasons}, "the end of an epoch"
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


CUT = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "preflight": "off", "resume_from_checkpoint": "auto"}


@pytest.fixture(scope="module")
def finished(assets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on text with checkpoints at steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(assets, folder, 1, **CUT)
    return folder


@pytest.fixture
def cut(finished: Path, tmp_path: Path) -> Path:
    """What a run that was killed after step 4 leaves."""
    shutil.copytree(finished / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    return tmp_path / "run"


def test_a_killed_run_equals_one_that_was_not(assets, finished, cut):
    train(assets, cut, 1, **CUT)
    assert_same_run(finished, cut)


@pytest.mark.parametrize("seconds", [1000.0, None])
def test_the_time_before_a_run_was_resumed_counts(assets, cut, seconds):
    path = cut / "checkpoint-4" / "progress.json"
    progress = json.loads(path.read_text())
    assert 0 < progress["seconds"] < 1000
    path.write_text(
        json.dumps({k: v for k, v in progress.items() if k != "seconds"} | ({"seconds": seconds} if seconds else {}))
    )
    write_manifest(cut / "checkpoint-4")
    train(assets, cut, 1, **CUT)
    (entry,) = (e for e in json.loads((cut / "trainer_state.json").read_text())["log_history"] if "train_runtime" in e)
    if seconds is None:
        assert "total_train_runtime" not in entry, "a checkpoint of an earlier commit did not count"
    else:
        assert entry["total_train_runtime"] == pytest.approx(1000 + entry["train_runtime"], abs=1e-3)


@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_finished_run_is_not_trained_any_further(assets, tmp_path, monkeypatch, step):
    """Resumed at its end, in the middle of an epoch (of three steps) and at its end."""
    options = CUT | {"max_steps": step, "save_steps": step}
    whole = train(assets, tmp_path, 1, **options)
    before = load_file(tmp_path / "model.safetensors")
    monkeypatch.setattr("llava.train.trainer.LlavaTrainer.training_step", None)
    assert train(assets, tmp_path, 1, **options) == whole
    assert same(before, load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("asked", ["auto", "True", "checkpoint-2"])
def test_a_checkpoint_without_optimiser_is_refused_however_it_was_chosen(assets, tmp_path, asked):
    """With auto, the run went on with a fresh optimiser and schedule, without a word."""
    run = tmp_path / "run"
    train(assets, tmp_path / "whole", 1, **CUT | {"save_only_model": True})
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", run / "checkpoint-2")
    asked = str(run / asked) if asked.startswith("checkpoint") else asked
    with pytest.raises(FileNotFoundError, match=r"lacks scheduler.pt, optimizer.pt \(.*saved with --save_only_model"):
        train(assets, run, 1, **CUT | {"save_only_model": True, "resume_from_checkpoint": asked})


def test_a_stopped_run_goes_on_although_it_saves_the_model_alone(assets, tmp_path, monkeypatch):
    options = CUT | {"save_only_model": True}
    whole = train(assets, tmp_path / "whole", 1, **options)
    with monkeypatch.context() as patch:
        StopAt(patch, 4)
        with pytest.raises(Stopped):
            train(assets, tmp_path / "run", 1, **options)
    assert train(assets, tmp_path / "run", 1, **options) == whole


def test_evaluating_does_not_change_the_training(lively, tmp_path):
    quiet = train(lively, tmp_path / "quiet", **CUT)
    loud = train(lively, tmp_path / "loud", **CUT | {"eval_data_path": lively.video_json, "eval_strategy": "steps",
                                                     "eval_steps": 1, "dataloader_num_workers": 1})  # fmt: skip
    assert quiet == loud


def test_changed_flags_are_a_table(assets, cut):
    with pytest.raises(ValueError) as error:
        train(assets, cut, 1, **CUT | {"learning_rate": 0.1, "max_steps": 9, "max_grad_norm": 2.0})
    lines = str(error.value).splitlines()
    assert (
        "  --learning_rate: was 0.001, is 0.1 (cannot change: the optimiser's saved state holds the old value)" in lines
    )
    assert "  --max_grad_norm: was 1.0, is 2.0" in lines and "  --max_steps    : was 6, is 9" in lines


def test_changes_that_can_work_are_confirmed(assets, cut, caplog):
    changes = CUT | {"max_steps": 9, "confirm_changes": True}
    with pytest.raises(ValueError, match="cannot change"):
        train(assets, cut, 1, **changes | {"weight_decay": 0.1})
    with pytest.raises(ValueError, match="cannot change: the saved weights"):
        train(assets, cut, 1, **changes | {"num_frames": 2})
    assert len(train(assets, cut, 1, **changes)) == 9
    assert "as --confirm_changes confirms:\n  --max_steps: was 6, is 9" in caplog.text


def test_another_division_of_the_same_batch_goes_on_at_the_same_sample(assets, finished, cut, caplog):
    options = CUT | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    with caplog.at_level(logging.INFO):
        assert train(assets, cut, 1, **options) == pytest.approx(losses(finished), abs=1e-4)
    assert (
        "the global batch of 2 samples is now 1 a device x 2 accumulated x 1 processes (it was 2 a device x 1 "
        "accumulated x 1 processes): the run goes on at the same sample" in caplog.text
    )


def test_another_batch_is_refused_with_the_flags_that_keep_it(assets, cut):
    with pytest.raises(ValueError, match=r"--per_device_train_batch_size 2 --gradient_accumulation_steps 1$"):
        train(assets, cut, 1, **CUT | {"per_device_train_batch_size": 3, "confirm_changes": True})


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        (1, "--per_device_train_batch_size 4 --gradient_accumulation_steps 3"),
        (3, "--per_device_train_batch_size 4 --gradient_accumulation_steps 1"),
        (12, "--per_device_train_batch_size 1 --gradient_accumulation_steps 1"),
        (5, r"5 processes cannot share 12 samples; use one of \[1, 2, 3, 4, 6, 12\]"),
    ],
)
def test_the_batch_of_other_processes(processes, words):
    before = {"batch": {"global": 12, "per_device": 4, "accumulation": 1, "processes": 3}, "flags": {}}
    now = {
        "batch": {"global": 4 * processes + 1, "per_device": 4, "accumulation": 1, "processes": processes}, "flags": {}
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        resume._check_batch("checkpoint-1", before, now)


def test_deepspeed_keeps_its_processes():
    division = {"global": 4, "per_device": 2, "accumulation": 1, "processes": 2}
    now = {"batch": division | {"accumulation": 2, "processes": 1}, "flags": {"deepspeed": "zero2.json"}}
    with pytest.raises(ValueError, match="cut for 2 processes, now there are 1"):
        resume._check_batch("checkpoint-1", {"batch": division, "flags": {}}, now)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r[1]["conversations"][1].update(value="Altro."), "6 before, 6 now.*at record 't1' .number 2"),
        (lambda r: r.append(record("new", "Un gatto.")), "6 before, 7 now.*at record 'new' .number 7"),
        (lambda r: r.pop(), "6 before, 5 now.*at the end of the file"),
        (lambda r: r.reverse(), "6 before, 6 now.*at record 't5' .number 1"),
    ],
)
def test_changed_data_is_refused(assets, cut, tmp_path, change, words):
    records = json.loads(assets.text_json.read_text())
    change(records)
    kept = assets.text_json.read_text()
    try:
        assets.text_json.write_text(json.dumps(records))
        with pytest.raises(ValueError, match=words):
            train(assets, cut, 1, **CUT)
    finally:
        assets.text_json.write_text(kept)


def test_changed_data_is_confirmed(assets, cut, tmp_path, caplog):
    path = tmp_path / "less.json"
    path.write_text(json.dumps(json.loads(assets.text_json.read_text())[:4]))
    train(assets, cut, 1, data_path=path, **CUT | {"confirm_changes": True})
    assert "6 before, 4 now" in caplog.text and "--data_path: was" in caplog.text


def test_a_folder_of_clips_may_move(assets, tmp_path):
    train(assets, tmp_path / "run", **CUT | {"max_steps": 2})
    shutil.copytree(assets.clips, tmp_path / "moved")
    (tmp_path / "run" / "llava_run.json").unlink()
    again = train(assets, tmp_path / "run", video_folder=tmp_path / "moved", **CUT | {"max_steps": 2})
    assert len(again) == 2


def test_a_later_checkpoint_is_not_overtaken(assets, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"holds checkpoints after step 2 \(checkpoint-4, checkpoint-6\)"):
        train(assets, tmp_path / "run", 1, **CUT | {"resume_from_checkpoint": tmp_path / "run" / "checkpoint-2"})
    branch = CUT | {"resume_from_checkpoint": tmp_path / "run" / "checkpoint-2"}
    assert train(assets, tmp_path / "branch", 1, **branch) == losses(finished)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_in_a_checkpoint_is_not_run(assets, cut, tmp_path, name):
    """With a manifest that fits, since who plants one can write the other too."""
    mark = tmp_path / "ran"
    path = cut / "checkpoint-4" / name
    assert path.is_file()
    torch.save({"state": Malicious(mark)}, path)
    write_manifest(path.parent)
    if name == "training_args.bin":
        train(assets, cut, 1, **CUT)  # Nobody reads it.
    else:
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            train(assets, cut, 1, **CUT)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the test's own pickle works"


def test_pickled_weights_are_refused(assets, cut, tmp_path):
    weights = cut / "checkpoint-4" / "model.safetensors"
    torch.save({"state": Malicious(tmp_path / "ran")}, weights.with_name("pytorch_model.bin"))
    for keep in (True, False):
        if not keep:
            weights.unlink()
        write_manifest(weights.parent)
        for asked in ("auto", weights.parent):
            with pytest.raises(ValueError, match=r"pytorch_model\.bin, weights in a pickle.*convert it"):
                train(assets, cut, 1, **CUT | {"resume_from_checkpoint": asked})
    assert not (tmp_path / "ran").exists()


def test_foreign_code_in_states_of_deepspeed_is_refused(assets, cut, tmp_path):
    path = cut / "checkpoint-4" / "global_step4" / "mp_rank_00_model_states.pt"
    path.parent.mkdir()
    for content, refused in (({"module": torch.ones(2)}, False), ({"module": Malicious(tmp_path / "ran")}, True)):
        torch.save(content, path)
        write_manifest(cut / "checkpoint-4")
        if refused:
            with pytest.raises(ValueError, match=r"mp_rank_00_model_states\.pt is a pickle that asks for posix\.mkdir"):
                train(assets, cut, 1, **CUT)
        else:
            resume.refuse_pickles(cut / "checkpoint-4")
    assert not (tmp_path / "ran").exists()
