"""What the text of a record must be: placeholders in their place, words after them, nothing that only looks like words.

No file is opened here, and a problem is `(kind, message)`; `llava.data.records` says of which record.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from llava.constants import PLACEHOLDERS

MODEL_ROLES = ("gpt", "assistant")

EMPTY = "empty caption"
MISPLACED = "misplaced placeholder"
CONTROL = "control character"
DOUBTFUL = "doubtful caption"
ORDER = "order of turns"
NEAR_MISS = "near placeholder"

MISSING_VALUES = ("nan", "none", "null", "n/a", "<na>", "undefined", "todo", "-", "...")
"""What programs write for a caption that is not there."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_LOOKALIKE = re.compile(
    r"[<\[{]\s*[|/]?\s*(?:vid|video|clip|img|image|pic|picture|frame)s?[\s_-]*\d*\s*[|/]?\s*[>\]}]", re.IGNORECASE
)
"""What other programs write for `<video>` and `<image>`."""

_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0") | {
    chr(code) for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF))
    for code in range(first, last + 1)
}  # fmt: skip
"""Beside format characters: what Unicode calls default-ignorable (DerivedCoreProperties.txt), and blank Braille."""


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, and characters that no font draws."""
    if text[:1].isalnum() and text[0] not in _BLANK:  # Hangul fillers count as letters.
        return False
    return all(c.isspace() or c in _BLANK or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def order_problem(roles: Sequence[str]) -> str | None:
    """What is wrong with the order of turns for a chat format: a system turn may open, then a question and an answer
    come in turns.
    """
    kinds = ["answer" if role in MODEL_ROLES else "system turn" if role == "system" else "question" for role in roles]
    first = 1 if kinds[:1] == ["system turn"] else 0
    for place, kind in enumerate(kinds[first:]):
        expected = ("question", "answer")[place % 2]
        if kind != expected:
            return f"turn {first + place} is {_a(kind)} where a chat has {_a(expected)}"
    return None


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def check_text(
    turns: Sequence[Mapping[str, str]], files: Mapping[str, int], reserved: Sequence[str], is_chat: bool = False
) -> list[tuple[str, str]]:
    """What is wrong with the turns of a conversation.

    Args:
        files: number of files for each placeholder.
        reserved: strings that a text must not contain.
        is_chat: only answers are learnt, question by question.
    """
    found = []
    if is_chat and (problem := order_problem([turn["from"] for turn in turns])):
        found.append((ORDER, problem))
    text = "\n".join([turn["value"] for turn in turns])
    for placeholder, number in files.items():
        count = text.count(placeholder)
        if count != number:
            key, files_named = placeholder.strip("<>"), "file" if number == 1 else "files"
            words = f"{count} {placeholder} in the text, but {number} {files_named} under {key} or {key}s"
            if count < number and (other := lookalikes(text)):
                words += f"; {other[0]!r} is not read as one"
            found.append(("count mismatch", words))
    found += [("reserved token", f"the text contains {token!r}") for token in reserved if token in text]
    answers = [turn["value"] for turn in turns if turn["from"] in MODEL_ROLES]
    answer = " ".join(answers)
    if is_blank(without_placeholders(answer) if "<" in answer else answer):
        found.append((EMPTY, "no gpt turn has text besides placeholders and characters that show nothing"))
    elif "<" in text:
        found += _misplaced(turns, text, is_chat)
    if is_chat and len(answers) > 1 and any(map(is_blank, answers)) and not is_blank(answer):
        found.append((EMPTY, "one of the gpt turns is empty, and the model would learn to say nothing"))
    if control := _CONTROL.search(text):
        place = next(i for i, turn in enumerate(turns) if control[0] in turn["value"])
        found.append((CONTROL, f"turn {place} contains {control[0]!r}"))
    if half := half_character(text):
        found.append(("malformed", f"the text: {half}"))
    return found


def half_character(text: str, is_path: bool = False) -> str | None:
    """What is wrong with a text that cannot be written as UTF-8: JSON can say half of a surrogate pair.

    In a path some of them are bytes of a name that is not UTF-8, as `os.listdir` gives it (PEP 383).
    """
    if text.isascii():
        return None
    try:
        text.encode("utf-8", "surrogateescape" if is_path else "strict")
    except UnicodeEncodeError as error:
        return f"contains {text[error.start]!r}, half of a character"
    return None


def _misplaced(turns: Sequence[Mapping[str, str]], text: str, is_chat: bool) -> list[tuple[str, str]]:
    """Placeholders in an answer, or with no word after the last of them that could be learnt from them."""
    found = [
        (MISPLACED, f"turn {i}: {placeholder} in an answer, which is learnt word by word")
        for i, turn in enumerate(turns)
        if "<" in turn["value"] and turn["from"] in MODEL_ROLES
        for placeholder in PLACEHOLDERS
        if placeholder in turn["value"]
    ]
    if is_chat:
        shown = max((i for i, turn in enumerate(turns) if any(p in turn["value"] for p in PLACEHOLDERS)), default=-1)
        if shown >= 0 and not any(turn["from"] in MODEL_ROLES for turn in turns[shown + 1 :]):
            found.append((MISPLACED, "no answer follows the last placeholder, so nothing is learnt from what it shows"))
        return found
    last = max([text.rfind(p) + len(p) if p in text else 0 for p in PLACEHOLDERS])
    if last and is_blank(text[last:].lstrip()):
        found.append((MISPLACED, "no word follows the last placeholder, so nothing is learnt from what it shows"))
    return found


def without_placeholders(text: str, instead: str = "") -> str:
    """The text with `instead` for every placeholder."""
    if "<" not in text:
        return text
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, instead)
    return text


def lookalikes(text: str) -> list[str]:
    """What looks like a placeholder in a text and is none: `<video_1>`, `<Video>`, `[video]`."""
    if not ("<" in text or "[" in text or "{" in text):
        return []
    return [found for found in _LOOKALIKE.findall(text) if found not in PLACEHOLDERS]


def remarks_on(turns: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """What may be right and is looked at all the same: answers that are a program's word for a missing value, and words
    that look like placeholders.
    """
    found = [
        (DOUBTFUL, f"turn {i}: the whole caption is {turn['value'].strip()!r}")
        for i, turn in enumerate(turns)
        if len(turn["value"]) < 16
        and turn["from"] in MODEL_ROLES
        and turn["value"].strip().casefold() in MISSING_VALUES
    ]
    for i, turn in enumerate(turns):
        if turn["value"] in PLACEHOLDERS:
            continue
        found += [(NEAR_MISS, f"turn {i}: {other!r} is text like any other") for other in lookalikes(turn["value"])[:1]]
    return found
