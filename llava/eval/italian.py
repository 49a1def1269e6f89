"""Italian words with their places in a text, and which of them are function words. Pure.

A text is cut into units; every character that is no white space belongs to one of them. The rule:

- A **word** is a run of letters and digits, combining accents included.
- An elision ends after its apostrophe: `l'uomo` is `l'`, `uomo`; `c'è` is `c'`, `è`; `dell'acqua` is `dell'`, `acqua`.
  A cut word keeps its apostrophe (`po'`), and so does one that stands for an accent (`perche'`). The apostrophes
  ' \u2019 \u2018 \u02bc \u2032 ` \u00b4 are one.
- A quotation in single quotes loses both: one before a word, and the next one after a word at which no other word
  follows, are marks. So is the apostrophe of `'ndrangheta`, and that of `anni '60`, which opens nothing.
- A hyphen between letters or digits joins: `italo-francese` is one word. A dash, or a hyphen beside a space, is a mark.
- A **number** is a word of digits, with `.`, `,` or `:` between digits: `1.000,50`, `3:30`. `20enne` is a word.
- A **mark** is a run of all other characters between white space and words: `.`, `...`, `».`, `€`.

Words are compared by their *form*: lower case, accents composed (NFC), apostrophes written `'`. The same text gives
the words of `llava.eval.caption_scores.tokenise`, apart from hyphens and numbers, which are split there.

Letters in shapes: K pieces (sub-word tokens), U units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from llava.eval.caption_scores import APOSTROPHES, MARKS

WORD, NUMBER, MARK = "word", "number", "mark"
FUNCTION, CONTENT = "function", "content"

_LETTER = rf"(?:[^\W_][{MARKS}]*)"
_APOSTROPHE = f"['{''.join(map(chr, APOSTROPHES))}]"
_UNIT = re.compile(
    rf"(?P<number>\d+(?:[.,:]\d+)*)(?!{_LETTER}|[-\u2010\u2011]{_LETTER})"
    rf"|(?P<word>{_LETTER}+(?:[-\u2010\u2011]{_LETTER}+)*)(?P<apostrophe>{_APOSTROPHE}(?!{_APOSTROPHE}))?"
    rf"|(?P<mark>[^\s])"
)

_PREPOSITIONS = """
il lo la i gli le l' gl' un uno una un' di a da in con su per tra fra d' verso senza sopra sotto dentro fuori dietro
davanti dopo prima durante presso contro oltre lungo mediante tramite entro secondo attraverso del dello della dei
degli delle dell' al allo alla ai agli alle all' dal dallo dalla dai dagli dalle dall' nel nello nella nei negli
nelle nell' sul sullo sulla sui sugli sulle sull' col collo colla coi cogli colle coll'
"""
"""Articles, and prepositions with and without them."""
_CONJUNCTIONS = """
e ed o od ma né ne se che ch' anche anch' pure come com' perché perche' poiché quando quand' mentre però quindi
dunque oppure ovvero ossia cioè neppure neanche neanch' nemmeno sia bensì affinché finché benché sebbene purché
siccome quanto quant' dove dov' cosi' così cos' non no sì più meno molto tanto troppo poco po' già ancora appena
solo soltanto invece infatti inoltre
"""
"""Conjunctions, negation, and the adverbs that are as few and as frequent."""
_PRONOUNS = """
io tu lui lei egli ella esso essa noi voi loro essi esse me te sé se' mi ti ci vi si m' t' c' v' s' n' glielo gliela
glieli gliele gliene ce ve mio mia miei mie tuo tua tuoi tue suo sua suoi sue nostro nostra nostri nostre vostro
vostra vostri vostre questo questa questi queste quest' quello quella quelli quelle quell' quel quei quegli ciò
stesso stessa stessi stesse chi cui quale quali qual cosa ogni ognuno ognuna qualche qualcuno qualcuna qualcun'
qualcosa alcuno alcuna alcuni alcune alcun alcun' nessuno nessuna nessun nessun' niente nulla ciascuno ciascuna
ciascun ciascun' altro altra altri altre altr' tutto tutta tutti tutte tutt' entrambi entrambe molti molte molta
tanti tante tanta pochi poche poca parecchi parecchie troppi troppe troppa
"""
"""Pronouns and determiners."""
_AUXILIARIES = """
sono sei è e' siamo siete ero eri era eravamo eravate erano fui fosti fu fummo foste furono sarò sarai sarà saremo
sarete saranno sarei saresti sarebbe saremmo sareste sarebbero sia siano siate fossi fosse fossimo fossero essere
esser essendo stato stata stati state ho hai ha abbiamo avete hanno avevo avevi aveva avevamo avevate avevano ebbi
avesti ebbe avemmo aveste ebbero avrò avrai avrà avremo avrete avranno avrei avresti avrebbe avremmo avreste
avrebbero abbia abbiano abbiate avessi avesse avessimo avessero avere aver avendo avuto avuta avuti avute sto stai
sta stiamo stanno stavo stava stavamo stavano viene vengono veniva venivano
"""
"""Auxiliaries: the forms of essere and avere, and of stare and venire where they are auxiliaries too."""
FUNCTION_WORDS = frozenset(" ".join((_PREPOSITIONS, _CONJUNCTIONS, _PRONOUNS, _AUXILIARIES)).split())
"""Forms of the closed classes. A form that is also a noun or a verb (`sei`, `era`, `sotto`, `cosa`, `stato`) counts as
a function word: it is one far more often, and a table of classes says otherwise where that matters."""


class Unit(NamedTuple):
    """A word, number or mark: characters `start` to `end` (exclusive) of its text."""

    start: int
    end: int
    kind: str


def units(text: str) -> list[Unit]:
    """The words, numbers and marks of a text in order, as the module says."""
    found: list[Unit] = []
    quoted = False
    for start, end, kind in _raw(text):
        if kind == MARK:
            # An apostrophe that no letter precedes and one follows opens a quotation; `anni '60` is none.
            opens = re.match(_APOSTROPHE, text[start]) is not None and text[end : end + 1].isalpha()
            quoted = quoted or opens
            if found and found[-1].kind == MARK and found[-1].end == start:
                found[-1] = Unit(found[-1].start, end, MARK)
                continue
        elif quoted and re.match(_APOSTROPHE, text[end - 1]) and not text[end : end + 1].isalnum():
            quoted = False
            found += [Unit(start, end - 1, kind), Unit(end - 1, end, MARK)]
            continue
        found.append(Unit(start, end, kind))
    return found


def _raw(text: str) -> Iterator[Unit]:
    """Units before quotations are looked at, each mark a single character."""
    for match in _UNIT.finditer(text):
        yield Unit(match.start(), match.end(), NUMBER if match["number"] else WORD if match["word"] else MARK)


def form(word: str) -> str:
    """A word as it is compared: lower case, accents composed, every apostrophe `'`."""
    # Lower case takes some letters apart again.
    return normalize("NFC", normalize("NFC", word).lower()).translate(APOSTROPHES)


def word_forms(text: str) -> list[str]:
    """The forms of the words and numbers of a text."""
    return [form(text[u.start : u.end]) for u in units(text) if u.kind != MARK]


def class_of(word: str, kind: str, classes: Mapping[str, str] | None = None) -> str:
    """The class of a word by its form: what a table says; without it `number`, `function` or `content`."""
    if classes and word in classes:
        return classes[word]
    return kind if kind == NUMBER else FUNCTION if word in FUNCTION_WORDS else CONTENT


def owners(text: str, offsets: Sequence[tuple[int, int]], parts: Sequence[Unit]) -> tuple[np.ndarray, np.ndarray]:
    """Which unit each sub-word piece is counted for.

    A piece belongs to the unit of its first character that is no white space, since a piece that reaches into the next
    unit (`'.` in `po'.`) cannot be divided. A piece of white space alone, or of nothing, belongs to the unit that
    comes next, as the space does that most tokenizers put in front of a word; after the last unit to the last.

    Args:
        offsets: (K,) first and last (exclusive) character of each piece.
        parts: (U,) of `units`; at least one.

    Returns:
        (K,) int64, the unit of each piece, and (K,) bool, whether it reaches into another one.
    """
    of_character = np.full(len(text) + 1, -1, dtype=np.int64)
    for number, unit in enumerate(parts):
        of_character[unit.start : unit.end] = number
    following = np.full(len(text) + 1, len(parts) - 1, dtype=np.int64)
    for place in range(len(text) - 1, -1, -1):
        following[place] = of_character[place] if of_character[place] >= 0 else following[place + 1]
    chosen, reaches = [], []
    for start, end in offsets:
        inside = [n for n in of_character[start:end].tolist() if n >= 0]
        chosen.append(inside[0] if inside else int(following[min(start, len(text))]))
        reaches.append(bool(inside) and inside[-1] != inside[0])
    return np.array(chosen, dtype=np.int64), np.array(reaches, dtype=bool)


def sums(nats: np.ndarray, owner: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats of units (U,), NaN where one of their pieces was not measured, and their numbers of pieces (U,).

    Args:
        nats: (K,) of each piece, NaN where it was not measured.
        owner: (K,) from `owners`.
        count: U.
    """
    total = np.bincount(owner, weights=nats, minlength=count) if len(owner) else np.zeros(count)
    return total, np.bincount(owner, minlength=count)
