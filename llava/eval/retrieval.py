"""Which of N captions fits a clip: all of them are ranked by their loss after its video.

Letters in shapes: N clips, each with one caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llava.data.collator import DataCollatorForSupervisedDataset, fetched
from llava.data.dataset import LazySupervisedDataset
from llava.data.features.extract import FeatureCache
from llava.data.prompt import pad_token_id
from llava.data.records import Record
from llava.eval.caption_scores import tokenise
from llava.eval.controls import with_vision_of
from llava.eval.loss import caption_losses
from llava.eval.references import clip_of, reference_of
from llava.eval.statistics import bootstrap_median, bootstrap_ratio
from llava.model.capabilities import max_positions
from llava.progress import progress

if TYPE_CHECKING:
    from llava.eval.captioning import Captioner

MOST_CLIPS = 50
"""N clips cost N x N losses."""


def choose_clips(records: Sequence[Record], count: int, seed: int) -> list[int]:
    """Indices of the first records of up to `count` clips, drawn by `seed`; no two have the same words as a caption."""
    first: dict[Any, int] = {}
    for index, record in enumerate(records):
        first.setdefault(clip_of(record), index)
    drawn = np.random.default_rng(seed).permutation(list(first.values())).tolist()
    by_words: dict[tuple[str, ...], int] = {}
    for index in drawn:
        by_words.setdefault(tuple(tokenise(reference_of(records[index]))), index)
    return list(by_words.values())[:count]


def ranks(losses: np.ndarray) -> np.ndarray:
    """The place of each clip's own caption among all, (N,) from 1; of equal losses the caption gets the mean place.

    Args:
        losses: (N, N), row i the losses of all captions after clip i; its own caption is column i.
    """
    own = np.diag(losses)[:, None]
    return 1 + (losses < own).sum(axis=1) + ((losses == own).sum(axis=1) - 1) / 2


def retrieval_scores(losses: np.ndarray) -> dict[str, Any]:
    """How many clips find their own caption.

    Args:
        losses: as in `ranks`.

    Returns:
        `clips`, N; `scores`, each a value with its 95 % interval over clips: R@1 and R@5, the shares of clips whose own
        caption is among the first, and its median rank; `chance`, what a model gets that does not look.
    """
    places, clips = ranks(losses), np.arange(len(losses))
    scores = {f"R@{k}": bootstrap_ratio(places <= k, np.ones(len(clips)), clips) for k in (1, 5)}
    scores["median rank"] = bootstrap_median(places)
    count = len(clips)
    chance = {"R@1": 1 / count, "R@5": min(5, count) / count, "median rank": (count + 1) / 2}
    return {"clips": count, "scores": scores, "chance": chance}


def format_retrieval(name: str, found: Mapping[str, Any]) -> str:
    """The result of `retrieval_scores` in a line, each score beside chance."""
    cells = [
        f"{score} {value:.2f} [{low:.2f}, {high:.2f}] (chance {found['chance'][score]:.2f})"
        for score, (value, low, high) in found["scores"].items()
    ]
    return f"{name}: which of {found['clips']} captions fits the clip, by nats per token: {', '.join(cells)}"


class AnswerLosses:
    """Losses of the answers of records in nats per token, after their own video or another record's.

    Args:
        captioner: the model with its tokenizer and text format.
        cache: holds the features of all videos.
    """

    def __init__(self, captioner: Captioner, records: Sequence[Record], cache: FeatureCache, batch_size: int) -> None:
        self.model, form = captioner.model, captioner.text_format
        self.dataset = LazySupervisedDataset(
            records, captioner.tokenizer, form.preprocess, max_positions(self.model), captioner.spec,
            self.model.processor_spec, cache, text_format=form,
        )  # fmt: skip
        self.collate = DataCollatorForSupervisedDataset(pad_token_id(captioner.tokenizer))
        self.batch_size = batch_size

    def own(self) -> list[float]:
        """(N,): which clips the model finds hard."""
        losses: list[float] = []
        for start in range(0, len(self.dataset), self.batch_size):
            stop = min(start + self.batch_size, len(self.dataset))
            losses += self._losses([self.dataset[i] for i in range(start, stop)])
        return losses

    def all_pairs(self, chosen: Sequence[int]) -> np.ndarray:
        """(N, N): row i, column j is the answer of chosen record j after the video of chosen record i."""
        samples = fetched([self.dataset[i] for i in chosen])
        pairs = [(clip, text) for clip in samples for text in samples]
        losses: list[float] = []
        for start in progress(range(0, len(pairs), self.batch_size), desc="retrieval", unit="batch"):
            chunk = pairs[start : start + self.batch_size]
            losses += self._losses([with_vision_of(text, clip) for clip, text in chunk])
        return np.array(losses).reshape(len(samples), len(samples))

    def _losses(self, samples: list[dict[str, Any]]) -> list[float]:
        batch = self.collate(samples)
        nats, tokens = caption_losses(
            self.model, {k: v.to(self.model.device) if torch.is_tensor(v) else v for k, v in batch.items()}
        )
        return (nats / tokens).tolist()
