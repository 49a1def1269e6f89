"""The token ids of all records of a table, made once for a tokenizer and a text format, and memory-mapped.

Ids are compact (`llava.data.prompt`): how many rows a video has is not part of them, nor is `--model_max_length`.

Letters in shapes: L positions of one sequence, M records of the table, N of a view.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX, VISUAL_TOKENS
from llava.data.hashes import clips_written, digest_of, paths_below
from llava.data.prepared import Prepared, Writer, code_digest, prepared
from llava.data.record_table import CODE, RecordTable
from llava.data.records import Record
from llava.data.text_format import TextFormat
from llava.errors import UserError
from llava.progress import progress

TOKEN_CODE = (
    *CODE, "llava.data.chat", "llava.data.chat_formats", "llava.data.text_format", "llava.data.text_start",
    "llava.data.token_table",
)  # fmt: skip
AT_ONCE = 2000
"""Records that are tokenised together."""


class TokenTable:
    """Ids and labels of the records of a table, by their rows in it."""

    def __init__(self, arrays: Prepared) -> None:
        self.arrays = arrays
        self._ids, self._targets, self._ends = (arrays[name] for name in ("ids", "targets", "ends"))

    def __reduce__(self) -> Any:
        return TokenTable, (self.arrays,)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """(N,) compact positions of each record."""
        starts = np.where(rows > 0, self._ends[rows - 1], 0)
        return self._ends[rows] - starts

    def holds(self, rows: np.ndarray | int) -> Any:
        """Whether the ids of records are here, (N,) bool: those of a record that the text format refuses are not."""
        return self.arrays["held"][rows]

    def digests(self, rows: np.ndarray) -> np.ndarray:
        """(N,) uint64: `llava.data.hashes.record_digest` of each record."""
        return self.arrays["digest"][rows]

    def labels(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The compact labels (L,) int64 of records one after the other, and where each of them begins (N,)."""
        lengths = self.lengths(rows)
        starts = np.cumsum(lengths) - lengths
        places = np.repeat(self._ends[rows] - lengths - starts, lengths) + np.arange(lengths.sum())
        return np.where(self._targets[places], self._ids[places].astype(np.int64), IGNORE_INDEX), starts

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compact `input_ids` and `labels` (L,) of a record, in memory of their own."""
        start, end = int(self._ends[row - 1]) if row else 0, int(self._ends[row])
        ids = self._ids[start:end].astype(np.int64)
        labels = np.where(self._targets[start:end], ids, IGNORE_INDEX)
        return torch.from_numpy(ids), torch.from_numpy(labels)


def open_tokens(
    root: Path,
    records: RecordTable,
    tokenizer: PreTrainedTokenizerBase,
    text_format: TextFormat,
    check: bool = True,
    show_progress: bool = False,
) -> TokenTable | None:
    """The ids of all records of the table that `records` are of, made when there is none in `root` for this tokenizer
    and text format; None for a tokenizer that cannot be told from another, as slow ones.

    Args:
        check: whether the table's checksums are compared.
        show_progress: of making it.
    """
    state = tokenizer_state(tokenizer)
    if state is None:
        return None
    whole = RecordTable(records.arrays, records.origins, without_vision=records.without_vision)
    identity = {
        "code": code_digest(*TOKEN_CODE),
        "libraries": [tokenizers.__version__, transformers.__version__],
        "records": records.arrays.key,
        "without_vision": records.without_vision,
        "tokenizer": state,
        "format": [text_format.version, text_format.template, text_format.text_start, list(text_format.end_ids)],
    }

    def make(writer: Writer) -> None:
        _write(writer, whole, tokenizer, text_format, show_progress)

    return TokenTable(prepared(root, "tokens", identity, records.arrays.files, make, check))


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A hash of everything that decides on the ids of a text; None where that is not known."""
    if not tokenizer.is_fast:
        return None
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Set by whoever called it last; the calls here set both.
    backend["padding"] = backend["truncation"] = None
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    state = [type(tokenizer).__name__, len(tokenizer), special, tokenizer.chat_template, backend]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _write(
    writer: Writer,
    records: RecordTable,
    tokenizer: PreTrainedTokenizerBase,
    text_format: TextFormat,
    show_progress: bool,
) -> None:
    known = {token: tokenizer.convert_tokens_to_ids(token) for token in VISUAL_TOKENS}
    visual = [i for token, i in known.items() if i is not None and tokenizer.convert_ids_to_tokens(i) == token]
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    end = 0
    written: dict[Any, str] = {}
    with progress(total=len(records), desc="tokens", unit="record", disable=not show_progress) as bar:
        for start in range(0, max(len(records), 1), AT_ONCE):
            part = list(records[start : start + AT_ONCE])
            ids, targets, lengths, held = _arrays(part, _encoded(part, text_format), visual)
            writer.add("ids", ids, dtype)
            writer.add("targets", targets, bool)
            writer.add("ends", end + np.cumsum(lengths), np.int64)
            writer.add("held", held, bool)
            writer.add("digest", [_digest(record, written) for record in part], np.uint64)
            end += len(ids)
            bar.update(len(part))


def _digest(record: Record, written: dict[Any, str]) -> int:
    """`record_digest`; `written` keeps what it writes of the clips that were met before."""
    key = id(record.origin), record.videos, record.images, record.split
    clips = written.get(key)
    if clips is None:
        if len(written) > 100_000:
            written.clear()
        clips = written[key] = clips_written(record, paths_below(record))
    return digest_of(record, clips)


def _encoded(part: Sequence[Record], text_format: TextFormat) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of records; nothing for those that the format refuses."""
    try:
        return list(text_format.encode([r.conversations for r in part]))
    except UserError:
        if len(part) == 1:
            return [([], [])]
        middle = len(part) // 2
        return [*_encoded(part[:middle], text_format), *_encoded(part[middle:], text_format)]


def _arrays(
    part: Sequence[Record], encoded: Sequence[tuple[list[int], list[int]]], visual: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All ids in one array, which of them are targets, the lengths (n,), and which records (n,) can be served so.

    The others are those about which `TextFormat.preprocess` may have something to say: it is asked for them.
    """
    lengths = np.array([len(ids) for ids, _ in encoded], dtype=np.int64)
    ids = np.fromiter(itertools.chain.from_iterable(ids for ids, _ in encoded), dtype=np.int64, count=lengths.sum())
    labels = np.fromiter(itertools.chain.from_iterable(row for _, row in encoded), dtype=np.int64, count=len(ids))
    targets = labels != IGNORE_INDEX
    owner = np.repeat(np.arange(len(part)), lengths)

    def count(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(owner[chosen], minlength=len(part))

    shows = np.array([bool(r.videos or r.images) for r in part], dtype=bool)
    held = (count(np.isin(ids, visual)) > 0) == shows
    held &= (count(targets) >= 2) & (count(targets & (labels != ids)) == 0)
    return ids, targets, lengths, held
