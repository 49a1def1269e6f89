"""Extraction by jobs that share a list of work (`llava.data.features.jobs`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llava.config.video import ProcessorSpec, VideoSpec
from llava.data.features.extract import distinct_clips, extract_clips, read_pixels
from llava.data.features.jobs import PART, WorkList, list_name, work_through
from llava.data.features.store import FeatureCache
from llava.data.features.workers import Pool
from llava.data.records import Problem, Record
from llava.errors import Stopped

logger = logging.getLogger(__name__)


def extract_parts(
    folder: Path,
    lease: float,
    records: Sequence[Record],
    cache: FeatureCache,
    tower: Callable[[torch.Tensor], torch.Tensor],
    spec: VideoSpec,
    processor: ProcessorSpec,
    device: torch.device | str,
    batch_size: int,
    num_workers: int,
    timeout: float | None,
    should_stop: Callable[[], bool],
    part_clips: int = PART,
) -> list[Problem]:
    """Fills the cache as `extract_features` does, part by part beside other jobs, until all parts are finished.

    Jobs share a list when cache, settings and clips are the same.

    Args:
        folder: where the list is kept; on a file system that all jobs see.
        lease: seconds without a sign of life after which a part is taken over.
        part_clips: clips of a part.

    Returns:
        The problems of all parts, whoever did them.

    Raises:
        Stopped: when `should_stop` says so; the part at hand is given back, and what of it was computed is kept.
    """
    wanted = distinct_clips(records)
    clips = list(wanted)
    work = WorkList(folder / list_name(str(cache.folder), part_clips, clips), len(clips), part_clips, lease)
    work.create({"title": str(cache.folder)})
    with Pool(partial(read_pixels, spec=spec, processor=processor), num_workers, timeout) as pool:

        def do(some: slice, taken_over: bool) -> Any:
            if taken_over:
                cache.reload()  # What the other job had written is there.
            problems = extract_clips(clips[some], wanted, cache, tower, spec, processor, device, batch_size,
                                     num_workers, timeout, False, should_stop, pool)  # fmt: skip
            return [asdict(problem) for problem in problems]

        count = work_through(work, do, should_stop, partial(logger.info, "%s"))
    if not work.finished():
        raise Stopped(f"extraction stopped after {count} parts: the same command goes on, and other jobs do meanwhile")
    logger.info("all %d parts are finished, %d of them by this job", work.parts, count)
    return [Problem(**problem) for problems in work.outcomes() for problem in problems]
