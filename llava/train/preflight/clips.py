"""Pre-flight of the clips as pictures: whether something moves in them, and whether they differ from each other.

Features are read from the cache, where they lie for nothing; a few clips in which nothing moves are opened to say why.

Letters in shapes: C clips, T frames, P patches, Dv width of the tower, K channels that are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from llava.config.video import VideoSpec
from llava.data.columns import representatives
from llava.data.records import Record, spread
from llava.data.video import VideoError, probe_video, read_frames, select_frames
from llava.train.preflight.data import Finding

MAX_CLIPS = 128
"""Clips whose features are read, evenly spread: 0.3 GB with DINOv2-large."""
CHANNELS = 64
OPENED = 8
"""Clips in which nothing moves that are opened."""
STILL = 0.2
"""Share of such clips above which they are named."""
SAME_FRAME, SAME_CLIP = 0.05, 0.01
"""Largest difference of a feature between frames, and the mean one between clips, relative to the features' spread. In
the demo the least are 0.73 and 0.11; rounding makes 0.005 (int8)."""
TWINS = 0.05
"""Share of clips with a twin above which they are named."""
ENOUGH = 20
"""Records or clips below which shares are shown and not judged."""
PROBED = 32
"""Clips with a segment whose frames are counted, evenly spread; nothing is decoded."""
LONGER = 4.0
"""A clip is so many times as long as the segment that all records share, in the median, when that one is named."""
ONE_COLOUR = 4.0
"""Standard deviation of the pixel values (of 255) of a frame of one colour; the noise of a codec is below."""

Clip = tuple[str, tuple[int, int] | None]


def check_clips(dataset: Any) -> list[Finding]:
    """Every line of the table about clips; `dataset` is a `LazySupervisedDataset`."""
    firsts, index = representatives(dataset.records)
    counts = np.bincount(index, minlength=len(firsts)).tolist()
    clips: Counter[Clip] = Counter()
    for record, count in zip(firsts, counts, strict=True):
        for path in record.videos:
            clips[path, record.split] += count
    if not clips:
        return []
    findings = [check_shares(clips, sum(n for r, n in zip(firsts, counts, strict=True) if r.videos))]
    segments = check_segments(dataset.records)
    findings += [segments] if segments is not None else []
    if dataset.cache is None:
        return findings
    chosen = [list(clips)[i] for i in spread(range(len(clips)), MAX_CLIPS)]
    features = [part_of(dataset.cache.read(*clip)) for clip in chosen]
    if dataset.spec.num_frames > 1:
        still = [clip for clip, f in zip(chosen, features, strict=True) if is_still(f)]
        findings.append(check_motion(still, len(chosen), lambda clip: why_still(clip, dataset.spec)))
    findings.append(check_twins(chosen, features))
    return findings


def check_shares(clips: Counter[Clip], records: int) -> Finding:
    """How many clips the records name, and whether most name the same one."""
    (path, split), often = clips.most_common(1)[0]
    words = f"{records:,} records name {len(clips):,} clips, {path} the most often ({often:,} times)"
    if records >= ENOUGH and often > records / 2:
        part = f" {split}" if split else ""
        remedy = f"look whether {path}{part} is what these records mean: what they share says nothing about a caption"
        return Finding("clips", "warning", words, remedy)
    return Finding("clips", "ok", words)


def check_segments(records: Sequence[Record]) -> Finding | None:
    """Whether segments end within their clips and are their records' own; None where no record has one."""
    firsts, index = representatives(records)
    counts = np.bincount(index, minlength=len(firsts)).tolist()
    named = [(r, n) for r, n in zip(firsts, counts, strict=True) if r.split is not None and r.videos]
    if not named:
        return None
    one_a_clip = list({(r.videos[0], r.split): r for r, _ in named}.values())
    shares: Counter[tuple[int, int]] = Counter()
    for record, count in named:
        shares[record.split] += count
    beyond, lengths = [], []
    for record in spread(one_a_clip, PROBED):
        try:
            frames = probe_video(record.videos[0]).num_frames
        except (VideoError, OSError):
            continue  # Extraction and decoding name files that cannot be read.
        lengths.append(frames)
        if record.split[1] >= frames:
            beyond.append(f"{record.id!r} {list(record.split)} of {record.videos[0]}, frames 0 to {frames - 1}")
    words = f"{len(beyond)} of {len(lengths)} segments that were compared with their clips end beyond them"
    counting = "meta.split counts frames, [first, last] from 0, both included: multiply seconds by the frame rate"
    if beyond:
        words += f" and are cut there ({'; '.join(beyond[:3])})"
        return Finding("segments", "warning", words, f"{counting}; python -m llava.data.check names all records")
    (first, last), often = shares.most_common(1)[0]
    is_shared = sum(shares.values()) == len(records) == often >= ENOUGH
    if is_shared and np.median(lengths or [0]) >= LONGER * (last - first + 1):
        words = f"all {often:,} records have the segment {[first, last]}, of clips of {np.median(lengths):g} frames"
        return Finding("segments", "warning", f"{words} in the median", f"{counting}, or leave it out")
    return Finding("segments", "ok", words)


def part_of(features: torch.Tensor) -> torch.Tensor:
    """(T, P, Dv) to (T, P, K) in fp32: evenly spaced channels are enough to tell frames apart."""
    return features[..., :: max(1, features.shape[-1] // CHANNELS)].float()


def is_still(features: torch.Tensor) -> bool:
    """Whether all frames (T, P, K) are the same picture, up to rounding."""
    return bool((features - features[:1]).abs().max() <= SAME_FRAME * features.std())


def why_still(clip: Clip, spec: VideoSpec) -> str:
    """Why a clip's frames are all the same: one frame chosen several times, one colour, or a picture that stands."""
    path, split = clip
    try:
        info = probe_video(path)
        if len(set(select_frames(info.times, spec, split))) == 1:
            return "one frame is chosen"
        frames = read_frames(path, spec, split)
    except (VideoError, OSError, ValueError):
        return "cannot be opened"
    return "one colour" if frames.std(axis=(1, 2)).max() < ONE_COLOUR else "a picture that stands"


def check_motion(still: Sequence[Clip], clips: int, why: Callable[[Clip], str]) -> Finding:
    """Clips whose chosen frames are all one picture, and why some of them are."""
    words = f"{len(still)} of {clips} clips have frames that are all the same picture"
    if not still:
        return Finding("motion in clips", "ok", words)
    opened = [still[i] for i in spread(range(len(still)), OPENED)]
    reasons = Counter(map(why, opened))
    listed = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    words += f", first {still[0][0]}; of {len(opened)} that were opened: {listed}"
    if clips >= ENOUGH and len(still) > STILL * clips:
        remedies = {
            "one frame is chosen": "meta.split counts frames, not seconds; raise --video_fps for short clips, or set "
            "--force_sample True",
            "one colour": "look for black clips: a download or a conversion that failed",
            "a picture that stands": "clips without motion teach what an image teaches; leave out what is no video",
        }
        remedy = "; ".join(remedies.get(reason, "see python -m llava.data.check") for reason in reasons)
        return Finding("motion in clips", "warning", words, remedy)
    return Finding("motion in clips", "ok", words)


def check_twins(clips: Sequence[Clip], features: Sequence[torch.Tensor]) -> Finding:
    """Clips of different names with the same features, or nearly: copies, and clips that hold nothing."""
    shapes = Counter(f.shape for f in features)
    shape = shapes.most_common(1)[0][0]
    rows = [(clip, f.flatten()) for clip, f in zip(clips, features, strict=True) if f.shape == shape]
    matrix = torch.stack([f for _, f in rows]).numpy()
    twins = twin_groups(matrix, SAME_CLIP * float(matrix.std()))
    count = sum(map(len, twins))
    words = f"{count} of {len(rows)} clips have the features of another one"
    if not twins:
        return Finding("twins among clips", "ok", words)
    pair = [rows[i][0] for i in max(twins, key=len)[:2]]
    words += f", for instance {pair[0][0]} and {pair[1][0]}"
    if len(rows) >= ENOUGH and count == len(rows) and len(twins) == 1:
        remedy = "every clip looks the same: a conversion that failed, or the wrong files"
        return Finding("twins among clips", "FAIL", words, remedy)
    if len(rows) >= ENOUGH and count > TWINS * len(rows):
        remedy = "look at these: copies under several names, or black clips; captions cannot tell them apart"
        return Finding("twins among clips", "warning", words, remedy)
    return Finding("twins among clips", "ok", words)


def twin_groups(rows: np.ndarray, limit: float) -> list[list[int]]:
    """Groups of rows (C, K) that differ from the group's first by `limit` at most in the root mean square."""
    groups: list[list[int]] = []
    free = np.ones(len(rows), dtype=bool)
    for i in range(len(rows)):
        if not free[i]:
            continue
        later = np.flatnonzero(free)
        later = later[later > i]
        # A few values rule most rows out, which makes 128 clips a matter of milliseconds.
        some = rows[later, :: max(1, rows.shape[1] // 64)] - rows[i, :: max(1, rows.shape[1] // 64)]
        later = later[np.sqrt(np.square(some).mean(axis=1)) <= 3 * limit]
        same = [int(j) for j in later if np.sqrt(np.square(rows[j] - rows[i]).mean()) <= limit]
        if same:
            groups.append([i, *same])
            free[[i, *same]] = False
    return groups
