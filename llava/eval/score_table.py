"""The scores of a set of captions by name, and their table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize

from llava.data.records import Record
from llava.errors import UserError
from llava.eval.attributes import score_captions
from llava.eval.caption_scores import METRICS, score_texts
from llava.eval.references import clip_of, references_of


def exact_match(captions: Sequence[str], records: Sequence[Record]) -> float:
    """Share of captions that are word for word one of the references of their clip; accents composed in both (NFC)."""
    references = {clip: {normalize("NFC", t) for t in texts} for clip, texts in references_of(records).items()}
    hits = [normalize("NFC", c) in references[clip_of(r)] for c, r in zip(captions, records, strict=True)]
    return sum(hits) / len(hits)


def score(captions: Sequence[str], records: Sequence[Record], lexicon: dict | None) -> dict[str, float]:
    """Exact match, and with a lexicon the share of captions that name each attribute right, and all at once.

    Raises:
        ValueError: with a lexicon, for a record without `meta.attributes`.
    """
    scores = {"exact match": exact_match(captions, records)}
    if lexicon is not None:
        without = [r for r in records if not isinstance(r.meta.get("attributes"), dict)]
        if without:
            raise UserError(f"{without[0].source} id {without[0].id!r}: no meta.attributes, which --attributes scores")
        scores |= score_captions(captions, [r.meta["attributes"] for r in records], lexicon)
    return scores


class ScoreTable:
    """Scores of sets of captions: shares of right ones, and `metrics` of free text with their intervals.

    Attributes:
        rows: the scores of each set by name.
        intervals: (low, high) of those that have them; None for a single clip.
    """

    def __init__(self, metrics: Sequence[str], lexicon: dict | None = None) -> None:
        self.metrics, self.lexicon = list(metrics), lexicon
        self.rows: dict[str, dict[str, float]] = {}
        self.intervals: dict[str, dict[str, list[float | None]]] = {}

    def add(self, name: str, captions: Sequence[str], records: Sequence[Record]) -> None:
        """Scores a caption for each record; all records of a clip are its references."""
        free = score_texts(captions, [clip_of(r) for r in records], references_of(records), self.metrics)
        self.rows[name] = score(captions, records, self.lexicon) | {m: value for m, (value, _, _) in free.items()}
        self.intervals[name] = {m: [_or_none(low), _or_none(high)] for m, (_, low, high) in free.items()}

    def __str__(self) -> str:
        """The table; attributes that were asked for are shown alone."""
        if self.lexicon is None:
            return format_table(self.rows, self.intervals)
        return format_table({n: {m: v for m, v in row.items() if m not in METRICS} for n, row in self.rows.items()})

    def as_json(self) -> dict[str, Any]:
        """What a file of captions says of their scores."""
        return {"scores": self.rows, "intervals": self.intervals}


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def format_table(
    rows: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, Sequence[float | None]]] | None = None
) -> str:
    """Rows of named scores as aligned text, each with its interval where it has one."""
    cells = {
        name: {column: _cell(value, ((intervals or {}).get(name) or {}).get(column)) for column, value in row.items()}
        for name, row in rows.items()
    }
    bounded = {column for row in (intervals or {}).values() for column in row}
    widths = {column: len(column) for row in rows.values() for column in row}
    for column in bounded & widths.keys():
        widths[column] = max(len(column), *(len(row.get(column, "")) for row in cells.values()))
    first = max(map(len, rows))
    lines = [" " * first + "  " + "  ".join(column.rjust(width) for column, width in widths.items())]
    for name, row in cells.items():
        lines.append(f"{name:<{first}}  " + "  ".join(row.get(c, "").rjust(width) for c, width in widths.items()))
    return "\n".join(lines)


def _cell(value: float, interval: Sequence[float | None] | None) -> str:
    if interval is None:
        return f"{value:.2f}"
    low, high = interval
    return f"{value:.2f} [one clip]" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"
