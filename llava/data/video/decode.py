"""Files to frames. Every reader is opened and closed inside the call that needs it.

Letters in shapes: T frames, H and W height and width of a frame.

Three decoders read video. decord and torchcodec seek, so that a few frames of a long clip are cheap, but for some files
their frames are silently not the ones asked for: edit lists, open groups of pictures, interlaced frames, MPEG-TS, more
than 8 bits, reflections. PyAV decodes from the first frame to the last, which is always right and costs the whole clip.
`probe_video` looks at all packets of a file (a few milliseconds, one frame is decoded) and lets seek only where none of
that is present. A file that is damaged where no wanted frame depends on it gives those frames;
`python -m llava.data.check --thorough` decodes everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL
from PIL import Image

from llava.config.video import VideoSpec
from llava.data.video.container import open_container, video_stream
from llava.data.video.errors import REENCODE, VideoError, cause
from llava.data.video.files import file_name
from llava.data.video.image import rgb_of
from llava.data.video.probe import VideoInfo, display_matrix, known_video, presentation_times
from llava.data.video.select import select_frames
from llava.errors import UserError

try:
    import decord
except ImportError:  # There is no wheel for every platform; PyAV then reads all files.
    decord = None

NO_RECOVERED_FRAMES = 1e-9
"""decord's `fault_tol`, a share of the clip: it raises as soon as it gives one frame in the place of another."""

SEEKING_ERRORS = (RuntimeError, decord.DECORDError) if decord else (RuntimeError,)

MAX_WIDTH = 16_384
"""Pixels of a row after stretching; a pixel aspect ratio that asks for more is a damaged header."""


def decoder_of(info: VideoInfo, asked: str = "auto") -> str:
    """The decoder that `read_frames` starts with: decord, torchcodec or pyav.

    Args:
        asked: one of `llava.config.video.VIDEO_DECODERS`; auto is decord where there is one.

    Raises:
        ValueError: when the decoder that is asked for cannot be imported.
    """
    problem = decoder_problem(asked)
    if problem:
        raise UserError(problem)
    if asked == "auto":
        asked = "decord" if decord else "pyav"
    return asked if info.can_seek else "pyav"


def decoder_problem(asked: str) -> str | None:
    """Why the decoder of `--video_decoder` cannot be used here, with the remedy."""
    try:
        if asked == "torchcodec":
            _torchcodec()
    except Exception as error:  # What it raises depends on which library it misses.
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return (
            f"--video_decoder torchcodec: it cannot be imported ({why.strip()}); install it (pip install "
            '-e ".[torchcodec]") and FFmpeg, or use --video_decoder auto'
        )
    if asked == "decord" and not decord:
        return "--video_decoder decord: there is none for this platform; use --video_decoder torchcodec or auto"
    return None


def _torchcodec() -> Any:
    """Imported where it is used: it loads FFmpeg's libraries, which may be absent."""
    import torchcodec.decoders

    return torchcodec


def reader_versions(asked: str = "auto") -> dict[str, str]:
    """Versions of the libraries whose output pixel values depend on, `asked` being one of `VIDEO_DECODERS`.

    Raises:
        ValueError: when that decoder cannot be imported.
    """
    problem = decoder_problem(asked)
    if problem:
        raise UserError(problem)
    others = {"av": av.__version__, "pillow": PIL.__version__}
    if asked == "torchcodec":
        library = _torchcodec()
        return {"torchcodec": library.__version__, "ffmpeg": str(library.ffmpeg_major_version), **others}
    return {"decord": decord.__version__ if decord and asked != "pyav" else "none", **others}


def read_frames(
    path: str | Path, spec: VideoSpec, split: tuple[float, float] | None = None, full_decode: bool = False
) -> np.ndarray:
    """The frames of a video that `select_frames` chooses, (T, H, W, 3) uint8 RGB, as a player shows them: turned,
    mirrored, and with square pixels.

    Args:
        split: (first, last) frame of the segment.
        full_decode: decodes the whole clip by PyAV, whatever `spec.video_decoder` says.

    Raises:
        VideoError: when the file cannot be read (naming what each decoder said), is damaged where it was decoded, or
            when the split does not fit it. There is never a frame of another file or of another time in its place.
        ValueError: when `spec.video_decoder` cannot be imported.
    """
    path = str(path)
    info = known_video(path)
    decoder = "pyav" if full_decode else decoder_of(info, spec.video_decoder)

    def choose(times: np.ndarray) -> list[int]:
        try:
            return select_frames(times, spec, split)
        except ValueError as error:
            raise VideoError(f"{path}: {error}; correct meta.split of the record") from error

    causes = []
    if decoder != "pyav":
        indexes = choose(info.times)
        try:
            return (_read_decord if decoder == "decord" else _read_torchcodec)(path, info.num_frames, indexes)
        except SEEKING_ERRORS as error:
            causes.append(f"{decoder}: {cause(error)}")
    try:
        return _read_pyav(path, info, choose)
    except (av.FFmpegError, OSError) as error:
        causes.append(f"PyAV: {cause(error)}")
        raise VideoError(f"{path}: cannot be decoded ({'; '.join(causes)}); {REENCODE}") from error


def _read_decord(path: str, num_frames: int, indexes: Sequence[int]) -> np.ndarray:
    # What decord and its FFmpeg would print is in the exceptions too.
    decord.logging.set_level(decord.logging.FATAL)
    reader = decord.VideoReader(file_name(path), ctx=decord.cpu(0), num_threads=1, fault_tol=NO_RECOVERED_FRAMES)
    if len(reader) != num_frames:
        raise RuntimeError(f"counts {len(reader)} frames, the container {num_frames}")
    distinct, inverse = np.unique(np.asarray(indexes), return_inverse=True)
    return reader.get_batch(distinct.tolist()).asnumpy()[inverse]


def _read_torchcodec(path: str, num_frames: int, indexes: Sequence[int]) -> np.ndarray:
    reader = _torchcodec().decoders.VideoDecoder(file_name(path), dimension_order="NHWC", device="cpu")
    if len(reader) != num_frames:
        raise RuntimeError(f"counts {len(reader)} frames, the container {num_frames}")
    distinct, inverse = np.unique(np.asarray(indexes), return_inverse=True)
    return reader.get_frames_at(distinct.tolist()).data.numpy()[inverse]


def _read_pyav(path: str, info: VideoInfo, choose: Callable[[np.ndarray], list[int]]) -> np.ndarray:
    indexes = choose(info.times)
    frames, times = _decode(path, set(indexes))
    if len(times) != info.num_frames:
        # Packets without a picture of their own.
        indexes = choose(times)
        frames, _ = _decode(path, set(indexes))
    if len({frame.shape for frame in frames.values()}) > 1:
        raise VideoError(f"{path}: the size of the frame changes in the middle of the video; {REENCODE}")
    return np.stack([frames[i] for i in indexes])


def _decode(path: str, wanted: set[int]) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """The `wanted` frames (H, W, 3) of a full decode, and the times (N,) of all of them."""
    frames: dict[int, np.ndarray] = {}
    pts: list[int | None] = []
    with open_container(path) as container:
        stream = video_stream(container, path)
        aspect, time_base = float(stream.sample_aspect_ratio or 1), stream.time_base
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise VideoError(f"{path}: frame {len(pts)} is damaged; {REENCODE}")
            if len(pts) in wanted:
                pixels = _square_pixels(path, rgb_of(frame), aspect)
                frames[len(pts)] = as_shown(pixels, display_matrix(frame))
            pts.append(frame.pts)
    if not pts:
        raise VideoError(f"{path}: the video stream holds no frame; {REENCODE}")
    times = presentation_times(pts, time_base)
    # Where the decoder loses the times, those of the packets were used, if there are as many.
    return frames, np.arange(len(pts), dtype=np.float64) if times is None else times


def _square_pixels(path: str, frame: np.ndarray, aspect: float) -> np.ndarray:
    """A stored frame (H, W, 3) whose pixels are `aspect` times as wide as high, with its width resampled."""
    height, width = frame.shape[:2]
    wide = round(width * aspect)
    if wide == width:
        return frame
    if not 1 <= wide <= MAX_WIDTH:
        raise VideoError(
            f"{path}: pixels {aspect:g} times as wide as high make {width} x {height} unusable; {REENCODE}"
        )
    return np.asarray(Image.fromarray(frame).resize((wide, height), Image.Resampling.BICUBIC))


def as_shown(frame: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """A stored frame (H, W, 3) turned and mirrored by its display matrix (ISO 14496-12, 8.3.2; see `display_matrix`).

    An angle between right angles is taken for the nearest of them.
    """
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        frame, across, down = frame.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    frame = frame[:, ::-1] if across < 0 else frame
    return np.ascontiguousarray(frame[::-1] if down < 0 else frame)
