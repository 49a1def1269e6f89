"""Half weights made at once: the numbers of autocast bit for bit, fresh after every step, in one operation."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.kernels import Kernels
from llava.data.packing import TrainingCollator
from llava.model.builder import set_trainable
from llava.train import half_weights
from llava.train.half_weights import HalfWeights
from tests.data.test_packing import samples_of
from tests.train.runs import alarms, train


@pytest.fixture
def made(build):
    model = build().train()
    set_trainable(model, "mm_language_model,mm_mlp_adapter,mm_vision_resampler")
    batches = [
        TrainingCollator(0, model.visual_templates())(samples_of(model, [5, 30, 6, 31], seed)) for seed in (0, 1)
    ]
    return model, batches


def steps(model, batches, half, number=3):
    """Losses, and weights after some steps of two accumulated batches each."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(number):
        optimizer.zero_grad()
        if half is not None:
            half.forget()
        for batch in batches:
            with half.used() if half is not None else nullcontext(), torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    return losses, [p.detach() for p in model.parameters()]


def test_losses_and_weights_are_those_of_autocast(made):
    model, batches = made
    plain = copy.deepcopy(model)
    half = HalfWeights(model, torch.bfloat16)
    assert len(half.places) > 8
    found, expected = steps(model, batches, half), steps(plain, batches, None)
    assert found[0] == expected[0]
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert torch.equal(ours, theirs)
    assert all(isinstance(p, torch.nn.Parameter) for p in model.parameters())
    assert model.lm_head.weight is model.transformer.wte.weight


def test_weights_that_were_written_to_are_made_anew(made):
    model, batches = made
    half = HalfWeights(model, torch.bfloat16)
    with half.used():
        before = half.made
    with half.used():
        assert half.made is before
    with torch.no_grad():
        half.places[0][2].add_(1)
    with half.used():
        assert half.made is not before


def test_a_weight_that_was_replaced_is_left_in_its_place(made):
    model, batches = made
    half = HalfWeights(model, torch.bfloat16)
    module, name, weight = half.places[0]
    other = torch.nn.Parameter(weight.detach() + 1)
    setattr(module, name, other)
    with half.used():
        torch.testing.assert_close(getattr(module, name), other.bfloat16())
    assert getattr(module, name) is other


def test_all_are_made_by_one_kernel(made):
    model, batches = made

    def casts(half):
        model.zero_grad()
        with Kernels() as found:
            for batch in batches:
                with half.used() if half is not None else nullcontext(), torch.autocast("cpu", torch.bfloat16):
                    loss = model(**batch).loss
                loss.backward()
        return found.counts

    half = HalfWeights(model, torch.bfloat16)
    plain, ours = casts(None), casts(half)
    assert ours["_foreach_copy_"] == 1 + len(batches), "one for the weights, one for the gradients of each batch"
    assert ours["_to_copy"] <= plain["_to_copy"] - 2 * len(batches) * len(half.places)


def test_a_run_in_bf16_uses_them_and_its_losses_are_those_without(assets, tmp_path, monkeypatch):
    used = []
    enter = HalfWeights.used
    monkeypatch.setattr(HalfWeights, "used", lambda self: used.append(1) or enter(self))
    settings = {"bf16": True, "max_steps": 2, "preflight": "off", "run_monitor": False, "experiment": 1}
    losses = train(assets, tmp_path / "half", gradient_accumulation_steps=2, **settings)
    passes = len(used)
    assert passes >= 3
    monkeypatch.setattr("llava.train.trainer.half_weights", lambda *args: None)
    assert train(assets, tmp_path / "autocast", gradient_accumulation_steps=2, **settings) == losses
    assert len(used) == passes


def test_each_pass_of_a_replayed_step_casts_for_itself(assets, tmp_path, monkeypatch):
    """A bit that flips in a cast would else be in both."""
    made, real = [], half_weights._as
    monkeypatch.setattr(half_weights, "_as", lambda kind, tensors: made.append(kind) or real(kind, tensors))
    train(assets, tmp_path / "run", 1, bf16=True, max_steps=1, replay_every=1, preflight="off")
    assert made.count(torch.bfloat16) == made.count(torch.float32) == 2
    assert not alarms(tmp_path / "run")


@pytest.mark.parametrize("setting", [{"bf16": False}, {"gradient_checkpointing": True}, {"torch_compile": True}])
def test_others_leave_the_casts_to_autocast(setting):
    args = SimpleNamespace(**{"bf16": True, "fp16": False, "world_size": 1, "gradient_checkpointing": False,
                              "torch_compile": False} | setting)  # fmt: skip
    assert half_weights.half_weights(nn.Linear(2, 2), args, spread=False) is None
    usual = SimpleNamespace(bf16=True, fp16=False, world_size=1, gradient_checkpointing=False, torch_compile=False)
    assert half_weights.half_weights(nn.Linear(2, 2), usual, spread=True) is None
    assert half_weights.half_weights(nn.Linear(2, 2), usual, spread=False) is not None
