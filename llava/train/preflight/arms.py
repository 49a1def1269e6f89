"""Pre-flight of an arm of an experiment: that other clips are others, and that what is shown blind is text alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from llava.data.records import spread, text_alone
from llava.train.preflight.data import Finding

MAX_RECORDS = 256


def check_arm(dataset: Any, samples: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    """The lines of the table about `--other_clips` and `--blind_share`; none where neither is given.

    Args:
        dataset: the training samples, a `llava.data.dataset.LazySupervisedDataset`.
        samples: some of them by index, as they are served.
    """
    findings = []
    if dataset.others is not None:
        findings.append(check_other_clips(dataset, samples))
    if dataset.alone is not None:
        findings.append(check_blind(dataset))
    return findings


def check_other_clips(dataset: Any, samples: Mapping[int, Mapping[str, Any]]) -> Finding:
    """Whether records are shown clips of other content than their own, and samples have these clips' features."""
    name, contents = "other clips", getattr(dataset.cache, "contents", None)
    remedy = "what is shown must come from the exchange of llava.data.other_clips, and no clip stand for its copy"
    chosen = spread(np.concatenate([p for kind, p in dataset.forms().items() if kind != "text"]).tolist(), MAX_RECORDS)
    for index in chosen:
        own, shown = dataset.own().shown(index), dataset.shown(index)
        kept = sorted({_content(c, contents) for c in own} & {_content(c, contents) for c in shown})
        if kept or [c[2] for c in own] != [c[2] for c in shown]:
            words = f"record {dataset.records[index].id!r} is shown {shown[0][0]}, which is one of its own"
            return Finding(name, "FAIL", words if kept else f"{words} or of another kind", remedy)
    compared = 0
    for index, sample in samples.items():
        served = [*sample.get("video_features", ()), *sample.get("image_features", ())]
        for item, clip in zip(served, dataset.shown(index), strict=True) if served else ():
            features = item if isinstance(item, torch.Tensor) else item.tensor()
            wanted = dataset.cache.read(*clip)
            if not torch.equal(features.view(-1, *features.shape[-2:]).to(wanted), wanted):
                words = f"record {dataset.records[index].id!r} is served other features than those of {clip[0]}"
                return Finding(name, "FAIL", words, remedy)
            compared += 1
    how = "by content" if contents is not None else "by path alone, since there is no feature cache"
    words = f"{len(chosen)} records are shown clips that are none of their own, {how}"
    told = f"; the features of {compared} are those of these clips" if compared else "; features were not compared"
    return Finding(name, "ok", words + told)


def check_blind(dataset: Any) -> Finding:
    """Whether records that are shown blind have the ids and labels of an experiment on their text alone."""
    name, count = "blind share", len(dataset)
    remedy = "a sample without its video must be made as --text_only makes it"
    places = np.concatenate([p for kind, p in dataset.forms().items() if kind != "text"])
    chosen = spread(places.tolist(), MAX_RECORDS)
    for index in chosen:
        record = dataset.records[index]
        text = text_alone(record)
        wanted = dataset.finished(text, partial(dataset.whole_tokens, text))
        if not all(map(torch.equal, dataset.tokens(count + index), wanted)) or dataset.shown(count + index):
            words = f"record {record.id!r}, shown blind, is another sample than its text alone"
            return Finding(name, "FAIL", words, remedy)
    drawn = [int(dataset.blind(epoch).sum()) for epoch in range(2)]
    words = (
        f"{drawn[0]:,} of {len(places):,} records are shown without their video in the first epoch, {drawn[1]:,} in "
        f"the second; {len(chosen)} of them compared: each is the sample of its text alone, to the token"
    )
    return Finding(name, "ok", words)


def _content(clip: Any, contents: Any) -> str:
    return clip[0] if contents is None else contents.hash(clip[0])
