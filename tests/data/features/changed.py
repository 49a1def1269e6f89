"""Faults of a feature cache: what it serves is something else than what it holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llava.data.features.store import FeatureCache


def change_features(
    patch: pytest.MonkeyPatch, change: Callable[[FeatureCache, str, torch.Tensor], torch.Tensor]
) -> None:
    """`change(cache, path, features)` instead of what the cache serves, to samples and to whoever reads it."""
    stored = FeatureCache.stored

    def changed(self: FeatureCache, path: str, split: tuple[int, int] | None, is_image: bool = False) -> torch.Tensor:
        return change(self, path, stored(self, path, split, is_image).tensor())

    def read(self: FeatureCache, path: str, split: tuple[int, int] | None, is_image: bool = False) -> torch.Tensor:
        found = changed(self, path, split, is_image)
        return found[None] if is_image else found

    patch.setattr(FeatureCache, "stored", changed)
    patch.setattr(FeatureCache, "read", read)


def serve_other_clips(patch: pytest.MonkeyPatch, other: Callable[[str], str]) -> None:
    """The features of the clip `other(path)` instead of those of a clip."""
    stored = FeatureCache.stored
    patch.setattr(
        FeatureCache, "stored", lambda self, path, split, *kind: stored(self, other(path), split, *kind)
    )  # fmt: skip
