"""Each record with another clip's video: what a run sees that has all of sight but what belongs to its captions.

Clips are exchanged by a derangement, which gives every clip to one other. A clip is its content and its segment, so
that copies of a file are one, and all captions of a clip are shown the same other one. No clip takes the place of one
that it belongs with: a segment of the same file, or a file that a record names beside it. Videos take the place of
videos and images of images, so that a record keeps its positions.

Letters in shapes: N records, C clips, R sets of clips that records name, I files of these sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava.data.columns import representatives
from llava.data.features.content import ContentHashes
from llava.data.features.store import Clip
from llava.data.hashes import hash64
from llava.data.json_records import DatasetError
from llava.data.records import Record
from llava.data.split.core import chained, connected
from llava.errors import UserError, show


def clips_named(record: Record) -> list[Clip]:
    """(path, segment, is it an image) of each file of a record, its videos first."""
    return [*((p, record.split, False) for p in record.videos), *((p, None, True) for p in record.images)]


def derange(groups: np.ndarray, order: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """A permutation (C,) that sends no clip into its own group.

    What two random permutations give is taken, `order[k]` to `targets[k]`, and where that stays within a group, the
    targets of two clips are exchanged. Each exchange mends one and breaks none, and there is always one to be found.

    Args:
        groups: (C,) whole numbers from 0.
        order, targets: (C,) permutations.

    Raises:
        UserError: when more than half of the clips are of one group, so that there is none.
    """
    count = len(groups)
    if count and 2 * np.bincount(groups).max() > count:
        raise UserError("more than half of the clips belong together")
    image = np.empty(count, dtype=np.int64)
    image[order] = targets
    for place in np.flatnonzero(groups[order] == groups[targets]).tolist():
        clip = order[place]
        own = groups[clip]
        if groups[image[clip]] != own:  # An exchange has mended it.
            continue
        partner = next(
            other
            for step in range(1, count)
            if groups[other := order[(place + step) % count]] != own and groups[image[other]] != own
        )
        image[[clip, partner]] = image[[partner, clip]]
    return image


@dataclass(frozen=True)
class OtherClips:
    """Which clip stands in the place of each clip of the records.

    Attributes:
        seed: of the derangement.
        index: (N,) which set of clips a record names.
        starts: (R,) where the files of each set begin in `shown`.
        shown: (I,) which clip is shown in the place of each file.
        named: (C, 2) a record that names each clip, and which of its files it is.
        digest: a hash of what takes the place of what, by contents: the same wherever the files lie.
    """

    seed: int
    index: np.ndarray
    starts: np.ndarray
    shown: np.ndarray
    named: np.ndarray
    digest: str

    def of(self, records: Sequence[Record], place: int) -> list[Clip]:
        """What the record at a place is shown, in the order of `clips_named`, in place of its own clips."""
        files = len(clips_named(records[place]))
        start = int(self.starts[self.index[place]])
        found = []
        for clip in self.shown[start : start + files].tolist():
            record, file = self.named[clip].tolist()
            found.append(clips_named(records[record])[file])
        return found


def other_clips(records: Sequence[Record], contents: ContentHashes, seed: int) -> OtherClips:
    """Another clip for every clip of the records, drawn from the seed and the clips' contents alone.

    Raises:
        DatasetError: for files that cannot be read.
        UserError: when there is no such exchange: a clip alone, or more than half that belong together.
    """
    firsts, index = representatives(records)
    places = np.unique(index, return_index=True)[1]
    files = [clips_named(record) for record in firsts]
    hashes, errors = contents.resolve(path for named in files for path, _, _ in named)
    if errors:
        path, message = next(iter(errors.items()))
        raise DatasetError(f"{len(errors)} clips cannot be read, the first is {show(path)}: {show(message)}")
    numbers: dict[tuple[str, tuple[int, int] | None, bool], int] = {}
    own, named = [], []
    for place, clips in zip(places.tolist(), files, strict=True):
        for file, (path, split, is_image) in enumerate(clips):
            key = hashes[path], split, is_image
            if key not in numbers:
                numbers[key] = len(numbers)
                named.append((place, file))
            own.append(numbers[key])
    ends = np.cumsum([len(clips) for clips in files], dtype=np.int64)
    counts = np.bincount(index, minlength=len(files))
    # Files that belong together: those that records name together, and with them all their segments and copies.
    groups = np.empty(len(numbers), dtype=np.int64)
    of_file = {content: n for n, group in enumerate(connected(
        sorted({key[0] for key in numbers}), chained([hashes[path] for path, _, _ in clips] for clips in files)
    )) for content in group}  # fmt: skip
    for key, number in numbers.items():
        groups[number] = of_file[key[0]]
    image = np.arange(len(numbers))
    keys = list(numbers)
    for is_image in (False, True):
        chosen = np.array([n for n, key in enumerate(keys) if key[2] == is_image], dtype=np.int64)
        if not len(chosen):
            continue
        kinds = np.unique(groups[chosen], return_inverse=True)[1]
        _check_possible(records, files, counts, kinds, chosen, np.array(own), named, "image" if is_image else "video")
        drawn = [_permutation([keys[n] for n in chosen], seed, use) for use in ("order", "targets")]
        image[chosen] = chosen[derange(kinds, *drawn)]
    listed = sorted(f"{keys[a]} {keys[b]}" for a, b in enumerate(image.tolist()))
    return OtherClips(
        seed,
        index,
        ends - [len(clips) for clips in files],
        image[np.array(own, dtype=np.int64)],
        np.array(named, dtype=np.int64).reshape(-1, 2),
        hashlib.sha256("\n".join(listed).encode()).hexdigest()[:32],
    )


def _permutation(keys: Sequence[object], seed: int, use: str) -> np.ndarray:
    """(C,) drawn from seed and keys, whatever the order of the keys."""
    return np.array(sorted(range(len(keys)), key=lambda n: (hash64(f"{use}/{seed}/{keys[n]}"), str(keys[n]))))


def _check_possible(
    records: Sequence[Record],
    files: Sequence[Sequence[Clip]],
    counts: np.ndarray,
    kinds: np.ndarray,
    chosen: np.ndarray,
    own: np.ndarray,
    named: Sequence[tuple[int, int]],
    what: str,
) -> None:
    """Whether clips of a kind can be exchanged: none of their groups (`kinds`, of the `chosen` ones) has more than half
    of the clips, or of the records that name one of the kind.
    """
    remedy = (
        "copies of a clip, segments of one file and files of one record belong together, and are not shown in each "
        "other's place: look whether a conversion gave many files the same content, cut a long film into files, or "
        "leave --other_clips out"
    )
    sizes = np.bincount(kinds)
    largest = int(sizes.argmax())
    if 2 * sizes[largest] > len(chosen):
        raise UserError(
            f"--other_clips: the training records have {len(chosen):,} different {what}s, of which "
            f"{sizes[largest]:,} belong together ({_first(records, named, chosen[kinds == largest])}): they cannot all "
            f"be exchanged for others; {remedy}"
        )
    group_of = np.full(int(own.max()) + 1, -1)
    group_of[chosen] = kinds
    weights = np.zeros(len(sizes), dtype=np.int64)
    start = total = 0
    for clips, count in zip(files, counts.tolist(), strict=True):
        shows = set(group_of[own[start : start + len(clips)]].tolist()) - {-1}
        start += len(clips)
        weights[list(shows)] += count
        total += count if shows else 0
    heaviest = int(weights.argmax())
    if 2 * weights[heaviest] > total:
        raise UserError(
            f"--other_clips: {weights[heaviest]:,} of {total:,} records with {what}s show the same one, or some that "
            f"belong together ({_first(records, named, chosen[kinds == heaviest])}): others cannot take its place "
            f"without being shown as often; {remedy}"
        )


def _first(records: Sequence[Record], named: Sequence[tuple[int, int]], clips: np.ndarray) -> str:
    """The name of the first of some clips."""
    place, file = min(named[n] for n in clips.tolist())
    return show(clips_named(records[place])[file][0])
