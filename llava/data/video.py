"""Files to frames and frames to pixel values. Every reader is opened and closed inside the call that needs it.

Letters in shapes: T frames, H and W height and width of a frame, S side of the square that the vision tower takes.

Two decoders read video. decord seeks, so that a few frames of a long clip are cheap, but for some files its frames are
silently not the ones asked for: edit lists, open groups of pictures, interlaced frames, MPEG-TS. PyAV decodes from the
first frame to the last, which is always right and costs the whole clip. `probe_video` looks at all packets of a file (a
few milliseconds, nothing is decoded) and names decord only where none of that is present. A file that is damaged where
no wanted frame depends on it gives those frames; `python -m llava.data.check --thorough` decodes everything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import PIL
import torch
from av.stream import Disposition
from PIL import Image, ImageOps

from llava.config import ProcessorSpec, VideoSpec

try:
    import decord
except ImportError:  # There is no wheel for every platform; PyAV then reads all files.
    decord = None

REENCODE = (
    "re-encode it (ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4), or leave it out with --on_bad_sample skip"
)
FETCH_AGAIN = "copy or download it again, or leave it out with --on_bad_sample skip"
NO_RECOVERED_FRAMES = 1e-9
"""decord's `fault_tol`, a share of the clip: it raises as soon as it gives one frame in the place of another."""


class VideoError(ValueError):
    """A video or image that cannot be read; the message names the file and the remedy.

    `kind` is "unreadable" or "no video stream".
    """

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself without being decoded.

    `num_frames` counts the packets that are shown; `fps` is the average rate; `width` and `height` are those of the
    stored frame, before any rotation; `decoder` is "decord" or "pyav", the one that `read_frames` starts with.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    decoder: str


def reader_versions() -> dict[str, str]:
    """Versions of the libraries whose output pixel values depend on."""
    return {"decord": decord.__version__ if decord else "none", "av": av.__version__, "pillow": PIL.__version__}


def select_frames(num_total: int, fps: float, spec: VideoSpec, split: tuple[float, float] | None = None) -> list[int]:
    """Which frames of a clip are seen: exactly `spec.num_frames` indexes, never decreasing.

    1. The segment: `split` is (first, last) in frames from 0, both included, as LLaVA-ST's `meta.split`, clipped to
       the clip; without one it is the whole clip.
    2. The candidates: frames at `video_fps` per second from the start of the segment, or every frame of it when
       `video_fps` is 0 or above the clip's rate, or when `force_sample` is set.
    3. If `frames_upbound` is above 0 and there are more candidates, that many are kept, evenly spread, the first and
       the last included.
    4. Of these, `num_frames` are taken, evenly spread, the first and the last included; one frame is the middle one.
       Fewer candidates than `num_frames` are repeated.

    Args:
        num_total: frames of the clip.
        fps: its frames per second.

    Raises:
        ValueError: for a clip without frames or without a frame rate, and for a split that is not two whole numbers,
            is reversed, or lies outside the clip.
    """
    if num_total < 1:
        raise ValueError(f"a clip needs at least one frame, got {num_total}")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"the frame rate must be above 0, got {fps}")
    first, last = segment_bounds(num_total, split)
    if spec.force_sample or spec.video_fps == 0 or spec.video_fps >= fps:
        candidates = np.arange(first, last + 1)
    else:
        step = fps / spec.video_fps
        # Half a frame is rounded up, which keeps steps of one frame or more distinct.
        candidates = first + np.floor(np.arange((last - first) / step + 1) * step + 0.5).astype(np.int64)
        candidates = candidates[candidates <= last]
    if 0 < spec.frames_upbound < len(candidates):
        candidates = candidates[_spread(len(candidates), spec.frames_upbound)]
    return candidates[_spread(len(candidates), spec.num_frames)].tolist()


def segment_bounds(num_total: int, split: tuple[float, float] | None) -> tuple[int, int]:
    """First and last frame of a segment of a clip, both included; see `select_frames`."""
    if split is None:
        return 0, num_total - 1
    first, last = split
    if not all(math.isfinite(v) and v == int(v) for v in split):
        raise ValueError(f"split {list(split)} counts frames, so both must be whole numbers; multiply seconds by fps")
    if first > last:
        raise ValueError(f"split {list(split)} is reversed: [first frame, last frame] was expected")
    if last < 0 or first >= num_total:
        raise ValueError(f"split {list(split)} lies outside the clip, whose frames are 0 to {num_total - 1}")
    return max(int(first), 0), min(int(last), num_total - 1)


def _spread(count: int, wanted: int) -> np.ndarray:
    """`wanted` evenly spread indexes into `count` things, ends included; distinct when there are enough."""
    if wanted == 1:
        return np.array([(count - 1) // 2])
    gaps = wanted - 1
    return (2 * np.arange(wanted) * (count - 1) + gaps) // (2 * gaps)


class _Packet(NamedTuple):
    pts: int | None
    is_keyframe: bool
    is_discarded: bool
    has_idr: bool


def probe_video(path: str | Path) -> VideoInfo:
    """Reads the container of a video, all packets included, without decoding it.

    Raises:
        VideoError: when the file is missing, is no video, has no video stream, no frame or no frame rate, or is cut
            short.
    """
    path = str(path)
    try:
        with av.open(path, metadata_errors="ignore") as container:
            stream = _video_stream(container, path)
            codec = stream.codec_context
            packets, end = _demux(container, stream)
            _check_complete(path, container, stream, end)
            rate = stream.average_rate or stream.guessed_rate or stream.base_rate
            shown = sum(not p.is_discarded for p in packets)
            decoder = "decord" if decord and _decord_is_exact(container, stream, packets) else "pyav"
    except (av.FFmpegError, OSError) as error:
        remedy = "correct the path, or --video_folder" if isinstance(error, FileNotFoundError) else FETCH_AGAIN
        raise VideoError(f"{path}: cannot be opened as a video ({_cause(error)}); {remedy}") from error
    if not shown:
        raise VideoError(f"{path}: the video stream holds no frame; {REENCODE}")
    if not rate:
        raise VideoError(f"{path}: the video stream has no frame rate; {REENCODE}")
    return VideoInfo(shown, float(rate), codec.width, codec.height, decoder)


def _video_stream(container: Any, path: str) -> Any:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = {s.type for s in container.streams} - {"data"}
        if not kinds:
            raise VideoError(f"{path}: holds neither video nor audio, perhaps since it is cut short; {FETCH_AGAIN}")
        raise VideoError(
            f"{path}: no video stream (the file holds {', '.join(sorted(kinds))}); name a video, or leave the record "
            "out with --on_bad_sample skip",
            kind="no video stream",
        )
    if streams[0].codec_context is None:
        raise VideoError(f"{path}: there is no decoder for its video stream; {REENCODE}")
    return streams[0]


def _demux(container: Any, stream: Any) -> tuple[list[_Packet], float]:
    """The packets of `stream` in the file's order, and where the last packet of any stream ends, in seconds."""
    extradata = stream.codec_context.extradata or b""
    # Units are preceded by their length (AVCC, MP4 and Matroska) or by start codes (Annex B), where it is 0.
    length_size = (extradata[4] & 3) + 1 if extradata[:1] == b"\x01" and len(extradata) > 4 else 0
    packets, end = [], 0.0
    for packet in container.demux():
        if not packet.size:
            continue
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            has_idr = packet.is_keyframe and length_size > 0 and _has_idr(bytes(packet), length_size)
            packets.append(_Packet(packet.pts, packet.is_keyframe, packet.is_discard, has_idr))
    return packets, end


def _has_idr(data: bytes, length_size: int) -> bool:
    """Whether an H.264 packet holds a slice of an IDR picture (ITU-T H.264, table 7-1: unit type 5)."""
    position = 0
    while position + length_size < len(data):
        if data[position + length_size] & 31 == 5:
            return True
        position += length_size + int.from_bytes(data[position : position + length_size], "big")
    return False


def _check_complete(path: str, container: Any, stream: Any, end: float) -> None:
    """Raises VideoError when the file ends before what its header announces; decoders take that for a short clip."""
    if "mp4" in container.format.name:
        found = float(os.path.getsize(path))
        announced = max((e.pos + e.size for e in stream.index_entries), default=0.0)
        what = f"{found:.0f} bytes of {announced:.0f}"
    elif "matroska" in container.format.name and container.duration:
        # Half a second and a tenth are left for headers that were rounded or count silence at the end.
        found, announced = end + 0.5, 0.9 * container.duration / av.time_base
        what = f"{end:.1f} s of {container.duration / av.time_base:.1f} s"
    else:
        return
    if found < announced:
        raise VideoError(f"{path}: the file is cut short ({what}); {FETCH_AGAIN}")


def _decord_is_exact(container: Any, stream: Any, packets: Sequence[_Packet]) -> bool:
    """Whether decord's n-th frame is PyAV's n-th frame; each condition is a case that was seen to go wrong."""
    codec = stream.codec_context.codec.canonical_name
    keys = [p for p in packets if p.is_keyframe]
    times = {p.pts for p in packets if p.pts is not None}
    return (
        container.format.name in ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
        and codec in ("h264", "vp9")
        and len(container.streams.video) == 1
        # Interlaced frames get other chroma; 0 is unknown, 1 progressive.
        and stream.codec_context.field_order in (0, 1)
        and not any(p.is_discarded for p in packets)
        and len(times) == len(packets)
        and packets[:1] == keys[:1]
        # A key frame that is no IDR picture may be missing from the file's index, and what follows may refer to what
        # comes before it: decord then gives frames of two places further on.
        and (codec != "h264" or all(p.has_idr for p in keys))
    )


def read_frames(
    path: str | Path, spec: VideoSpec, split: tuple[float, float] | None = None, use_decord: bool = True
) -> np.ndarray:
    """The frames of a video that `select_frames` chooses, (T, H, W, 3) uint8 RGB, turned upright.

    Args:
        split: (first, last) frame of the segment.
        use_decord: False decodes the whole clip by PyAV, whatever `probe_video` says.

    Raises:
        VideoError: when the file cannot be read (naming what each decoder said), is damaged where it was decoded, or
            when the split does not fit it. There is never a frame of another file or of another time in its place.
    """
    path = str(path)
    info = probe_video(path)

    def choose(num_total: int) -> list[int]:
        try:
            return select_frames(num_total, info.fps, spec, split)
        except ValueError as error:
            raise VideoError(f"{path}: {error}; correct meta.split of the record") from error

    causes = []
    if use_decord and info.decoder == "decord":
        try:
            return _read_decord(path, info.num_frames, choose(info.num_frames))
        except (decord.DECORDError, RuntimeError) as error:
            causes.append(f"decord: {_cause(error)}")
    try:
        return _read_pyav(path, info.num_frames, choose)
    except (av.FFmpegError, OSError) as error:
        causes.append(f"PyAV: {_cause(error)}")
        raise VideoError(f"{path}: cannot be decoded ({'; '.join(causes)}); {REENCODE}") from error


def _read_decord(path: str, num_frames: int, indexes: Sequence[int]) -> np.ndarray:
    # What decord and its FFmpeg would print is in the exceptions too.
    decord.logging.set_level(decord.logging.FATAL)
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1, fault_tol=NO_RECOVERED_FRAMES)
    if len(reader) != num_frames:
        raise RuntimeError(f"counts {len(reader)} frames, the container {num_frames}")
    distinct, inverse = np.unique(np.asarray(indexes), return_inverse=True)
    return reader.get_batch(distinct.tolist()).asnumpy()[inverse]


def _read_pyav(path: str, num_frames: int, choose: Callable[[int], list[int]]) -> np.ndarray:
    indexes = choose(num_frames)
    frames, count = _decode(path, set(indexes))
    if count != num_frames:
        # Packets without a picture of their own, such as the hidden frames of VP8.
        indexes = choose(count)
        frames, _ = _decode(path, set(indexes))
    if len({frame.shape for frame in frames.values()}) > 1:
        raise VideoError(f"{path}: the size of the frame changes in the middle of the video; {REENCODE}")
    return np.stack([frames[i] for i in indexes])


def _decode(path: str, wanted: set[int]) -> tuple[dict[int, np.ndarray], int]:
    """The `wanted` frames (H, W, 3) of a full decode, and how many frames it has."""
    frames: dict[int, np.ndarray] = {}
    count = 0
    with av.open(path, metadata_errors="ignore") as container:
        for frame in container.decode(_video_stream(container, path)):
            if frame.is_corrupt:
                raise VideoError(f"{path}: frame {count} is damaged; {REENCODE}")
            if count in wanted:
                frames[count] = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            count += 1
    if not count:
        raise VideoError(f"{path}: the video stream holds no frame; {REENCODE}")
    return frames, count


def _cause(error: Exception) -> str:
    """What an error says, in one line, without its path and without decord's time stamp and stack trace."""
    text = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), "no message")
    return f"{type(error).__name__}: {text.split(': ', 1)[-1] if text.startswith('[') else text}"


def read_image(path: str | Path) -> np.ndarray:
    """An image as one frame, (1, H, W, 3) uint8 RGB, turned upright as its EXIF data says.

    Raises:
        VideoError: when the file is missing or no image, is cut short, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise VideoError(f"{path}: {image.mode} pixels would be clipped; convert it to 8 bits a channel")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        remedy = "correct the path, or --image_folder" if isinstance(error, FileNotFoundError) else "save it anew"
        raise VideoError(f"{path}: cannot be opened as an image ({_cause(error)}); {remedy}") from error


def frames_to_pixels(frames: np.ndarray, processor: ProcessorSpec, image_aspect_ratio: str) -> torch.Tensor:
    """Frames (T, H, W, 3) uint8 to pixel values (T, 3, S, S) float32, square and normalised.

    Args:
        image_aspect_ratio: "pad" puts the frame in the middle of a square of the mean colour; "square" squeezes it;
            "crop" is DINOv2's own way, the shortest edge to S * 256 / 224 and the middle S x S of it.

    Raises:
        ValueError: for another `image_aspect_ratio`.
    """
    ways = {"pad": _pad, "square": _squeeze, "crop": _crop}
    if image_aspect_ratio not in ways:
        raise ValueError(f"image_aspect_ratio must be one of {tuple(ways)}, got {image_aspect_ratio!r}")
    make_square = ways[image_aspect_ratio]
    squares = np.stack([np.asarray(make_square(Image.fromarray(frame), processor)) for frame in frames])
    pixels = torch.from_numpy(squares).permute(0, 3, 1, 2).float() * processor.rescale_factor
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return ((pixels - mean) / std).contiguous()


def _squeeze(image: Image.Image, processor: ProcessorSpec) -> Image.Image:
    return image.resize((processor.image_size, processor.image_size), processor.resample)


def _pad(image: Image.Image, processor: ProcessorSpec) -> Image.Image:
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(round(v * 255) for v in processor.image_mean))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return _squeeze(canvas, processor)


def _crop(image: Image.Image, processor: ProcessorSpec) -> Image.Image:
    short = round(processor.image_size * 256 / 224)
    # The long edge is rounded down, as transformers does.
    width, height = (int(short * edge / min(image.size)) for edge in image.size)
    left, top = (width - processor.image_size) // 2, (height - processor.image_size) // 2
    box = (left, top, left + processor.image_size, top + processor.image_size)
    return image.resize((width, height), processor.resample).crop(box)
