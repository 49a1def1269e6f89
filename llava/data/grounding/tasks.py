"""LLaVA-ST's tasks as records of the trainer, made of annotations.

| task | question → answer | needs |
| --- | --- | --- |
| REC, REG | phrase → box; box → phrase | an image, a box |
| DGC | image → text with boxes in it | an image, boxes |
| TVG, TR | event → span; span → text | a span |
| STVG | event → span, then a box for each frame of it | a span, boxes |
| SVG | event and span → boxes | a span, boxes |
| ELC | start and box → end, what happens, boxes | a span, boxes |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.data.coordinates import nearest
from llava.data.grounding.annotation import Annotation, Event
from llava.data.grounding.prompts import AND, PROMPTS
from llava.data.grounding.text import Written, box_text, frame_boxes_text, span_text, time_text
from llava.data.variables import variables_of
from llava.errors import UserError

TASKS = ("REC", "REG", "TVG", "TR", "STVG", "SVG", "ELC", "DGC")
DECIMALS = 6
"""Of numbers in records."""


class Random(Protocol):
    """What chooses among the wordings: `random.Random`, or a generator of numpy."""

    def random(self) -> float:
        """A number from 0 to below 1."""


@dataclass(frozen=True)
class _Made:
    """What fills a question, the answer, and the truth of it in numbers."""

    told: dict[str, str | Written]
    answer: Written
    truth: dict[str, Any]


def records_of(annotation: Annotation, tasks: Sequence[str], language: str, rng: Random) -> list[dict[str, Any]]:
    """A LLaVA record for each task and event of an annotation that has what the task needs.

    `meta` has the `task`, the `truth` for scoring, `width` and `height`, the `event`, and the segment. `truth` holds
    `box`, `span`, `boxes` (by the index of their time's coordinate), `phrases` (of DGC, with their boxes) and `text`,
    as far as the task is about them, told or asked for.

    Args:
        tasks: of `TASKS`.
        language: of the questions, one of `prompts.PROMPTS`; what is named stays as it is.
        rng: which of several wordings a question has.

    Raises:
        ValueError: for a task or a language that is not known.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise UserError(f"no task is called {unknown[0]!r}; known are {', '.join(TASKS)}")
    if language not in PROMPTS:
        raise UserError(f"there are no questions in {language!r}; known are {', '.join(PROMPTS)}")
    records = []
    for task in tasks:
        for number, (event, made) in enumerate(_all_of(task, annotation, language)):
            wordings = PROMPTS[language][task]
            question = wordings[min(int(rng.random() * len(wordings)), len(wordings) - 1)]
            records.append(_record(annotation, task, number, language, event, made, question))
    return records


def asked_as(annotation: Annotation, task: str, language: str, question: str) -> dict[str, Any]:
    """The record of an annotation's one event with a question of its own, in which `{event}`, `{box}`, `{span}` and
    `{start}` stand for what is told, each where the task tells it.

    Raises:
        ValueError: when the question tells what the task does not.
    """
    ((event, made),) = _all_of(task, annotation, language)
    return _record(annotation, task, 0, language, event, made, question)


def _all_of(task: str, annotation: Annotation, language: str) -> Iterator[tuple[Event | None, _Made]]:
    if task == "DGC":
        if annotation.image and (boxed := [e for e in annotation.events if e.boxes]):
            yield None, _dgc(boxed, language)
        return
    needs_image, needs_span, needs_boxes, make = _MAKERS[task]
    for event in annotation.events:
        if (
            bool(annotation.image) == needs_image
            and (event.span is not None or not needs_span)
            and (event.boxes or not needs_boxes)
        ):
            yield event, make(event)


def _record(
    annotation: Annotation, task: str, number: int, language: str, event: Event | None, made: _Made, question: str
) -> dict[str, Any]:
    token = DEFAULT_IMAGE_TOKEN if annotation.image else DEFAULT_VIDEO_TOKEN
    asked, told = _fill(question, made.told)
    answer, wanted = made.answer
    meta: dict[str, Any] = {
        "task": task,
        "language": language,
        **({"width": annotation.width, "height": annotation.height} if annotation.width else {}),
        "truth": made.truth,
    }
    if event is not None:
        meta["event"] = event.text
    if annotation.split is not None:
        meta["split"] = list(annotation.split)
    numbers = [round(float(n), DECIMALS) for n in (*told, *wanted)]
    return {
        "id": f"{annotation.id}_{task.lower()}_{number}",
        **({"image": annotation.image} if annotation.image else {"video": annotation.video}),
        "conversations": [{"from": "human", "value": f"{token}\n{asked}"}, {"from": "gpt", "value": answer}],
        "variables": variables_of(asked + answer, numbers),
        "meta": meta,
    }


def _fill(question: str, told: dict[str, str | Written]) -> Written:
    """The question with what it tells in the place of `{event}`, `{box}`, `{span}` and `{start}`."""
    text, numbers = "", []
    rest = question
    while "{" in rest:
        before, _, rest = rest.partition("{")
        name, _, rest = rest.partition("}")
        if name not in told:
            raise UserError(f"the question tells {{{name}}}, and its task tells {', '.join(told) or 'nothing'}")
        value = told[name]
        words, its = (value, []) if isinstance(value, str) else value
        text += before + words
        numbers += its
    text += rest
    return text, numbers


def _numbers(values: Sequence[float]) -> list[float]:
    return [round(float(v), DECIMALS) for v in values]


def _boxes(event: Event) -> dict[str, list[float]]:
    """The boxes by the index of their time's coordinate; of several at one the first, as answers are read."""
    boxes: dict[str, list[float]] = {}
    for time in sorted(event.boxes):
        boxes.setdefault(str(nearest(time)), _numbers(event.boxes[time]))
    return boxes


def _one_box(event: Event) -> list[float]:
    return _numbers(event.boxes[min(event.boxes)])


def _rec(event: Event) -> _Made:
    box = _one_box(event)
    return _Made({"event": event.text}, box_text(box), {"box": box, "text": event.text})


def _reg(event: Event) -> _Made:
    box = _one_box(event)
    return _Made({"box": box_text(box, "INPUT")}, (event.text, []), {"box": box, "text": event.text})


def _span(event: Event) -> list[float]:
    assert event.span is not None
    return _numbers(event.span)


def _tvg(event: Event) -> _Made:
    span = _span(event)
    return _Made({"event": event.text}, span_text(span), {"span": span, "text": event.text})


def _tr(event: Event) -> _Made:
    span = _span(event)
    return _Made({"span": span_text(span, "INPUT")}, (event.text, []), {"span": span, "text": event.text})


def _stvg(event: Event) -> _Made:
    span, boxes = _span(event), _boxes(event)
    when, where = span_text(span), frame_boxes_text(event.boxes)
    answer = f"{when[0]} {where[0]}", [*when[1], *where[1]]
    return _Made({"event": event.text}, answer, {"span": span, "boxes": boxes, "text": event.text})


def _svg(event: Event) -> _Made:
    span, boxes = _span(event), _boxes(event)
    told: dict[str, str | Written] = {"event": event.text, "span": span_text(span, "INPUT")}
    return _Made(told, frame_boxes_text(event.boxes), {"span": span, "boxes": boxes, "text": event.text})


def _elc(event: Event) -> _Made:
    span, boxes = _span(event), _boxes(event)
    told: dict[str, str | Written] = {
        "start": time_text(span[0], "INPUT"),
        "box": box_text(event.first_box or event.boxes[min(event.boxes)], "INPUT"),
    }
    when, where = time_text(span[1]), frame_boxes_text(event.boxes)
    answer = f"{when[0]}, {event.text.rstrip('.')}. {where[0]}", [*when[1], *where[1]]
    return _Made(told, answer, {"span": span, "boxes": boxes, "text": event.text})


def _dgc(events: Sequence[Event], language: str) -> _Made:
    phrases = [(event.text.rstrip("."), _one_box(event)) for event in events]
    parts, numbers = [], []
    for phrase, box in phrases:
        text, its = box_text(box)
        parts.append(f"{phrase} {text}")
        numbers += its
    first, last = ", ".join(parts[:-1]), parts[-1]
    text = f"{first} {AND[language]} {last}." if first else f"{last}."
    return _Made({}, (text, numbers), {"phrases": [list(pair) for pair in phrases]})


_MAKERS: dict[str, tuple[bool, bool, bool, Callable[[Event], _Made]]] = {
    "REC": (True, False, True, _rec),
    "REG": (True, False, True, _reg),
    "TVG": (False, True, False, _tvg),
    "TR": (False, True, False, _tr),
    "STVG": (False, True, True, _stvg),
    "SVG": (False, True, True, _svg),
    "ELC": (False, True, True, _elc),
}
"""By task: of an image, needs a span, needs boxes, and what makes it."""
