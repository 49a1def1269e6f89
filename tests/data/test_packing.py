"""Packing: every sample once, rows balanced, no sample sees another, and off where it does not pay."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from llava.constants import FILLER_ID, IGNORE_INDEX
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.packing import (
    ATTENTION_LENGTH,
    CANDIDATES,
    LEAST_SAVING,
    TrainingCollator,
    pack_rows,
    sample_bounds,
)
from llava.data.prompt import video_tokens
from llava.model.builder import set_trainable
from llava.train.monitor.run_monitor import batch_sums
from llava.train.preflight.model import check_layout, look
from tests.conftest import SPEC


def samples_of(model, lengths: list[int], seed: int = 0) -> list[dict]:
    """Text samples of the lengths given; every second one of 20 tokens or more starts with a video."""
    generator = torch.Generator().manual_seed(seed)
    ids = (model.config.visual_token_ids or {}) if model.mm_projector is not None else {}
    samples = []
    for i, length in enumerate(lengths):
        words = torch.randint(1, 250, (length,), generator=generator)
        sample = {"sample_id": f"s{i}", "input_ids": words, "labels": words.clone()}
        if ids and length >= 20 and i % 2:
            span = torch.tensor([ids[t] for t in video_tokens(SPEC)])
            sample["input_ids"] = torch.cat([span, words])
            sample["labels"] = torch.cat([torch.full_like(span, IGNORE_INDEX), words])
            sample["video_features"] = torch.randn(1, SPEC.num_frames, 16, 24, generator=generator).half()
        samples.append(sample)
    return samples


@given(st.lists(st.integers(1, 400), min_size=1, max_size=70))
def test_every_sample_has_one_place_and_packing_never_costs_positions(lengths):
    rows = pack_rows(lengths)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(row == sorted(row) and row for row in rows)
    longest = max(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) * longest <= len(lengths) * max(lengths)
    assert longest >= max(lengths)


def all_layouts(lengths: list[int]) -> list[list[int]]:
    """`pack_rows` without leaving out the numbers of rows that cannot pay."""

    def cost(rows: list[list[int]]) -> float:
        length = max(sum(lengths[i] for i in row) for row in rows)
        return len(rows) * length * (1 + length / ATTENTION_LENGTH)

    best = [[i] for i in range(len(lengths))]
    least = cost(best) * (1 - LEAST_SAVING)
    for number in sorted({max(1, len(lengths) * k // CANDIDATES) for k in range(1, CANDIDATES)}):
        rows: list[list[int]] = [[] for _ in range(number)]
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            min(rows, key=lambda row: (sum(lengths[j] for j in row), rows.index(row))).append(i)
        if number < len(lengths) and cost(rows) < least:
            best, least = [sorted(row) for row in rows], cost(rows)
    return best


@given(st.lists(st.integers(1, 2000) | st.integers(1, 40), min_size=1, max_size=30))
def test_the_layout_is_the_best_of_all_numbers_of_rows(lengths):
    assert pack_rows(lengths) == all_layouts(lengths)


def test_rows_are_nearly_full_and_equal_lengths_stay_apart():
    rng = random.Random(0)
    lengths = [rng.randint(5, 60) for _ in range(32)]
    rows = pack_rows(lengths)
    assert sum(lengths) / (len(rows) * max(sum(lengths[i] for i in row) for row in rows)) > 0.9
    assert pack_rows([375] * 16) == [[i] for i in range(16)]
    assert pack_rows([7]) == [[0]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("vision", [False, True])
def test_loss_and_gradients_are_those_of_one_sample_a_row(build, attention, vision):
    model = build(vision=vision).eval()
    model.config._attn_implementation = attention
    samples = samples_of(model, [5, 44, 20, 31, 7, 26, 12, 9, 40, 6])
    plain = DataCollatorForSupervisedDataset(0)(samples)
    packed = TrainingCollator(0, templates=model.visual_templates())(samples)
    assert len(packed["input_ids"]) < len(plain["input_ids"]) and "position_ids" in packed
    assert sorted(packed["sample_ids"]) == sorted(plain["sample_ids"])
    found = []
    for batch in (plain, packed):
        model.zero_grad()
        output = model(**batch, return_logits=False)
        output.loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((output, grads))
    (one, one_grads), (other, other_grads) = found
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-6)
    assert sorted(one.token_losses[one.token_losses > 0].tolist()) == pytest.approx(
        sorted(other.token_losses[other.token_losses > 0].tolist()), rel=1e-4
    )
    assert one_grads.keys() == other_grads.keys()
    for name, grad in one_grads.items():
        assert torch.allclose(grad, other_grads[name], atol=1e-6), name
    ids = torch.tensor(sorted((model.config.visual_token_ids or {0: -1}).values()))
    sums = [batch_sums(o.token_losses, b, ids) for (o, _), b in zip(found, (plain, packed), strict=True)]
    assert torch.allclose(sums[0][:9], sums[1][:9], rtol=1e-5), "the monitor sees the same sums by modality"


def test_pre_flight_sees_samples_that_see_each_other(build):
    """On a fresh model the loss of the batch moves by thousandths only."""
    model = build(vision=False).eval()
    samples = samples_of(model, [5, 44, 20, 31, 7, 26, 12, 9])
    samples = [{**s, "sample_id": str(i)} for i, s in enumerate(samples)]
    training = TrainingCollator(0)(samples)
    plain = DataCollatorForSupervisedDataset(0)([samples[int(i)] for i in training["sample_ids"]])
    reference = look(model, plain, nullcontext)
    assert check_layout(model, reference, training, nullcontext)[0].status == "ok"
    mixed = {k: v for k, v in training.items() if k != "segment_ids"}  # A mask keeps padding apart, not samples.
    assert check_layout(model, reference, mixed, nullcontext)[0].status == "FAIL"


def test_a_word_of_another_sample_of_the_row_changes_nothing(build):
    model = build(vision=False).eval()
    samples = samples_of(model, [5, 6, 50, 7, 8])
    collate = TrainingCollator(0)
    before = collate(samples)
    segment = before["sample_ids"].index("s0")
    assert (before["segment_ids"] == segment).any(dim=1).nonzero().item() >= 0
    losses = [model(**before, return_logits=False).token_losses]
    samples[0]["input_ids"] = samples[0]["input_ids"] + 1
    samples[0]["labels"] = samples[0]["input_ids"].clone()
    losses.append(model(**collate(samples), return_logits=False).token_losses)
    own = before["segment_ids"][:, 1:] == segment
    assert torch.equal(losses[0][~own], losses[1][~own])
    assert not torch.equal(losses[0][own], losses[1][own])


def test_the_first_token_of_a_sample_is_no_target_of_the_one_before(build):
    model = build(vision=False)
    batch = TrainingCollator(0)(samples_of(model, [5, 6, 50, 7, 8]))
    starts = (batch["position_ids"] == 0) & (batch["segment_ids"] >= 0)
    assert starts.sum() == 5 and (batch["labels"][starts] == IGNORE_INDEX).all()
    assert len(batch["supervised_positions"]) == 4 + 5 + 49 + 6 + 7


def test_a_video_too_few_in_a_row_is_named(build):
    model = build()
    samples = samples_of(model, [5, 30, 6, 31])
    del samples[3]["video_features"]
    with pytest.raises(ValueError, match="sample 's3': 10 video positions in the text, but 0 video"):
        TrainingCollator(0, templates=model.visual_templates())(samples)


def test_stale_positions_of_labels_are_an_error(build):
    model = build(vision=False)
    batch = TrainingCollator(0)(samples_of(model, [5, 6, 50, 7, 8]))
    batch["labels"] = batch["labels"].clone()
    batch["labels"][batch["segment_ids"] == 0] = IGNORE_INDEX
    with pytest.raises(ValueError, match="not those of the labels"):
        model(**batch)


class Waits(TorchDispatchMode):
    """Names the operations whose result the host has to wait for on an accelerator."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lengths", [[5, 30, 6, 31, 8], [30, 30]])
def test_a_step_waits_for_no_result(build, lengths, monkeypatch):
    model = build().train()
    set_trainable(model, "mm_language_model,mm_mlp_adapter,mm_vision_resampler")
    batch = TrainingCollator(0, templates=model.visual_templates())(samples_of(model, lengths))
    # On CPU the model compares the positions that it was given with the labels.
    monkeypatch.setattr("llava.model.loss.torch.equal", lambda *_: True)
    monkeypatch.setattr("llava.model.loss.supervised_positions", lambda _: None)
    with Waits() as step:
        model(**batch).loss.backward()
    assert step.found == []


@pytest.mark.parametrize("pack", [True, False])
def test_fillers_stand_alone_or_not_at_all(build, pack):
    model = build()
    collate = TrainingCollator(0, templates=model.visual_templates(), pack=pack)
    filler = {"sample_id": FILLER_ID, "input_ids": torch.zeros(1).long(), "labels": torch.full((1,), IGNORE_INDEX)}
    samples = samples_of(model, [30, 25, 8])
    expected, found = collate(samples), collate([*samples, filler])
    assert found["sample_ids"] == expected["sample_ids"]
    assert torch.equal(found["input_ids"], expected["input_ids"])
    alone = collate([filler, filler])
    assert (alone["sample_ids"], len(alone["supervised_positions"])) == ([FILLER_ID], 0)
    sums = batch_sums(torch.zeros(1, 0), alone, torch.tensor([0]))
    assert not sums[:7].any(), "no tokens and no samples"


@pytest.mark.parametrize(("pack", "flat"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("multiple", [1, 32])
def test_rows_of_a_multiple_have_the_same_loss_and_gradients(build, pack, flat, multiple):
    model = build().eval()
    samples = samples_of(model, [5, 44, 20, 31, 7])
    found = []
    for collate in (
        TrainingCollator(0, model.visual_templates(), pack),
        TrainingCollator(0, model.visual_templates(), pack, flat=flat, multiple=multiple),
    ):
        batch = collate(samples)
        model.zero_grad()
        output = model(**batch, return_logits=False)
        output.loss.backward()
        found.append((output.loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert batch["input_ids"].shape[1] % multiple == len(batch["supervised_positions"]) % multiple == 0
    assert batch["labels"].shape == batch["segment_ids"].shape == batch["attention_mask"].shape
    assert len(batch["input_ids"]) == (len(samples) if not pack else 1) and ("cu_seq_lens_q" in batch) == flat
    torch.testing.assert_close(found[1][0], found[0][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_a_row_of_one_sample_is_not_padded_beyond_the_models_positions(build):
    collate = TrainingCollator(0, pack=False, multiple=32, longest=40)
    samples = samples_of(build(vision=False), [35, 36])
    assert collate(samples)["input_ids"].shape == (2, 40)


def test_bounds_of_a_padded_row_have_one_more_sample_whatever_the_padding():
    for lengths, padding in (([5, 6, 3], 2), ([5, 6, 5], 0)):
        found = sample_bounds(lengths, 16)
        assert found["cu_seq_lens_q"].tolist() == [0, 5, 11, sum(lengths), sum(lengths) + padding]
        assert found["max_length_q"] == 16 and isinstance(found["max_length_q"], int)
    assert sample_bounds([5, 6, 3])["cu_seq_lens_k"].tolist() == [0, 5, 11, 14]
    assert sample_bounds([5, 6, 3])["max_length_k"] == 6


def test_smoothed_labels_count_no_places_that_are_none(build):
    model = build(vision=False).eval()
    samples = samples_of(model, [5, 9])
    losses = [
        model(**TrainingCollator(0, multiple=m)(samples), return_logits=False, label_smoothing=0.1).loss
        for m in (1, 16)
    ]
    torch.testing.assert_close(*losses)
