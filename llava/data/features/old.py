"""Features that an earlier commit extracted, served from where they lie wherever they are those of today.

Earlier commits chose frames by their number and not by their time (`llava.data.video.legacy`), knew the tower by other
checksums, kept a clip under one key whether it was read as video or as image, and other decoders may have joined since.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from mimetypes import guess_type
from typing import Any

from llava.config.video import ProcessorSpec, VideoSpec
from llava.data.features.shards import Entry, damage, read_index
from llava.data.features.store import Clip, FeatureCache, caches_beside, join_key
from llava.data.features.workers import run_tasks
from llava.data.video.legacy import same_as_before

logger = logging.getLogger(__name__)

OLD_FORMAT = 2


def unchanged(clip: Clip, spec: VideoSpec) -> bool:
    """Whether a cache of an earlier commit holds the features of exactly today's frames and pixels of a clip."""
    return same_as_before(clip, spec)


def adopt_old(
    cache: FeatureCache,
    old_towers: Callable[[], Iterable[str]],
    missing: Mapping[Clip, str],
    contents: Mapping[str, str],
    spec: VideoSpec,
    num_workers: int = 0,
    timeout: float | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Clip]:
    """Lets `cache` serve what earlier commits extracted of the clips that it lacks, as far as it is what extraction
    would give today, and says in one line of how many clips it is and of how many not.

    Args:
        old_towers: gives the checksums that the tower had under earlier commits; takes seconds for a large one.
        missing: {clip: its key}.
        contents: the hash of each file's content.

    Returns:
        The clips that are served now.

    Raises:
        OSError: when the cache cannot be written.
    """
    old = old_entries(cache, old_towers) if missing else {}
    found: dict[Clip, Entry] = {}
    for clip in missing:
        path, split, is_image = clip
        entry = old.get(join_key(contents[path], split))
        # An image has one frame, and a video of one frame is told from it by its name alone.
        if entry is not None and entry.shard.shape[0] == (1 if is_image else spec.num_frames):
            unclear = spec.num_frames == 1 and (guess_type(path)[0] or "").startswith("image/")
            if not unclear and not (cache.repair and damage(entry)):
                found[clip] = entry
    if not found:
        return []
    same: dict[Clip, Entry] = {}
    with closing(run_tasks(partial(unchanged, spec=spec), list(found), num_workers, timeout)) as results:
        for clip, answer in results:
            if answer is True:  # And not the failure of a process that looked at it.
                same[clip] = found[clip]
            if should_stop is not None and should_stop():
                break  # What is known by now is kept; extraction says the rest.
        else:
            logger.warning(
                "%s: of the clips that an earlier version extracted, %d have the same frames today and are used from "
                "where they lie, and %d are extracted again", cache.folder, len(same), len(found) - len(same)
            )  # fmt: skip
    cache.adopt({missing[clip]: entry for clip, entry in same.items()})
    return list(same)


def old_entries(cache: FeatureCache, old_towers: Callable[[], Iterable[str]]) -> dict[str, Entry]:
    """What lies beside `cache` that an earlier commit extracted with the same tower and settings, by its old key."""
    towers: set[str] | None = None
    entries: dict[str, Entry] = {}
    for folder, settings in caches_beside(cache.folder):
        if not is_older(settings, cache.settings):
            continue
        if towers is None:
            towers = {*old_towers(), cache.settings["tower"]}
        if settings["tower"] not in towers:
            continue
        for index in sorted(folder.glob("*.json")):
            if index.name != "settings.json":
                try:
                    entries |= read_index(index, cache.dtype, keyed=False)
                except (ValueError, OSError) as error:
                    logger.warning("%s: damaged, ignored (%s)", index, error)
    return entries


def is_older(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether settings are those that an earlier commit had where today's are `here`, towers apart: what it did not
    know yet has its default here, and today's decoders are at least its own.
    """
    if there.get("format") != OLD_FORMAT or "format" not in here or not {"tower", "frames"} <= here.keys():
        return False
    if not isinstance(there.get("tower"), str):
        return False
    equal = ("select_layer", "select_feature", "precision", "dtype")
    return (
        all(there.get(name) == here.get(name) for name in equal)
        and _covers(there.get("decoders"), here["decoders"])
        and _covers(there.get("frames"), here["frames"], asdict(VideoSpec()))
        and _covers(there.get("processor"), here["processor"], ProcessorSpec(image_size=1).to_dict())
    )


def _covers(there: Any, here: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> bool:
    """Whether `here` says what `there` says, and beyond it nothing but the defaults."""
    if not isinstance(there, dict) or not there.keys() <= here.keys():
        return False
    more = {} if defaults is None else {k: defaults.get(k) for k in here.keys() - there.keys()}
    return all(_plain(here[k]) == _plain(v) for k, v in {**there, **more}.items())


def _plain(value: Any) -> Any:
    """Sequences as lists, as JSON has them."""
    return list(value) if isinstance(value, (list, tuple)) else value
