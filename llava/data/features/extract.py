"""Features of a frozen vision tower, computed once and read from `llava.data.features.store` for ever after.

Letters in shapes: N frames of a batch, T frames of a clip, P patches, Dv width of the tower, S pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava.config.video import ProcessorSpec, VideoSpec
from llava.data.columns import representatives, take
from llava.data.features.old import adopt_old
from llava.data.features.room import Forecast, check_room
from llava.data.features.store import TOLERANCES, Clip, DamagedFeatures, FeatureCache, join_key
from llava.data.features.workers import CLIP_TIMEOUT, Pool, WorkerFailure, ahead, run_tasks
from llava.data.records import Problem, Record
from llava.data.video import FRAME_RULE, VideoError, frames_to_pixels, read_frames, read_image, reader_versions
from llava.errors import Stopped, UserError
from llava.progress import progress

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 << 20


def open_cache(root: str | Path, model: Any, repair: bool = False, run: str | None = None) -> FeatureCache:
    """The cache in `root` for the attached tower and the settings of a model with vision (`llava.model.llava_arch`).

    A tower that is kept by reference was compared with its checksum when it was attached. One that is stored may have
    been trained, and is then another one than its config names, so its weights are hashed as they are.
    """
    config = model.config
    by_reference = config.mm_vision_tower_storage == "reference"
    settings = cache_settings(
        config.mm_vision_tower_checksum if by_reference else model.vision_tower.checksum(),
        config.mm_vision_select_layer,
        config.mm_vision_select_feature,
        model.video_spec,
        model.processor_spec,
        model.vision_tower.precision,
        config.mm_feature_dtype,
    )
    return FeatureCache(root, settings, repair, run=run)


def cache_settings(
    tower_checksum: str,
    select_layer: int,
    select_feature: str,
    spec: VideoSpec,
    processor: ProcessorSpec,
    precision: str = "fp32",
    dtype: str = "float16",
) -> dict[str, Any]:
    """All that determines a feature apart from the clip: tower, layer, frame choice, pixels, decoders, types.

    Args:
        precision: that the tower computes in, `fp32` or `bf16`.
        dtype: that features are stored as, one of `TOLERANCES`.
    """
    if dtype not in TOLERANCES:
        raise UserError(f"--feature_dtype {dtype}: use one of {', '.join(TOLERANCES)}")
    frames = spec.to_dict()
    # How many latents summarise the features does not change them.
    del frames["fast_latents"], frames["slow_latents"], frames["temporal_factor"], frames["video_decoder"]
    pixels = ProcessorSpec.from_dict(processor.to_dict()).to_dict()
    if spec.image_aspect_ratio != "crop":
        pixels.pop("resize_edge", None)  # Nothing is cropped.
    return {
        "tower": tower_checksum,
        "select_layer": select_layer,
        "select_feature": select_feature,
        "frames": frames,
        "frame_rule": FRAME_RULE,
        "processor": pixels,
        "decoders": reader_versions(spec.video_decoder),
        "precision": precision,
        "dtype": dtype,
    }


def describe_cache(cache: FeatureCache) -> str:
    """Where features are kept and how they are made; while there are none, also those that another machine made."""
    settings = cache.settings
    lines = [
        f"vision features: computed in {settings['precision']}, stored as {settings['dtype']} in {cache.folder}, "
        f"{len(cache)} there"
    ]
    if not len(cache):
        lines += [
            f"  {folder} holds others, with {name} {there!r} and not {here!r}"
            + (f": --vision_precision {there} would use them" if name == "precision" else "")
            for folder, name, there, here in cache.siblings()
            if name in ("precision", "dtype", "decoders")
        ]
    return "\n".join(lines)


def read_pixels(clip: Clip, spec: VideoSpec, processor: ProcessorSpec) -> np.ndarray | str:
    """Pixels (T, 3, S, S) of a clip, or the error that reading it gave."""
    path, split, is_image = clip
    try:
        frames = read_image(path) if is_image else read_frames(path, spec, split)
    except VideoError as error:
        return str(error)
    return frames_to_pixels(frames, processor, spec.image_aspect_ratio).numpy()


def distinct_clips(records: Sequence[Record]) -> Mapping[Clip, Sequence[Record]]:
    """(path, segment, is it an image) of every file that records name, with the records that name it."""
    firsts, index = representatives(records)
    clips: dict[Clip, list[int]] = {}
    for number, record in enumerate(firsts):
        for path in record.videos:
            clips.setdefault((path, record.split, False), []).append(number)
        for path in record.images:
            clips.setdefault((path, None, True), []).append(number)
    if firsts is records:
        return {clip: [records[i] for i in numbers] for clip, numbers in clips.items()}
    return _Users(clips, records, index)


class _Users(Mapping[Clip, Sequence[Record]]):
    """The records of each clip, looked for when they are asked for."""

    def __init__(self, clips: dict[Clip, list[int]], records: Sequence[Record], index: np.ndarray) -> None:
        self._clips, self._records, self._index = clips, records, index

    def __getitem__(self, clip: Clip) -> Sequence[Record]:
        return take(self._records, np.flatnonzero(np.isin(self._index, self._clips[clip])))

    def __contains__(self, clip: object) -> bool:
        return clip in self._clips

    def __iter__(self) -> Iterator[Clip]:
        return iter(self._clips)

    def __len__(self) -> int:
        return len(self._clips)


def extract_features(
    records: Sequence[Record],
    cache: FeatureCache,
    tower: Callable[[torch.Tensor], torch.Tensor],
    spec: VideoSpec,
    processor: ProcessorSpec,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    num_workers: int = 0,
    timeout: float | None = CLIP_TIMEOUT,
    rank: int = 0,
    world_size: int = 1,
    show_progress: bool = True,
    should_stop: Callable[[], bool] | None = None,
) -> list[Problem]:
    """Fills the cache for the clips of `records` that it lacks; under several ranks, for this rank's share.

    Args:
        tower: (N, 3, S, S) -> (N, P, Dv), on `device`. Where it has `old_checksums()`, what earlier commits extracted
            with it is used as far as it is what they would give today. Where it has `feature_shape()`, what its
            features take of the disk is said, and refused where it cannot fit.
        num_workers: processes that decode; 0 decodes in this one, which a clip that hangs or crashes the decoder takes
            along.
        timeout: seconds that decoding a clip may take.
        should_stop: asked after each clip.

    Returns:
        One problem for each record that names a clip that cannot be read.

    Raises:
        Stopped: when `should_stop` says so, after the features that are computed were written.
        OSError: when they cannot be written.
        ValueError: when they cannot fit on the disk, before a clip is read.
    """
    # Shares are fixed before looking into the cache, which other ranks are filling at the same time.
    wanted = distinct_clips(records)
    return extract_clips(list(wanted)[rank::world_size], wanted, cache, tower, spec, processor, device, batch_size,
                         num_workers, timeout, show_progress, should_stop)  # fmt: skip


@torch.no_grad()
def extract_clips(
    share: Sequence[Clip],
    wanted: Mapping[Clip, Sequence[Record]],
    cache: FeatureCache,
    tower: Callable[[torch.Tensor], torch.Tensor],
    spec: VideoSpec,
    processor: ProcessorSpec,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    num_workers: int = 0,
    timeout: float | None = CLIP_TIMEOUT,
    show_progress: bool = True,
    should_stop: Callable[[], bool] | None = None,
    pool: Pool | None = None,
) -> list[Problem]:
    """`extract_features` of some clips.

    Args:
        wanted: the records that name each clip, those of others too.
        pool: processes that run `read_pixels` with this spec and processor, in place of some that are started.
    """
    contents, unreadable = cache.contents.resolve([clip[0] for clip in share], should_stop, show_progress)
    problems = [Problem(r.source, r.id, "unreadable", unreadable[c[0]]) for c in share if c[0] in unreadable
                for r in wanted[c]]  # fmt: skip
    keys = {clip: join_key(contents[clip[0]], *clip[1:]) for clip in share if clip[0] in contents}
    if cache.repair:
        logger.warning("%s: %d damaged features found", cache.folder, cache.remove_damaged(keys.values()))
    # Copies of a clip share their features: the first of them is read for all.
    copies: dict[str, list[Clip]] = {}
    for clip, key in keys.items():
        if key not in cache:
            copies.setdefault(key, []).append(clip)
    missing = [clips[0] for clips in copies.values()]
    old_towers = getattr(tower, "old_checksums", tuple)
    adopt_old(cache, old_towers, {c: keys[c] for c in missing}, contents, spec, num_workers, timeout, should_stop)
    missing = [clip for clip in missing if keys[clip] not in cache]
    if not missing:
        return problems
    cache.check_has(missing)
    cache.check_writable()
    say = logger.info if show_progress else logger.debug
    if hasattr(tower, "feature_shape"):
        images = sum(is_image for _, _, is_image in missing)
        shape = spec.num_frames, *tower.feature_shape(processor.image_size)
        say("%s", check_room(cache.folder, len(missing) - images, images, shape, cache.dtype))
    forecast = Forecast(len(missing), say)
    waiting: list[tuple[Clip, np.ndarray]] = []
    shards: dict[int, list[tuple[tuple[str, str], np.ndarray]]] = {}

    def encode() -> None:
        """The waiting clips through the tower, into the shards of their number of frames; full shards are written."""
        pixels = torch.from_numpy(np.concatenate([p for _, p in waiting]))
        features = tower(pixels.to(device)).half().cpu().numpy()
        parts = np.split(features, np.cumsum([len(p) for _, p in waiting])[:-1])
        for (clip, _), part in zip(waiting, parts, strict=True):
            if not np.isfinite(part).all():
                raise UserError(f"{clip[0]}: the vision tower gives features that are not finite in fp16")
            shards.setdefault(len(part), []).append(((keys[clip], clip[0]), part))
        waiting.clear()
        flush(SHARD_BYTES)

    def flush(least_bytes: int) -> None:
        for frames in [n for n, clips in shards.items() if len(clips) * clips[0][1].nbytes >= least_bytes]:
            clips = shards.pop(frames)
            cache.write([clip for clip, _ in clips], np.stack([features for _, features in clips]))

    def stop_if_asked(done: int) -> None:
        if should_stop is not None and should_stop():
            flush(0)
            raise Stopped(
                f"extraction stopped: {done} of {len(missing)} clips were read, and what was computed is in "
                f"{cache.folder}; the same command goes on from there"
            )

    work, done = partial(read_pixels, spec=spec, processor=processor), 0
    running = pool.run(missing) if pool else run_tasks(work, missing, num_workers, timeout)
    with (
        progress(total=len(missing), desc="vision features", unit="clip", disable=not show_progress) as bar,
        closing(ahead(running, batch_size) if num_workers or pool else running) as results,
    ):
        try:
            for clip, result in results:
                # Before the result is looked at: a signal to a whole job ends its decoding processes too.
                stop_if_asked(done)
                if isinstance(result, np.ndarray) and _content(cache, clip[0]) != contents[clip[0]]:
                    result = f"{clip[0]}: changed while it was read; extract again when it is complete"
                if isinstance(result, np.ndarray):
                    waiting.append((clip, result))
                else:
                    failed = isinstance(result, WorkerFailure)
                    kind, message = (result.kind, f"{clip[0]}: {result.message}") if failed else ("unreadable", result)
                    users = [r for copy in copies[keys[clip]] for r in wanted[copy]]
                    problems += [Problem(r.source, r.id, kind, message) for r in users]
                done += 1
                if len(waiting) == batch_size:
                    encode()
                    forecast.batch(done)
                bar.update()
        except RuntimeError as error:
            if not isinstance(error, Stopped):  # A decoding process that was ended while it started.
                stop_if_asked(done)
            raise
        if waiting:
            encode()
        flush(0)
        if problems:
            stop_if_asked(done)
    return problems


def _content(cache: FeatureCache, path: str) -> str | None:
    try:
        return cache.contents.hash(path)
    except OSError:
        return None


@torch.no_grad()
def verify_features(
    records: Sequence[Record],
    cache: FeatureCache,
    tower: Callable[[torch.Tensor], torch.Tensor],
    spec: VideoSpec,
    processor: ProcessorSpec,
    device: torch.device | str = "cpu",
    number: int = 16,
) -> tuple[int, list[Problem]]:
    """Computes the features of some cached clips again, evenly spread: how many, and those that differ from the cache.

    Batches of another size, other kernels, fp16 and int8 round differently: `TOLERANCES`.
    """
    cached = [clip for clip in distinct_clips(records) if cache.has(*clip)]
    places = {round(k * (len(cached) - 1) / max(number - 1, 1)) for k in range(number)} if cached else set()
    chosen = [cached[i] for i in sorted(places)]
    problems = []
    for clip in chosen:
        pixels = read_pixels(clip, spec, processor)
        if isinstance(pixels, str):
            problems.append(Problem(clip[0], "", "unreadable", pixels))
            continue
        expected = tower(torch.from_numpy(pixels).to(device)).float().cpu()
        try:
            found = cache.read(*clip).float()
        except DamagedFeatures as damage:
            problems.append(Problem(clip[0], "", "damaged features", str(damage)))
            continue
        error = (found - expected).norm().item() / max(expected.norm().item(), 1e-12)
        if not error <= TOLERANCES[cache.dtype]:
            message = f"{clip[0]}: its cached features differ from those of the file (relative error {error:.2g})"
            problems.append(Problem(clip[0], "", "other features", message))
    return len(chosen), problems
