"""Visual pairs: captions against the same with one word exchanged, `python -m llava.eval.visual_pairs`.

Both sentences are as likely as each other to who does not look, as far as the table of exchanges is fair; which one is
true is in the clip alone. `python -m llava.eval.pairs` scores them with the video, without, and with another clip's.

A table of exchanges is a TSV or CSV with the columns `kind` (noun, colour, size, direction, number, verb, or any other
name), `word` and `other`. A row says that `word` may become `other`, and not the other way round. Both may be several
words (`piccola stella`, `grande stella`), which is how agreement is kept: it is the business of the table's author.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava.config.commands import check_output, parse
from llava.config.groups import DataFlags
from llava.config.ranges import AMOUNT
from llava.data.features.content import replace_file
from llava.data.hashes import hash64, paths_below
from llava.data.json_records import DatasetError
from llava.data.records import Record, apply_policy, load_records
from llava.errors import run_command, show
from llava.eval.italian import MARK, form, units, word_forms
from llava.eval.references import answer_of, clip_of, prompt_of, reference_of
from llava.eval.tables import read_table

TABLE = ("kind", "word", "other")


@dataclass(frozen=True)
class Exchange:
    """`word` may become `other`; `forms` are those of the words that it consists of."""

    kind: str
    word: str
    other: str

    @property
    def forms(self) -> list[str]:
        """What is looked for."""
        return word_forms(self.word)


def read_exchanges(path: str) -> list[Exchange]:
    """The exchanges of a table; what else it has is left alone.

    Raises:
        DatasetError: when a column is not there, or a row has no word, or the same one twice.
    """
    table = read_table(path)
    table.need(TABLE, "--exchanges")
    found = []
    for row, place in zip(table.rows, table.places, strict=True):
        exchange = Exchange(*(" ".join(row[column].split()) for column in TABLE))
        if not exchange.kind or not exchange.forms or not exchange.other:
            raise DatasetError(f"{show(place)}: kind, word or other is empty")
        if exchange.forms == word_forms(exchange.other):
            raise DatasetError(f"{show(place)}: {show(exchange.word)!r} would become itself")
        found.append(exchange)
    return list(dict.fromkeys(found))


def exchanged(text: str, exchange: Exchange) -> str | None:
    """The text with the word in place, in the case of what it replaces; None where the word is not in the text as a
    whole word, once.
    """
    forms = exchange.forms
    parts = [(u, None if u.kind == MARK else form(text[u.start : u.end])) for u in units(text)]
    places = [i for i in range(len(parts)) if [f for _, f in parts[i : i + len(forms)]] == forms]
    if len(places) != 1:
        return None
    start, end = parts[places[0]][0].start, parts[places[0] + len(forms) - 1][0].end
    return text[:start] + _in_case_of(text[start:end], exchange.other) + text[end:]


def _in_case_of(old: str, new: str) -> str:
    if old.isupper() and sum(c.isalpha() for c in old) > 1:
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


@dataclass(frozen=True)
class VisualPair:
    """A record's caption, and the same with a word exchanged."""

    record: Record
    caption: str
    wrong: str
    exchange: Exchange

    def as_json(self, number: int) -> dict[str, Any]:
        """A line of the file that `llava.eval.pairs` reads."""
        video, _ = paths_below(self.record)
        return {
            "item": f"{self.record.id} {self.exchange.kind}" + (f" {number}" if number else ""),
            "kind": self.exchange.kind,
            "sentence_good": self.caption, "sentence_bad": self.wrong,
            "word": self.exchange.word, "other": self.exchange.other,
            **({"video": video[0]} if video else {}),
            **({"split": list(self.record.split)} if self.record.split else {}),
        }  # fmt: skip


def visual_pairs(
    records: Sequence[Record], exchanges: Sequence[Exchange], per_kind: int = 1, seed: int = 0
) -> tuple[list[VisualPair], Counter[str]]:
    """Pairs of the captions of records, in their order, and how many captions or exchanges were left out, by reason.

    Left out are records that do not show one video or nothing, or say something before their caption, and exchanges
    that make what another caption of the clip says, which is no wrong sentence.

    Args:
        per_kind: pairs of a caption and a kind, drawn by the seed and the record's id; 0 is all.
    """
    said: dict[Any, set[tuple[str, ...]]] = {}
    for record in records:
        said.setdefault(_shown(record), set()).add(tuple(word_forms(reference_of(record))))
    pairs, left_out = [], Counter[str]()
    for record in records:
        if (
            len(record.videos) > 1
            or record.images
            or answer_of(record) is None
            or prompt_of(record) not in ("", "<video>")
        ):
            left_out["records that show more than a video, or say something before their caption"] += 1
            continue
        caption = reference_of(record)
        found: dict[str, list[tuple[Exchange, str]]] = {}
        for exchange, wrong in _possible(caption, exchanges):
            if tuple(word_forms(wrong)) in said[_shown(record)]:
                left_out["exchanges that another caption of the clip has"] += 1
            else:
                found.setdefault(exchange.kind, []).append((exchange, wrong))
        left_out["captions without a word of the table"] += not found
        for kind, listed in found.items():
            order = np.random.default_rng([seed, hash64(f"{record.id}/{kind}")]).permutation(len(listed))
            chosen = sorted(order[: per_kind or None].tolist())
            pairs += [VisualPair(record, caption, wrong, exchange) for exchange, wrong in (listed[i] for i in chosen)]
    return pairs, +left_out


def _shown(record: Record) -> Any:
    """What is equal for records of one clip; a text that shows nothing is alone."""
    return clip_of(record) if record.videos else record.id


def _possible(caption: str, exchanges: Sequence[Exchange]) -> Iterator[tuple[Exchange, str]]:
    forms = set(word_forms(caption))
    for exchange in exchanges:
        # Most rows are about words that are not there.
        if forms.issuperset(exchange.forms) and (wrong := exchanged(caption, exchange)) is not None:
            yield exchange, wrong


@dataclass
class VisualPairFlags:
    """The command's own flags."""

    ranges = {"per_kind": AMOUNT}

    exchanges: str = field(
        kw_only=True, metadata={"help": "TSV or CSV with the columns kind, word and other: what may become what."}
    )
    output: Path = field(kw_only=True, metadata={"help": "File of pairs to write, JSON lines."})
    per_kind: int = field(default=1, metadata={"help": "Pairs of a caption and a kind, drawn by the seed; 0 is all."})

    def __post_init__(self) -> None:
        check_output("--output", self.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Makes pairs of captions and the same with one word exchanged, for python -m llava.eval.pairs."""
    data, flags = parse(main.__doc__, DataFlags, VisualPairFlags, argv=argv, prog="python -m llava.eval.visual_pairs")
    records, problems = load_records(
        data.data_path, data.image_folder, data.video_folder, allow_absolute_paths=data.allow_absolute_paths,
        seed=data.seed,
    )  # fmt: skip
    exchanges = read_exchanges(flags.exchanges)
    pairs, left_out = visual_pairs(apply_policy(records, problems, "stop"), exchanges, flags.per_kind, data.seed)
    for reason, count in left_out.items():
        print(f"{count} {reason}: left out")
    if not pairs:
        raise DatasetError(
            f"{show(data.data_path)}: no caption has a word of --exchanges {show(flags.exchanges)} (as a whole word, "
            "and once)"
        )
    numbers: Counter[Any] = Counter()
    lines = []
    for pair in pairs:
        key = (pair.record.id, pair.exchange.kind)
        lines.append(json.dumps(pair.as_json(numbers[key]), ensure_ascii=False) + "\n")
        numbers[key] += 1
    text = "".join(lines).encode("utf-8", "backslashreplace")
    replace_file(flags.output, lambda file: file.write(text))
    print(format_counts(Counter(p.exchange.kind for p in pairs)) + f"\nwritten to {show(flags.output)}")
    return 0


def format_counts(kinds: Mapping[str, int]) -> str:
    """How many pairs of each kind there are."""
    listed = ", ".join(f"{count} {show(kind)}" for kind, count in kinds.items())
    return f"{sum(kinds.values())} pairs: {listed}"


if __name__ == "__main__":
    run_command(main)
