"""What was found, as a page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.parts import Outcome, Row

TARGET_DEVICE = "H100"
"""What the targets were set for."""


def cell(value: Any) -> str:
    """Text that stays within a cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A table whose middle columns are numbers; empty where there are no rows."""
    if not rows:
        return []
    line = ["---", *["---:"] * (len(head) - 2), "---"]
    return ["", *(f"| {' | '.join(map(cell, row))} |" for row in (head, line, *rows))]


def of(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def section(outcome: Outcome) -> list[str]:
    """A part: what was equal, what was measured, what is not here, what failed."""
    state = "failed" if outcome.failures else "done"
    lines = ["", f"## {outcome.title}", "",
             f"`{outcome.name}`: {state}, {outcome.seconds:.0f} s of {outcome.limit:.0f} s."]  # fmt: skip
    lines += [f"\n**Failed**: {cell(failure)}" for failure in outcome.failures]
    rows = outcome.rows
    lines += table(
        ("fast path against plain", "error", "allowed", "equal", ""),
        [
            (
                r["measure"],
                f"{r['value']:.1e}",
                f"{r['allowed']:.1e}",
                "yes" if r["equal"] else "NO",
                r["note"],
            )
            for r in of(rows, "compared")
        ],
    )
    lines += table(
        ("measure", "found", ""),
        [(r["measure"], f"{number(r['value'])} {r['unit']}", r["note"]) for r in of(rows, "measured")],
    )
    lines += table(
        ("the first against the second", "first", "second", "ratio", ""),
        [
            (r["measure"], f"{number(r['plain'])} {r['unit']}", f"{number(r['fast'])} {r['unit']}",
             f"{r['ratio']:.3g}", r["note"])
            for r in of(rows, "paired")
        ],
    )  # fmt: skip
    absent = of(rows, "not here")
    lines += ["", "Not measured here:", ""] * bool(absent)
    return lines + [f"- {cell(r['measure'])}: {cell(r['note'])}" for r in absent]


def targets(rows: Sequence[Row], device: str) -> list[str]:
    """What was to be reached, where the device is the one that it was set for."""
    found = []
    for row in rows:
        if "target" in row:
            sign, bound = row["target"]
            met = row["value"] >= bound if sign == ">=" else row["value"] <= bound
            words = {">=": "at least", "<=": "at most"}[sign]
            value = f"{number(row['value'])} {row['unit']}"
            answer = ("yes" if met else "no") if TARGET_DEVICE in device else f"not a target of a {device}"
            found.append((row["measure"], f"{words} {number(bound)} {row['unit']}", value, answer))
    return table((f"target, {TARGET_DEVICE}, 12 x 768, cached, bf16", "target", "found", "reached"), found)


def page(outcomes: Sequence[Outcome], about: dict[str, Any]) -> str:
    """The whole page.

    Args:
        about: the command, its date and device, `cuda` (whether it is a GPU), minutes allowed and taken.
    """
    rows = [row for outcome in outcomes for row in outcome.rows]
    title = "# On a GPU" if about["cuda"] else "# A rehearsal on CPU: no figure here is one of a GPU"
    lines = [title, "", f"`{about['command']}`, {about['date']}: {about['took']:.1f} of {about['minutes']:g} minutes."]
    failed = [outcome.name for outcome in outcomes if outcome.failures]
    checks = of(rows, "compared")
    equal = sum(row["equal"] for row in checks)
    lines += ["", f"{equal} of {len(checks)} comparisons are equal. "
              + (f"**Failed parts: {', '.join(failed)}.**" if failed else "No part failed.")]  # fmt: skip
    facts = {row["measure"]: row["value"] for row in of(rows, "fact")}
    lines += table(("", ""), list(facts.items()))
    lines += targets(rows, str(facts.get("device", about["device"])))
    for outcome in outcomes:
        lines += section(outcome)
    return "\n".join(lines) + "\n"
