"""Scores captions by the attributes that they name: pure functions of strings and a lexicon.

A lexicon is `{attribute: {value: [word forms]}}`, for example `{"colour": {"rosso": ["rosso", "rossa"], ...}, ...}`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.errors import UserError

Lexicon = Mapping[str, Mapping[str, Sequence[str]]]

ALL = "all"
"""Name under which `score_captions` reports the captions with every attribute right at once."""


def _normalise(text: str) -> str:
    """Case-folded, accents composed, so that `è` typed in two ways is one letter."""
    # Folding case takes some letters apart again.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _composed(value: Any) -> Any:
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def named_values(caption: str, forms: Mapping[str, Sequence[str]]) -> set[str]:
    """The values of `{value: [word forms]}` that a caption names by a whole word, upper or lower case.

    An apostrophe ends a word: `l'alto` contains the word `alto`.
    """
    text = _normalise(caption)
    return {
        value
        for value, words in forms.items()
        if any(re.search(rf"(?<!\w){re.escape(_normalise(word))}(?!\w)", text) for word in words)
    }


def check_lexicon(lexicon: Lexicon) -> None:
    """Refuses a lexicon whose values cannot be told apart.

    Raises:
        ValueError: listing every value without forms, every form that names more than its own value (of the same
            attribute or of another one), and an attribute called `all`.
    """
    problems = [] if lexicon else ["it has no attribute"]
    if ALL in lexicon:
        problems.append(f"no attribute may be called {ALL!r}, the name of the joint score")
    for attribute, forms in lexicon.items():
        for value, words in forms.items():
            if not words:
                problems.append(f"{attribute} {value!r} has no word forms")
            for word in words:
                named = [(other, v) for other, values in lexicon.items() for v in sorted(named_values(word, values))]
                if named != [(attribute, value)]:
                    also = [f"{a} {v!r}" for a, v in named if (a, v) != (attribute, value)]
                    problems.append(f"the form {word!r} of {attribute} {value!r} names {', '.join(also) or 'nothing'}")
    if problems:
        raise UserError("lexicon: " + "; ".join(problems) + ". Give every value word forms of its own.")


SHAPE = "{attribute: {value: [word forms]}}"


def load_lexicon(path: str | Path) -> dict[str, dict[str, list[str]]]:
    """Reads and checks a lexicon from a JSON file.

    Raises:
        ValueError: when the file does not hold `{attribute: {value: [word forms]}}`, or fails `check_lexicon`.
    """
    try:
        lexicon = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no JSON that can be read ({error}); expected {SHAPE}") from error
    shaped = isinstance(lexicon, dict) and all(
        isinstance(forms, dict)
        and all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in forms.values())
        for forms in lexicon.values()
    )
    if not shaped:
        raise UserError(f"{path}: expected {SHAPE}")
    check_lexicon(lexicon)
    return lexicon


def score_caption(caption: str, attributes: Mapping[str, str], lexicon: Lexicon) -> dict[str, bool]:
    """Which attributes a caption gets right: it names exactly the right value, and no other value of that attribute.

    Args:
        caption: the text to score.
        attributes: the true value of every attribute of the lexicon.
        lexicon: `{attribute: {value: [word forms]}}`.

    Raises:
        ValueError: when the true value of an attribute is missing or unknown to the lexicon.
    """
    composed = {name: {_composed(value): words for value, words in forms.items()} for name, forms in lexicon.items()}
    true = {name: _composed(value) for name, value in attributes.items()}
    unknown = [f"{name} is {attributes.get(name)!r}" for name, forms in composed.items() if true.get(name) not in forms]
    if unknown:
        raise UserError(f"attributes {dict(attributes)} do not fit the lexicon: {'; '.join(unknown)}")
    return {name: named_values(caption, forms) == {true[name]} for name, forms in composed.items()}


def score_captions(
    captions: Sequence[str], attributes: Sequence[Mapping[str, str]], lexicon: Lexicon
) -> dict[str, float]:
    """The share of captions (0 to 1) that get each attribute right, and under `"all"` every attribute at once.

    Raises:
        ValueError: when there are no captions, or not one set of attributes a caption.
    """
    if len(captions) != len(attributes) or not captions:
        raise ValueError(f"{len(captions)} captions and {len(attributes)} sets of attributes: one each is needed")
    scores = [score_caption(*pair, lexicon) for pair in zip(captions, attributes, strict=True)]
    shares = {name: sum(score[name] for score in scores) / len(scores) for name in lexicon}
    return {**shares, ALL: sum(all(score.values()) for score in scores) / len(scores)}
