"""What an epoch costs, part by part, as ratios within one run: `python -m benchmarks.run`.

    python -m benchmarks.run --clips DIR --output DIR [--only decode cache step logits packing ...] [--repeats 5]

Every pair is measured in turns, so that a busy machine slows both; medians, lowest and highest are given. Writes
benchmark.json and benchmark.md. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

from benchmarks import kernels, loop, training
from benchmarks.models import SIZES, WORDS, make_step
from benchmarks.timing import Row, full_logits, in_turns, pass_of, row
from llava.config.video import ProcessorSpec, VideoSpec
from llava.data.features.extract import FeatureCache, extract_features
from llava.data.records import Record
from llava.data.video import decoder_problem, probe_video, read_frames, select_frames
from llava.model import vlm
from llava.model.multimodal_encoder.dinov2_encoder import DINOv2VisionTower

MEASURES = (
    "decode",
    "cache",
    "trainer",
    "logits",
    "step",
    "packing",
    "bf16",
    "compile",
    "memory",
    "scaling",
    "kernels",
)
NEED_CLIPS = {"decode", "cache", "trainer"}
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi")


def decode(clips: Sequence[Path], repeats: int) -> list[Row]:
    """`read_frames` against raw decord on the same frames, and its decoders against each other."""
    names = [n for n in ("decord", "torchcodec", "pyav") if decoder_problem(n) is None]
    infos = {clip: probe_video(clip) for clip in clips}
    trusted = [clip for clip in clips if infos[clip].can_seek]
    if not trusted:
        return []
    specs = {name: VideoSpec(force_sample=True, video_decoder=name) for name in names}

    def reads(spec: VideoSpec, chosen: Sequence[Path]) -> Callable[[], None]:
        def read() -> None:
            for clip in chosen:
                read_frames(clip, spec)

        return read

    def raw() -> None:
        import decord

        for clip in trusted:
            reader = decord.VideoReader(str(clip), num_threads=1)
            reader.get_batch(select_frames(infos[clip].times, specs["decord"])).asnumpy()

    rows = []
    note = f"4 frames of each of {len(trusted)} clips"
    if "decord" in names:
        times = in_turns({"raw": raw, **{name: reads(spec, trusted) for name, spec in specs.items()}}, repeats)
        checks = f"{note}; ratio below 1: checks before decoding cost time"
        rows.append(row("read_frames against raw decord", "s", times["raw"], times["decord"], checks))
        rows += [row(f"read_frames by {n} against decord", "s", times["decord"], times[n], note) for n in names[1:]]
        for clip in trusted:
            times = in_turns({name: reads(spec, [clip]) for name, spec in specs.items()}, repeats)
            for name in names[1:]:
                rows.append(row(f"{clip.name} by {name} against decord", "s", times["decord"], times[name], "4 frames"))
    return rows


def cache(clips: Sequence[Path], repeats: int, layers: int) -> list[Row]:
    """An epoch's vision from the cache, against decoding and the tower, and against reading the bytes."""
    spec, processor = VideoSpec(force_sample=True), ProcessorSpec()
    config = Dinov2Config(hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16)
    tower = DINOv2VisionTower(Dinov2Model(config), -2, "patch")
    records = [Record(c.stem, [], (str(c),), (), None, {}, c.name) for c in clips]
    pixels = torch.randn(4 * len(clips), 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        features = FeatureCache(folder, {"benchmark": 1})
        counter = iter(range(10**6))

        def extract() -> None:
            fresh = FeatureCache(folder, {"benchmark": next(counter) + 2})
            extract_features(records, fresh, tower, spec, processor, show_progress=False)

        def forward() -> None:
            with torch.no_grad():
                tower(pixels)

        extract_features(records, features, tower, spec, processor, show_progress=False)
        shard = next(features.folder.glob("*.npy"))
        slow = in_turns({"extract": extract, "forward": forward}, max(repeats // 3, 1))

        def read() -> None:
            for clip in clips:
                features.read(str(clip), None)

        times = in_turns({"read": read, "bytes": lambda: np.fromfile(shard, dtype=np.uint8)}, 10 * repeats)
    name = f"DINOv2 of 1024 x {layers}"
    reads = [median(times["read"])] * len(slow["extract"])
    return [
        row("extraction against the tower's forward alone", "s", slow["extract"], slow["forward"],
            f"{name}, {len(clips)} clips of 4 frames; decoding, pixels and writing are the rest"),
        row("vision of an epoch from the cache, against decoding and tower", "s", slow["extract"], reads, name),
        row("cached read against the file's bytes", "s", times["read"], times["bytes"],
            "above 1: reading costs more than its bytes"),
    ]  # fmt: skip


def logits(repeats: int, device: str) -> list[Row]:
    """A forward and backward pass with logits at supervised positions, against logits everywhere."""
    rows = []
    supervised = vlm.supervised_loss
    for name, vision in (("12x768", True), ("4x256", True), ("4x256", False)):
        model, batch = make_step(SIZES[name], device, vision)

        def step(loss: Any, model: Any = model, batch: Any = batch) -> None:
            vlm.supervised_loss = loss
            pass_of(model, [batch])

        try:
            times = in_turns({"full": partial(step, full_logits), "ours": partial(step, supervised)}, repeats)
        finally:
            vlm.supervised_loss = supervised
        note = f"forward and backward, batch {SIZES[name].batch}, 375 positions of which {WORDS} are supervised"
        alone = "" if vision else ", language model alone"
        rows.append(row(f"logits where there are labels, {name}{alone}", "s", times["full"], times["ours"], note))
    return rows


def matmul_ceiling(device: str) -> float:
    """FLOP/s of the best of several large matrix products in fp32."""
    best = 0.0
    for n in (1024, 2048, 3072):
        a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
        times = in_turns({"matmul": lambda a=a, b=b: a @ b}, 5)["matmul"]
        best = max(best, 2 * n**3 / min(times))
    return best


def step_flops(model: Any, batch: dict[str, Any]) -> float:
    """Multiply-adds times two of a forward and backward pass, attention counted over the whole square."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**batch).loss.backward()
    return float(counter.get_total_flops())


def step(repeats: int, device: str) -> list[Row]:
    """Parts of a step, in seconds, and the share of the matmul ceiling that the language model reaches."""
    rows = []
    ceiling = matmul_ceiling(device)
    for name in ("12x768", "4x256"):
        size = SIZES[name]
        model, batch = make_step(size, device)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        kept: dict[str, Any] = {}

        def vision(model: Any = model, batch: Any = batch) -> None:
            model.encode_videos(video_features=batch["video_features"])

        def forward(model: Any = model, batch: Any = batch, kept: Any = kept) -> None:
            kept["loss"] = model(**batch).loss

        def backward(kept: Any = kept, model: Any = model) -> None:
            model.zero_grad(set_to_none=True)
            kept["loss"].backward()

        parts = {"vision": vision, "forward": forward, "backward": backward, "optimiser": optimizer.step}
        times = in_turns(parts, repeats)
        total = [sum(values) for values in zip(*(times[p] for p in ("forward", "backward", "optimiser")), strict=True)]
        for part, values in times.items():
            note = "projector and resampler, forward alone; part of forward" if part == "vision" else ""
            rows.append(row(f"step of {name}: whole against {part}", "s", total, values, note))
        passes = [f + b for f, b in zip(times["forward"], times["backward"], strict=True)]
        flops = step_flops(model, batch)
        share = [flops / ceiling / p for p in passes]
        note = f"{flops / 1e9:.0f} GFLOP of language model, projector and resampler; "
        note += f"ceiling {ceiling / 1e9:.0f} GFLOP/s, of large fp32 products"
        rows.append(
            {"measure": f"share of the matmul ceiling, {name}", "plain": ceiling, "fast": flops / median(passes),
             "unit": "FLOP/s", "ratio": median(share), "lowest": min(share), "highest": max(share), "note": note}
        )  # fmt: skip
    return rows


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    lines = ["| measure | plain | fast | ratio (lowest, highest) | |", "| --- | ---: | ---: | ---: | --- |"]
    for r in rows:
        cells = (f"{r[side]:.3g} {r['unit']}" for side in ("plain", "fast"))
        ratio = f"{r['ratio']:.3g} ({r['lowest']:.3g}, {r['highest']:.3g})"
        lines.append(f"| {r['measure']} | {' | '.join(cells)} | {ratio} | {r['note']} |")
    return "\n".join([*lines, "", ", ".join(f"{k} {v}" for k, v in about.items())])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", help="folder of video files, for decode, cache and trainer")
    parser.add_argument("--only", nargs="+", choices=MEASURES, help="some measures alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tower_layers", type=int, default=24, help="layers of the tower of 1024 features")
    parser.add_argument("--output", default=".", help="folder for benchmark.json and benchmark.md")
    args = parser.parse_args(argv)
    wanted = args.only or [m for m in MEASURES if args.clips or m not in NEED_CLIPS]
    clips = sorted(p for p in Path(args.clips).iterdir() if p.suffix in VIDEOS) if args.clips else []
    if not clips and NEED_CLIPS & set(wanted):
        parser.error("decode, cache and trainer need --clips, a folder of video files")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[Row] = []
    for name, measure in {
        "decode": lambda: decode(clips, args.repeats),
        "cache": lambda: cache(clips, args.repeats, args.tower_layers),
        "trainer": lambda: loop.trainer(Path(args.clips), clips, args.tower_layers, args.repeats, device),
        "logits": lambda: logits(args.repeats, device),
        "step": lambda: step(args.repeats, device),
        "packing": lambda: training.packing(args.repeats, device),
        "bf16": lambda: training.precision(args.repeats, device),
        "compile": lambda: training.compiling(args.repeats, device),
        "memory": lambda: training.memory(device),
        "scaling": lambda: training.scaling(args.repeats, device),
        "kernels": lambda: kernels.kernels(),
    }.items():
        if name in wanted:
            rows += measure()
            print(f"{name}: done", flush=True)
    about = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
    }  # fmt: skip
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "benchmark.json").write_text(json.dumps({"rows": rows, "about": about}, indent=1) + "\n")
    text = markdown(rows, about)
    (output / "benchmark.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
