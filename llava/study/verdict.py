"""The answer of a study in words, and when there is none. Pure.

A verdict needs an instrument that could have answered: V saw, blind captions were trained, seeds and clips were enough
to know how far a difference moves. Without that the answer is "no verdict", which is not "no effect".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llava.errors import counted, show
from llava.eval.power import POWER, detectable, seeds_needed
from llava.eval.two_way import Estimate, Spread
from llava.study.measure import Measured, Result
from llava.study.results import CORRECT, NATS

HELPS, HARMS, NO_DIFFERENCE, NO_VERDICT = "helps", "harms", "no difference shown", "no verdict"
FEWEST_SEEDS, PILOT_SEEDS, CLAIM_SEEDS = 3, 5, 8
"""From the first on there is a verdict, from the second on it is a pilot, from the third on it can be a claim."""
FEWEST_CLUSTERS = 10
"""Fewer clips or items say too little of others."""
SURE = 0.05


@dataclass(frozen=True)
class Unit:
    """How differences of a unit are written (and values, by `level`): `scale` times the number. `better` is the sign of
    a difference in favour of the first arm, `smallest` an effect that would matter."""

    name: str
    level: str
    scale: float
    better: int
    smallest: float


UNITS = {
    NATS: Unit("nats a word", "nats a word", 1.0, -1, 0.02),
    CORRECT: Unit("percentage points", "% of pairs right", 100.0, 1, 0.02),
}


@dataclass(frozen=True)
class Verdict:
    """`kind` is one of the four answers, `headline` says it with its numbers, `sentences` what belongs to it."""

    kind: str
    headline: str
    sentences: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join([self.headline, *self.sentences])


def decimals_of(estimate: Estimate, unit: Unit) -> int:
    """So many that the half width of the interval has at least two figures."""
    half, fewest = (estimate.high - estimate.low) / 2 * unit.scale, 3 if unit.scale == 1 else 1
    if not math.isfinite(half) or half <= 0:
        return fewest
    return min(max(1 - math.floor(math.log10(half)), fewest), 6)


def signed(value: float, decimals: int = 3) -> str:
    """With its sign, a true minus; a dash for what is not known."""
    return f"{value:+.{decimals}f}".replace("-", "−") if math.isfinite(value) else "–"


def interval(estimate: Estimate, unit: Unit) -> str:
    """`−0.031 [−0.044, −0.018]`."""
    mean, low, high = (signed(v * unit.scale, decimals_of(estimate, unit)) for v in estimate.interval)
    return f"{mean} [{low}, {high}]" if math.isfinite(estimate.low) else f"{mean} (no interval)"


def judge(
    measured: Measured, blind_share: float | None, smallest: float | None = None, named: str | None = None
) -> Verdict:
    """The answer, from the primary test's V − M.

    Args:
        blind_share: the share of captions that V and M were shown without video; None where it is not known.
        smallest: the effect that would matter, in nats a word or as a share of pairs; `UNITS` has the defaults.
        named: the primary test that the study began with, where that was recorded.
    """
    result, unit = measured.primary, UNITS[measured.primary.unit]
    estimate = result.two_way
    smallest = unit.smallest if smallest is None else smallest
    numbers = f"{interval(estimate, unit)} {_over(result, unit)}"
    reasons = _reasons(measured, blind_share)
    if reasons:
        return Verdict(
            NO_VERDICT,
            f"No verdict: {'; '.join(reasons)}.",
            [f"What was measured, V − M on {result.test}: {numbers}.", *_facts(measured, unit, smallest, False)],
        )
    gain, worst = sorted((unit.better * estimate.low, unit.better * estimate.high))[::-1]
    if worst > 0:
        kind, headline = HELPS, f"Seeing helps: {numbers}."
    elif gain < 0:
        kind, headline = HARMS, f"Seeing harms: {numbers}."
    else:
        kind, headline = NO_DIFFERENCE, f"No difference shown: {numbers}."
    sentences = _facts(measured, unit, smallest, True)
    if named not in (None, result.test):
        sentences.insert(
            0,
            f"The study began with {show(named)} as its primary test, and {show(result.test)} was chosen later: after "
            "a look at results this is one test of several, and its interval is too sure of itself.",
        )
    if kind == NO_DIFFERENCE:
        places = decimals_of(estimate, unit)
        sentences.insert(
            0,
            f"A help of more than {max(gain, 0) * unit.scale:.{places}f} and a harm of more than "
            f"{max(-worst, 0) * unit.scale:.{places}f} are unlikely; what lies between is not ruled out.",
        )
    return Verdict(kind, headline, sentences)


def _over(result: Result, unit: Unit) -> str:
    what = unit.name if result.unit == CORRECT else "nats a blind word"
    items = "pairs" if result.unit == CORRECT else "captions" if result.test == "captions" else "lines"
    return f"{what}, {counted(result.two_way.seeds, 'seed')}, {result.items:,} {items}"


def _reasons(measured: Measured, blind_share: float | None) -> list[str]:
    """Why there is no verdict; empty where there can be one."""
    estimate, sighted, reasons = measured.primary.two_way, measured.sighted, []
    if estimate.seeds < FEWEST_SEEDS:
        unknown = (
            "one seed cannot say how far the difference moves from one training to the next"
            if estimate.seeds == 1
            else "two seeds say too little of how far the difference moves from one training to the next (where "
            "nothing was to be found, such intervals found something in up to 12 % of simulated studies)"
        )
        reasons.append(f"{unknown}; train at least {FEWEST_SEEDS}, better five to eight")
    if estimate.clusters < FEWEST_CLUSTERS:
        reasons.append(
            f"what was held out is {counted(estimate.clusters, 'clip')} (or items of pairs), which cannot speak for "
            f"others; hold out at least {FEWEST_CLUSTERS}"
        )
    if blind_share is None:
        reasons.append("it is not recorded whether V and M were shown captions without video (--blind_share)")
    elif blind_share == 0:
        reasons.append(
            "V and M never saw a caption without its video (--blind_share 0), so that the blind test asks of them what "
            "they were not trained for; train with --blind_share 0.5"
        )
    if sighted is None:
        reasons.append("it was not measured whether V sees (sighted held-out captions)")
    elif estimate.seeds >= FEWEST_SEEDS and not sighted.two_way.high < 0:
        reasons.append(
            "V was not shown to see: on held-out captions with their own videos it is no better than M, "
            f"{interval(sighted.two_way, UNITS[NATS])} nats a word; train longer, or look at the features"
        )
    if estimate.seeds >= FEWEST_SEEDS and estimate.standard_error == 0:
        reasons.append(
            "the difference is the same to the last digit in every seed and item, as if two runs were one; look "
            "whether arms and seeds differ"
        )
    return reasons


def _facts(measured: Measured, unit: Unit, smallest: float, answered: bool) -> list[str]:
    """What a reader needs beside the answer; without one, nothing that explains an effect."""
    result = measured.primary
    estimate, alone = result.two_way, result.seeds_alone
    places = decimals_of(estimate, unit)
    each = ", ".join(signed(v * unit.scale, places) for v in estimate.per_seed)
    sentences = [f"Each seed: {each}."]
    if estimate.seeds < FEWEST_SEEDS:
        return sentences
    if estimate.seeds < CLAIM_SEEDS and answered:
        pilot = "a pilot" if estimate.seeds >= PILOT_SEEDS else f"less than a pilot, which takes {PILOT_SEEDS}"
        sentences.append(f"{counted(estimate.seeds, 'seed')} are {pilot}; a claim takes {CLAIM_SEEDS} or more.")
    sentences.append(f"For these items alone (Student's t over seeds): {interval(alone, unit)}.")
    if estimate.spread is not None and estimate.standard_error > 0:
        sentences.append(_power(estimate, estimate.spread, unit, smallest, places))
    if not answered:
        return sentences
    sentences += [_slope(slope, measured.family) for slope in measured.slopes]
    if measured.sighted is not None:
        seen = interval(measured.sighted.two_way, UNITS[NATS])
        sentences.append(f"V sees: {seen} nats a word on sighted captions (V − M).")
    for cost in measured.costs:
        if cost.test == result.test:
            numbers = f"{interval(cost.two_way, UNITS[cost.unit])} {UNITS[cost.unit].name}"
            sentences.append(f"Having any video, the wrong one (M − T): {numbers}; that is not the effect of seeing.")
    return sentences


def _power(estimate: Estimate, spread: Spread, unit: Unit, smallest: float, places: int) -> str:
    sees = detectable(estimate.seeds, spread) * unit.scale
    text = (
        f"With this spread {counted(estimate.seeds, 'seed')} see an effect of {sees:.{places}f} {unit.name} or more in "
        f"{POWER:.0%} of studies"
    ).replace("%", " %")
    needed = seeds_needed(smallest, spread)
    size = f"{smallest * unit.scale:g}"
    if needed is None:
        return f"{text}; to see one of {size}, more seeds do not do: more held-out items are needed."
    return f"{text}; to see one of {size} you would need about {max(needed, FEWEST_SEEDS)} seeds."


def _slope(result: Result, family: int) -> str:
    """Whether the effect grows with a norm, in words; Holm's p decides."""
    unit = UNITS[result.unit]
    name = result.part.replace("_", " ")
    numbers = (
        f"{interval(result.two_way, unit)} {unit.name} for one standard deviation, p {p_text(result.p)}, Holm "
        + (f"over {family} tests")
    )
    if math.isnan(result.p) or result.p >= SURE:
        return f"No dependence of the effect on {name} shown ({numbers})."
    grows = unit.better * result.two_way.mean > 0
    return f"The effect of seeing {'grows' if grows else 'falls'} with {name} ({numbers})."


def p_text(p: float) -> str:
    """A p value as papers write it."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"
