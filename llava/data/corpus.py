"""Makes records of plain text, to be mixed in beside captions.

    python -m llava.data.corpus wiki.txt.gz children.jsonl --words 10M --output corpus.jsonl \\
        --source "Wikipedia it 2026-05, CHILDES it" --license "CC BY-SA 4.0"

Of plain text a document is what stands between blank lines, a line or a file (`--documents`); of JSON lines what
`--text_key` has. Documents are drawn by `--seed` until they have so many words (`--words`), the last one cut there;
they keep their order. A long document becomes several records, cut after a sentence where there is one, and no record
has words of two documents: training packs records into rows apart from each other. White space becomes single spaces.
Source and licence stand in `OUTPUT.source.json`, from where they reach a run's record and its model card.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from llava.config.commands import parse, refuse
from llava.config.ranges import COUNT, SEED, amount
from llava.constants import PLACEHOLDERS, VISUAL_TOKENS
from llava.data.convert.rows import decode_lines, open_source
from llava.data.json_records import DatasetError
from llava.data.sources import ABOUT
from llava.errors import UserError, run_command, show
from llava.progress import progress

PROG = "python -m llava.data.corpus"
BORDERS = ("blank", "lines", "file")
_SENTENCE_END = re.compile(r"[.!?…][\"'»”’)\]]*$")


def pieces(words: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """A document's words in records of at most `most`, cut after a sentence in their later half where there is one."""
    first = 0
    while len(words) - first > most:
        ends = (i for i in range(first + most, first + most // 2, -1) if _SENTENCE_END.search(words[i - 1]))
        last = next(ends, first + most)
        yield words[first:last]
        first = last
    if first < len(words):
        yield words[first:]


def choose_documents(counts: np.ndarray, words: int | None, seed: int) -> np.ndarray:
    """(D,) words that are taken of each document: all, none, or of the last one drawn what was still wanted.

    Args:
        counts: (D,) words of each document.
        words: of all together; None takes everything. What is drawn for fewer words is part of what is drawn for more.
    """
    if words is None:
        return counts
    # Of Python's generators only `random()` promises the same numbers in every version.
    draw = random.Random(seed)
    order = np.argsort(np.fromiter((draw.random() for _ in counts), dtype=np.float64, count=len(counts)))
    before = np.concatenate([[0], np.cumsum(counts[order])[:-1]])
    taken = np.zeros_like(counts)
    taken[order] = np.clip(words - before, 0, counts[order])
    return taken


def read_documents(path: Path, borders: str, text_key: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, words) of each document of a file.

    Raises:
        DatasetError: naming the line that is no text, no JSON object, or has no text of that key, or special tokens.
    """
    is_json = any(s in (".jsonl", ".json", ".ndjson") for s in path.suffixes)
    with open_source(path) as file:
        lines = enumerate(decode_lines(path, file, encoding), 1)
        for number, text in _json_lines(path, lines, text_key) if is_json else _plain(lines, borders):
            for token in (*PLACEHOLDERS, *VISUAL_TOKENS):
                if token in text:
                    raise DatasetError(f"{show(path)}, line {number}: holds {token}, which is no word; take it out")
            if words := text.split():
                yield number, words


def _plain(lines: Iterator[tuple[int, str]], borders: str) -> Iterator[tuple[int, str]]:
    if borders == "lines":
        yield from lines
        return
    for there, group in groupby(lines, key=lambda line: borders == "file" or bool(line[1].strip())):
        if there:
            listed = list(group)
            yield listed[0][0], "".join(text for _, text in listed)


def _json_lines(path: Path, lines: Iterator[tuple[int, str]], key: str) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{show(path)}, line {number}: no JSON ({error}); one object a line is read") from error
        text = value.get(key) if isinstance(value, dict) else None
        if not isinstance(text, str):
            keys = ", ".join(map(repr, value)) if isinstance(value, dict) else f"a {type(value).__name__}"
            raise DatasetError(f"{show(path)}, line {number}: no text under {key!r} ({show(keys)}): say --text_key")
        yield number, text


@dataclass
class CorpusFlags:
    """What is read and written."""

    _argument_group_name = "corpus"
    ranges = {"piece_words": COUNT, "seed": SEED}

    files: list[Path] = field(metadata={"help": "Plain text or JSON lines, also packed by gzip.", "positional": True})
    output: Path = field(metadata={"help": "The file of records, .jsonl."})
    words: str = field(default="all", metadata={"help": "Words to take, such as 10M or 500k; all takes everything."})
    documents: str = field(
        default="blank", metadata={"help": "What ends a document of plain text: blank lines, lines, or the file."}
    )
    text_key: str = field(default="text", metadata={"help": "Key of the text in JSON lines."})
    piece_words: int = field(
        default=128, metadata={"help": "Words of a record at most; --model_max_length needs about 1.6 tokens each."}
    )
    source: str = field(default="", metadata={"help": "Where the text comes from, for the model card."})
    license: str = field(default="", metadata={"help": "Its licence, for the model card."})
    encoding: str = field(default="utf-8", metadata={"help": "Of the files."})
    seed: int = field(default=0, metadata={"help": "Of the draw of --words."})
    overwrite: bool = field(default=False, metadata={"help": "Write over an output that is there."})

    def __post_init__(self) -> None:
        if self.documents not in BORDERS:
            raise UserError(f"--documents {self.documents}: use {', '.join(BORDERS[:-1])} or {BORDERS[-1]}")
        if self.output.suffix != ".jsonl":
            raise UserError(f"--output {show(self.output)}: end it in .jsonl")

    @property
    def wanted(self) -> int | None:
        return None if self.words == "all" else amount(self.words, "--words")


def write_corpus(flags: CorpusFlags) -> dict[str, Any]:
    """Writes records and `OUTPUT.source.json`, whose content it returns.

    Raises:
        DatasetError: for files that cannot be read, without words, or with fewer than are asked for.
    """
    if flags.output.exists() and not flags.overwrite:
        raise DatasetError(f"--output {show(flags.output)}: exists already: choose another, or add --overwrite")

    def documents() -> Iterator[tuple[str, list[str]]]:
        for path in flags.files:
            name = path.name if sum(path.name == p.name for p in flags.files) == 1 else path.as_posix()
            for line, words in read_documents(path, flags.documents, flags.text_key, flags.encoding):
                yield f"{name}:{line}", words

    counts = np.fromiter((len(words) for _, words in documents()), dtype=np.int64)
    total = int(counts.sum())
    wanted = flags.wanted
    if not total or (wanted or 0) > total:
        named = ", ".join(show(path) for path in flags.files)
        raise DatasetError(
            f"{named}: {total:,} words{'' if wanted is None else f', and --words asks for {wanted:,}'}: name more "
            "files, or ask for fewer"
        )
    taken = choose_documents(counts, wanted, flags.seed)
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    aside, records = flags.output.with_name(f".{flags.output.name}.part"), 0
    try:
        with open(aside, "w", encoding="utf-8") as file:
            for (place, words), number in zip(
                progress(documents(), total=len(counts), desc="text corpus", unit="document"), taken, strict=True
            ):
                for part, piece in enumerate(pieces(words[:number], flags.piece_words)):
                    turns = [{"from": "human", "value": ""}, {"from": "gpt", "value": " ".join(piece)}]
                    record = {"id": f"{place}:{part}" if part else place, "conversations": turns}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    records += 1
        about = {
            "source": flags.source, "license": flags.license, "words": int(taken.sum()), "of_words": total,
            "documents": int((taken > 0).sum()), "records": records, "seed": flags.seed,
            "files": [path.name for path in flags.files],
        }  # fmt: skip
        flags.output.with_name(flags.output.name + ABOUT).write_text(
            json.dumps(about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        aside.replace(flags.output)
    finally:
        aside.unlink(missing_ok=True)
    return about


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the records and says how many; returns the exit code."""
    (flags,) = parse(__doc__, CorpusFlags, argv=argv, prog=PROG)
    try:
        about = write_corpus(flags)
    except UserError as error:
        refuse(error, PROG)
    print(
        f"{flags.output}: {about['words']:,} of {about['of_words']:,} words, {about['documents']:,} documents in "
        f"{about['records']:,} records"
    )
    if not (flags.source and flags.license):
        print("say --source and --license: the model card of every run leaves room for them otherwise")
    print(f"next: name it in a mixture, or in --text_corpus {flags.output} of python -m llava.study")
    return 0


if __name__ == "__main__":
    run_command(main)
