"""Models and batches of random weights and words that the benchmarks run on.

Letters in shapes: B batch, L positions, V videos, T frames, P patches, Dv width of the tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model

from llava.config import ProcessorSpec, VideoSpec
from llava.constants import VISUAL_TOKENS
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

    @property
    def spec(self) -> VideoSpec:
        return VideoSpec(num_frames=4, fast_latents=self.fast, slow_latents=self.slow)


SIZES = {
    "demo": Size(4, 128, 4, vocabulary=1008, tower=192, image=126, fast=1, slow=16, depth=0, batch=16),
    "4x256": Size(4, 256, 4),
    "12x768": Size(12, 768, 12),
}


def make_model(size: Size) -> LlavaGPT2ForCausalLM:
    """A model that trains all but its tower, which has a single layer: features are given."""
    config = LlavaGPT2Config(
        vocab_size=size.vocabulary, n_positions=512, n_embd=size.n_embd, n_layer=size.n_layer, n_head=size.n_head
    )
    config.visual_token_ids = {token: size.vocabulary - 1 - i for i, token in enumerate(VISUAL_TOKENS)}
    model = LlavaGPT2ForCausalLM(config)
    tower = Dinov2Config(hidden_size=size.tower, num_hidden_layers=1, num_attention_heads=2, image_size=size.image)
    vision = DINOv2VisionTower(Dinov2Model(tower), -1, "patch")
    processor = ProcessorSpec(image_size=size.image)
    model.initialize_vision_modules(vision, "random", size.spec, processor, depth=size.depth)
    set_trainable(model, "mm_language_model,mm_mlp_adapter,mm_vision_resampler")
    return model


def make_samples(size: Size, model: LlavaGPT2ForCausalLM, number: int) -> list[dict[str, Any]]:
    """Samples of one video (T, P, Dv) in fp16 and `WORDS` random words, as the dataset gives them from the cache."""
    ids = model.config.visual_token_ids
    span = torch.tensor([ids[t] for t in video_tokens(size.spec)])
    patches = (size.image // 14) ** 2
    samples = []
    for i in range(number):
        words = torch.randint(0, size.vocabulary - len(VISUAL_TOKENS), (WORDS,))
        samples.append(
            {
                "input_ids": torch.cat([span, words]),
                "labels": torch.cat([torch.full_like(span, -100), words]),
                "sample_id": str(i),
                "video_features": torch.randn(1, 4, patches, size.tower).half(),
            }
        )
    return samples
