"""Arms of an experiment: V and M differ in what is seen alone, and T serves the same words in the same order."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava.constants import RUN_RECORD
from llava.data.dataset import LazySupervisedDataset
from llava.errors import UserError
from llava.train import run_flags
from llava.train.monitor.served import ServedSamples
from llava.train.setup import prepare
from scripts.chaos import differences
from tests.conftest import CAPTIONS, record
from tests.train.runs import alarms, flags, train

BLIND = {"blind_share": 0.5}
ARMS: dict[str, dict[str, Any]] = {
    "T": {"experiment": 1, "text_only": True},
    "V": BLIND,
    "M": BLIND | {"other_clips": 7},
}
VISION = {"video_features", "pixel_values_videos"}


@pytest.fixture(scope="module")
def data(assets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two captions of each clip, and a text without one."""
    rows = [record(f"v{i}-{n}", t, f"clip{i}.mp4") for i, t in enumerate(CAPTIONS) for n, t in enumerate([t, t[::-1]])]
    path = tmp_path_factory.mktemp("arms") / "train.json"
    path.write_text(json.dumps([*rows, record("t", "Piove.")]))
    return path


def trainer_of(assets: SimpleNamespace, folder: Path, arm: str, **options: Any) -> Any:
    values = {"seed": 3, "per_device_train_batch_size": 4, "num_train_epochs": 2, "max_steps": -1} | ARMS[arm] | options
    return prepare(run_flags.parse_arguments(flags(assets, folder / arm, **values))).trainer


def epochs_of(trainer: Any, number: int = 2) -> list[dict[str, Any]]:
    """The training batches of some epochs."""
    loader, batches = trainer.get_train_dataloader(), []
    for epoch in range(number):
        trainer.sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"group_by_modality_length": True, "dataloader_num_workers": 2},
        {"packing": False, "feature_cache": "off"},
    ],
)
def test_v_and_m_differ_in_what_is_seen_and_t_has_their_words(options, assets, data, tmp_path):
    made = {arm: trainer_of(assets, tmp_path, arm, data_path=data, **options) for arm in ARMS}
    served = {arm: epochs_of(trainer) for arm, trainer in made.items()}
    seen = blind = 0
    for own, other in zip(served["V"], served["M"], strict=True):
        assert own.keys() == other.keys()
        for key in own.keys() - VISION:
            same = torch.equal(own[key], other[key]) if torch.is_tensor(own[key]) else own[key] == other[key]
            assert same, key
        for key in own.keys() & VISION:
            flat = [batch[key].flatten(1) for batch in (own, other)]
            assert (flat[0] != flat[1]).any(1).all(), "no clip is shown its own video"
            seen += len(flat[0])
        blind += int((own["num_videos"] == 0).sum())
    assert seen + blind == 2 * 13 and 4 < seen < 22, (seen, blind)
    if "group_by_modality_length" in options:
        return  # Lengths order the samples there, and a text alone is shorter than one beside a video.
    for own, text in zip(served["V"], served["T"], strict=True):
        assert words_by_id(made["V"], own) == words_by_id(made["T"], text)


def words_by_id(trainer: Any, batch: dict[str, Any]) -> dict[str, list[int]]:
    """The targets of each sample of a batch, in the order of the batch as it was drawn."""
    segments, labels = batch["segment_ids"].flatten(), batch["labels"].flatten()
    return {name: labels[(segments == n) & (labels != -100)].tolist() for n, name in enumerate(batch["sample_ids"])}


def test_the_order_of_t_is_that_of_v(assets, data, tmp_path):
    orders = {}
    for arm in ARMS:
        sampler = trainer_of(assets, tmp_path, arm, data_path=data)._get_train_sampler()
        sampler.set_epoch(5)
        orders[arm] = list(sampler)
    assert [i % 13 for i in orders["V"]] == orders["T"] and orders["V"] == orders["M"] != orders["T"]


@pytest.mark.parametrize("version", ["plain", "chatml"])
def test_a_blind_sample_is_that_of_an_experiment_on_text_to_the_token(version, assets, data, tmp_path):
    text = trainer_of(assets, tmp_path, "T", data_path=data, version=version).train_dataset
    for arm in "VM":
        dataset = trainer_of(assets, tmp_path, arm, data_path=data, version=version).train_dataset
        for i in range(len(dataset)):
            alone, wanted = dataset[len(dataset) + i], text[i]
            assert alone.keys() == wanted.keys() == {"input_ids", "labels", "sample_id"}
            assert alone["sample_id"] == wanted["sample_id"]
            assert torch.equal(alone["input_ids"], wanted["input_ids"])
            assert torch.equal(alone["labels"], wanted["labels"])
    assert dataset.alone.prepared is not None, "from the prepared table, as there"


@pytest.mark.parametrize("arm", ["V", "M"])
def test_a_whole_run_is_recorded_measured_on_its_own_clips_and_silent(arm, assets, data, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / arm
    # After so few steps nothing is seen, which is an alarm where it is judged; that of M is its purpose.
    evaluated = {"eval_data_path": data} if arm == "M" else {}
    train(assets, folder, data_path=data, max_steps=8, run_report=True, **evaluated, **ARMS[arm])
    assert alarms(folder) == []
    kept = json.loads((folder / RUN_RECORD).read_text())["arm"]
    assert kept["blind"] == {"share": 0.5, "seed": 42, "records": 12}
    assert (kept["other_clips"] is None) == (arm == "V")
    checks = {c["check"]: c for c in json.loads((folder / "preflight.json").read_text())["checks"]}
    assert checks["blind share"]["status"] == "ok" and "12 of them compared" in checks["blind share"]["finding"]
    assert ("other clips" in checks) == (arm == "M") and checks["labels, text"]["status"] == "ok"
    told = (
        "each record another clip (6 clips exchanged by content, seed 7)" if arm == "M" else "each record its own clip"
    )
    told += "; without it 50 % of 12 records, drawn anew each epoch"
    assert f"shown in training: {told}" in caplog.text
    page = re.sub(r"<[^>]*>", " ", (folder / "report.html").read_text())
    assert told in page and told in (folder / "README.md").read_text()


def test_evaluation_shows_each_clip_its_own_video_in_every_arm(assets, data, tmp_path):
    dataset = trainer_of(assets, tmp_path, "M", data_path=data, eval_data_path=data)
    held_out, trained = dataset.eval_dataset, dataset.train_dataset
    assert held_out.others is held_out.blind is held_out.alone is None
    for i in range(12):
        assert held_out.shown(i) == trained.own().shown(i) != trained.shown(i)


def test_a_run_that_was_cut_goes_on_exactly(assets, data, tmp_path):
    options = ARMS["M"] | {
        "data_path": data, "save_strategy": "steps", "save_steps": 2, "preflight": "off", "max_steps": 8, "seed": 3,
        "resume_from_checkpoint": "auto", "dataloader_num_workers": 2, "per_device_train_batch_size": 3,
        "controls": False,
    }  # fmt: skip
    train(assets, tmp_path / "whole", **options)
    train(assets, tmp_path / "cut", **options)
    for name in ("checkpoint-8", "checkpoint-6"):
        remove(tmp_path / "cut" / name)
    for path in (tmp_path / "cut").iterdir():
        if path.is_file():
            path.unlink()
    train(assets, tmp_path / "cut", **options)
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("arm", "change"), [("V", {"blind_share": 0.4}), ("V", {"other_clips": 7}), ("M", {"other_clips": 8})]
)
def test_a_run_that_goes_on_stays_in_its_arm(arm, change, assets, data, tmp_path):
    options = {"data_path": data, "save_strategy": "steps", "save_steps": 1, "preflight": "off", "controls": False}
    train(assets, tmp_path / "run", max_steps=1, **options | ARMS[arm])
    options |= {"resume_from_checkpoint": True, "confirm_changes": True, "max_steps": 2}
    with pytest.raises(UserError, match=rf"--{next(iter(change))} *: was .*\(cannot change: a run that had both"):
        train(assets, tmp_path / "run", **options | ARMS[arm] | change)


def test_a_run_whose_clips_have_changed_does_not_go_on(assets, data, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for path in assets.clips.iterdir():
        (clips / path.name).write_bytes(path.read_bytes())
    options = ARMS["M"] | {
        "data_path": data, "video_folder": clips, "save_strategy": "steps", "save_steps": 1, "preflight": "off",
        "controls": False,
    }  # fmt: skip
    train(assets, tmp_path / "run", max_steps=1, **options)
    (clips / "clip0.mp4").write_bytes((assets.clips / "clip0.mp4").read_bytes() + b"\0")
    with pytest.raises(UserError, match="--other_clips 7: the run that is resumed exchanged 6 clips in another way"):
        train(assets, tmp_path / "run", max_steps=2, resume_from_checkpoint=True, confirm_changes=True, **options)


@pytest.mark.parametrize("name", ["other_clips", "blind_share"])
def test_without_a_tower_there_is_nothing_to_show(name, assets, tmp_path):
    with pytest.raises(UserError, match=f"--{name} 0.*no --vision_tower|--{name} 1: .*no --vision_tower"):
        run_flags.parse_arguments(flags(assets, tmp_path / "run", 1, **{name: {"other_clips": 1}.get(name, 0.5)}))


def test_records_of_text_alone_are_refused(assets, tmp_path):
    with pytest.raises(UserError, match="no training record has a video or an image"):
        trainer_of(assets, tmp_path, "V", data_path=assets.text_json, mm_tunable_parts="mm_language_model")


def own_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is served is each record's own clip again."""
    get = LazySupervisedDataset.__getitem__
    monkeypatch.setattr(LazySupervisedDataset, "__getitem__", lambda self, i: get(self.own(), i))


def never_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    get = LazySupervisedDataset.__getitem__
    monkeypatch.setattr(LazySupervisedDataset, "__getitem__", lambda self, i: get(self, i % len(self)))


@pytest.mark.parametrize(
    ("change", "words"),
    [(own_features, "with other features than those of"), (never_blind, "1 videos and images instead of 0, since")],
)
def test_the_monitor_sees_what_is_served(change, words, assets, data, tmp_path, monkeypatch):
    trainer = trainer_of(assets, tmp_path, "M", data_path=data)
    look, batches = ServedSamples(trainer.train_dataset, trainer.processing_class), epochs_of(trainer)
    assert [d for e in range(2) for b in batches[4 * e : 4 * e + 4] for d in look.differences([b], e)] == []
    assert look.differences([batches[0]], epoch=1), "the draw of another epoch"
    change(monkeypatch)
    found = [d for b in epochs_of(trainer, 1) for d in look.differences([b], 0)]
    assert found and all(words in message for _, message in found), found
