"""What a record of a grounding task asks for, what an answer says, and how near the one is to the other. Pure.

Boxes are those of the square picture that the tower sees, where answers are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any
from unicodedata import normalize

from llava.config.video import ProcessorSpec
from llava.constants import NUM_COORDINATES
from llava.data.coordinates import spell
from llava.data.grounding.geometry import truth_in_square
from llava.data.grounding.text import (
    parse_box,
    parse_boxes,
    parse_event,
    parse_frame_boxes,
    parse_span,
)
from llava.data.records import Record
from llava.data.square_numbers import lost_box, moved_numbers
from llava.data.variables import fill
from llava.errors import UserError, show
from llava.eval.grounding_scores import (
    CENTRE,
    WHOLE,
    Box,
    Span,
    answered_tube,
    best_box,
    best_end,
    best_span,
    box_iou,
    frames_within,
    matched_iou,
    span_iou,
    true_tube,
    tube_iou,
)
from llava.eval.references import answer_of, reference_of

MEASURES: dict[str, tuple[str, ...]] = {
    "REC": ("IoU",),
    "TVG": ("tIoU",),
    "STVG": ("tIoU", "sIoU", "vIoU"),
    "SVG": ("sIoU", "vIoU"),
    "ELC": ("tIoU", "sIoU", "vIoU"),
    "DGC": ("matched IoU",),
    "REG": (),
    "TR": (),
}
"""What is measured of the coordinates of each task's answers."""
WORDED = ("REG", "TR", "ELC", "DGC")
"""Tasks whose answers have words to be scored."""
NEEDED = {
    "REC": ("box",), "TVG": ("span",), "STVG": ("span", "boxes"), "SVG": ("span", "boxes"), "ELC": ("span", "boxes"),
    "DGC": ("phrases",), "REG": (), "TR": (),
}  # fmt: skip
"""The fields of `meta.truth` that a task is scored by, beside its `text`."""
CENTRE_WHOLE, CONSTANT, FIRST_BOX = "centre box, whole clip", "best constant answer", "its first box in every frame"
"""Floors: answers that need no look."""

NEAREST = 0.5 / (NUM_COORDINATES - 1) + 1e-5
"""How far a coordinate may be from the number that it stands for; records round theirs."""
_BOX = re.compile(r"\[\s*(?:<(?:WIDTH|HEIGHT)-\w+>\s*)+\]")


@dataclass(frozen=True)
class Truth:
    """What is where and when, as far as a task is about it.

    Attributes:
        boxes: by the index of their time's coordinate.
        listed: boxes without an order; `text` are the words of an answer that has some.
    """

    task: str
    box: Box | None = None
    span: Span | None = None
    boxes: Mapping[int, Box] = field(default_factory=dict)
    listed: Sequence[Box] = ()
    text: str = ""


@dataclass(frozen=True)
class Answer:
    """What an answer says; a field is empty where nothing of the kind can be read."""

    box: Box | None = None
    span: Span | None = None
    boxes: Mapping[int, Box] = field(default_factory=dict)
    listed: Sequence[Box] = ()
    text: str = ""


def truth_of(record: Record, image_aspect_ratio: str, processor: ProcessorSpec | None) -> Truth:
    """The truth alone that `truth_and_numbers` gives, which also says what is raised."""
    return truth_and_numbers(record, image_aspect_ratio, processor)[0]


def truth_and_numbers(
    record: Record, image_aspect_ratio: str, processor: ProcessorSpec | None
) -> tuple[Truth, tuple[float, ...]]:
    """The truth of a record and its numbers, in the square that a tower with these settings sees.

    Raises:
        ValueError: naming the record, when it lacks the task or what the task is scored by, or a number of it is none
            from 0 to 1 or in another order, or any of its boxes, told ones too, lies outside of the square.
    """
    task = record.meta.get("task")
    if task not in MEASURES:
        raise UserError(_say(record, f"meta.task is {task!r:.40}; known are {', '.join(MEASURES)}"))
    given = record.meta.get("truth")
    needed = (*NEEDED[task], *(("text",) if task in WORDED and task != "DGC" else ()))
    lacks = [name for name in needed if not isinstance(given, dict) or not given.get(name)]
    if lacks or not isinstance(given, dict):
        raise UserError(_say(record, f"meta.truth has no {' and no '.join(lacks)}, which {task} is scored by"))
    try:
        if wrong := _wrong_truth(given):
            raise UserError(wrong)
        truth = truth_in_square(record.meta, image_aspect_ratio, processor)
        boxes = {int(index): tuple(box) for index, box in (truth.get("boxes") or {}).items()}
        phrases = truth.get("phrases") or []
        found = Truth(
            task,
            tuple(truth["box"]) if truth.get("box") else None,
            tuple(truth["span"]) if truth.get("span") else None,
            boxes,
            [tuple(box) for _, box in phrases if box],
            words_alone(reference_of(record)) if task == "DGC" else str(truth.get("text") or ""),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(_say(record, f"meta.truth is not that of {task} ({error})")) from error
    told = moved_numbers(record, image_aspect_ratio, processor)
    is_lost = bool(lost_box(record, told)) or (given.get("box") is not None and found.box is None)
    if is_lost or len(boxes) < len(given.get("boxes") or {}) or len(found.listed) < len(phrases):
        raise UserError(_say(record, f"its box is not in the picture that --image_aspect_ratio {image_aspect_ratio} "
                                     "leaves of the frame"))  # fmt: skip
    return found, told


def _wrong_truth(given: Mapping[str, Any]) -> str:
    """What is said of the first number of a truth that is none of a box or a span."""
    boxes = [("box", given.get("box")), *((f"boxes[{i}]", box) for i, box in (given.get("boxes") or {}).items())]
    boxes += [(f"phrases[{i}]", pair[1]) for i, pair in enumerate(given.get("phrases") or [])]
    for name, box in boxes:
        if box is not None and not _ordered(box, 2):
            return f"{name} is {box!r:.80}, expected x1 < x2 and y1 < y2, all from 0 to 1"
    if given.get("span") is not None and not _ordered(given["span"], 1):
        return f"span is {given['span']!r:.80}, expected its first and last time, from 0 to 1"
    if stray := [i for i in given.get("boxes") or {} if not 0 <= int(i) < NUM_COORDINATES]:
        return f"boxes[{stray[0]}] is at no coordinate of time, which are 0 to {NUM_COORDINATES - 1}"
    return ""


def _ordered(values: Any, half: int) -> bool:
    """Whether values are `half` numbers from 0 to 1 and as many beyond them; those of a span may be the same."""
    if not isinstance(values, (list, tuple)) or len(values) != 2 * half:
        return False
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in values):
        return False
    return all(a < b or (half == 1 and a == b) for a, b in zip(values[:half], values[half:], strict=True))


def other_than_answer(record: Record, truth: Truth, numbers: Sequence[float]) -> str:
    """What is said of a record whose own answer, read as a model's is, is not its truth; empty for none.

    Args:
        numbers: of the record, in the square.
    """
    place = answer_of(record)
    turns = fill(record.conversations, numbers, spell)
    answer = read_answer("" if place is None else turns[place]["value"], truth)
    pairs: list[tuple[str, Any, Any]] = [("box", answer.box, truth.box), ("span", answer.span, truth.span)]
    pairs += [(f"boxes[{i}]", answer.boxes.get(i), truth.boxes.get(i)) for i in {**truth.boxes, **answer.boxes}]
    pairs += [(f"phrases[{i}]", *pair) for i, pair in enumerate(zip_longest(answer.listed, truth.listed))]
    needed = NEEDED[truth.task]
    asked = [pair for pair in pairs if pair[0].partition("[")[0] in needed]
    for name, said, true in asked:
        if name == "span" and truth.task == "SVG":  # It is told.
            continue
        if said is None or true is None or max(abs(a - b) for a, b in zip(said, true, strict=True)) > NEAREST:
            words = f"{name}: its answer has {_places(said)} and meta.truth {_places(true)}"
            return _say(record, f"{words}: mend one of them, or the answer's form (llava.data.grounding.text)")
    if truth.task in WORDED and plain(answer.text) != plain(truth.text):
        return _say(
            record, f"its answer says {answer.text!r:.60} and meta.truth.text {truth.text!r:.60}: mend one of them"
        )
    return ""


def plain(text: str) -> str:
    """A text as texts are compared: in composed characters, with single spaces and without full stops at its end."""
    return " ".join(normalize("NFC", text).split()).rstrip(". ")


def _places(values: Sequence[float] | None) -> str:
    return "nothing" if values is None else f"[{', '.join(f'{v:.3f}' for v in values)}]"


def words_alone(text: str) -> str:
    """A text without the boxes in it, of coordinates or of their placeholders."""
    return " ".join(_BOX.sub(" ", text).split())


def _say(record: Record, message: str) -> str:
    return f"{show(record.source)} id {record.id!r}: {message}"


def read_answer(text: str, truth: Truth) -> Answer:
    """What an answer to a task says. An event's start is told, and is that of the truth (ELC)."""
    if truth.task == "REC":
        return Answer(box=parse_box(text))
    if truth.task == "TVG":
        return Answer(span=parse_span(text))
    if truth.task == "STVG":
        return Answer(span=parse_span(text), boxes=parse_frame_boxes(text))
    if truth.task == "SVG":
        return Answer(boxes=parse_frame_boxes(text))
    if truth.task == "ELC":
        end, words, boxes = parse_event(text)
        span = None if end is None or truth.span is None else (truth.span[0], end)
        return Answer(span=span, boxes=boxes, text=words)
    if truth.task == "DGC":
        return Answer(listed=parse_boxes(text), text=words_alone(text))
    return Answer(text=text)


def measured(answer: Answer, truth: Truth, grid: Sequence[int]) -> dict[str, tuple[float, bool]]:
    """Each measure of a task and whether there was something to measure; what cannot be read has 0.

    Args:
        grid: the places in time of the frames that are seen.
    """
    found: dict[str, tuple[float, bool]] = {}
    for measure in MEASURES[truth.task]:
        if measure == "IoU":
            found[measure] = _iou(box_iou, answer.box, truth.box)
        elif measure == "tIoU":
            found[measure] = _iou(span_iou, answer.span, truth.span)
        elif measure == "matched IoU":
            found[measure] = matched_iou(answer.listed, truth.listed), bool(answer.listed)
        elif "sIoU" not in found or "vIoU" not in found:
            claimed = frames_within(answer.span, grid) if answer.span else ()
            scores = tube_iou(answered_tube(answer.boxes, grid), true_tube(truth.boxes, grid), claimed)
            found |= dict(zip(("sIoU", "vIoU"), ((s, bool(answer.boxes)) for s in scores), strict=True))
    return found


def _iou(iou: Callable[..., Any], answered: Any, truth: Any) -> tuple[float, bool]:
    return (0.0, False) if answered is None else (float(iou(answered, truth)), True)


def constant_answers(truths: Sequence[Truth], grid: Sequence[int]) -> dict[str, list[Answer]]:
    """Answers of one task's records that need no look, by the name of the floor.

    The best constant answer is found on these truths themselves: who knew all of them and had to say one thing.
    """
    if not truths or not MEASURES[truths[0].task]:
        return {}
    boxes = [b for t in truths for b in ([t.box] if t.box else [*t.listed, *true_tube(t.boxes, grid).values()])]
    spans = [t.span for t in truths if t.span]
    box = best_box(boxes) if boxes else CENTRE
    span = best_span(spans) if spans else WHOLE
    end = best_end(spans) if truths[0].task == "ELC" else span[1]
    found = {
        CENTRE_WHOLE: [_constant(t, grid, CENTRE, WHOLE, 1.0) for t in truths],
        CONSTANT: [_constant(t, grid, box, span, end) for t in truths],
    }
    if truths[0].task == "ELC":  # The question tells it.
        found[FIRST_BOX] = [_constant(t, grid, t.boxes[min(t.boxes)], span, end) for t in truths]
    return found


def _constant(truth: Truth, grid: Sequence[int], box: Box, span: Span, end: float) -> Answer:
    """The same box and span for every record of a task; what a question tells is used."""
    if truth.task == "ELC" and truth.span:
        span = truth.span[0], end
    when = truth.span if truth.task == "SVG" and truth.span else span
    return Answer(box, span if truth.task != "SVG" else None, dict.fromkeys(frames_within(when, grid), box), [box])
