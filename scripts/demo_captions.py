"""Italian captions of the demo: one coloured shape that moves on a plain background.

Grammar only: no files, no randomness. Attributes are named in English and their values by Italian lemmas, for example
`{"shape": "stella", "colour": "rosso", "size": "piccolo", "background": "nero", "direction": "alto"}`. No word form
belongs to two values (`bianco` and `nero` are backgrounds and never colours of a shape, `alto` and `basso` directions
and never sizes), so that a caption can be scored by the words that it contains.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations, product

GENDERS = {"cerchio": "m", "quadrato": "m", "croce": "f", "stella": "f"}
"""Shape -> grammatical gender, which article and adjectives follow."""

ARTICLES = {"m": "un", "f": "una"}

ADJECTIVES = {
    "rosso": {"m": "rosso", "f": "rossa"},
    "giallo": {"m": "giallo", "f": "gialla"},
    "azzurro": {"m": "azzurro", "f": "azzurra"},
    "verde": {"m": "verde", "f": "verde"},
    "arancione": {"m": "arancione", "f": "arancione"},
    "blu": {"m": "blu", "f": "blu"},
    "viola": {"m": "viola", "f": "viola"},
    "rosa": {"m": "rosa", "f": "rosa"},
    "piccolo": {"m": "piccolo", "f": "piccola"},
    "grande": {"m": "grande", "f": "grande"},
}
"""Lemma -> singular forms. Size stands before the noun and colour after it."""

TOWARDS = {"destra": "verso destra", "sinistra": "verso sinistra", "alto": "verso l'alto", "basso": "verso il basso"}

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": tuple(GENDERS),
    "colour": ("rosso", "arancione", "giallo", "verde", "azzurro", "blu", "viola", "rosa"),
    "size": ("piccolo", "grande"),
    "background": ("nero", "bianco"),
    "direction": tuple(TOWARDS),
}

VERBS = ("si muove", "si sposta")

TEMPLATES = (
    "{thing} {verb} {towards} su uno sfondo {background}.",
    "{thing} {verb} {towards} su sfondo {background}.",
    "Su uno sfondo {background}, {thing} {verb} {towards}.",
    "Sullo sfondo {background} si vede {thing} che {verb} {towards}.",
    "C'è {thing} che {verb} {towards} su uno sfondo {background}.",
    "Lo sfondo è {background} e {thing} {verb} {towards}.",
)

PHRASINGS: tuple[tuple[str, str], ...] = tuple(product(TEMPLATES, VERBS))
"""(template, verb): every way to say one scene."""


def noun_phrase(shape: str, colour: str, size: str) -> str:
    """Article, size, noun and colour in agreement: `una piccola stella gialla`."""
    gender = GENDERS[shape]
    return f"{ARTICLES[gender]} {ADJECTIVES[size][gender]} {shape} {ADJECTIVES[colour][gender]}"


def render_caption(attributes: Mapping[str, str], phrasing: int) -> str:
    """The caption of a scene in one of the `PHRASINGS`.

    Raises:
        KeyError: for a value that is not in `ATTRIBUTES`.
    """
    template, verb = PHRASINGS[phrasing]
    sentence = template.format(
        thing=noun_phrase(attributes["shape"], attributes["colour"], attributes["size"]),
        verb=verb,
        towards=TOWARDS[attributes["direction"]],
        background=attributes["background"],
    )
    return sentence[0].upper() + sentence[1:]


def exchanges() -> list[tuple[str, str, str]]:
    """(kind, word, other): what a caption may say in place of what it says, so that one word of a scene is wrong and
    all of them agree; the table of `llava.eval.visual_pairs`.
    """
    found: list[tuple[str, str, str]] = []
    for one, other in permutations(GENDERS, 2):
        if GENDERS[one] == GENDERS[other]:
            found.append(("noun", one, other))
    for shape, gender in GENDERS.items():
        for one, other in permutations(ATTRIBUTES["colour"], 2):
            found.append(("colour", *(f"{shape} {ADJECTIVES[c][gender]}" for c in (one, other))))
        for one, other in permutations(ATTRIBUTES["size"], 2):
            found.append(("size", *(f"{ADJECTIVES[size][gender]} {shape}" for size in (one, other))))
    found += [("direction", TOWARDS[one], TOWARDS[other]) for one, other in permutations(ATTRIBUTES["direction"], 2)]
    for one, other in permutations(ATTRIBUTES["background"], 2):
        found += [("background", f"sfondo {link}{one}", f"sfondo {link}{other}") for link in ("", "è ")]
    return found


def lexicon() -> dict[str, dict[str, list[str]]]:
    """`{attribute: {value: [word forms]}}`, the words by which `llava.eval.attributes` recognises a value."""
    return {
        attribute: {value: sorted(set(ADJECTIVES.get(value, {"m": value}).values())) for value in values}
        for attribute, values in ATTRIBUTES.items()
    }
