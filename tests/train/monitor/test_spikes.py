"""Steps that leave what is usual: those of real runs that are sound, and those that are not."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from llava.train.monitor.spikes import Spikes

WAVE = [2.0 + 0.2 * math.sin(i) for i in range(300)]
DEMO = json.loads((Path(__file__).parents[2] / "assets" / "demo_steps.json").read_text(encoding="utf-8"))
"""Loss and gradient norm of every step of the built-in demo, of three seeds: Muon, clipped at 1, batches of 32 and at
the end of an epoch of 4; and of 50 steps of seed 0 after its checkpoint of step 225, at 30 times the learning rate from
step 240."""


def told(losses, norms=None, targets=None, spikes=None):
    """(step, message) of each spike of a run; all gradient norms are 1 and all batches as large, or as given."""
    spikes = Spikes() if spikes is None else spikes
    norms = [1.0] * len(losses) if norms is None else norms
    targets = [64] * len(losses) if targets is None else targets
    rows = enumerate(zip(losses, norms, targets, strict=True))
    found = [(i, spikes.add(i, loss, norm, size, [f"s{i}"])) for i, (loss, norm, size) in rows]
    return [(i, message) for i, message in found if message]


def demo(seed, **changed):
    """Losses, norms and sizes of a run of the demo; steps from 1, `loss` and `norm` replaced where they are given."""
    run = DEMO["runs"][seed]
    losses, norms = run["loss"][:], run["grad_norm"][:]
    for what, values in (("loss", losses), ("norm", norms)):
        for step, value in changed.get(what, {}).items():
            values[step - 1] = value
    return losses, norms, [16 * samples for samples in DEMO["samples"]]


def test_a_spike_sounds_once_with_its_samples():
    assert told(WAVE) == []
    ((first, message), (second, _)) = told([*WAVE[:200], 6.0, 6.5, *WAVE[:20], 9.0, *WAVE[:20]])
    assert (first, second) == (200, 222), "two steps of one spike, and another spike"
    assert message.startswith("the loss is 6, that of the 128 steps before 2") and "'s200'" in message
    assert told([*WAVE[:127], 6.0, *WAVE[:20]]) == [], "128 steps are needed to know what is usual"
    ((step, message),) = told(WAVE, [*WAVE[:200], 50.0, *WAVE[201:]])
    assert step == 200 and message.startswith("the gradient norm is 50")
    assert told(WAVE, [math.inf] * 300) == told(WAVE, [None] * 300) == told(WAVE, [0.0] * 300) == []
    spikes = Spikes()
    told(WAVE[:128], spikes=spikes)
    assert "and 12 more" in spikes.add(128, 9.0, None, 64, [f"s{i}" for i in range(20)])


@pytest.mark.parametrize(
    "curve",
    [
        [2.0] * 200 + [2.0 + 1e-7] + [2.0] * 50,
        [1e-4 + 1e-6 * (i % 3) for i in range(200)] + [1e-3] + [1e-4] * 50,
        [2.0 + 1e-4 * (i % 3) for i in range(200)] + [2.05] + [2.0] * 50,
    ],
    ids=["flat", "learned by heart", "nearly flat"],
)
def test_a_rise_that_is_no_trouble_is_no_spike(curve):
    assert told(curve) == []


def test_spikes_of_uneven_data_fill_no_log():
    assert len(told([*WAVE[:128], *([9.0, *WAVE[:128]] * 22)])) == 20


@pytest.mark.parametrize("seed", DEMO["runs"])
def test_the_demo_is_silent(seed):
    """Norms of 6.3 times the usual at a full batch and 8.1 times at one of 4 samples, and the loss does not move."""
    assert told(*demo(seed)) == []


def test_a_learning_rate_that_explodes_the_demo_sounds_at_the_next_step():
    """Clipping and Muon do not keep the loss from it; step 237 before it is one of 4 samples."""
    exploded = DEMO["exploded"]
    steps = range(exploded["from"], exploded["from"] + len(exploded["loss"]))
    changed = {what: dict(zip(steps, exploded[key], strict=True)) for what, key in
               (("loss", "loss"), ("norm", "grad_norm"))}  # fmt: skip
    first, *_ = told(*demo("0", **changed))
    assert first[0] + 1 == 241 and first[1].startswith("the loss is 1.81")


@pytest.mark.parametrize(
    ("loss", "norm", "step", "says"),
    [
        ({}, {200: 40.0}, 200, "the gradient norm is 40"),
        ({}, {237: 150.0}, 237, "the gradient norm is 150"),
        ({200: 0.9}, {}, 200, "the loss is 0.9"),
        ({237: 1.5}, {}, 237, "the loss is 1.5"),
        ({200: 0.5}, {200: 5.0}, 200, "; the loss is 0.5"),
        ({201: 0.5}, {200: 5.0}, 201, "at step 200 the gradient norm is 5"),
        ({}, {s: 5.0 for s in range(200, 205)}, 204, "it stays above"),
    ],
    ids=[
        "a norm beyond the tail", "one of an incomplete batch", "a loss", "one of an incomplete batch",
        "a high norm and a loss that moves", "a loss that moves after it", "a norm that stays",
    ],
)  # fmt: skip
def test_what_goes_wrong_in_the_demo_sounds_once(loss, norm, step, says):
    ((found, message),) = told(*demo("0", loss=loss, norm=norm))
    assert found + 1 == step and says.replace("step 200", "step 199") in message


def test_a_high_norm_alone_is_no_spike():
    assert told(*demo("0", norm={s: 5.0 for s in range(200, 204)})) == [], "four steps are not five"
    assert told(*demo("0", loss={205: 0.5}, norm={200: 5.0})) == [], "a loss that moves later moves for itself"


def test_a_norm_that_rises_as_the_loss_falls_is_no_spike():
    """A run that leaves its plateau: nothing was learned, and then much is."""
    losses = [3.0 + 0.05 * math.sin(i) for i in range(200)] + [3.0 * 0.95**i for i in range(100)]
    norms = [0.2 + 0.02 * math.sin(i) for i in range(200)] + [1.5] * 100
    assert told(losses, norms) == []
    ((step, _),) = told([*losses[:200], *losses[:100]], norms)
    assert step == 204, "the same norms, and the loss stands still"


def test_the_room_of_an_incomplete_batch_is_that_of_its_noise():
    """Loss and norm of batches of 256 targets, and every twentieth of 16: means, whose noise is 4 times as large."""
    chance = random.Random(0)
    targets = [16 if i % 20 == 19 else 256 for i in range(1500)]
    losses = [2.0 + chance.gauss(0, 0.05 * math.sqrt(256 / n)) for n in targets]
    norms = [math.hypot(1.0, chance.gauss(0, 0.3 * math.sqrt(256 / n))) for n in targets]
    assert told(losses, norms, targets) == []
    assert told(losses, norms, [256] * len(targets)), "sounds where nobody says so"


def test_batches_that_grow_smaller_for_good_are_usual_again():
    targets = [256] * 300 + [4] * 300
    losses = [*WAVE, *WAVE]
    assert told(losses, None, targets) == []
    losses[550] = 9.0
    assert [step for step, _ in told(losses, None, targets)] == [550]
    assert told([*WAVE[:200], 0.0], None, [64] * 200 + [0]) == [], "a step without targets has no loss"


def test_spikes_go_on_from_a_state():
    """At every step, also where a high norm is not judged yet."""
    whole, cut = Spikes(), Spikes()
    expected, found = [], []
    for i, row in enumerate(zip(*demo("0", norm={s: 5.0 for s in range(200, 205)}), strict=True)):
        expected.append(whole.add(i, *row, ["a"]))
        found.append(cut.add(i, *row, ["a"]))
        state = json.loads(json.dumps(cut.state()))
        cut = Spikes()
        cut.restore(state)
    assert found == expected and sum(map(bool, found)) == 1
