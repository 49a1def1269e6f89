"""Groups of clips that belong together, and which of them are held out: pure functions of keys and of rows.

Letters in shapes: C clips, K values of a clip.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Hashable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from scipy.spatial import cKDTree

FRACTION, MINIMUM, MAXIMUM_SHARE = 0.02, 32, 0.1
"""Of the clips, 2 % are held out, but at least 32, and never more than a tenth."""
FEWEST = 10
"""With fewer clips than this none is held out."""
DIMENSIONS = 16
"""Directions in which rows are searched; distances in them are never above those in all."""
SAMPLE = 4096
"""Rows from which these directions are found."""
AT_ONCE = 1024

Item = TypeVar("Item", bound=Hashable)


def wanted_clips(
    total: int, fraction: float = FRACTION, minimum: int = MINIMUM, maximum_share: float = MAXIMUM_SHARE
) -> int:
    """How many of `total` clips are to be held out: the fraction, at least `minimum`, never above `maximum_share`; none
    of fewer than `FEWEST`, and none for a fraction of 0.
    """
    if total < FEWEST or fraction <= 0:
        return 0
    # Rounded, since 0.1 * 30 is above 3.
    return min(max(math.ceil(round(fraction * total, 9)), minimum), math.floor(round(maximum_share * total, 9)))


def split_clips(
    groups: Iterable[Collection[str]],
    fraction: float = FRACTION,
    minimum: int = MINIMUM,
    maximum_share: float = MAXIMUM_SHARE,
    seed: int = 42,
) -> set[str]:
    """The keys of the clips that are held out, whole groups of them.

    Every group draws a number from the seed and the first of its keys; they are taken in the order of these numbers,
    and one that would hold out more than is wanted stays in training. So the choice depends on keys and groups, not on
    their order or the number of records.

    Args:
        groups: of keys of clips; no key is in two of them.
        seed: another one holds out others.
    """
    listed = [sorted(group) for group in groups if group]
    wanted = wanted_clips(sum(map(len, listed)), fraction, minimum, maximum_share)
    held_out: set[str] = set()
    for group in sorted(listed, key=lambda g: (_draw(seed, g[0]), g[0])):
        if len(held_out) + len(group) <= wanted:
            held_out.update(group)
    return held_out


def _draw(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogatepass")).digest()


def connected(items: Iterable[Item], pairs: Iterable[tuple[Item, Item]]) -> list[list[Item]]:
    """Connected components: groups of the items, each in their order, that pairs lead from one to another."""
    parent: dict[Item, Item] = {item: item for item in items}

    def root(item: Item) -> Item:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for a, b in pairs:
        parent[root(b)] = root(a)
    groups: dict[Item, list[Item]] = {}
    for item in parent:
        groups.setdefault(root(item), []).append(item)
    return list(groups.values())


def chained(groups: Iterable[Iterable[Item]]) -> Iterator[tuple[Item, Item]]:
    """Pairs that connect all members of each group."""
    for group in groups:
        members = list(group)
        yield from zip(members, members[1:], strict=False)


def near_pairs(rows: np.ndarray, radius: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows (C, K) whose Euclidean distance is `radius` at most; of rows that are equal, a chain of pairs.

    Candidates are found in the directions in which the rows vary most. A projection only shortens distances, so none is
    missed, and each is then measured in full.
    """
    known: dict[bytes, int] = {}
    distinct: list[int] = []
    for i, row in enumerate(rows):
        j = known.setdefault(row.tobytes(), i)
        if j == i:
            distinct.append(i)
        else:
            yield j, i
    if len(distinct) < 2:
        return
    rows = rows[distinct]
    some = rows[:: max(1, len(rows) // SAMPLE)].astype(np.float32)
    directions = np.linalg.svd(some - some.mean(axis=0), full_matrices=False)[2][:DIMENSIONS].T
    blocks = [rows[i : i + AT_ONCE].astype(np.float32) @ directions for i in range(0, len(rows), AT_ONCE)]
    found = np.concatenate(blocks)
    tree = cKDTree(found)
    for start in range(0, len(rows), AT_ONCE):
        for i, near in enumerate(tree.query_ball_point(found[start : start + AT_ONCE], radius * 1.001 + 1e-4), start):
            later = np.array([j for j in near if j > i], dtype=np.int64)
            if len(later):
                apart = np.linalg.norm(rows[later].astype(np.float32) - rows[i].astype(np.float32), axis=1)
                yield from ((distinct[i], distinct[j]) for j in later[apart <= radius])


def unit_rows(features: np.ndarray) -> np.ndarray:
    """(C, K) without the mean of all, at length 1: what clips have in common would make any two look alike."""
    centred = features.astype(np.float32) - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def radius_of(cosine: float) -> float:
    """The distance of two rows of length 1 whose cosine is this."""
    return math.sqrt(max(2 - 2 * cosine, 0))
