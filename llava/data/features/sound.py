"""Which rows of a cache were found sound, remembered by all that read it in a run: each is verified once.

A table of tags in shared memory: data workers are forked from the process that made it, and the processes of a run on
one machine map one file. Whoever finds a place taken by another tag looks at the next ones; a tag that gets lost, where
two write at once or the table is full, costs one more verification and nothing else.
"""

from __future__ import annotations

import tempfile
import weakref
from hashlib import blake2b
from pathlib import Path

import torch

from llava.data.features.shards import Entry

LEAST_SLOTS = 1024
PROBES = 16
"""Places that a tag may stand at."""


class SoundRows:
    """The table, at most half full of `rows` tags.

    Args:
        name: begins that of a file in the machine's temporary folder, which other processes map too; it is removed
            when one of them ends.
    """

    def __init__(self, rows: int, name: str | None = None) -> None:
        slots = max(LEAST_SLOTS, 1 << (2 * rows).bit_length())
        self.room, self.name = slots // 2, name
        if name is None:
            self.tags = torch.zeros(slots, dtype=torch.int64).share_memory_()
        else:
            path = Path(tempfile.gettempdir()) / f"{name}-{slots}"
            self.tags = torch.from_file(str(path), shared=True, size=slots, dtype=torch.int64)
            weakref.finalize(self, path.unlink, missing_ok=True)

    def __contains__(self, entry: Entry) -> bool:
        tag, table = tag_of(entry), self.tags.numpy()
        return any(table[(tag + i) % len(table)] == tag for i in range(PROBES))

    def add(self, entry: Entry) -> None:
        tag, table = tag_of(entry), self.tags.numpy()
        places = [(tag + i) % len(table) for i in range(PROBES)]
        table[next((place for place in places if table[place] == 0), places[0])] = tag


def tag_of(entry: Entry) -> int:
    """63 bits, never 0, of all that the soundness of a row depends on."""
    shard = entry.shard
    text = f"{entry.offset} {entry.checksum} {shard.size} {shard.file} {entry.key}"
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1
