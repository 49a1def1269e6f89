"""How much the video helped each word of a text: its loss after a black clip minus its loss after the clip. Pure.

Letters in shapes: K tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

END = "(end)"
"""What stands for the end of a text, which is predicted like a word."""


@dataclass(frozen=True)
class Word:
    """A word with its losses in nats, each summed over its tokens."""

    text: str
    with_clip: float
    with_black: float

    @property
    def gain(self) -> float:
        """Nats by which the clip made the word likelier than a black clip; below 0 it made it less likely."""
        return self.with_black - self.with_clip


def words_of(
    ids: Sequence[int], decode: Callable[[list[int]], str], ends: Collection[int]
) -> list[tuple[str, list[int]]]:
    """The words of a tokenised text, each with the places of its tokens, which are all of them, in order.

    A word begins where the text that its token adds begins with white space. Several tokens that make one character
    are taken together, and a token of `ends` is a word of its own, `END`.

    Args:
        ids: (K,) ids of the text.
        decode: ids to text, with what white space they begin with, except perhaps at the start of the text.
        ends: ids at which a text ends.
    """
    words: list[tuple[str, list[int]]] = []
    done, known, waiting = 0, "", list[int]()
    for place, token in enumerate(ids):
        if token in ends:
            words.append((END, [*waiting, place]))
            done, known, waiting = place + 1, "", []
            continue
        waiting.append(place)
        text = decode(list(ids[done : place + 1]))
        if text.endswith("\ufffd") and place + 1 < len(ids) and ids[place + 1] not in ends:
            continue  # The first bytes of a character, whose last ones follow.
        added, known = text[len(known) :], text
        if words and words[-1][0] != END and not (_parted(words[-1][0], added)):
            before, places = words[-1]
            words[-1] = (before + added, places + waiting)
        else:
            words.append((added, waiting))
        waiting = []
    return [(text.strip(), places) for text, places in words]


def _parted(before: str, added: str) -> bool:
    """Whether what a token adds begins another word than the text before it."""
    return bool(before.strip()) and (added[:1].isspace() or before[-1:].isspace())


def word_gains(
    words: Sequence[tuple[str, Sequence[int]]], with_clip: Sequence[float], with_black: Sequence[float]
) -> list[Word]:
    """Losses of tokens, both (K,) in nats, summed over the tokens of each word."""
    return [Word(text, sum(with_clip[i] for i in places), sum(with_black[i] for i in places)) for text, places in words]
