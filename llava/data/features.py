"""Features of a frozen vision tower, computed once and memory-mapped for ever after.

A cache folder holds one subfolder for each fingerprint of settings, and in it pairs of files: `NAME.npy`, the features
of some clips (C, T, P, Dv), and `NAME.json`, their index. The index is renamed into place after its array is complete,
so a killed extraction leaves nothing that is ever read, and what was finished is not computed again.

Letters in shapes: C clips, T frames, P patches, Dv width of the tower, S pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from llava.config import ProcessorSpec, VideoSpec
from llava.data.records import Problem, Record
from llava.data.video import VideoError, frames_to_pixels, read_frames, read_image, reader_versions
from llava.data.workers import CLIP_TIMEOUT, WorkerFailure, run_tasks

SHARD_BYTES = 256 << 20
VERIFY_ERROR = 0.02

Split = tuple[int, int] | None
Clip = tuple[str, Split, bool]
"""(path, segment, is it an image)."""


class FeatureCache:
    """Features of one tower under one set of settings.

    Args:
        root: the cache folder, shared by any number of runs.
        settings: everything that determines a feature apart from the clip itself; a difference in any of it leads to
            another subfolder.
    """

    def __init__(self, root: str | Path, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(root) / self.fingerprint
        self._rows: dict[str, tuple[str, int]] = {}
        self._hashes: dict[tuple[str, int, int], str] = {}
        self.reload()

    def reload(self) -> None:
        """Reads the indexes on disk, those of other processes included."""
        self._rows.clear()
        for index in sorted(self.folder.glob("*.json")):
            if index.name == "settings.json":
                continue
            for row, entry in enumerate(json.loads(index.read_text())):
                self._rows[entry["key"]] = (index.stem, row)
                self._hashes[entry["path"], entry["size"], entry["mtime_ns"]] = entry["content"]

    def key(self, path: str, split: Split) -> str:
        """Key of a clip: the hash of its content, and the segment. Reads the file when it is new or has changed."""
        return f"{self._content(path)}:{split[0]}-{split[1]}" if split else self._content(path)

    def _content(self, path: str) -> str:
        stat = os.stat(path)
        known = (os.path.abspath(path), stat.st_size, stat.st_mtime_ns)
        if known not in self._hashes:
            digest = hashlib.blake2b(digest_size=20)
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            self._hashes[known] = digest.hexdigest()
        return self._hashes[known]

    def has(self, path: str, split: Split) -> bool:
        return self.key(path, split) in self._rows

    def read(self, path: str, split: Split) -> torch.Tensor:
        """Features (T, P, Dv) of a clip, in fp16; an image has T = 1.

        Raises:
            LookupError: when the clip as it is now was never extracted.
        """
        key = self.key(path, split)
        if key not in self._rows:
            raise LookupError(
                f"{path}: not in the feature cache {self.folder}; the file is new or changed since extraction"
            )
        shard, row = self._rows[key]
        return torch.from_numpy(_open(str(self.folder / f"{shard}.npy"))[row].copy())

    def write(self, clips: Sequence[tuple[str, Split]], features: np.ndarray) -> None:
        """Adds a shard: `clips` (path, segment) and their features (C, T, P, Dv)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / "settings.json", lambda f: f.write(json.dumps(self.settings, indent=1).encode()))
        name = uuid.uuid4().hex
        entries = []
        for path, split in clips:
            stat = os.stat(path)
            entries.append(
                {
                    "key": self.key(path, split),
                    "content": self._content(path),
                    "path": os.path.abspath(path),
                    "size": stat.st_size,
                    "mtime_ns": stat.st_mtime_ns,
                }
            )
        _replace(self.folder / f"{name}.npy", lambda f: np.save(f, features))
        _replace(self.folder / f"{name}.json", lambda f: f.write(json.dumps(entries).encode()))
        for row, entry in enumerate(entries):
            self._rows[entry["key"]] = (name, row)


@lru_cache(maxsize=4096)
def _open(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def open_cache(root: str | Path, model: Any) -> FeatureCache:
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
    )
    return FeatureCache(root, settings)


def cache_settings(
    tower_checksum: str, select_layer: int, select_feature: str, spec: VideoSpec, processor: ProcessorSpec
) -> dict[str, Any]:
    """All that determines a feature apart from the clip: tower, layer, frame choice, pixels, decoders, dtype."""
    frames = spec.to_dict()
    # How many latents summarise the features does not change them.
    del frames["fast_latents"], frames["slow_latents"]
    return {
        "tower": tower_checksum,
        "select_layer": select_layer,
        "select_feature": select_feature,
        "frames": frames,
        "processor": ProcessorSpec.from_dict(processor.to_dict()).to_dict(),
        "decoders": reader_versions(),
        "dtype": "float16",
    }


def read_pixels(clip: Clip, spec: VideoSpec, processor: ProcessorSpec) -> np.ndarray | str:
    """Pixels (T, 3, S, S) of a clip, or the error that reading it gave."""
    path, split, is_image = clip
    try:
        frames = read_image(path) if is_image else read_frames(path, spec, split)
    except VideoError as error:
        return str(error)
    return frames_to_pixels(frames, processor, spec.image_aspect_ratio).numpy()


def distinct_clips(records: Iterable[Record]) -> dict[Clip, list[Record]]:
    """(path, segment, is it an image) of every file that records name, with the records that name it."""
    clips: dict[Clip, list[Record]] = {}
    for record in records:
        for path in record.videos:
            clips.setdefault((path, record.split, False), []).append(record)
        for path in record.images:
            clips.setdefault((path, None, True), []).append(record)
    return clips


@torch.no_grad()
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
) -> list[Problem]:
    """Fills the cache for the clips of `records` that it lacks; under several ranks, for this rank's share.

    Args:
        tower: (N, 3, S, S) -> (N, P, Dv), on `device`.
        num_workers: processes that decode; 0 decodes in this one, which a clip that hangs or crashes the decoder takes
            along.
        timeout: seconds that decoding a clip may take.

    Returns:
        One problem for each record that names a clip that cannot be read.
    """
    wanted = distinct_clips(records)
    # Shares are fixed before looking into the cache, which other ranks are filling at the same time.
    missing = [clip for clip in list(wanted)[rank::world_size] if not cache.has(clip[0], clip[1])]
    if not missing:
        return []
    problems: list[Problem] = []
    waiting: list[tuple[Clip, np.ndarray]] = []
    shards: dict[int, list[tuple[tuple[str, Split], np.ndarray]]] = {}

    def encode() -> None:
        """The waiting clips through the tower, into the shards of their number of frames; full shards are written."""
        pixels = torch.from_numpy(np.concatenate([p for _, p in waiting]))
        features = tower(pixels.to(device)).half().cpu().numpy()
        parts = np.split(features, np.cumsum([len(p) for _, p in waiting])[:-1])
        for (clip, _), part in zip(waiting, parts, strict=True):
            if not np.isfinite(part).all():
                raise ValueError(f"{clip[0]}: the vision tower gives features that are not finite in fp16")
            shards.setdefault(len(part), []).append((clip[:2], part))
        waiting.clear()
        flush(SHARD_BYTES)

    def flush(least_bytes: int) -> None:
        for frames in [n for n, clips in shards.items() if len(clips) * clips[0][1].nbytes >= least_bytes]:
            clips = shards.pop(frames)
            cache.write([clip for clip, _ in clips], np.stack([features for _, features in clips]))

    work = partial(read_pixels, spec=spec, processor=processor)
    with tqdm(total=len(missing), desc="vision features", unit="clip", disable=not show_progress) as progress:
        for clip, result in run_tasks(work, missing, num_workers, timeout):
            if isinstance(result, np.ndarray):
                waiting.append((clip, result))
            else:
                failed = isinstance(result, WorkerFailure)
                kind, message = (result.kind, f"{clip[0]}: {result.message}") if failed else ("unreadable", result)
                problems += [Problem(r.source, r.id, kind, message) for r in wanted[clip]]
            if len(waiting) == batch_size:
                encode()
            progress.update()
        if waiting:
            encode()
        flush(0)
    return problems


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

    Batches of another size, other kernels and fp16 round differently, so a relative error up to `VERIFY_ERROR` passes.
    """
    cached = [clip for clip in distinct_clips(records) if cache.has(clip[0], clip[1])]
    places = {round(k * (len(cached) - 1) / max(number - 1, 1)) for k in range(number)} if cached else set()
    chosen = [cached[i] for i in sorted(places)]
    problems = []
    for clip in chosen:
        pixels = read_pixels(clip, spec, processor)
        if isinstance(pixels, str):
            problems.append(Problem(clip[0], "", "unreadable", pixels))
            continue
        expected = tower(torch.from_numpy(pixels).to(device)).float().cpu()
        error = (cache.read(clip[0], clip[1]).float() - expected).norm().item() / max(expected.norm().item(), 1e-12)
        if not error <= VERIFY_ERROR:
            message = f"{clip[0]}: its cached features differ from those of the file (relative error {error:.2g})"
            problems.append(Problem(clip[0], "", "other features", message))
    return len(chosen), problems
