"""Pre-flight says what an arm shows, and fails where it is not what was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from llava.train import run_flags
from llava.train.preflight.arms import check_arm
from llava.train.setup import prepare
from tests.train.runs import flags


@pytest.fixture
def dataset(assets, tmp_path):
    argv = flags(assets, tmp_path / "run", other_clips=1, blind_share=0.5)
    return prepare(run_flags.parse_arguments(argv)).trainer.train_dataset


def findings(dataset):
    return check_arm(dataset, {i: dataset[i] for i in range(len(dataset))})


def test_what_is_shown_is_said(dataset):
    others, blind = findings(dataset)
    assert (others.status, blind.status) == ("ok", "ok")
    assert "6 records are shown clips that are none of their own, by content; the features of 6" in others.finding
    assert "of 6 records are shown without their video in the first epoch" in blind.finding
    dataset.others = dataset.alone = None
    assert findings(dataset) == []


def test_a_clip_in_its_own_place_is_a_reason_not_to_train(dataset):
    dataset.others = replace(dataset.others, shown=np.arange(6))
    (found,) = [f for f in findings(dataset) if f.status == "FAIL"]
    assert "'v0' is shown" in found.finding and "one of its own" in found.finding


def test_features_of_another_clip_than_the_one_that_is_meant(dataset):
    samples = {i: dataset.own()[i] for i in range(3)}
    (found,) = [f for f in check_arm(dataset, samples) if f.status == "FAIL"]
    assert "'v0' is served other features than those of" in found.finding


def test_a_blind_sample_that_is_not_its_text_alone(dataset, monkeypatch):
    monkeypatch.setattr(dataset.alone, "tokens", lambda index: (torch.tensor([1, 2, 3]),) * 2)
    (found,) = [f for f in findings(dataset) if f.status == "FAIL"]
    assert "'v0', shown blind, is another sample than its text alone" in found.finding
