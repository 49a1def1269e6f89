"""What the run monitor costs: steps with and without it, in turns, within one run.

    python benchmarks/monitor.py                       the demo's size, and GPT-2 small with its default video
    python benchmarks/monitor.py --only demo --blocks 40

A block has as many steps as are logged together, so that each has one measured step; the first blocks, whose every
step is measured, are left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from statistics import median
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model

from llava.config import ProcessorSpec, TrainingArguments, VideoSpec
from llava.constants import VISUAL_TOKENS
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.prompt import video_tokens
from llava.model.builder import set_trainable
from llava.model.language_model.llava_gpt2 import LlavaGPT2Config, LlavaGPT2ForCausalLM
from llava.model.multimodal_encoder.dinov2_encoder import DINOv2VisionTower
from llava.train.llava_trainer import LlavaTrainer

BLOCK = 10
WORDS = 15
SIZES = {
    "demo": {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab": 1008, "tower": 192, "image": 126, "latents": (1, 16),
             "batch": 16, "depth": 0},
    "12x768": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab": 30016, "tower": 1024, "image": 224,
               "latents": (9, 81), "batch": 1, "depth": 1},
}  # fmt: skip


class Turns(LlavaTrainer):
    """Switches its monitor off and on from block to block, and times the blocks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept, self.times, self.start = self.monitor, {True: [], False: []}, 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        step = self.state.global_step
        if step % BLOCK == 0:
            now, on = time.perf_counter(), self.monitor is not None
            if step >= 4 * BLOCK:
                self.times[on].append((now - self.start) / BLOCK)
            self.pop_callback(self.kept)
            self.monitor = None if on else self.kept
            if self.monitor is not None:
                self.add_callback(self.monitor)
            self.start = time.perf_counter()
        return super().get_batch_samples(*args, **kwargs)


def make_trainer(size: dict[str, Any], blocks: int, folder: str) -> Turns:
    """A trainer of random weights, features and words."""
    fast, slow = size["latents"]
    spec = VideoSpec(num_frames=4, fast_latents=fast, slow_latents=slow)
    config = LlavaGPT2Config(
        vocab_size=size["vocab"], n_positions=512, n_embd=size["n_embd"], n_layer=size["n_layer"],
        n_head=size["n_head"],
    )  # fmt: skip
    config.visual_token_ids = {token: size["vocab"] - 1 - i for i, token in enumerate(VISUAL_TOKENS)}
    model = LlavaGPT2ForCausalLM(config)
    tower = Dinov2Config(
        hidden_size=size["tower"], num_hidden_layers=1, num_attention_heads=2, image_size=size["image"]
    )
    vision = DINOv2VisionTower(Dinov2Model(tower), -1, "patch")
    model.initialize_vision_modules(
        vision, "random", spec, ProcessorSpec(image_size=size["image"]), depth=size["depth"]
    )
    set_trainable(model, "mm_language_model,mm_mlp_adapter,mm_vision_resampler")
    span = torch.tensor([config.visual_token_ids[t] for t in video_tokens(spec)])
    patches = (size["image"] // 14) ** 2
    samples = []
    for i in range(4 * size["batch"]):
        words = torch.randint(0, size["vocab"] - 8, (WORDS,))
        ids = torch.cat([span, words])
        labels = torch.cat([torch.full_like(span, -100), words])
        features = torch.randn(1, 4, patches, size["tower"]).half()
        samples.append({"input_ids": ids, "labels": labels, "sample_id": str(i), "video_features": features})
    args = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=size["batch"], max_steps=(2 * blocks + 4) * BLOCK + 1,
        logging_steps=BLOCK, save_strategy="no", report_to="none", disable_tqdm=True, learning_rate=1e-4,
        bf16=torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Turns(
        model=model, args=args, train_dataset=samples, data_collator=DataCollatorForSupervisedDataset(0),
        lengths=[len(s["input_ids"]) for s in samples], modalities=["video"] * len(samples), run_record={},
    )  # fmt: skip
    trainer.log = lambda *a, **k: None
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SIZES, help="one size alone")
    parser.add_argument("--blocks", type=int, help="blocks of each kind (default: 20 for the demo, 3 for 12x768)")
    args = parser.parse_args()
    for name, size in SIZES.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                trainer = make_trainer(size, args.blocks or (20 if name == "demo" else 3), folder)
                trainer.train()
            on, off = trainer.times[True], trainer.times[False]
            ratios = [a / b for a, b in zip(on, off, strict=False)]
            with_it, without = median(on), median(off)
            own = trainer.kept.own / max(trainer.kept.trained + trainer.kept.waited, 1e-9)
            result = {
                "size": name, "step_ms_with": round(1e3 * with_it, 2), "step_ms_without": round(1e3 * without, 2),
                "ratio_of_medians": round(with_it / without, 4), "median_ratio": round(median(ratios), 4),
                "lowest_and_highest_ratio": [round(min(ratios), 4), round(max(ratios), 4)], "blocks": len(ratios),
                "own_share_of_time": round(own, 4), "threads": torch.get_num_threads(), "torch": torch.__version__,
            }  # fmt: skip
            print(json.dumps(result))


if __name__ == "__main__":
    main()
