"""The numbers of a record: which place of its text each of its `variables` fills, and the text with the numbers in it.

LLaVA-ST writes a placeholder (`<WIDTH-OUTPUT>`) where a number stands and the numbers of each kind of placeholder in a
list of their own, in reading order over the whole conversation. Here they become one sequence in reading order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from llava.constants import COORDINATE_PLACEHOLDERS, COORDINATE_TOKENS
from llava.data.captions import MODEL_ROLES
from llava.errors import UserError

VARIABLES = {
    f"{name}_{way.lower()}_locations": f"<{axis}-{way}>"
    for axis, name in (("TEMP", "temporal"), ("HEIGHT", "spatial_height"), ("WIDTH", "spatial_width"))
    for way in ("INPUT", "OUTPUT")
}
"""LLaVA-ST's keys of `variables`, and the placeholder whose numbers each lists."""

COORDINATES = "coordinates"
"""The kind of a problem with them."""

_KEYS = {placeholder: key for key, placeholder in VARIABLES.items()}
_PLACEHOLDER = re.compile("|".join(map(re.escape, COORDINATE_PLACEHOLDERS)))
_FRAME = re.compile(rf"(?P<time><TEMP-(?:INPUT|OUTPUT)>(?=\s*:\s*\[))|{_PLACEHOLDER.pattern}")
_KNOWN = frozenset((*COORDINATE_PLACEHOLDERS, *COORDINATE_TOKENS))
_BRACKETS = re.compile(r"\[\s*\]|\{\s*\}")
_WORD = re.compile(r"<(?:TEMP|HEIGHT|WIDTH)-(?:\d+|INPUT|OUTPUT)>")
_WAY = r"<{}-(?:INPUT|OUTPUT)>[\s,]*"
BOX = re.compile(rf"\[[\s,]*(?:{_WAY.format('WIDTH')}{_WAY.format('HEIGHT')}){{2}}\]")
SPAN = re.compile(rf"\{{[\s,]*(?:{_WAY.format('TEMP')}){{2}}\}}")
"""A box and a span of numbers, however they are spaced."""


def placeholders_in(text: str) -> list[str]:
    """The coordinate placeholders of a text, in reading order."""
    return _PLACEHOLDER.findall(text) if "<" in text else []


def coordinate_word(text: str) -> str:
    """The first coordinate token or placeholder of a text, a number beyond the tokens included; empty for none."""
    found = _WORD.search(text) if "<" in text else None
    return found[0] if found else ""


def without_coordinates(text: str) -> str:
    """The text with a space in place of every coordinate token and placeholder, and of brackets around nothing else."""
    if not coordinate_word(text):
        return text
    return _BRACKETS.sub(" ", _WORD.sub(" ", text))


def axis_of(placeholder: str) -> str:
    """`TEMP`, `HEIGHT` or `WIDTH`."""
    return placeholder[1:].partition("-")[0]


def is_asked(placeholder: str) -> bool:
    """Whether a placeholder's number is an answer's, and not told."""
    return placeholder.endswith("-OUTPUT>")


def check_variables(
    turns: Sequence[Mapping[str, str]], variables: Any, is_allowed: bool
) -> tuple[tuple[float, ...], list[str]]:
    """`read_variables` where records may have coordinates; where they may not, none and what says that it has some."""
    if is_allowed:
        shows = variables is not None or any("<" in turn["value"] for turn in turns)
        return read_variables(turns, variables) if shows else ((), [])
    word = next((word for turn in turns if (word := coordinate_word(turn["value"]))), "")
    if word:
        return (), [f"{word} in the text stands for a number, and there is no --mm_coordinates True"]
    has_some = any(variables.values()) if isinstance(variables, dict) else bool(variables)
    return (), ["variables hold numbers, and there is no --mm_coordinates True"] if has_some else []


def read_variables(
    turns: Sequence[Mapping[str, str]], variables: Any, has_roles: bool = True
) -> tuple[tuple[float, ...], list[str]]:
    """The numbers of a conversation in reading order, and what is wrong with them or their places.

    Args:
        turns: `{"from", "value"}`.
        variables: as the record has them; None for none.
        has_roles: whether the turns say who wrote them, so that it is known which ask and which answer.
    """
    if variables is not None and not isinstance(variables, dict):
        return (), [f"variables must be an object of lists of numbers, got {type(variables).__name__}"]
    variables = variables or {}
    wrong = [
        f"variables has a key {key!r:.60}; known are {', '.join(VARIABLES)}"
        for key in variables
        if key not in VARIABLES
    ]
    queues: dict[str, Sequence[float]] = {}
    for key, placeholder in VARIABLES.items():
        values = variables.get(key)
        values = [] if values is None else values
        if not isinstance(values, (list, tuple)):
            wrong.append(f"{key} must be a list of numbers, got {values!r:.60}")
            continue
        for place, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
                wrong.append(f"{key}[{place}] must be a number from 0 to 1, got {value!r:.60}")
            elif not 0 <= value <= 1:
                wrong.append(f"{key}[{place}] is {value!r:.60}, which is not from 0 to 1")
        queues[placeholder] = values
    found = [(turn, name) for turn in turns for name in placeholders_in(turn["value"])]
    for name in COORDINATE_PLACEHOLDERS:
        places = sum(other == name for _, other in found)
        if name in queues and places != len(queues[name]):
            few = "few" if len(queues[name]) < places else "many"
            wrong.append(f"{places} {name} in the text, but {len(queues[name])} numbers ({few}) under {_KEYS[name]}")
    unknown = (word for turn in turns for word in _WORD.findall(turn["value"]) if word not in _KNOWN)
    if word := next(unknown, ""):
        wrong.append(f"{word} is no coordinate: they are {COORDINATE_TOKENS[0]} to {COORDINATE_TOKENS[99]} and so on")
    for turn, name in found:
        if has_roles and is_asked(name) != (turn["from"] in MODEL_ROLES):
            where, other = ("a question", "INPUT") if is_asked(name) else ("an answer", "OUTPUT")
            wrong.append(f"{name} in {where}: what is told is INPUT, what is asked for is OUTPUT; write {other}")
            break
    if wrong:
        return (), wrong
    left = {name: iter(values) for name, values in queues.items()}
    numbers = tuple(float(next(left[name])) for _, name in found)
    wrong = _reversed("".join(turn["value"] for turn in turns), numbers)
    return (() if wrong else numbers), wrong


def _reversed(text: str, numbers: Sequence[float]) -> list[str]:
    """What is said of the first box or span of a text that ends before it begins."""
    corners = "x1, y1, x2, y2: two corners, and not a corner and a size"
    for what, form, half, order in (("box", BOX, 2, corners), ("span", SPAN, 1, "its first time and its last")):
        for its in (list(numbers[place]) for place in places_of(form, text)):
            if any(its[edge] > its[edge + half] for edge in range(half)):
                return [f"a {what} {its} ends before it begins: a {what} is {order}"]
    return []


def places_of(form: re.Pattern[str], text: str) -> Iterator[slice]:
    """Of each box (`BOX`) or span (`SPAN`) of a text, where its numbers are among those of the text."""
    for found in form.finditer(text):
        first = len(placeholders_in(text[: found.start()]))
        yield slice(first, first + len(placeholders_in(found[0])))


def frame_places(text: str) -> list[int]:
    """Which of the numbers of a text are times of boxes of frames, `<TEMP-...>:[box]`."""
    if ":" not in text:
        return []
    return [place for place, found in enumerate(_FRAME.finditer(text)) if found["time"]]


def variables_of(text: str, numbers: Sequence[float]) -> dict[str, list[float]]:
    """`variables` of a text (all turns, one after the other) whose placeholders stand for `numbers` in reading order.

    Raises:
        ValueError: when there are not as many numbers as placeholders.
    """
    made: dict[str, list[float]] = {key: [] for key in VARIABLES}
    for name, number in zip(placeholders_in(text), numbers, strict=True):
        made[_KEYS[name]].append(number)
    return made


def fill(
    turns: Sequence[Mapping[str, str]], numbers: Iterable[float], write: Callable[[str, float], str]
) -> list[dict[str, str]]:
    """The turns with `write(placeholder, number)` in place of each placeholder.

    Raises:
        ValueError: when there are more placeholders than numbers.
    """
    left: Iterator[float] = iter(numbers)

    def written(found: re.Match[str]) -> str:
        number = next(left, None)
        if number is None:
            raise UserError("more coordinate placeholders than numbers in its variables")
        return write(found[0], number)

    return [{**turn, "value": _PLACEHOLDER.sub(written, turn["value"])} for turn in turns]
