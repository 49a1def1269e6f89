"""Pre-flight of the feature cache: rows of all its files, computed again from the clips.

Letters in shapes: T frames, P patches, Dv width of the tower, S side of a frame.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from llava.data.features.extract import Clip, distinct_clips
from llava.data.features.store import TOLERANCES
from llava.data.records import spread
from llava.train.preflight.data import Finding

ROWS = 32
SECONDS = 5.0
"""CPU-seconds that the tower may take; it computes fewer rows when it is slower."""
CANDIDATES = 2048
"""Clips that the rows are chosen from: each costs a look at its file."""


def spread_rows(places: dict[Clip, tuple[str, int]], limit: int) -> list[Clip]:
    """At most `limit` clips, from every file and from all over it, the last rows first.

    Args:
        places: file and row of each clip.
    """
    files: dict[str, list[Clip]] = {}
    for clip in sorted(places, key=lambda c: places[c]):
        files.setdefault(places[clip][0], []).append(clip)
    total = min(limit, len(places))
    share = next((n for n in range(1, limit + 1) if sum(min(n, len(c)) for c in files.values()) >= total), 1)
    # One of each file in turn; within a file from its end, since row 0 is right where rows are off by one.
    chosen = [spread(clips[::-1], share) for clips in files.values()]
    turns = [clips[turn] for turn in range(share) for clips in chosen if turn < len(clips)]
    return turns[:limit]


def check_cache(dataset: Any, tower: nn.Module, seconds: float = SECONDS) -> Finding:
    """Whether cached features of up to `ROWS` clips, one frame each, are those of their files.

    Args:
        tower: on the device of the run.
        seconds: of CPU time for the tower, with at least one row.
    """
    cache, device = dataset.cache, next(tower.parameters()).device
    clips = distinct_clips(dataset.records)
    places = {clip: cache.place(*clip) for clip in spread(list(clips), CANDIDATES)}
    chosen = spread_rows(places, ROWS)
    worst, spent, done = (0.0, ""), 0.0, 0
    for number, clip in enumerate(chosen):
        if number and spent / number * (number + 1) > seconds:
            break
        path, split, is_image = clip
        pixels = dataset.read_image(path)[None] if is_image else dataset.read_video(path, split)
        frame = number % len(pixels)
        found = cache.read(*clip)[frame].float()
        start = time.process_time()
        with torch.no_grad():
            expected = tower(pixels[frame : frame + 1].to(device))[0].float().cpu()
        spent += time.process_time() - start
        done += 1
        error = (found - expected).norm().item() / max(expected.norm().item(), 1e-12)
        if not error <= TOLERANCES[cache.dtype]:
            name = clips[clip][0].id
            words = f"the cached features of record {name!r} are not those of {path} (frame {frame}: relative error "
            words += f"{error:.2g}; row {places[clip][1]} of {places[clip][0]})"
            remedy = "the cache is stale or damaged: name a new folder with --feature_cache"
            return Finding("feature cache", "FAIL", words, remedy)
        worst = max(worst, (error, path))
    files = len({places[clip][0] for clip in chosen[:done]})
    words = f"{done} rows of {files} of {len({p[0] for p in places.values()})} files, one frame each, are those of "
    words += f"their clips (relative error at most {worst[0]:.1e})"
    if done < len(chosen):
        words += f"; {len(chosen) - done} more not measured: the tower takes {spent / done:.1f} CPU-s a frame"
    return Finding("feature cache", "ok", words)
