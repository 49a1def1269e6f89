"""What a clip costs without a feature cache, against torchcodec alone: CPU-ms a clip of the frames that are chosen.

    python -m benchmarks.decoding --clips DIR [--decoder auto] [--repeats 5]

One thread. The first epoch asks each clip about itself, later ones know; torchcodec alone is given the frames' numbers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from llava.config.video import VideoSpec
from llava.data.video import probe, probe_video, read_frames, select_frames


def epochs(clips: Sequence[Path], decoder: str, repeats: int) -> dict[str, list[float]]:
    """CPU-ms a clip of each way, in turns."""
    from torchcodec.decoders import VideoDecoder

    spec = VideoSpec(force_sample=True, video_decoder=decoder)
    chosen = {clip: sorted(set(select_frames(probe_video(clip).times, spec))) for clip in clips}
    ways: dict[str, Callable[[Path], object]] = {
        "torchcodec alone": lambda clip: VideoDecoder(str(clip)).get_frames_at(chosen[clip]),
        "read_frames, first epoch": lambda clip: read_frames(clip, spec),
        "read_frames, later epochs": lambda clip: read_frames(clip, spec),
        "probe_video": probe_video,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        probe.forget()
        for name, read in ways.items():
            start = time.process_time()
            for clip in clips:
                read(clip)
            found[name].append((time.process_time() - start) / len(clips) * 1000)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of video files")
    parser.add_argument("--decoder", default="torchcodec", help="--video_decoder of read_frames (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    clips = sorted(path for path in args.clips.iterdir() if path.suffix in (".mp4", ".mkv", ".webm", ".mov"))
    found = epochs(clips, args.decoder, args.repeats)
    alone = found["torchcodec alone"]
    for name, values in found.items():
        ratio = median(value / base for value, base in zip(values, alone, strict=True))
        print(f"{name:28} {median(values):7.1f} CPU-ms a clip ({min(values):.1f} to {max(values):.1f}), {ratio:.2f}")


if __name__ == "__main__":
    main()
