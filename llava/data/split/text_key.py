"""The key of a text that shows no clip: its words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from llava.data.columns import RecordView
from llava.data.records import Record


def text_key(record: Record) -> str:
    """The key of a record without any clip: its words and numbers, so that equal texts stay together."""
    words = "\n".join([turn["value"] for turn in record.conversations])
    if record.coordinates:
        words += f"\n{record.coordinates}"
    return f"text:{hashlib.sha256(words.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def text_keys(records: Sequence[Record]) -> list[str]:
    """`text_key` of every record."""
    if not isinstance(records, RecordView):
        return [text_key(r) for r in records]
    # An array of bytes would leave zeros at their end out.
    digits = records.column("key").tobytes().hex()
    return [f"text:{digits[i : i + 32]}" for i in range(0, len(digits), 32)]
