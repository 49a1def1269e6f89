"""Records of which some things are known without making each of them, and the same answers for a plain list.

Letters in shapes: N records.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from llava.data.hashes import hash64

if TYPE_CHECKING:
    from llava.data.mixture import Source
    from llava.data.records import Record

Rows = np.ndarray
"""(n,) whole numbers: places of records."""


class RecordView(Sequence[Any]):
    """Records that lie in columns; each is made when it is asked for."""

    origins: Sequence[Source]
    """What `column("origin")` counts."""

    @abstractmethod
    def take(self, rows: Rows) -> RecordView:
        """Some of the records, in the order of `rows`."""

    @abstractmethod
    def column(self, name: str) -> np.ndarray:
        """(N,) `id_hash` (`hash64` of the id), `said` (of the words, white space and placeholders apart), `words`
        (their number between white space), `key` (of the words as they are, for `llava.data.split`), or `origin`.
        """

    @abstractmethod
    def at(self, sources: Collection[str]) -> np.ndarray:
        """(N,) bool: which records stand at one of these places."""

    @abstractmethod
    def remarked(self) -> list[Record]:
        """The records with remarks."""

    @abstractmethod
    def id_of(self, index: int) -> str:
        """The id of a record."""

    @property
    @abstractmethod
    def representatives(self) -> tuple[list[Record], np.ndarray]:
        """As the function of this name says."""


def take(records: Sequence[Record], rows: Rows) -> Sequence[Record]:
    """Some of the records, in the order of `rows`."""
    return records.take(rows) if isinstance(records, RecordView) else [records[i] for i in rows]


def representatives(records: Sequence[Record]) -> tuple[Sequence[Record], np.ndarray]:
    """The first record of each set of clips that records name, in the order of the records, and (N,) int64, which of
    them names what each record names: files, segment, source and `meta.clip`. Of a list, each record stands for itself.
    """
    return records.representatives if isinstance(records, RecordView) else (records, np.arange(len(records)))


def standing_at(records: Sequence[Record], sources: Collection[str]) -> np.ndarray:
    """(N,) bool: which records stand at one of these places."""
    if isinstance(records, RecordView):
        return records.at(sources)
    return np.fromiter((r.source in sources for r in records), dtype=bool, count=len(records))


class RecordIds(Sequence[str]):
    """The ids of records, by their places, and the places by ids."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.records.id_of(index) if isinstance(self.records, RecordView) else self.records[index].id

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    @cached_property
    def hashes(self) -> np.ndarray:
        """(N,) uint64: `hash64` of each id."""
        if isinstance(self.records, RecordView):
            return self.records.column("id_hash")
        return np.fromiter((hash64(r.id) for r in self.records), dtype=np.uint64, count=len(self.records))

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.hashes, kind="stable")
        return order, self.hashes[order]

    def places(self, name: str) -> np.ndarray:
        """The places of the records with an id, in their order; none where no record has it."""
        order, hashes = self._sorted
        first, last = (int(np.searchsorted(hashes, np.uint64(hash64(name)), side)) for side in ("left", "right"))
        return np.array([i for i in order[first:last] if self[int(i)] == name], dtype=np.int64)
