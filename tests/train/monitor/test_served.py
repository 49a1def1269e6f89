"""What is served while a run trains: records of an epoch, and samples that must be those of their records."""

from __future__ import annotations

import json
import re

import pytest

from llava.constants import FILLER_ID
from llava.data.dataset import LazySupervisedDataset
from llava.train import run_flags
from llava.train import train as training
from llava.train.monitor.served import Served, ServedSamples, served_problem, shared_out
from tests.data.features.changed import serve_other_clips
from tests.train.runs import flags, train


def test_what_was_served_does_not_depend_on_its_order_and_fillers_do_not_count():
    one, other = Served(), Served()
    one.add(["a", "b", "c", FILLER_ID])
    other.add(["c", "a"])
    resumed = Served()
    resumed.restore(other.state())
    resumed.add(["b"])
    assert one.state() == resumed.state() and one.count == 3
    one.add(["a"])
    assert served_problem(["a", "b", "c"], one.hashes) == "1 served more than once ('a')"
    resumed.restore(None)
    assert resumed.state() is None


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_an_epoch_is_followed_on_in_other_processes(processes):
    before = [Served(), Served()]
    before[0].add(["a", "b"])
    before[1].add(["c"])
    after = [Served() for _ in range(processes)]
    for one, state in zip(after, shared_out([s.state() for s in before], processes), strict=True):
        one.restore(state)
    after[-1].add(["d"])
    whole = Served()
    whole.add("abcd")
    assert sum(one.count for one in after) == 4
    assert sum(one.total for one in after) % (1 << 64) == whole.total
    assert set(shared_out([[1, 2], None], 4)) == {None}, "what one of them does not know, nobody does"


def alarms(folder):
    path = folder / "alarms.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def after_preflight(monkeypatch, change):
    """`change(monkeypatch)` once pre-flight has passed."""
    check = training.run_preflight

    def then_change(*args):
        found = check(*args)
        change(monkeypatch)
        return found

    monkeypatch.setattr(training, "run_preflight", then_change)


def neighbours_caption(monkeypatch):
    tokens = LazySupervisedDataset.tokens
    monkeypatch.setattr(LazySupervisedDataset, "tokens", lambda self, i: tokens(self, (i + 1) % len(self)))


def neighbours_sample(monkeypatch):
    """The dataset's item under the id of another."""
    get = LazySupervisedDataset.__getitem__
    monkeypatch.setattr(
        LazySupervisedDataset,
        "__getitem__",
        lambda self, i: {**get(self, (i + 1) % len(self)), "sample_id": self.records[i].id},
    )


def masked(*places):
    def change(monkeypatch):
        tokens = LazySupervisedDataset.tokens

        def cut(self, index):
            ids, labels = (t.clone() for t in tokens(self, index))
            labels[list(places)] = -100
            return ids, labels

        monkeypatch.setattr(LazySupervisedDataset, "tokens", cut)

    return change


def neighbours_features(monkeypatch):
    serve_other_clips(
        monkeypatch, lambda path: path.replace(f"clip{path[-5]}", f"clip{(int(path[-5]) + 1) % 6}")
    )  # fmt: skip


def neighbours_frames(monkeypatch):
    read = LazySupervisedDataset.read_video

    def other(self, path, split):
        number = int(path[-5])
        return read(self, path.replace(f"clip{number}", f"clip{(number + 1) % 6}"), split)

    monkeypatch.setattr(LazySupervisedDataset, "read_video", other)


@pytest.mark.parametrize(
    ("change", "kind", "words", "options"),
    [
        (neighbours_caption, "words served", r"sample 'v\d' supervises '.*' instead of '", {}),
        (neighbours_caption, "words served", r"sample 't\d' supervises '.*' instead of '", {"experiment": 1}),
        (neighbours_sample, "words served", r"sample 'v\d' supervises '.*' instead of '", {}),
        (masked(-2, -3), "words served", "instead of", {}),
        (masked(-1), "words served", r"the end of sample 'v\d' is not supervised", {}),
        (neighbours_features, "features served", r"other features than those of .*clip\d\.mp4", {}),
        (neighbours_frames, "pixels served", r"other pixels than those of .*clip\d\.mp4", {"feature_cache": "off"}),
    ],
)
def test_data_that_change_after_pre_flight(change, kind, words, options, assets, tmp_path, monkeypatch):
    after_preflight(monkeypatch, change)
    train(assets, tmp_path / "run", max_steps=3, seed=1, **options)
    alarm = alarms(tmp_path / "run")[0]
    assert alarm["kind"] == kind and alarm["step"] <= 2
    assert re.search(words, alarm["message"])


@pytest.mark.parametrize("options", [{}, {"experiment": 1}, {"feature_cache": "off"}, {"feature_dtype": "int8"}])
def test_sound_data_are_silent(options, assets, tmp_path):
    train(assets, tmp_path / "run", max_steps=3, **options)
    assert alarms(tmp_path / "run") == []


def test_of_a_packed_batch_the_sample_that_changed_is_named(assets, tmp_path):
    argv = flags(assets, tmp_path / "run", per_device_train_batch_size=6)
    trainer = training.prepare(run_flags.parse_arguments(argv)).trainer
    dataset, collate = trainer.train_dataset, trainer.training_collator
    samples = [dataset[i] for i in range(6)]
    batch = collate(samples)
    assert len(batch["input_ids"]) < 6
    look = ServedSamples(dataset, trainer.processing_class)
    assert look.differences([batch]) == []
    changed = [{**sample, "labels": sample["labels"].clone()} for sample in samples]
    changed[3]["labels"][-4] = -100
    changed[4]["video_features"] = samples[0]["video_features"]
    found = [d for _ in range(6) for d in look.differences([collate(changed)])]
    assert {(kind, re.search(r"v\d", words)[0]) for kind, words in found} == {
        ("words served", "v3"),
        ("features served", "v4"),
    }
