"""The scores of answers to grounding tasks, each beside its floors: as figures, a table and rows. Pure.

Letters in shapes: N answers of one task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.data.records import Record
from llava.eval.accuracy import clustered_share
from llava.eval.caption_scores import score_texts
from llava.eval.captioning import Caption
from llava.eval.grounding_answers import CONSTANT, MEASURES, WORDED, Answer, Truth, constant_answers, measured, plain
from llava.eval.grounding_scores import answered_tube, figures, true_tube

OTHER = "another clip's video"
VALUE = "score, 95 % interval"
READ_ALONE = "read answers alone"
SHOWN = 3
"""Examples of each task: its best answer, its median one, and its worst."""


@dataclass(frozen=True)
class Asked:
    """A record, what is true of it, and what was answered: with its own clip, and with another (None where there is
    none)."""

    record: Record
    truth: Truth
    clip: Any
    said: Caption
    answer: Answer
    other_said: Caption | None = None
    other: Answer | None = None


def by_task(asked: Sequence[Asked]) -> dict[str, list[Asked]]:
    """The answers of each task, in the order of `MEASURES`."""
    found = {task: [a for a in asked if a.truth.task == task] for task in MEASURES}
    return {task: listed for task, listed in found.items() if listed}


def scores_of(asked: Sequence[Asked], grid: Sequence[int], metrics: Sequence[str]) -> dict[str, Any]:
    """Of each task: `records`, `clips`, `measures`, `words` and `constant`.

    `measures` has of each measure how many answers could be read (`parsed`) and its `figures`: `value` with what could
    not be read as 0, `parsed_only`, and `floors` by name, each as value and ends of its 95 % interval over clips.
    `words` are scores of the words, likewise. `constant` is the best constant answer.

    Args:
        grid: the places in time of the frames that are seen.
    """
    return {task: _task(task, listed, grid, metrics) for task, listed in by_task(asked).items()}


def _task(task: str, asked: Sequence[Asked], grid: Sequence[int], metrics: Sequence[str]) -> dict[str, Any]:
    truths, clips = [a.truth for a in asked], [a.clip for a in asked]
    constants = constant_answers(truths, grid)
    floors: dict[str, list[dict[str, tuple[float, bool]]]] = {
        name: [measured(answer, truth, grid) for answer, truth in zip(answers, truths, strict=True)]
        for name, answers in constants.items()
    }
    others = [a.other for a in asked]
    if all(other is not None for other in others):
        floors = {OTHER: [measured(a.other, a.truth, grid) for a in asked if a.other is not None]} | floors
    own = [measured(a.answer, a.truth, grid) for a in asked]
    measures = {}
    for measure in MEASURES[task]:
        values, parsed = zip(*(v[measure] for v in own), strict=True)
        readable = [i for i, read in enumerate(parsed) if read]
        whole = figures(measure, values, clips)
        alone = figures(measure, [values[i] for i in readable], [clips[i] for i in readable])
        beside = {name: figures(measure, [v[measure][0] for v in listed], clips) for name, listed in floors.items()}
        measures[measure] = {
            "parsed": len(readable),
            "figures": {
                name: {
                    "value": whole[name], "parsed_only": alone[name],
                    "floors": {floor: found[name] for floor, found in beside.items()},
                }
                for name in whole
            },
        }  # fmt: skip
    found: dict[str, Any] = {"records": len(asked), "clips": len(set(clips)), "measures": measures}
    if task in WORDED:
        found["words"] = _words(asked, metrics)
    if constants:
        best = constants[CONSTANT][0]
        when = {} if best.span is None else {"end": [best.span[1]]} if task == "ELC" else {"span": list(best.span)}
        where = {"box": best.box} if set(measures) - {"tIoU"} else {}
        found["constant"] = {**where, **(when if "tIoU" in measures else {})}
    return found


def _words(asked: Sequence[Asked], metrics: Sequence[str]) -> dict[str, Any]:
    """Scores of the words of answers, and of those with another clip's video where all have them."""
    whole = _word_scores(asked, [a.answer.text for a in asked], metrics)
    others = [a.other.text for a in asked if a.other is not None]
    beside = _word_scores(asked, others, metrics) if len(others) == len(asked) else {}
    return {
        name: {"value": value, "floors": {OTHER: beside[name]} if name in beside else {}}
        for name, value in whole.items()
    }


def _word_scores(asked: Sequence[Asked], texts: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """The answer to each record is compared with its own words alone: a clip has several boxes and spans."""
    references = {i: [a.truth.text] for i, a in enumerate(asked)}
    numbers = {clip: i for i, clip in enumerate(dict.fromkeys(a.clip for a in asked))}
    clusters = {i: numbers[a.clip] for i, a in enumerate(asked)}
    hits = [float(plain(t) == plain(a.truth.text)) for t, a in zip(texts, asked, strict=True)]
    exact = clustered_share(hits, list(clusters.values()))
    return {"exact match": exact} | score_texts(texts, list(references), references, metrics, clusters)


def rows_of(asked: Sequence[Asked], grid: Sequence[int]) -> list[dict[str, Any]]:
    """A row an answer, with its measures; what could not be read has nothing there, and counts 0 in the scores."""
    rows = []
    for a in asked:
        row: dict[str, Any] = {
            "item": a.record.id, "task": a.truth.task, "clip": path_of(a.record), "answer": a.said.text,
            "ended": a.said.ended, "split": "-".join(map(str, a.record.split)) if a.record.split else None,
        }  # fmt: skip
        row |= {m: v if read else None for m, (v, read) in measured(a.answer, a.truth, grid).items()}
        if a.other is not None and a.other_said is not None:
            row["other_answer"] = a.other_said.text
            row |= {f"other_{m}": v if read else None for m, (v, read) in measured(a.other, a.truth, grid).items()}
        rows.append(row)
    return rows


def path_of(record: Record) -> str:
    """What a record shows first."""
    return [*record.videos, *record.images][0]


def examples_of(asked: Sequence[Asked], grid: Sequence[int], question: Callable[[Record], str]) -> list[dict[str, Any]]:
    """Answers to be drawn, with their truths: of each task the best, the median and the worst by its last measure."""
    found = []
    for task, listed in by_task(asked).items():
        measure = MEASURES[task][-1] if MEASURES[task] else None
        values = [measured(a.answer, a.truth, grid)[measure][0] if measure else 0.0 for a in listed]
        order = sorted(range(len(listed)), key=lambda i: -values[i])
        chosen = sorted({0, len(order) // 2, len(order) - 1}) if len(order) >= SHOWN else range(len(order))
        for a, value in ((listed[order[i]], values[order[i]]) for i in chosen):
            found.append({
                "id": a.record.id, "task": task, "question": question(a.record), "path": path_of(a.record),
                "is_image": not a.record.videos, "split": list(a.record.split) if a.record.split else None,
                "answer": a.said.text, "value": value if measure else None, "measure": measure,
                "truth": _drawn(a.truth, true_tube(a.truth.boxes, grid)),
                "said": _drawn(a.answer, answered_tube(a.answer.boxes, grid)),
                "words": a.truth.text,
            })  # fmt: skip
    return found


def _drawn(what: Truth | Answer, boxes: Mapping[int, Any]) -> dict[str, Any]:
    return {
        "box": what.box, "span": what.span, "listed": list(what.listed),
        "boxes": {str(frame): list(box) for frame, box in boxes.items()},
    }  # fmt: skip


@dataclass(frozen=True)
class TaskTable:
    """The scores of a task in words: `rows` are the cells of each figure by the name of their column."""

    heading: str
    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, str]]
    constant: str


def table_of(task: str, found: Mapping[str, Any]) -> TaskTable:
    """The scores of a task, as `scores_of` gives them, each figure beside its floors."""
    unread = [
        f"{found['records'] - part['parsed']} without {measure}, which count 0"
        for measure, part in found["measures"].items()
        if part["parsed"] < found["records"]
    ]
    heading = "; ".join([f"{task}: {found['records']} questions about {found['clips']} clips", *unread])
    rows: dict[str, dict[str, str]] = {}
    for measure, part in found["measures"].items():
        for name, figure in part["figures"].items():
            cells = {VALUE: _interval(figure["value"]), READ_ALONE: _number(figure["parsed_only"])}
            rows[f"{measure} {name}"] = cells | {floor: _number(v) for floor, v in figure["floors"].items()}
    for name, score in (found.get("words") or {}).items():
        rows[name] = {VALUE: _interval(score["value"])} | {floor: _number(v) for floor, v in score["floors"].items()}
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    constant = [f"{name} ({', '.join(f'{x:.2f}' for x in v)})" for name, v in (found.get("constant") or {}).items()]
    return TaskTable(heading, columns, rows, ", ".join(constant))


def format_tasks(tasks: Mapping[str, Any]) -> str:
    """The scores of all tasks as aligned text."""
    return "\n\n".join("\n".join(_lines(table_of(task, found))) for task, found in tasks.items())


def _lines(table: TaskTable) -> list[str]:
    widths = {c: max(len(c), *(len(cells.get(c, "")) for cells in table.rows.values())) for c in table.columns}
    first = max(map(len, table.rows), default=0)
    lines = [table.heading, "  " + " " * first + "  " + "  ".join(c.rjust(widths[c]) for c in table.columns)]
    for name, cells in table.rows.items():
        lines.append(f"  {name:<{first}}  " + "  ".join(cells.get(c, "").rjust(widths[c]) for c in table.columns))
    return [
        line.rstrip() for line in [*lines, *([f"  best constant answer: {table.constant}"] if table.constant else [])]
    ]


def _number(triple: Sequence[float | None]) -> str:
    value = triple[0]
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _interval(triple: Sequence[float | None]) -> str:
    value, low, high = triple
    if value is None or math.isnan(value):
        return "–"
    if low is None or high is None or math.isnan(low):
        return f"{value:.3f} [one clip]"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
