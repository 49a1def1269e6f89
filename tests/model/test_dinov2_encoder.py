"""The frozen tower computes in its own precision, and bf16 leaves its weights alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llava.model.multimodal_encoder import dinov2_encoder
from llava.model.multimodal_encoder.dinov2_encoder import DINOv2VisionTower, resolve_precision

PIXELS = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tower(assets):
    return DINOv2VisionTower.from_pretrained(str(assets.tower))


def test_bf16_rounds_and_leaves_the_weights(tower):
    plain, checksum = tower(PIXELS), tower.checksum()
    tower.precision = "bf16"
    fast = tower(PIXELS)
    error = ((fast - plain).norm() / plain.norm()).item()
    assert 1e-4 < error < 0.02
    assert fast.dtype == torch.float32, "the residual stream is not rounded"
    assert tower.checksum() == checksum


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_autocast_of_a_training_step_does_not_change_a_frozen_tower(tower, precision):
    tower.precision = precision
    alone = tower(PIXELS)
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=kind):
            assert torch.equal(tower(PIXELS), alone)


def test_a_tower_that_trains_follows_autocast(tower):
    tower.requires_grad_(True)
    alone = tower(PIXELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(tower(PIXELS), alone)


def test_auto_is_bf16_where_the_processor_has_it(monkeypatch):
    class Flags(type(Path())):
        text = ""

        def exists(self):
            return True

        def read_text(self):
            return Flags.text

    monkeypatch.setattr(dinov2_encoder, "Path", Flags)
    for text, expected in (("avx2 avx512_bf16 fma", "bf16"), ("amx_bf16", "bf16"), ("avx2 avx512f", "fp32")):
        Flags.text = text
        assert resolve_precision("auto", "cpu") == expected
        assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
        assert resolve_precision("bf16", "cpu") == "bf16"
    Flags.text = "avx512_bf16"
    assert resolve_precision("auto", "mps") == "fp32", "the processor's flags say nothing of another device"
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, native=native: native)
        assert resolve_precision("auto", "cuda:1") == ("bf16" if native else "fp32")
    with pytest.raises(ValueError, match="--vision_precision fp8: use one of"):
        resolve_precision("fp8", "cpu")
