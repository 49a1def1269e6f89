"""Equality of what is no pair of passes: features that were stored, and steps of optimisers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.equality import KERNELS, ROUNDED, Check, Result, collated, passed, run_checks
from benchmarks.gpu.parts import Row, Setting
from benchmarks.models import Size, make_model, make_samples
from benchmarks.timing import Batch
from llava.data.features.store import TOLERANCES, FeatureCache
from llava.model.builder import parameter_groups
from llava.train import muon
from llava.train.half_weights import HalfWeights
from llava.train.muon import MuonAdamW, muon_cuts

LEARNING_RATE = 1e-3
SPREAD = 4
"""How much more the gradients of a part may change than features do: maxima of the pooling move to other patches."""


def pixels_of(size: Size, videos: int) -> torch.Tensor:
    """(V, T, 3, S, S) of noise."""
    return torch.randn(videos, size.frames, 3, size.image, size.image, generator=torch.Generator().manual_seed(0))


def in_loop(model: Any, batch: Batch, pixels: torch.Tensor) -> Batch:
    """The batch with pixels in the place of features."""
    others = {k: v for k, v in batch.items() if k != "video_features"}
    return others | {"pixel_values_videos": pixels.to(model.device)}


@torch.no_grad()
def stored(setting: Setting, model: Any, batch: Batch, pixels: torch.Tensor, dtype: str) -> Batch:
    """The batch with features of the pixels, written to a store of its own and read from there."""
    cache = FeatureCache(setting.folder / "equality", {"dtype": dtype})
    features = model.vision_tower(pixels.flatten(0, 1).to(model.device)).unflatten(0, pixels.shape[:2])
    names = [str(setting.folder / f"{dtype}{i}.mp4") for i in range(len(pixels))]
    for i, name in enumerate(names):
        with open(name, "wb") as file:
            file.write(f"{dtype}, clip {i}".encode())
    cache.write([(cache.key(name, None), name) for name in names], features.half().cpu().numpy())
    read = torch.stack([cache.read(name, None) for name in names])
    return batch | {"video_features": read.to(model.device)}


def stepped(model: Any, gradients: dict[str, torch.Tensor], make: Any, steps: int = 3) -> Result:
    """How weights move in some steps of an optimiser along the same gradients; there is no loss to compare."""
    other = copy.deepcopy(model)
    before = {n: p.detach().clone() for n, p in other.named_parameters() if n in gradients}
    optimizer = make(other)
    for step in range(steps):
        for name, parameter in other.named_parameters():
            if name in gradients:
                parameter.grad = gradients[name] * (1.0 - 0.2 * step)
        optimizer.step()
    moved = {n: p.detach().float() - before[n] for n, p in other.named_parameters() if n in before}
    return torch.ones(()), moved


def adamw(model: Any, **options: Any) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.98), **options)


def muon_adamw(model: Any) -> torch.optim.Optimizer:
    """As `--optim muon` makes it."""
    cuts = muon_cuts(model, parameter_groups(model))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    matrices = [n for n in trained if n in cuts]
    groups = [
        {"params": [trained[n] for n in matrices], "muon": True, "cuts": [cuts[n] for n in matrices],
         "weight_decay": 0.0},
        {"params": [p for n, p in trained.items() if n not in cuts]},
    ]  # fmt: skip
    return MuonAdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)


@contextmanager
def casting(setting: Setting, half: HalfWeights) -> Iterator[None]:
    """Around a forward pass: with weights that are cast now."""
    half.forget()
    with half.used(), setting.autocast():
        yield


def cast_once(setting: Setting, model: Any, batch: Batch) -> Result:
    """A pass with all weights cast to 16 bits at once."""
    return passed(model, batch, casting(setting, HalfWeights(model, setting.half)))


def one_by_one(work: Any) -> Result:
    """`work` with every matrix orthogonalised by itself."""
    before, muon.MOST_ELEMENTS = muon.MOST_ELEMENTS, 0
    try:
        return work()
    finally:
        muon.MOST_ELEMENTS = before


def states(setting: Setting) -> Iterator[Row]:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    model = make_model(setting.size, device=setting.device).train()
    batch = collated(setting, model, make_samples(setting.size, 2), pack=False)
    pixels = pixels_of(setting.size, 2)
    looped = partial(passed, model, in_loop(model, batch, pixels))

    def cached(dtype: str) -> Result:
        return passed(model, stored(setting, model, batch, pixels, dtype))

    gradients = passed(model, batch)[1]
    muon_step = partial(stepped, model, gradients, muon_adamw)
    # Its products are in bf16 on a GPU, where a batch of them may be added up in another order.
    allowed = ROUNDED if setting.device == "cpu" else KERNELS
    yield from run_checks(
        [
            *(
                Check(f"features from the cache, {dtype}, against the tower in the loop", looped,
                      partial(cached, dtype), SPREAD * allowed)
                for dtype, allowed in TOLERANCES.items()
            ),
            Check("weights cast once against by autocast", partial(passed, model, batch, setting.autocast()),
                  partial(cast_once, setting, model, batch), KERNELS),
            Check("fused AdamW against parameter by parameter",
                  partial(stepped, model, gradients, partial(adamw, foreach=False)),
                  partial(stepped, model, gradients, partial(adamw, fused=True))),
            Check("Muon, matrices of one size together, against one by one", partial(one_by_one, muon_step),
                  muon_step, allowed),
        ]
    )  # fmt: skip
