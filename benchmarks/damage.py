"""What the data check finds in damaged clips: sound clips of each container, cut and with single bits turned.

    python -m benchmarks.damage                 a line for each container
    python -m benchmarks.damage --only clip.webm --mutants 200

Cut: after 30, 60, 90 and 99 % of the bytes. Turned: one bit, anywhere; of these, the mutants count whose frames differ
from the sound clip's. A mutant is found when opening it, or decoding it from start to end, is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from llava.data.video import VideoError, check_decodable, probe_video
from llava.data.video.container import open_container, video_stream

NUM_FRAMES, SHARES = 40, (30, 60, 90, 99)
VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
VP8 = {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}}
KINDS: dict[str, dict[str, Any]] = {
    "clip.mp4": {},
    "faststart.mp4": {"muxer": {"movflags": "faststart"}},
    "fragments.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "index.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov+global_sidx+default_base_moof"}},
    "clip.mov": {},
    "clip.mkv": {},
    "live.mkv": {"muxer": {"live": "1"}},
    "clip.webm": VP9,
    "live.webm": {**VP8, "muxer": {"live": "1"}},
    "clip.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p", "options": {}},
    "clip.ts": {},
    "clip.m2ts": {},
    "clip.vob": {},
    "clip.gif": {"codec": "gif", "pixels": "rgb8", "options": {}},
    "clip.flv": {"codec": "flv"},
    "clip.ogv": VP8,
    "clip.wmv": {"codec": "wmv2"},
}
"""What `write` takes beside a name, whose ending says the container; H.264 where no codec is named."""


def write(
    path: Path, codec: str = "libx264", pixels: str = "yuv420p", options: dict | None = None, muxer: dict | None = None
) -> Path:
    """A clip of `NUM_FRAMES` gray frames that become lighter, the upper half noise."""
    generator = np.random.default_rng(0)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=10, options={"g": "12"} if options is None else options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pixels
        for i in range(NUM_FRAMES):
            picture = np.full((96, 128, 3), 20 + 5 * i, np.uint8)
            picture[:48] = generator.integers(0, 255, (48, 128, 3))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(data: bytes, percent: int) -> bytes:
    """The start of `data`. A transport stream that ends after a whole packet is no shorter than it says."""
    end = len(data) * percent // 100
    return data[: end - (end % 188 == 0) - (end % 192 == 0)]


def turn_bit(data: bytes, seed: int) -> bytes:
    """`data` with one bit turned."""
    generator, turned = random.Random(seed), bytearray(data)
    turned[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(turned)


def is_found(check: Any, path: Path) -> bool:
    """Whether a check raises; IndexError is PyAV's for streams that a damaged head announces in mid-file."""
    try:
        check(path)
    except (VideoError, av.FFmpegError, OSError, IndexError):
        return True
    return False


def frames_of(path: Path) -> list[str]:
    """A hash of each frame that can be decoded."""
    hashes = []
    try:
        with open_container(str(path)) as container:
            for packet in container.demux(video_stream(container, str(path))):
                try:
                    hashes += [hashlib.md5(f.to_ndarray(format="rgb24").tobytes()).hexdigest() for f in packet.decode()]
                except av.FFmpegError:
                    hashes.append("error")
    except (VideoError, av.FFmpegError, OSError, IndexError):
        hashes.append("error")
    return hashes


def measure(name: str, folder: Path, mutants: int) -> dict[str, int]:
    """How many damaged forms of one clip there were, and how many were found when opened and when decoded."""
    path = write(folder / name, **KINDS[name])
    data, sound = path.read_bytes(), frames_of(path)
    row = dict.fromkeys(("cut", "cut, opened", "cut, decoded", "bit", "bit, opened", "bit, decoded"), 0)
    forms = [("cut", cut(data, share)) for share in SHARES] + [("bit", turn_bit(data, i)) for i in range(mutants)]
    for kind, form in forms:
        path.write_bytes(form)
        if kind == "bit" and frames_of(path) == sound:
            continue
        opened = is_found(probe_video, path)
        row[kind] += 1
        row[f"{kind}, opened"] += opened
        row[f"{kind}, decoded"] += opened or is_found(check_decodable, path)
    return row


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damage", description=__doc__)
    parser.add_argument("--only", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--mutants", type=int, default=20, help="with a bit turned, of each clip (default: 20)")
    args = parser.parse_args(argv)
    print("| clip | cut | found when opened | when decoded | bit turned, frames differ | when opened | when decoded |")
    print("| --- |" + " ---: |" * 6)
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, Path(folder), args.mutants)
        print(
            f"| {name}, {KINDS[name].get('codec', 'libx264')} | " + " | ".join(map(str, row.values())) + " |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    main()
