"""What quick pre-flight costs with a full cache: CPU-seconds, and as a ratio to an older checkout.

    python -m benchmarks.preflight                              12 x 768, 30,000 words, small tower
    python -m benchmarks.preflight --tower real                 random tower of 24 x 1024, few clips
    python -m benchmarks.preflight --against ../old --repeats 3 in turns with the code of another checkout

Everything runs in one thread and in fresh processes; clips, models and features are made once and kept by `--keep`.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 30_000
ENCODED = 64
"""Clips with frames of their own."""
SYLLABLES = [c + v for c in "bcdfglmnprstvz" for v in ("a", "e", "i", "o", "u", "an", "er", "io")]
TOWERS = {"small": ("24", "1", "2", "56"), "real": ("1024", "24", "16", "224")}
"""Width, layers, heads and pixels of the tower."""


def make_data(folder: Path, tower: str, clips: int, layers: int, width: int, vocabulary: int, batch: int) -> list[str]:
    """Clips that can be decoded, their records, model and tower; returns the flags of a run."""
    import av
    import numpy as np

    from llava.commands import make_model

    generator = np.random.default_rng(0)

    def word() -> str:
        return "".join(SYLLABLES[i] for i in generator.integers(0, len(SYLLABLES), generator.integers(1, 5)))

    def say(words: int) -> str:
        return " ".join(word() for _ in range(words)).capitalize() + "."

    (folder / "clips").mkdir(parents=True)
    rows = []
    for i in range(clips):
        path = folder / "clips" / f"{i}.mp4"
        turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": say(6)}]
        rows.append({"id": f"r{i}", "video": path.name, "conversations": turns})
        if i >= ENCODED:
            # Another file with the same frames: players skip a box of the type "free".
            path.write_bytes(
                (folder / "clips" / f"{i % ENCODED}.mp4").read_bytes() + struct.pack(">I4sI", 12, b"free", i)
            )
            continue
        pixels = generator.integers(0, 255, (8, 8, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
            stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
            for frame in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    data, corpus = folder / "data.json", folder / "corpus.json"
    data.write_text(json.dumps(rows))
    texts = [[{"from": "human", "value": ""}, {"from": "gpt", "value": say(12)}] for _ in range(vocabulary // 3)]
    corpus.write_text(json.dumps(rows + [{"id": f"t{i}", "conversations": t} for i, t in enumerate(texts)]))
    tower_width, tower_layers, tower_heads, image = TOWERS[tower]
    make_model.main([
        "--data_path", str(corpus), "--output_dir", str(folder / "gpt2"), "--vocab_size", str(vocabulary),
        "--min_frequency", "1", "--n_layer", str(layers), "--n_embd", str(width), "--n_head", str(max(width // 64, 1)),
        "--make_vision_tower", str(folder / "tower"), "--image_size", image, "--vision_hidden_size", tower_width,
        "--vision_layers", tower_layers, "--vision_heads", tower_heads,
    ])  # fmt: skip
    return [
        "--model_name_or_path", str(folder / "gpt2"), "--vision_tower", str(folder / "tower"), "--data_path", str(data),
        "--val_fraction", "0",
        "--video_folder", str(folder / "clips"), "--output_dir", str(folder / "run"), "--feature_cache",
        str(folder / "cache"), "--max_steps", "1", "--use_cpu", "True", "--report_to", "none", "--save_strategy", "no",
        "--disable_tqdm", "True", "--run_report", "False", "--per_device_train_batch_size", str(batch),
        "--mm_vision_select_layer", "-1", "--force_sample", "True",
    ]  # fmt: skip


def measure(flags: list[str], profile: bool) -> dict[str, Any]:
    """CPU-seconds of pre-flight, of what comes before it, and of one training step, in this process."""
    import cProfile
    import inspect
    import pstats

    import torch

    from llava.train import run_flags
    from llava.train.preflight.run import run_preflight
    from llava.train.train import prepare

    torch.set_num_threads(1)
    start = time.process_time()
    run = prepare(run_flags.parse_arguments(flags))
    ready = time.process_time()
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    run_preflight(run.trainer, run.tokenizer, run.parts, run.exempt, run.fresh)
    profiler.disable()
    checked = time.process_time()
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(60)
    size = run.trainer.args.per_device_train_batch_size
    dataset = run.trainer.train_dataset
    collate = run.trainer.training_collator
    collate = collate() if inspect.ismethod(collate) else collate  # A method in earlier checkouts.
    batch = collate([dataset[i % len(dataset)] for i in range(size)])
    begun = time.process_time()
    run.trainer.model.train()
    run.trainer.model(**batch, use_cache=False).loss.backward()
    step = time.process_time() - begun
    return {"prepare": ready - start, "preflight": checked - ready, "step": step}


def run_measure(flags: list[str], checkout: Path, profile: bool = False) -> dict[str, float]:
    """`measure` in a fresh process with the code of a checkout."""
    settings = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
                "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    with tempfile.TemporaryDirectory() as output:
        flags = list(flags)
        flags[flags.index("--output_dir") + 1] = output
        command = [sys.executable, __file__, "--measure", json.dumps(flags), *["--profile"] * profile]
        shown = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=output, env=os.environ | settings
        )
    return json.loads(shown.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", choices=TOWERS, default="small")
    parser.add_argument("--clips", type=int, help="distinct clips (default: 64, and 6 for the real tower)")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--batch", type=int, default=4, help="samples of a training batch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--profile", action="store_true", help="also prints where the time goes")
    parser.add_argument("--keep", type=Path, help="folder for the data, used again when it is there")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        # Files beside this one have names of packages that libraries look for, as `kernels`.
        sys.path.remove(str(Path(__file__).parent))
        print(json.dumps(measure(json.loads(args.measure), args.profile)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.keep or Path(temporary)).absolute()
        saved = folder / "flags.json"
        if not saved.is_file():
            clips = args.clips or (64 if args.tower == "small" else 6)
            flags = make_data(folder, args.tower, clips, args.layers, args.width, args.vocabulary, args.batch)
            run_measure(flags, ROOT)  # Fills the cache.
            saved.write_text(json.dumps(flags))
        flags = json.loads(saved.read_text())
        found: dict[str, list[dict[str, float]]] = {"here": [], "against": []}
        for _ in range(args.repeats):
            if args.against:
                found["against"].append(run_measure(flags, args.against.absolute()))
            found["here"].append(run_measure(flags, ROOT, args.profile))
    for name, times in found.items():
        for key in times[0] if times else ():
            values = [t[key] for t in times]
            print(f"{name:8} {key:10} {median(values):8.2f} CPU-s ({min(values):.2f} to {max(values):.2f})")
    if args.against:
        ratios = [a["preflight"] / b["preflight"] for a, b in zip(found["here"], found["against"], strict=True)]
        print(f"pre-flight takes {median(ratios):.3f} of what it took there ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
