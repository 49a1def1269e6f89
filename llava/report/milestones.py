"""How a run's language grew: `python -m llava.eval.milestones RUN ...` tests every model that a run kept, and writes a
table, a figure, and when each word was learned, into `RUN/milestones/`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.config.commands import parse
from llava.data.features.content import replace_file
from llava.errors import run_command, show
from llava.eval.acquisition import BEFORE, LEAST_MILESTONES, NEVER, NOT_FITTED, PASSED, Correlation, words_to
from llava.eval.milestone_table import FIRST, FITTED, Learned, Measure, Milestones, correlations, read_milestones
from llava.eval.milestone_tests import MilestoneFlags, RunTests, kept_models, share_of
from llava.eval.pair_files import Columns
from llava.eval.result_files import clean, csv_text
from llava.report.drawing import HEIGHT, WIDTH, amount_text, draw
from llava.report.page import environment
from llava.report.plots import Panel, Series, format_interval, format_number

FOLDER, NAME = "milestones", "milestones"
PROG = "python -m llava.eval.milestones"
X = "words served, logarithmic"
ROW_HEIGHT = 280
"""Units from one panel of the figure to the next; each has room for six names of curves."""


def panels_of(found: Milestones, targets: Sequence[float]) -> list[Panel]:
    """The curves: nats a word, accuracies, and the share of words that were learned."""

    def panel(title: str, unit: str, measures: Sequence[Measure], scale: float, levels: Any) -> Panel:
        series = []
        for i, measure in enumerate(measures):
            mean, low, high = scale * np.array(measure.values, dtype=float).T
            series.append(Series(measure.test, found.words, mean, i, low, high))
        return Panel(title, unit, series, levels=levels, x=X, log_x=True)

    learned = [
        Series(part.test, found.words, 100 * np.array([part.share(w) for w in found.words]), i)
        for i, part in enumerate(found.learned)
        if part.ages
    ]
    panels = [
        panel("Surprisal without a video", "nats a word", found.nats, 1, [(t, f"target {t:g}") for t in targets]),
        panel("Minimal pairs", "% right, by the sum", found.accuracies, 100, [(50.0, "chance")]),
        Panel("Words that were learned", "% of words, by the first milestone", learned, x=X, log_x=True),
    ]
    return [p for p in panels if p.series]


def svg(panels: Sequence[Panel]) -> str:
    """All panels below each other, as a file that needs no page around it."""
    template = environment().get_template("curves.svg.j2")
    return template.render(panels=[draw(p) for p in panels], width=WIDTH, height=HEIGHT, row=ROW_HEIGHT)


def table_rows(found: Milestones) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns and rows of milestones.csv: a row a model."""
    measures = [*found.nats, *found.accuracies]
    columns = ["milestone", "words", "step", *(f"{m.test}{e}" for m in measures for e in ("", "_low", "_high"))]
    rows = []
    for i, model in enumerate(found.models):
        row: dict[str, Any] = {"milestone": model.name, "words": model.words, "step": model.step}
        for measure in measures:
            row |= dict(
                zip((measure.test, f"{measure.test}_low", f"{measure.test}_high"), measure.values[i], strict=True)
            )
        rows.append(row)
    return columns, rows


WORD_COLUMNS = (
    "test", "word", "class", "occurrences", "tokens", "chance", "lowest", "first", "first_words", "fitted",
    "fitted_words", "residual",
)  # fmt: skip


def word_rows(found: Milestones) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns and rows of words.csv: a row a word of a test, with its nats at each model."""
    names = [m.name for m in found.models]
    rows = []
    for part in found.learned:
        for curve, age in zip(part.curves, part.ages, strict=True):
            values = (
                curve.test, curve.word, curve.kind, curve.occurrences, curve.tokens, age.chance, age.lowest,
                age.first.kind, age.first.words, age.fitted.kind, age.fitted.words, age.residual,
            )  # fmt: skip
            row = dict(zip(WORD_COLUMNS, values, strict=True)) | curve.covariates
            rows.append(row | dict(zip(names, curve.nats, strict=True)))
    return [*WORD_COLUMNS, *found.columns, *names], rows


def markdown(name: str, found: Milestones, targets: Sequence[float], remarks: Sequence[str]) -> str:
    """What was found, as text."""
    measures = [*((m, 1.0, 3) for m in found.nats), *((m, 100.0, 1) for m in found.accuracies)]
    units = [*(f"{m.test}, nats a word" for m in found.nats), *(f"{m.test}, % right" for m in found.accuracies)]
    rows = [
        [m.name, f"{m.words:,}", f"{m.step:,}", *(_scaled(measure, i, scale, d) for measure, scale, d in measures)]
        for i, m in enumerate(found.models)
    ]
    lines = [f"# {show(name)}: milestones", "", *_table(["model", "words served", "step", *units], rows), ""]
    lines += ["95 % intervals are over clusters (clips, lines of a text, items), and say nothing of other seeds. "
              "No video is shown.", *remarks, ""]  # fmt: skip
    for target in targets:
        lines += [f"- {target_text(target, measure, found)}" for measure in found.nats]
    lines += ["", f"![nats, accuracies and learned words over words served]({NAME}.svg)", ""]
    if found.learned:
        lines += ["## When words are learned", ""]
    for part in found.learned:
        lines += [learned_text(part, len(found.models)), "", *_classes(part), ""]
    tables = [row for part in found.learned for row in _correlations(part, found.columns)]
    if tables:
        lines += ["## Ages of acquisition and columns of words", ""]
        header = ["test", "column", "age", "words", "Spearman, 95 %", "Pearson, 95 %"]
        lines += [*_table(header, tables), "",
                  "Ages are log10 of words served, frequencies ln(1 + f). Words that never pass are not among these; "
                  "those that were there at the first milestone count as learned there. Columns are not corrected for "
                  "each other."]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _scaled(measure: Measure, i: int, scale: float, decimals: int) -> str:
    mean, low, high = (scale * v for v in measure.values[i])
    return format_interval((mean, low, high), decimals) if math.isfinite(low) else format_number(mean, decimals)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    every = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(show(c).replace("|", "\\|") for c in cells) + " |" for cells in every]


def target_text(target: float, measure: Measure, found: Milestones) -> str:
    """After how many words a test gets to a target, in words."""
    passed = words_to(target, found.words, measure.means)
    called = f"{show(measure.test)}: {target:g} nats a word"
    if passed.kind == NEVER:
        lowest = int(np.nanargmin(measure.means))
        return f"{called} is NOT REACHED: the lowest is {measure.means[lowest]:.3f}, at {found.models[lowest].name}"
    about = amount_text(passed.words)
    if passed.kind == BEFORE:
        return f"{called} after {about} words or fewer: the first milestone is there"
    return f"{called} after about {about} words (between two milestones, on a logarithmic axis)"


def learned_text(part: Learned, models: int) -> str:
    """How many words of a test were learned, and how many not, in words."""
    rare = f"{part.rare:,} different words are too rare in it to say" if part.rare else ""
    if not part.ages:
        return f"{show(part.test)}: NOT MEASURED, {rare or 'it has no word'} (--least_occurrences)."
    first, fitted = part.counts(FIRST), part.counts(FITTED)
    text = (
        f"{show(part.test)}: of {len(part.ages):,} words {first[PASSED]:,} passed half-way between chance and their "
        f"lowest at a later milestone than the first, {first[BEFORE]:,} were there at the first, and {first[NEVER]:,} "
        "NEVER got twice as likely as chance"
    )
    if models < LEAST_MILESTONES:
        text += f"; no sigmoid was fitted: {models} models, and {LEAST_MILESTONES} are needed"
    else:
        residual = np.nanmedian([a.residual for a in part.ages])
        text += (
            f"; by a sigmoid {fitted[PASSED]:,}, {fitted[BEFORE]:,} and {fitted[NEVER]:,}, and {fitted[NOT_FITTED]:,} "
            f"of which it says nothing (median residual {residual:.2f} nats)"
        )
    return text + (f"; {rare}." if rare else ".")


def _classes(part: Learned) -> list[str]:
    """A table of the ages by word class, those that never pass counted as latest."""
    rows = []
    for kind in sorted({c.kind for c in part.curves}):
        ages = [
            c.words if c.is_known else math.inf
            for curve, c in zip(part.curves, part.crossings(FIRST), strict=True)
            if curve.kind == kind
        ]
        middle = sorted(ages)[(len(ages) - 1) // 2]
        known = sum(map(math.isfinite, ages))
        rows.append(
            [kind, f"{len(ages):,}", f"{known:,}", amount_text(middle) if math.isfinite(middle) else "not reached"]
        )
    return _table(["class", "words", "learned", "half of them after, words"], rows) if rows else []


def _correlations(part: Learned, columns: Sequence[str]) -> list[list[str]]:
    rows = []
    for way in (FITTED, FIRST):
        for column, found in correlations(part, columns, way).items():
            if found.pairs or way == FIRST:
                rows.append([part.test, column, way, f"{found.pairs:,}", *_coefficients(found)])
    return rows


def _coefficients(found: Correlation) -> list[str]:
    return [format_interval(c) if math.isfinite(c[0]) else "not measured" for c in (found.spearman, found.pearson)]


def write_milestones(tests: RunTests, remarks: Sequence[str]) -> str:
    """Writes the table, the words, the figure and the page of a run whose models are all measured; returns the page.

    Raises:
        UserError: from `read_milestones`.
    """
    flags, run = tests.flags, tests.run
    found = read_milestones(tests, flags.least_occurrences)
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    text = markdown(run.resolve().name, found, flags.target, remarks)
    facts = {
        "files": [*(tests.blind.files if tests.blind else ()), *tests.pair_stamps],
        "tables": [made for listed in (tests.blind.tables.values() if tests.blind else ()) for made in listed],
        "least_occurrences": flags.least_occurrences,
        "targets": {
            m.test: {f"{t:g}": words_to(t, found.words, m.means)._asdict() for t in flags.target} for m in found.nats
        },
        "learned": {
            part.test: {"words": len(part.ages), "rare": part.rare, **{w: part.counts(w) for w in (FIRST, FITTED)}}
            for part in found.learned
        },
        "correlations": {
            part.test: {w: {c: r._asdict() for c, r in correlations(part, found.columns, w).items()}
                        for w in (FIRST, FITTED)}
            for part in found.learned
        },
    }  # fmt: skip
    written = {
        f"{NAME}.csv": csv_text(*table_rows(found)),
        "words.csv": csv_text(*word_rows(found)),
        f"{NAME}.svg": svg(panels_of(found, flags.target)),
        f"{NAME}.md": text,
        f"{NAME}.json": json.dumps(clean(facts), indent=1, ensure_ascii=False) + "\n",
    }
    for name, content in written.items():
        data = content.encode("utf-8", "backslashreplace")
        replace_file(folder / name, lambda file, data=data: file.write(data))
    return text


def status(tests: RunTests, say: Callable[[str], None]) -> None:
    """Says what each model of a run lacks."""
    for model in tests.kept:
        names = tests.lacking(model)
        what = f"not yet: {', '.join(names)}" if names else "measured"
        say(f"{show(tests.run)}  {model.name:<12} {model.words:>13,} words  {show(what)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Tests every model that runs kept after so many words (--save_words), and their last ones, without a video.

    Writes a table of nats a word and accuracies over words served, a figure, and when each word was learned, into
    RUN/milestones. What is measured already is kept.
    """
    flags, columns = parse(main.__doc__, MilestoneFlags, Columns, argv=argv, prog=PROG)
    number, of = share_of(flags.share, os.environ)
    runs: list[tuple[RunTests, list[str]]] = []
    for run in map(Path, flags.runs):
        kept, remarks = kept_models(run)
        runs.append((RunTests(flags, columns, run, kept), [show(r) for r in remarks]))
    if flags.status:
        for tests, _ in runs:
            status(tests, print)
        return 0
    work = [(tests, model) for tests, _ in runs for model in tests.kept]
    for tests, model in work[number::of]:
        if tests.lacking(model):
            print(f"{show(tests.run)}: {model.name}, {model.words:,} words", flush=True)
            tests.measure(model)
    for tests, remarks in runs:
        if any(tests.lacking(model) for model in tests.kept):
            status(tests, print)
            print("the table is written by the same command once all are measured")
        else:
            print(f"\n{write_milestones(tests, remarks)}\nwritten to {show(tests.run / FOLDER)}")
    return 0


if __name__ == "__main__":
    run_command(main)
