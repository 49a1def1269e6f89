"""Each alarm, and the runs that must not sound it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llava.train.monitor.alarms import KINDS, AlarmRules, Observation

CHANCE = math.log(1000)


def kinds(rules, observations):
    return [(a.step, a.kind) for o in observations for a in rules.update(o)]


def falling(steps=300, every=1, **values):
    """A sound run: the loss falls from chance to 1, and every group learns."""
    for step in range(every, steps + 1, every):
        loss = 1 + (CHANCE - 1) * math.exp(-step / 40)
        sound = {
            "caption_loss": loss, "videos": 4, "grad_norms": {"embeddings": 1.0, "resampler fast": 0.1},
            "update_ratios": {"embeddings": 1e-3, "resampler fast": 1e-3},
            "learning_rates": {"embeddings": 1e-3, "resampler fast": 1e-3},
        }  # fmt: skip
        yield Observation(**{"step": step, "loss": loss, **sound, **values})


def test_a_sound_run_raises_no_alarm():
    assert kinds(AlarmRules(1000), falling()) == []
    text = {"caption_loss": None, "text_loss": 3.0, "videos": 0, "grad_norms": {"resampler fast": 0.0}}
    assert kinds(AlarmRules(1000), falling(**text)) == []


def test_a_loss_at_chance_is_a_plateau_once_and_after_the_warmup():
    stuck = {"loss": 0.99 * CHANCE, "caption_loss": 0.99 * CHANCE}
    assert kinds(AlarmRules(1000), falling(**stuck)) == [(50, "plateau")]
    assert kinds(AlarmRules(1000, warmup_steps=120), falling(**stuck)) == [(120, "plateau")]
    text = {"loss": 0.99 * CHANCE, "caption_loss": None, "text_loss": 0.99 * CHANCE}
    assert kinds(AlarmRules(1000), falling(**text)) == [(50, "plateau")]


def at(level, steps, words="caption_loss", every=10, noise=0.1):
    """A run whose loss moves around `level(step)`, as batches do."""
    for step in range(every, steps + 1, every):
        loss = level(step) + noise * math.sin(step)
        yield Observation(step=step, loss=loss, **{words: loss})


@pytest.mark.parametrize("words", ["captions", "text"])
def test_a_loss_at_the_unigram_entropy_is_a_plateau(words):
    """Far below ln(vocabulary), and still nothing is learned but how frequent each word is."""
    key = {"captions": "caption_loss", "text": "text_loss"}[words]

    def found(level, steps=400, **options):
        return kinds(AlarmRules(1000, entropies={words: 3.6}, **options), at(level, steps, key))

    assert found(lambda _: 3.6) == found(lambda _: 4.9) == [(200, "plateau")]
    assert found(lambda _: 3.6, warmup_steps=300) == [(300, "plateau")]
    assert found(lambda _: 3.3) == found(lambda _: 3.6, steps=190) == []
    assert kinds(AlarmRules(1000), at(lambda _: 4.9, 400, key)) == [], "an entropy that is not known judges nothing"
    assert kinds(AlarmRules(1000, entropies={words: 0.1}), at(lambda _: 0.4, 400, key)) == []


def test_a_slow_run_that_still_falls_is_waited_for():
    def slow(step):
        return 3.0 + 3.5 * math.exp(-step / 250)

    rules = AlarmRules(1000, entropies={"captions": 3.6})
    assert kinds(rules, at(slow, 1500)) == []
    # Slower still: nothing is known of what it would become, but after three times the patience it must be below.
    assert kinds(AlarmRules(1000, entropies={"captions": 3.6}), at(lambda s: 3 + 3.5 * 0.999**s, 900)) == [
        (600, "plateau")
    ]


def test_at_the_end_of_a_run_nothing_is_waited_for():
    """A loss that falls too slowly to come below the entropy within the run; one that is below it; a short run."""

    def found(level, steps=260, **options):
        observations = [replace(seen, is_last=seen.step == steps) for seen in at(level, steps)]
        rules = AlarmRules(1000, entropies={"captions": 3.6}, **options)
        return [a for seen in observations for a in rules.update(seen)]

    (alarm,) = found(lambda step: 3.9 + 3 * math.exp(-step / 100))
    assert (alarm.step, alarm.kind) == (260, "plateau")
    assert "at the end of the run" in alarm.message and alarm.remedy.startswith("train longer")
    (alarm,) = found(lambda step: 3.6)
    assert alarm.step == 200 and "end of the run" not in alarm.message and "longer" not in alarm.remedy
    assert found(lambda step: 3.9 + 3 * math.exp(-step / 100), warmup_steps=270) == []
    assert found(lambda step: 6.5, steps=190) == found(lambda step: 3 + 3 * math.exp(-step / 60)) == []


def test_the_end_is_judged_by_what_is_smoothed_or_by_the_last_steps():
    """What is smoothed lags behind a loss that falls, and holds what came before a loss that rises."""

    def ends(last, before=3.7, steps=300, every=1):
        """A loss that falls slowly to `before`, and is `last(step)` in the last 20 steps."""
        rules = AlarmRules(1000, entropies={"captions": 3.6})  # 97 % of it are 3.49.
        for seen in at(lambda s: last(s) if s > steps - 20 else before + 3 * math.exp(-s / 80), steps, every=every,
                       noise=0.0):  # fmt: skip
            rules = _through_json(rules)
            alarms = rules.update(replace(seen, is_last=seen.step == steps))
        return alarms, rules.smoothed["captions"][-1][1]

    for every in (1, 10, 20):
        alarms, smoothed = ends(lambda _: 3.45, every=every)
        assert alarms == [] and smoothed > 3.5, "the last 20 steps are below"
    alarms, smoothed = ends(lambda _: 3.5, before=3.3)
    assert alarms == [] and smoothed < 3.49, "what is smoothed is below"
    (alarm,), _ = ends(lambda _: 3.55)
    assert (alarm.step, alarm.kind) == (300, "plateau") and "3.55 (mean of 20 steps)" in alarm.message
    # One lucky batch at the end is not 20 steps.
    assert [a.kind for a in ends(lambda s: 3.0 if s == 300 else 3.7)[0]] == ["plateau"]


def _through_json(rules):
    """The rules of a run that stopped and went on."""
    again = AlarmRules(1000, entropies=rules.entropies)
    again.restore(json.loads(json.dumps(rules.state())))
    return again


def test_a_run_that_collapses_later_is_a_plateau():
    assert kinds(AlarmRules(1000, entropies={"captions": 3.6}), at(lambda s: 2.0 if s < 500 else 3.7, 1000)) == [
        (530, "plateau")
    ]


def test_a_spike_is_an_alarm_and_goes_on_from_a_state():
    """Those of an earlier commit knew neither the targets of a step nor a norm that is not judged yet."""
    rules = AlarmRules(1000)
    assert not any(rules.spike(i, 2 + 0.1 * math.sin(i), 1.0, 64, []) for i in range(128))
    for left_out in ((), ("suspect",)):
        state = json.loads(json.dumps({k: v for k, v in rules.state().items() if k not in left_out}))
        if left_out:
            del state["recent"]["targets"]
        again = AlarmRules(1000)
        again.restore(state)
        alarm = again.spike(128, 9.0, 1.0, 64, ["a"])
        assert (alarm.step, alarm.kind) == (128, "spike") and "the loss is 9" in alarm.message and alarm.remedy


def test_a_state_of_an_earlier_commit_is_taken_up():
    rules = AlarmRules(1000, entropies={"captions": 3.6})
    rules.restore({"curve": [[1.0, 1.0]], "lowest": 2.0, "silent": [], "sounded": ["plateau"]})
    assert kinds(rules, at(lambda _: 2.0, 300)) == []
    assert rules.spike(300, 2.0, 1.0, 64, []) is None


def test_a_group_without_gradient_is_named_within_the_first_steps():
    rules = AlarmRules(1000)
    alarms = [a for o in falling(grad_norms={"embeddings": 1.0, "resampler fast": 0.0}) for a in rules.update(o)]
    assert [(a.step, a.kind) for a in alarms] == [(3, "zero gradient")]
    assert "resampler fast" in alarms[0].message and alarms[0].remedy
    assert "resampler fast" in str(alarms[0])


def test_a_group_that_does_not_move_is_named():
    still = {"embeddings": 1e-3, "resampler fast": 0.0}
    assert kinds(AlarmRules(1000), falling(update_ratios=still)) == [(3, "no update")]
    # A learning rate of 0, as in the first step of a warm-up, moves nothing by right.
    rates = {"embeddings": 1e-3, "resampler fast": 0.0}
    assert kinds(AlarmRules(1000), falling(update_ratios=still, learning_rates=rates)) == []


def test_visual_targets_sound_at_once():
    assert kinds(AlarmRules(1000), falling(visual_targets=5, other_targets=5))[0] == (1, "visual targets")


def test_captions_left_behind_by_the_total():
    observations = [
        Observation(step=s, loss=6.9 * math.exp(-s / 20), caption_loss=6.9 * math.exp(-s / 80), other_targets=100)
        for s in range(1, 60)
    ]
    assert [k for _, k in kinds(AlarmRules(1000), observations)] == ["captions left behind"]
    level = [Observation(step=o.step, loss=o.loss, caption_loss=o.loss, other_targets=100) for o in observations]
    assert kinds(AlarmRules(1000), level) == []


@pytest.mark.parametrize(
    ("waited", "steps", "seconds", "sounds"),
    [(0.5, 20, 9.0, True), (0.5, 5, 9.0, False), (0.2, 50, 9.0, False), (0.5, 20, 0.2, False)],
)
def test_a_starving_loader(waited, steps, seconds, sounds):
    found = kinds(AlarmRules(1000), falling(waited=waited, waited_steps=steps, waited_window=seconds))
    assert found == ([(2, "waiting for data")] if sounds else [])


def test_one_pause_of_the_machine_is_no_starving_loader():
    rules, shares = AlarmRules(1000), [0.5, 0.1, 0.5, 0.1]
    windows = [next(falling(waited=w, waited_steps=30, waited_window=6.0)) for w in shares]
    assert kinds(rules, windows) == []


def test_rules_go_on_from_a_state():
    """Silent groups, a falling curve and what has sounded: the same alarms as without an interruption."""

    def observe(step: int) -> Observation:
        return Observation(
            step, loss=5.0 / step, caption_loss=5.6, other_targets=3, videos=1, grad_norms={"embeddings": 0.0},
            update_ratios={"projector": 0.0},
        )  # fmt: skip

    entropies = {"captions": 5.7}
    whole, cut = AlarmRules(300, entropies=entropies), AlarmRules(300, entropies=entropies)
    expected, found = [], []
    for step in range(1, 80):
        expected += whole.update(observe(step))
        found += cut.update(observe(step))
        state = json.loads(json.dumps(cut.state()))
        cut = AlarmRules(300, entropies=entropies)
        cut.restore(state)
    assert found == expected and {a.kind for a in found} == {"zero gradient", "plateau", "captions left behind"}


def rising(steps=20, noise=0.3, slope=0.1):
    for step in range(1, steps + 1):
        yield Observation(step=step, loss=5, caption_loss=5.8 + slope * step + noise * math.sin(7 * step))


def test_a_loss_that_rises_from_the_start():
    assert kinds(AlarmRules(1000), rising())[0][1] == "rising loss"
    assert kinds(AlarmRules(1000), rising())[0][0] <= 20
    # Too little, too uncertain, or from later on.
    assert kinds(AlarmRules(1000), rising(noise=0.0, slope=0.004)) == []
    assert kinds(AlarmRules(1000), rising(noise=1.5, slope=0.05)) == []
    later = [Observation(step=o.step + 100, loss=5, caption_loss=o.caption_loss / 2) for o in rising()]
    assert kinds(AlarmRules(1000), later) == []


def test_a_run_that_stands_still_in_its_warm_up_does_not_rise():
    generator = np.random.default_rng(0)
    for _ in range(300):
        losses = 6.9 + 0.3 * generator.standard_normal(40)
        assert kinds(AlarmRules(10**9), [Observation(s + 1, x, caption_loss=x) for s, x in enumerate(losses)]) == []


def stepping(moves, rates=None, norm=1.0):
    for step, moved in enumerate(moves, 1):
        rate = rates[step - 1] if rates else 1e-3
        yield Observation(
            step, 3.0, grad_norms={"embeddings": norm}, update_ratios={"embeddings": 1e-3 * moved},
            learning_rates={"embeddings": rate},
        )  # fmt: skip


def test_steps_that_change_nothing_between_others():
    assert kinds(AlarmRules(1000), stepping([1, 0] * 10)) == [(4, "skipped steps")]
    falling_rate = [1e-3 * (1 - step / 40) for step in range(20)]
    assert kinds(AlarmRules(1000), stepping([1, 0] * 10, falling_rate)) == [(4, "skipped steps")]
    # Rounding at the start of a warm-up, steps without a learning rate, and those that loss scaling skips.
    assert kinds(AlarmRules(1000), stepping([0, 0, 1, 1, 1], [1e-9, 2e-9, 1e-3, 1e-3, 1e-3])) == []
    assert kinds(AlarmRules(1000), stepping([1, 0, 1, 0], [1e-3, 0, 1e-3, 0])) == []
    assert kinds(AlarmRules(1000), stepping([1, 0, 1, 0], norm=math.inf)) == []


def test_the_start_of_a_run_is_kept_for_its_resumption():
    whole, first, second = AlarmRules(1000), AlarmRules(1000), AlarmRules(1000)
    observations = list(rising(30, noise=0.0, slope=0.02))
    expected = kinds(whole, observations)
    found = kinds(first, observations[:10])
    second.restore(json.loads(json.dumps(first.state())))
    assert found + kinds(second, observations[10:]) == expected != []


def test_every_kind_of_alarm_is_listed_and_documented():
    root = Path(__file__).resolve().parents[3]
    text = "\n".join(path.read_text() for path in (root / "llava" / "train").rglob("*.py"))
    said = set(re.findall(r'Alarm\((?:seen\.)?step, "([^"]+)"|self\.alarm\([\w.+ ]+, "([^"]+)"', text))
    assert {a or b for a, b in said} <= set(KINDS)
    page = (root / "docs" / "trust.md").read_text()
    rows = {name for row in re.findall(r"^\| ([^|]+) \|", page, re.M) for name in row.split(", ")}
    assert set(KINDS) <= rows | {f"{name} without update" for name in ("tensor", "word")}
