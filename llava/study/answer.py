"""The end of a study: every value in one CSV, the differences with their intervals, and the answer in words.

Writes `items.csv`, `study.md` and `report.html` into the folder of the study, and `milestones.csv` where models of
earlier in training were kept: apart, so that nobody averages over budgets who reads `items.csv`.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from llava.constants import REPORT_FILE, RUN_RECORD
from llava.data.features.content import replace_file
from llava.errors import UserError, show
from llava.report.drawing import HEIGHT, WIDTH, draw
from llava.report.page import environment, part
from llava.study.measure import SEEING, Measured, difference, measure
from llava.study.results import Table, milestones, read_milestones, read_study, runs_of, words_of
from llava.study.sections import Budget, Section, sections_of
from llava.study.settings import recorded
from llava.study.verdict import HARMS, HELPS, NO_DIFFERENCE, NO_VERDICT, UNITS, Verdict, judge

ITEMS, MILESTONES, MARKDOWN = "items.csv", "milestones.csv", "study.md"
CAPTIONS = "captions"
"""The blind test of held-out captions."""
READING = (
    "V saw each caption after its own clip, M after another's; both are then tested without any video, unless a test "
    "says so. In V − M, nats below zero favour V, and so do percentage points above zero. In brackets: 95 %, two-way t."
)
"""How the numbers of the headline are read."""
TONES = {HELPS: "good", HARMS: "bad", NO_DIFFERENCE: "plain", NO_VERDICT: "unmeasured"}


@dataclass(frozen=True)
class Answer:
    """What a study found; `text` is what to print."""

    verdict: Verdict
    measured: Measured
    budgets: list[Budget]
    page: Path

    @property
    def text(self) -> str:
        return self.verdict.text


def write_answer(
    study: str | Path,
    primary: str = CAPTIONS,
    by_word: str = CAPTIONS,
    blind_share: float | None = None,
    smallest: float | None = None,
) -> Answer:
    """Joins the results of all runs, judges them and writes the pages.

    Args:
        study: the folder with `seed0/V`, `seed0/M`, `seed0/T` and so on, all of them trained and tested.
        primary: the test that answers, named before the study: `captions`, the name of a text, or `pairs_NAME`.
        by_word: the blind test that is split by word class and regressed on norms.
        blind_share: of V and M; by default what their records say.
        smallest: the effect that would matter: nats a word, or a share of pairs. 0.02 by default.

    Raises:
        UserError: naming runs, tests or items that are missing, values that are not finite, and a primary test that
            nobody has.
    """
    study = Path(study)
    share = _recorded_share(study) if blind_share is None else blind_share
    tables: list[Table] = []

    _write_rows(study / ITEMS, lambda out: tables.extend(read_study(study, out)))
    try:
        measured = measure(tables, primary, by_word)
    except KeyError as error:
        raise UserError(
            f"{study}: no test {show(primary)} of both V and M; the tests are {error.args[0]}; name one as the primary"
        ) from None
    begun = recorded(study)
    smallest = UNITS[measured.primary.unit].smallest if smallest is None else smallest
    verdict = judge(measured, share, smallest, begun.get("primary"))
    budgets = _budgets(study, primary)
    if budgets:
        budgets.append(Budget("the end", math.nan, measured.primary, measured.levels[primary]))
    sections = sections_of(measured, budgets, smallest, begun)
    written = datetime.now().strftime("%Y-%m-%d %H:%M")
    page = study / REPORT_FILE
    for path, content in (
        (study / MARKDOWN, markdown(study.resolve().name, verdict, sections)),
        (page, html(study.resolve().name, verdict, sections, written)),
    ):
        data = content.encode("utf-8", "backslashreplace")
        replace_file(path, lambda file, data=data: file.write(data))
    return Answer(verdict, measured, budgets, page)


def _recorded_share(study: Path) -> float | None:
    """The share of captions that V and M were shown blind, as their records say; None where one does not.

    Raises:
        UserError: when runs differ.
    """
    shares: dict[float | None, str] = {}
    for (arm, seed), folder in runs_of(study).items():
        if arm in SEEING:
            record = folder / RUN_RECORD
            try:
                flags = json.loads(record.read_text(encoding="utf-8"))["flags"] if record.is_file() else {}
                share = flags.get("blind_share")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{record}: not the record of a run ({error}); train the run again") from error
            shares.setdefault(None if share is None else float(share), f"seed{seed}/{arm}")
    if len(shares) > 1:
        named = ", ".join(f"{share} in {run}" for share, run in shares.items())
        raise UserError(f"{study}: --blind_share differs between runs of V and M: {named}; train them alike")
    return next(iter(shares))


def _write_rows(path: Path, fill: Callable[[io.TextIOWrapper], object]) -> None:
    """Writes a CSV, whole or not at all."""

    def write(file: io.BufferedWriter) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        fill(text)
        text.flush()
        text.detach()

    replace_file(path, write)


def _budgets(study: Path, primary: str) -> list[Budget]:
    """The primary test at each milestone where it was made; every value of all tests there goes into a CSV."""
    names, found = milestones(study), []

    def fill(out: io.TextIOWrapper) -> None:
        for number, tables in enumerate(read_milestones(study, names, out)):
            table = next((t for t in tables if t.test == primary), None)
            if table is not None and set(SEEING) <= set(table.values):
                found.append(_budget(names[number], table))

    if names:
        _write_rows(study / MILESTONES, fill)
    else:
        (study / MILESTONES).unlink(missing_ok=True)
    return found


def _budget(name: str, table: Table) -> Budget:
    """The primary test at one milestone."""
    levels = {arm: float(v.sum(axis=1).mean() / table.units.sum()) for arm, v in sorted(table.values.items())}
    words = words_of(name)
    called = name.removeprefix("chck_") + " words"
    return Budget(called, words if math.isfinite(words) else math.nan, difference(table, SEEING), levels)


def markdown(name: str, verdict: Verdict, sections: Sequence[Section]) -> str:
    """The page as Markdown; names of tests, words and folders are foreign text."""
    lines = [
        f"# {show(name)}: does seeing help?",
        "",
        f"**{verdict.headline}**",
        "",
        READING,
        "",
        *(f"- {s}" for s in verdict.sentences),
        "",
    ]
    for section in sections:
        lines += [f"## {section.title}", "", *(f"{text}\n" for text in section.text)]
        if section.rows:
            rows = [section.header, ["---"] * len(section.header), *section.rows]
            lines += ["| " + " | ".join(show(c).replace("|", "\\|") for c in cells) + " |" for cells in rows]
            lines.append("")
    return "\n".join(lines)


def html(name: str, verdict: Verdict, sections: Sequence[Section], written: str) -> str:
    """The page, one file without outside parts."""
    return (
        environment()
        .get_template("study.html.j2")
        .render(
            name=name,
            verdict=verdict,
            reading=READING,
            tone=TONES[verdict.kind],
            sections=[(s, [draw(p) for p in s.panels]) for s in sections],
            written=written,
            style=part("page.css"),
            scripts=[part("curves.js")],
            width=WIDTH,
            height=HEIGHT,
        )
    )
