"""A run that goes on in other processes is the same run: the same samples at every step, the same losses and weights.

The global batch is what a run keeps. How it is divided over processes and accumulated batches changes who has a
sample, and nothing else.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.data import BatchSampler

from llava.constants import FILLER_INDEX
from llava.data.blind import BlindDraw
from llava.data.sampler import ModalityLengthSampler
from tests.conftest import CAPTIONS, record
from tests.train.forked import follow, served
from tests.train.processes import run_script
from tests.train.runs import alarms, flags, losses, train

KINDS = st.sampled_from(["text", "video", "image"])
DIVISIONS = [(p, a) for p in (1, 2, 4) for a in (1, 2, 3)]
"""Processes and accumulated batches."""


def step_samples(sampler: ModalityLengthSampler, processes: int, accumulated: int, size: int) -> list[list[int]]:
    """The samples of each optimiser step of an epoch, over all processes, as accelerate's loader hands them out."""
    batches = BatchSampler(sampler, size, sampler.kept < len(sampler.lengths))
    shards = [BatchSamplerShard(batches, processes, r) for r in range(processes)] if processes > 1 else [batches]
    ranks = [list(shard) for shard in shards]
    assert len({len(rank) for rank in ranks}) == 1, "no process waits for another"
    return [
        sorted(i for rank in ranks for batch in rank[k : k + accumulated] for i in batch if i != FILLER_INDEX)
        for k in range(0, len(ranks[0]), accumulated)
    ]


@given(
    st.lists(st.tuples(st.integers(1, 400), KINDS), max_size=60), st.integers(1, 2), st.integers(0, 9), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_the_samples_of_a_step_depend_on_the_global_batch_and_not_on_its_division(
    samples, factor, epoch, grouped, drop_last
):
    lengths, kinds = [n for n, _ in samples], [k for _, k in samples]
    whole = 24 * factor

    def steps(processes: int, accumulated: int) -> list[list[int]]:
        size = whole // processes // accumulated
        share = size * processes if processes > 1 else 1
        blind = BlindDraw(np.arange(len(kinds), dtype=np.uint64), np.array(kinds, dtype=object) != "text", 0.5, 7)
        sampler = ModalityLengthSampler(lengths, kinds, whole, 7, grouped, share, drop_last, blind)
        sampler.set_epoch(epoch)
        return step_samples(sampler, processes, accumulated, size)

    expected = steps(1, 1)
    assert all(steps(p, a) == expected for p, a in DIVISIONS)
    kept = len(samples) - (len(samples) % whole if drop_last else 0)
    places = [i % len(samples) for step in expected for i in step]
    assert len(set(places)) == len(places) == kept, "with its video or without, each has one turn"
    assert all(kinds[i - len(samples)] != "text" for step in expected for i in step if i >= len(samples))


@pytest.fixture(scope="module")
def options(assets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Epochs of two steps, of eight samples and of five, of clips and of texts; saved in the middle of the second and
    of the third.
    """
    folder = tmp_path_factory.mktemp("elastic")
    clips = [record(f"v{i}", text, f"clip{i}.mp4") for i, text in enumerate(CAPTIONS)]
    texts = [record(f"t{i}", text) for i, text in enumerate([*CAPTIONS, "Piove."])]
    (folder / "train.json").write_text(json.dumps(clips + texts))
    return {
        "data_path": folder / "train.json", "feature_cache": folder / "features", "max_steps": 8,
        "save_strategy": "steps", "save_steps": 1, "preflight": "off", "controls": False, "save_words": "70,140,280",
    }  # fmt: skip


def divided(size: int, accumulated: int) -> dict[str, int]:
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}


@pytest.fixture(scope="module")
def folders(assets: SimpleNamespace, options: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The runs by their number of processes: cut in the middle of the second and of the third epoch, and each to the
    end. Those of several compute some steps twice; in the first pass of rank 1 of 2 a bit is turned.
    """
    root = tmp_path_factory.mktemp("runs")
    folders = {n: root / str(n) for n in (1, 4, 2)}
    with pytest.MonkeyPatch.context() as patch:
        follow(patch.setattr)
        train(assets, folders[1], **options, **divided(8, 1))
    runs = [
        (
            now,
            flags(
                assets, folders[now], resume_from_checkpoint=folders[before] / cut, replay_every=3,
                **options, **division,
            ),
            ["tests.train.forked.follow", *plants],
        )
        for before, now, cut, division, plants in (
            (1, 4, "checkpoint-3", divided(1, 2), []),
            (4, 2, "checkpoint-5", divided(2, 2), ["tests.train.forked.flip_on_rank_1"]),
        )
    ]  # fmt: skip
    run_script("tests/train/forked.py", *map(json.dumps, runs))
    return folders


@pytest.mark.slow
def test_a_run_goes_on_in_four_processes_and_then_in_two(folders):
    order, _ = served(folders[1])
    assert list(order) == list(range(1, 9)) and [len(ids) for ids in order.values()] == [8, 5] * 4
    assert len(set(map(tuple, order.values()))) == 8, "each epoch has an order of its own"
    for processes, first in ((4, 4), (2, 6)):
        folder = folders[processes]
        steps, divisions = served(folder)
        assert steps == {step: ids for step, ids in order.items() if step >= first}
        assert divisions == {(processes, 2)}
        assert losses(folder) == pytest.approx(losses(folders[1]), abs=1e-5)
        a, b = (load_file(f / "model.safetensors") for f in (folders[1], folder))
        assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)
    assert alarms(folders[1]) == alarms(folders[4]) == [], "every record had one turn an epoch, also the cut one"


@pytest.mark.slow
def test_words_are_counted_over_processes_and_resumption(folders, options):
    order, _ = served(folders[1])
    rows = {row["id"]: row["conversations"] for row in json.loads(options["data_path"].read_text())}
    words = {
        name: sum(len(turn["value"].replace("<video>", "").split()) for turn in turns) for name, turns in rows.items()
    }
    total, passed = 0, {}
    for step, ids in order.items():
        before, total = total, total + sum(words[name] for name in ids)
        passed |= {n: (step, total) for n in (70, 140, 280) if before < n <= total}
    assert passed[70][0] <= 3 < passed[140][0] <= 5 < passed[280][0], "before, between and after the cuts"
    for processes, expected in ((1, {70, 140, 280}), (4, {140, 280}), (2, {280})):
        found = [json.loads(p.read_text()) for p in folders[processes].glob("chck_*/milestone.json")]
        assert {meta["milestone"]: (meta["step"], meta["words"]) for meta in found} == {n: passed[n] for n in expected}


@pytest.mark.slow
def test_the_process_whose_gradient_differs_is_named(folders):
    (alarm,) = alarms(folders[2])
    assert (alarm["step"], alarm["kind"]) == (6, "replay")
    assert re.search(
        r"differ: rank 1, batch 1: 1 of \d+ \(mm_projector.0.weight; the loss is the same\)\. So far 1 of 1 ",
        alarm["message"],
    )
