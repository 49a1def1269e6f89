"""Steps that are computed twice: a bit that turns is an alarm, and what is replayed leaves no trace."""

from __future__ import annotations

import json
import logging
import random
import re
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llava.train.monitor import replay
from llava.train.monitor.replay import Replay, bit_hash
from llava.train.run_flags import parse_arguments
from tests.train.forked import flipped
from tests.train.runs import alarms, flags, losses, train


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_bit_of_every_element_counts(dtype):
    values = torch.linspace(-1, 1, 6).to(dtype).view(2, 3)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    seen = {int(bit_hash(values))}
    for place in range(6):
        for bit in range(8 * dtype.itemsize):
            other = values.clone()
            other.view(integers).view(-1)[place] ^= torch.tensor(1).to(integers) << bit
            seen.add(int(bit_hash(other)))
    assert len(seen) == 1 + 6 * 8 * dtype.itemsize
    others = {int(bit_hash(v)) for v in (values.clone(), values.flip(0), values.flip(1), -values)}
    assert len(others) == 4 and others & seen == {int(bit_hash(values))}


def test_chunks_have_places_too(monkeypatch):
    values = torch.arange(10.0)
    whole = bit_hash(values)
    monkeypatch.setattr(replay, "CHUNK", 4)
    replay._factors.cache_clear()
    first, swapped = bit_hash(values), bit_hash(torch.cat([values[4:8], values[:4], values[8:]]))
    replay._factors.cache_clear()
    assert len({int(whole), int(first), int(swapped)}) == 3


class Net(nn.Module):
    """Two layers with dropout, a buffer that counts forward passes, and numbers of Python's and numpy's generators."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.drop = nn.Linear(6, 8), nn.Linear(8, 1), nn.Dropout(0.5)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        noise = random.random() + np.random.rand()
        return (self.two(self.drop(torch.tanh(self.one(x)))) * noise).square().mean()


def at_pass(number, change):
    """A hook that applies `change` in one of its calls."""
    calls = []

    def hook(*args):
        calls.append(1)
        return change(*args) if len(calls) == number else None

    return hook


def flip_gradient(net, number):
    net.one.weight.register_hook(at_pass(number, flipped))


def flip_weight(net, number):
    def flip(module, inputs):
        with torch.no_grad():
            module.weight.copy_(flipped(module.weight, 18))

    net.two.register_forward_pre_hook(at_pass(number, flip))


def flip_activation(net, number):
    def flip(module, inputs, output):
        return output + (flipped(output, 18 if output.dtype == torch.float32 else 4) - output).detach()

    net.two.register_forward_hook(at_pass(number, flip))


def made(every=1):
    """A net, whose random numbers are those of seed 0, its replay and the list of its alarms."""
    found = []
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    net = Net()
    return net, Replay(net, every, SimpleNamespace(timed=nullcontext, sound=found.append), lambda mine: mine), found


def one_step(net, watch, module=None, batches=2, step=1, bf16=False, alone=nullcontext):
    """A step of several batches, its losses and gradients as bytes of a list."""
    module = net if module is None else module
    net.zero_grad()

    def run(batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = module(batch)
        loss.backward()
        return loss.detach()

    listed = torch.randn(batches, 4, 6, generator=torch.Generator().manual_seed(step))
    lost = [watch.twice(lambda b=b: run(b), alone) if watch else run(b) for b in listed]
    if watch is not None:
        watch.on_step_end(None, SimpleNamespace(global_step=step), None)
    return [loss.item() for loss in lost] + [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("flip", [flip_gradient, flip_weight, flip_activation])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_flipped_bit_in_either_pass_of_either_batch_is_an_alarm(flip, number, bf16):
    net, watch, found = made()
    flip(net, number)
    one_step(net, watch, bf16=bf16)
    if flip is flip_weight and number in (1, 3):
        assert found == [], "weights that are the same in both passes: nothing to compare with"
        return
    (alarm,) = found
    batch = (number + 1) // 2
    # The bit of a weight may move the gradients and not the loss, where that is rounded to bf16.
    loss = "is the same" if flip is flip_gradient else "(too|is the same)" if bf16 else "too"
    what = rf"{'1' if flip is flip_gradient else '[1-4]'} of 4 \((one|two)\..*; the loss {loss}\)"
    words = rf"differ: rank 0, batch {batch}: {what}\. So far 1 of 1 replayed steps differed\."
    assert alarm.kind == "replay" and re.search(words, alarm.message)


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_replayed_leaves_no_trace(bf16):
    plain, _, _ = made()
    once = [one_step(plain, None, step=step, bf16=bf16) for step in (1, 2)]
    after = torch.rand(1), random.random(), np.random.rand()
    net, watch, found = made()
    twice = [one_step(net, watch, step=step, bf16=bf16) for step in (1, 2)]
    assert (torch.rand(1), random.random(), np.random.rand()) == after
    for a, b in zip(sum(once, []), sum(twice, []), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert found == [] and (watch.replayed, watch.differed) == (2, 0)
    assert plain.passes == net.passes == 4 and all(not p._backward_hooks for p in net.parameters())


def test_with_ddp_gradients_are_compared_before_they_are_reduced(tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        plain, _, _ = made()
        once = one_step(plain, None, batches=1)
        net, watch, found = made()
        module = DistributedDataParallel(net)
        reduced = []
        module.register_comm_hook(None, lambda state, bucket: _reduced(reduced, bucket))
        flip_gradient(net, 1)
        twice = one_step(net, watch, module, batches=1, alone=module.no_sync)
    finally:
        torch.distributed.destroy_process_group()
    assert len(found) == 1 and len(reduced) == 1, "the first pass, where the bit turned, is not reduced"
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(once, twice, strict=True))


def _reduced(seen, bucket):
    seen.append(bucket.index())
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def test_what_differs_in_every_step_fills_no_log(caplog):
    net, watch, found = made(every=2)
    net.one.register_forward_hook(lambda module, inputs, output: output + torch.rand((), generator=noise))
    noise = torch.Generator().manual_seed(1)
    for step in range(1, 21):
        if watch.due(step):
            one_step(net, watch, step=step)
    assert len(found) == replay.MOST_ALARMS and "So far 5 of 5 replayed" in found[-1].message
    with caplog.at_level(logging.INFO):
        watch.on_train_end(None, None, None)
    assert "10 steps were computed twice: the gradients of 10 differed" in caplog.text


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2}, {"bf16": True}])
def test_a_run_is_the_same_to_the_bit_with_it(assets, tmp_path, caplog, options):
    options |= {"preflight": "off", "neftune_noise_alpha": 5.0}
    train(assets, tmp_path / "a", **options)
    with caplog.at_level(logging.INFO):
        train(assets, tmp_path / "b", replay_every=2, **options)
    assert "3 steps were computed twice: the gradients of 0 differed" in caplog.text
    logs = [json.loads((tmp_path / f / "trainer_state.json").read_text())["log_history"] for f in "ab"]
    for key in ("caption_loss", "grad_norm"):
        assert [e[key] for e in logs[0] if key in e] == [e[key] for e in logs[1] if key in e], key
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and alarms(tmp_path / "b") == []
    a, b = (load_file(tmp_path / f / "model.safetensors") for f in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_it_cannot_work_with_is_one_message(assets, tmp_path):
    options = {"replay_every": 5, "run_monitor": False, "optim": "galore_adamw_layerwise"}
    problems = replay.flag_problems(SimpleNamespace(**options, deepspeed="zero2.json", fsdp=[]))
    assert len(problems) == 1 and problems[0].startswith(
        "--replay_every 5 cannot work, since --deepspeed zero2.json reduces gradients while it computes them; --optim "
        "galore_adamw_layerwise changes the weights while gradients are computed; --run_monitor False writes no alarms"
    )
    with pytest.raises(ValueError, match="--replay_every 5 cannot work, since --run_monitor False"):
        parse_arguments(flags(assets, tmp_path, 1, replay_every=5, run_monitor=False))
    with pytest.raises(ValueError, match="--replay_every 0: "):
        parse_arguments(flags(assets, tmp_path, 1, replay_every=0))
