"""Clips that the tests of `llava.data.video` write, and what is seen in their frames."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

FAULTY = Path(__file__).resolve().parents[4] / "shared" / "data" / "faulty"
"""Clips whose frames carry their number as a barcode; see `numbers`."""

FASTSTART = {"movflags": "faststart"}


def faulty(name: str) -> Path:
    path = FAULTY / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


def write_gray(
    path: Path, frames: int = 40, codec: str = "libx264", pixels: str = "yuv420p", options: dict | None = None,
    muxer: dict | None = None, size: tuple[int, int] = (64, 48), noise: bool = False,
    milliseconds: Sequence[int] | None = None, aspect: Fraction | None = None,
) -> Path:  # fmt: skip
    """Frame i is filled with the gray level 20 + 5 i; with `noise`, its upper half is random. 10 frames a second, or
    one at each of `milliseconds`.
    """
    width, height = size
    generator = np.random.default_rng(0)
    times = milliseconds or [100 * i for i in range(frames)]
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=10, options={"g": "12"} if options is None else options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if milliseconds:
            stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for i, time in enumerate(times):
            picture = np.full((height, width, 3), 20 + 5 * i, np.uint8)
            if noise:
                picture[: height // 2] = generator.integers(0, 255, (height // 2, width, 3))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (time, Fraction(1, 1000)) if milliseconds else (i, Fraction(1, 10))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown(frames: np.ndarray) -> list[int]:
    """Which frame of a gray clip each frame (T, H, W, 3) is, read from its last row."""
    return [round((float(frame[-8:].mean()) - 20) / 5) for frame in frames]


def numbers(frames: np.ndarray) -> list[int]:
    """The barcodes of frames (T, H, W, 3): ten cells in the top quarter, the least significant bit on the left."""
    height, width = frames.shape[1:3]
    cells = frames[:, height // 8, [int((i + 0.5) * width / 10) for i in range(10)]].mean(axis=2) > 128
    return (cells @ (1 << np.arange(10))).tolist()


def remux(source: Path, target: Path, shift: int, **muxer: str) -> Path:
    """Copies packets with their times moved by `shift` ticks; negative times become an edit list."""
    with av.open(str(source)) as before, av.open(str(target), "w", options=muxer) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                after.mux(packet)
    return target


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Writes a display matrix into a track header (ISO 14496-12, 8.3.2), 40 bytes after its version."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data[start : start + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    path.write_bytes(data)
    return path


def damage(path: Path, start: float, length: int = 2000) -> Path:
    """Overwrites `length` bytes of `path`, from the share `start` of the file on."""
    data = bytearray(path.read_bytes())
    position = int(start * len(data))
    data[position : position + length] = np.random.default_rng(1).bytes(length)
    path.write_bytes(data[: path.stat().st_size])
    return path


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
