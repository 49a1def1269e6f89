"""Models and batches of random weights and words that the benchmarks run on.

Letters in shapes: B batch, L positions, V videos, T frames, P patches, Dv width of the tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model

from benchmarks.timing import Batch, to_device
from llava.commands.make_model import gpt2_settings
from llava.config.video import ProcessorSpec, VideoSpec
from llava.constants import VISUAL_TOKENS
from llava.data.packing import TrainingCollator
from llava.data.prompt import video_tokens
from llava.model.builder import set_trainable
from llava.model.language_model.llava_gpt2 import LlavaGPT2Config, LlavaGPT2ForCausalLM
from llava.model.multimodal_encoder.dinov2_encoder import DINOv2VisionTower

WORDS = 15


@dataclass(frozen=True)
class Size:
    """A model and its video: layers, width and heads of GPT-2, vocabulary, width of the tower, pixels, latents."""

    n_layer: int
    n_embd: int
    n_head: int
    vocabulary: int = 30_016
    tower: int = 1024
    image: int = 224
    fast: int = 9
    slow: int = 81
    depth: int = 1
    batch: int = 4
    frames: int = 4

    @property
    def spec(self) -> VideoSpec:
        return VideoSpec(num_frames=self.frames, fast_latents=self.fast, slow_latents=self.slow)


SIZES = {
    "demo": Size(4, 128, 4, vocabulary=1008, tower=192, image=126, fast=1, slow=16, depth=0, batch=16),
    "4x256": Size(4, 256, 4),
    "12x768": Size(12, 768, 12),
}


def visual_token_ids(size: Size) -> dict[str, int]:
    """The last entries of the vocabulary."""
    return {token: size.vocabulary - 1 - i for i, token in enumerate(VISUAL_TOKENS)}


def make_model(size: Size, vision: bool = True, device: str = "cpu") -> LlavaGPT2ForCausalLM:
    """A model that trains all but its tower, which has a single layer: features are given. Its weights are drawn on the
    device, which is many times as fast at it as a processor.
    """
    with torch.device(device):
        return _drawn(size, vision).to(device)


def _drawn(size: Size, vision: bool) -> LlavaGPT2ForCausalLM:
    config = LlavaGPT2Config(vocab_size=size.vocabulary, **gpt2_settings(size.n_layer, size.n_embd, size.n_head))
    config.visual_token_ids = visual_token_ids(size)
    model = LlavaGPT2ForCausalLM(config)
    if not vision:
        return model
    tower = Dinov2Config(hidden_size=size.tower, num_hidden_layers=1, num_attention_heads=2, image_size=size.image)
    frozen = DINOv2VisionTower(Dinov2Model(tower), -1, "patch")
    processor = ProcessorSpec(image_size=size.image)
    model.initialize_vision_modules(frozen, "random", size.spec, processor, depth=size.depth)
    set_trainable(model, "mm_language_model,mm_mlp_adapter,mm_vision_resampler")
    return model


def make_samples(size: Size, number: int, vision: bool = True) -> list[dict[str, Any]]:
    """Samples of one video each (features of `size.image` pixels in patches of 14) and `WORDS` supervised tokens;
    without vision the same words alone.
    """
    ids = visual_token_ids(size)
    span = torch.tensor([ids[t] for t in video_tokens(size.spec)])
    patches = (size.image // 14) ** 2
    samples = []
    for i in range(number):
        words = torch.randint(0, size.vocabulary - len(VISUAL_TOKENS), (WORDS,))
        sample = {
            "input_ids": torch.cat([span, words]),
            "labels": torch.cat([torch.full_like(span, -100), words]),
            "sample_id": str(i),
        }
        if vision:
            sample["video_features"] = torch.randn(1, size.frames, patches, size.tower).half()
        samples.append(sample)
    return samples


def make_step(size: Size, device: str, vision: bool = True) -> tuple[LlavaGPT2ForCausalLM, Batch]:
    """A model and a batch as the trainer gives it; without vision, one of as many positions."""
    model = make_model(size, vision, device).train()
    collate = TrainingCollator(0, model.visual_templates())
    return model, to_device(collate(make_samples(size, size.batch, vision)), device)


def make_texts(size: Size, number: int, lengths: str, shortest: int = 5, longest: int = 60) -> list[dict[str, Any]]:
    """Samples of random words alone, all supervised.

    Args:
        lengths: `uniform` between shortest and longest, or `short`: most are short, the mean is a third of the way.
    """
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(number, generator=generator)
    share = share if lengths == "uniform" else share**2
    samples = []
    for i, length in enumerate((shortest + share * (longest - shortest)).round().long().tolist()):
        words = torch.randint(0, size.vocabulary - len(VISUAL_TOKENS), (length,), generator=generator)
        samples.append({"input_ids": words, "labels": words.clone(), "sample_id": str(i)})
    return samples
