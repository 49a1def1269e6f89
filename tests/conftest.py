"""Small random models and clips that the tests build from configs; nothing is downloaded."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script that starts the tests in its background has them ignore SIGINT, and bash does not trap what was ignored
    # when it started: tests of Ctrl-C would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import av
import numpy as np
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from llava.config.video import ProcessorSpec, VideoSpec
from llava.model.builder import add_visual_tokens, load_language_model, set_trainable
from llava.model.multimodal_encoder.builder import load_vision_tower

# A commit passes or fails the same way each time; `--hypothesis-profile default` looks for new examples.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

REAL_CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_clips"
EOS = "<|endoftext|>"
CAPTIONS = [
    "Un gatto nero dorme sul divano.",
    "Una palla rossa rotola verso destra.",
    "Il cane corre nel prato verde.",
    "La bambina legge un libro azzurro.",
    "Due uomini giocano a scacchi in piazza.",
    "Una barca bianca attraversa il lago.",
]
SPEC = VideoSpec(num_frames=2, fast_latents=1, slow_latents=4, force_sample=True)
"""10 rows a video: 2 fast and 8 slow."""
PROCESSOR = ProcessorSpec(image_size=56)

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector, which every run calls, need not visit it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """See `make_assets`."""
    return make_assets(tmp_path_factory.mktemp("assets"))


def make_assets(root: Path) -> SimpleNamespace:
    """Folders on disk: `gpt2` (model and tokenizer), `tower` (DINOv2, 4x4 patches), `clips` with `video.json`,
    `text.json` (six records each).
    """
    root.mkdir(exist_ok=True)
    paths = SimpleNamespace(
        root=root, gpt2=root / "gpt2", tower=root / "tower", clips=root / "clips",
        video_json=root / "video.json", text_json=root / "text.json",
    )  # fmt: skip
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(paths.gpt2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(tiny_gpt2_config(tokenizer)).save_pretrained(paths.gpt2)
        save_tower(paths.tower)
    paths.clips.mkdir()
    for i in range(len(CAPTIONS)):
        write_clip(paths.clips / f"clip{i}.mp4", colour_frames(i))
    paths.video_json.write_text(json.dumps([record(f"v{i}", text, f"clip{i}.mp4") for i, text in enumerate(CAPTIONS)]))
    paths.text_json.write_text(json.dumps([record(f"t{i}", text) for i, text in enumerate(CAPTIONS)]))
    return paths


def make_tokenizer(pad: str | None = EOS) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without the visual tokens; by default `pad == eos`, the harder case."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CAPTIONS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, bos_token=EOS, pad_token=pad)


def tiny_gpt2_config(tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(tokenizer), n_positions=512, n_embd=32, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


def save_tower(folder: Path, seed: int | None = None, layers: int = 3) -> None:
    """A DINOv2 of 24 features, 56 px and 4x4 patches, with its image processor's file."""
    if seed is not None:
        torch.manual_seed(seed)
    Dinov2Model(
        Dinov2Config(
            hidden_size=24, num_hidden_layers=layers, num_attention_heads=2, image_size=56, patch_size=14,
            layerscale_value=1.0,
        )
    ).save_pretrained(folder)  # fmt: skip
    values = {
        "image_processor_type": "BitImageProcessor", "crop_size": {"height": 56, "width": 56},
        "size": {"shortest_edge": 64}, "image_mean": list(PROCESSOR.image_mean),
        "image_std": list(PROCESSOR.image_std), "resample": 3, "rescale_factor": 1 / 255,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def colour_frames(seed: int, frames: int = 8, size: int = 64) -> np.ndarray:
    """(T, size, size, 3): a square of a random colour that moves from left to right."""
    generator = np.random.default_rng(seed)
    background, colour = generator.integers(0, 255, (2, 3))
    video = np.tile(background.astype(np.uint8), (frames, size, size, 1))
    for t in range(frames):
        left = t * (size - 24) // (frames - 1)
        video[t, 8 * (seed % 5) : 8 * (seed % 5) + 24, left : left + 24] = colour
    return video


def write_clip(path: Path, frames: np.ndarray, fps: int = 4) -> None:
    """Encodes (T, H, W, 3) uint8 as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def record(record_id: str, caption: str, video: str | None = None, prompt: str = "") -> dict:
    human = f"<video> {prompt}".strip() if video else prompt
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": caption}]
    return {"id": record_id, "conversations": turns, **({"video": video} if video else {})}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A fresh tokenizer with the visual tokens not yet registered."""
    return make_tokenizer()


@pytest.fixture
def build(assets: SimpleNamespace, tokenizer: PreTrainedTokenizerFast) -> Callable:
    """`build(vision=True, spec=SPEC, parts=..., **initialize)`: a tiny model with fixed weights (`folder`: another than
    the GPT-2); registers the visual tokens on the `tokenizer` fixture.
    """

    def make(vision: bool = True, spec: VideoSpec = SPEC, parts: str | None = None, **options):
        torch.manual_seed(0)
        model = load_language_model(str(options.pop("folder", assets.gpt2)))
        add_visual_tokens(tokenizer, model)
        if vision:
            tower = load_vision_tower(str(assets.tower), options.pop("select_layer", -2))
            model.initialize_vision_modules(tower, str(assets.tower), spec, PROCESSOR, **options)
        default = "mm_language_model,mm_mlp_adapter,mm_vision_resampler" if vision else "mm_language_model"
        set_trainable(model, parts or default)
        return model.eval()

    return make


@pytest.fixture
def saved(build: Callable, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A tiny model with vision and its tokenizer, in a folder as training leaves them."""
    build().save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real clips, where there is one."""
    if not REAL_CLIPS.is_dir():
        pytest.skip(f"no real clips at {REAL_CLIPS}")
    return REAL_CLIPS
