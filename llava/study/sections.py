"""What a study's pages show below the answer: tables and figures, for Markdown and HTML alike. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from llava.errors import counted
from llava.eval.power import detectable, seeds_needed
from llava.report.intervals import Intervals, draw_intervals
from llava.report.plots import Panel, Series
from llava.study.measure import Measured, Result
from llava.study.results import CORRECT, NATS
from llava.study.settings import written
from llava.study.verdict import FEWEST_SEEDS, UNITS, decimals_of, interval, p_text, signed

FACTORS = (0.5, 1.0, 2.5, 5.0)
"""Effects of the table of seeds, as multiples of the smallest that matters."""


class Budget(NamedTuple):
    """The primary test after so many words (NaN at the end of training), and each arm's mean there."""

    name: str
    words: float
    result: Result
    levels: dict[str, float]


@dataclass(frozen=True)
class Section:
    """A part of the page: text, a table of cells and figures. Columns named in `numbers` hold numbers."""

    place: str
    title: str
    text: list[str]
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[Intervals] = ()
    panels: Sequence[Panel] = field(default=())


COMPARED = ("", "items", "clusters", "unit", "two-way t, 95 %", "p, Holm", "Student's t over seeds", "each seed")


def sections_of(
    measured: Measured, budgets: Sequence[Budget], smallest: float, begun: Mapping[str, Any] | None = None
) -> list[Section]:
    """The parts of the page that have something to show, in their order.

    Args:
        begun: what the study's settings were when it began; empty where nobody recorded them.
    """
    begun = begun or {}
    made = [
        _tests(measured, begun.get("primary")), _classes(measured), _slopes(measured), _sight(measured),
        _costs(measured), _budgets(budgets), _levels(measured), _power(measured.primary, smallest), _settings(begun),
    ]  # fmt: skip
    return [section for section in made if section is not None]


def _name(result: Result) -> str:
    return result.part or result.test


def row(result: Result, name: Callable[[Result], str] = _name) -> list[str]:
    """Cells of a result under `COMPARED`."""
    unit = UNITS[result.unit]
    places = decimals_of(result.two_way, unit)
    each = " ".join(signed(v * unit.scale, places) for v in result.two_way.per_seed)
    return [
        name(result), f"{result.items:,}", f"{result.two_way.clusters:,}", unit.name, interval(result.two_way, unit),
        p_text(result.p).removeprefix("= "), interval(result.seeds_alone, unit), each,
    ]  # fmt: skip


def forest(title: str, results: Sequence[Result], unit: str, name: Callable[[Result], str] = _name) -> list[Intervals]:
    """The intervals of those results that have this unit, each seed below its interval."""
    kept, how = [r for r in results if r.unit == unit], UNITS[unit]
    rows = [(name(r), tuple(v * how.scale for v in r.two_way.interval), i) for i, r in enumerate(kept)]
    each = [[v * how.scale for v in r.two_way.per_seed] for r in kept]
    places = max((decimals_of(r.two_way, how) for r in kept), default=2)
    drawn = draw_intervals(title, f"{how.name}; small dots are seeds", rows, each, places)
    return [] if drawn is None else [drawn]


def _tests(measured: Measured, named: str | None) -> Section:
    every = [measured.primary, *measured.tests]

    def name(result: Result) -> str:
        return f"{result.test} (primary)" if result is measured.primary else result.test

    return Section(
        "tests",
        "Seeing: V − M on every test",
        [
            "V saw each caption after its own video, M after another's; nobody sees a video in these tests, unless the "
            "name of a test says so. For nats a word, less is better; for pairs, more.",
            f"{_naming(measured.primary.test, named)} {_family(measured.family)}",
        ],
        COMPARED,
        [row(r, name) for r in every],
        [*forest("V − M, blind", every, NATS, name), *forest("V − M, minimal pairs", every, CORRECT, name)],
    )


def _naming(primary: str, named: str | None) -> str:
    """Whether the primary test was the primary one before there were results."""
    if named is None:
        return "The primary test stands alone; nothing records that it was named before the study."
    if named != primary:
        return f"The primary test was chosen after the study had begun with {named} as its primary one."
    return "The primary test was named when the study began, and stands alone."


def _family(number: int) -> str:
    if not number:
        return "No p is given for the others: there is none, or too few seeds for one."
    return f"Of the others, classes and slopes {counted(number, 'test')} have a p, adjusted for all of them (Holm)."


def _classes(measured: Measured) -> Section | None:
    found = measured.classes
    if not found:
        return None
    tests = list(dict.fromkeys(r.test for r in found))

    def name(result: Result) -> str:
        return result.part if len(tests) == 1 else f"{result.test}: {result.part}"

    return Section(
        "classes",
        "By word class" if found[0].unit == NATS else "By phenomenon",
        [f"V − M of each word class (of pairs: phenomenon), on {' and '.join(tests)}. A part is a smaller test."],
        COMPARED,
        [row(r, name) for r in found],
        [*forest("V − M by word class", found, NATS, name), *forest("V − M by phenomenon", found, CORRECT, name)],
    )


def _slopes(measured: Measured) -> Section | None:
    if not measured.slopes and not measured.remarks:
        return None
    return Section(
        "norms",
        "On norms of words",
        [
            "How much V − M changes with one standard deviation of a norm: a regression over words in each seed, with "
            "frequency (ln(1 + f)) and length held where the files have them. Below zero, seeing helps more the higher "
            "the norm. Clusters are words here: the claim is about new words.",
            *(f"{remark}." for remark in measured.remarks),
        ],
        COMPARED,
        [row(r) for r in measured.slopes],
        forest("Slope of V − M for one standard deviation", measured.slopes, NATS),
    )


def _sight(measured: Measured) -> Section:
    title = "Did V see?"
    if measured.sighted is None:
        return Section(
            "sight", title, ["Not measured: no sighted held-out captions. Without them there is no verdict."]
        )
    seen = [measured.sighted]
    return Section(
        "sight",
        title,
        ["V − M on held-out captions with their own videos. Unless it is below zero, V learned nothing from its "
         "videos, and what it does blind says nothing of seeing."],
        COMPARED,
        [row(r) for r in seen],
        forest("V − M, with the caption's own video", seen, NATS),
    )  # fmt: skip


def _costs(measured: Measured) -> Section | None:
    if not measured.costs:
        return None
    return Section(
        "costs",
        "What having any video does: M − T",
        ["M is trained as V is but on wrong videos; T on text alone. The difference is that of the layout: fewer "
         "captions seen as text, positions, noise that regularises. V − T would mix it with seeing, and is not given. "
         f"p is adjusted for {counted(len(measured.costs), 'test')}."],
        COMPARED,
        [row(r) for r in measured.costs],
        [*forest("M − T, blind", measured.costs, NATS), *forest("M − T, minimal pairs", measured.costs, CORRECT)],
    )  # fmt: skip


def _budgets(budgets: Sequence[Budget]) -> Section | None:
    if not budgets:
        return None
    results = [dataclasses.replace(b.result, part=b.name) for b in budgets]
    unit = UNITS[results[0].unit]
    shown, panels = [b for b in budgets if np.isfinite(b.words)], []
    if len(shown) > 1:
        steps = np.array([b.words / 1e6 for b in shown])
        series = [
            Series(arm, steps, np.array([b.levels[arm] * unit.scale for b in shown]), i)
            for i, arm in enumerate(shown[0].levels)
        ]
        panels = [Panel(f"{results[0].test}, each arm", unit.level, series, x="million words")]
    return Section(
        "budgets",
        "At other budgets",
        ["The primary test after fewer words. Arms learn at different times: an effect at one budget alone may be one "
         "of speed. These are not adjusted for being several."],
        COMPARED,
        [row(r) for r in results],
        forest("V − M by words of training", results, results[0].unit),
        panels,
    )  # fmt: skip


def _levels(measured: Measured) -> Section:
    arms = ("T", "M", "V")
    units = {r.test: r.unit for r in (measured.primary, *measured.tests, *measured.costs)}

    def cells(test: str, levels: dict[str, float]) -> list[str]:
        unit = UNITS[units.get(test, NATS)]
        return [test, unit.level, *(f"{levels[a] * unit.scale:.4g}" if a in levels else "–" for a in arms)]

    return Section(
        "arms",
        "Each arm",
        ["Means over seeds. They are no test: differences are paired, and these are not."],
        ("", "unit", *arms),
        [cells(test, levels) for test, levels in measured.levels.items()],
    )


def _power(primary: Result, smallest: float) -> Section | None:
    spread, unit = primary.two_way.spread, UNITS[primary.unit]
    if spread is None or primary.two_way.standard_error == 0:
        return None
    seeds = sorted({3, 5, 8, 12, 20, primary.two_way.seeds})
    sees = [f"{s} seeds" for s in seeds], [f"{detectable(s, spread) * unit.scale:.3g}" for s in seeds]
    needed = [(f * smallest, seeds_needed(f * smallest, spread)) for f in FACTORS]
    text = "; ".join(
        f"{effect * unit.scale:g}: {'more items are needed' if count is None else f'{max(count, FEWEST_SEEDS)} seeds'}"
        for effect, count in needed
    )
    return Section(
        "power",
        "Which effect could have been seen",
        [f"The smallest true effect, in {unit.name}, of which 80 % of studies with so many seeds and these items would "
         "exclude zero; by the noncentral t and the spread seen here, which is itself uncertain with few seeds.",
         f"Seeds that an effect needs: {text}."],
        ("", *sees[0]),
        [("effect", *sees[1])],
    )  # fmt: skip


def _settings(begun: Mapping[str, Any]) -> Section | None:
    """What another needs to train the same again; the commit and every version are in each run's record."""
    if not begun:
        return None
    own = {"seeds": begun["seeds"], "arms": begun["arms"], "blind_share": begun["blind_share"]}
    return Section(
        "settings",
        "What was trained",
        ["Alike in every run, as flags of the trainer; all others have their defaults. seedN/ARM/llava_run.json has "
         "the rest: data by content, versions, machine."],
        ("", "value"),
        [(name, written(value)) for name, value in [*own.items(), *sorted(begun["flags"].items())]],
    )  # fmt: skip
