"""Files to frames. Every reader is opened and closed inside the call that needs it.

Letters in shapes: T frames, H and W height and width of a frame.

Two decoders read video. decord seeks, so that a few frames of a long clip are cheap, but for some files its frames are
silently not the ones asked for: edit lists, open groups of pictures, interlaced frames, MPEG-TS. PyAV decodes from the
first frame to the last, which is always right and costs the whole clip. `probe_video` looks at all packets of a file (a
few milliseconds, nothing is decoded) and names decord only where none of that is present. A file that is damaged where
no wanted frame depends on it gives those frames; `python -m llava.data.check --thorough` decodes everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import PIL

from llava.config import VideoSpec
from llava.data.video.container import open_container, video_stream
from llava.data.video.errors import REENCODE, VideoError, cause
from llava.data.video.files import file_name
from llava.data.video.image import rgb_of
from llava.data.video.probe import probe_video
from llava.data.video.select import select_frames

try:
    import decord
except ImportError:  # There is no wheel for every platform; PyAV then reads all files.
    decord = None

NO_RECOVERED_FRAMES = 1e-9
"""decord's `fault_tol`, a share of the clip: it raises as soon as it gives one frame in the place of another."""


def reader_versions() -> dict[str, str]:
    """Versions of the libraries whose output pixel values depend on."""
    return {"decord": decord.__version__ if decord else "none", "av": av.__version__, "pillow": PIL.__version__}


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
            causes.append(f"decord: {cause(error)}")
    try:
        return _read_pyav(path, info.num_frames, choose)
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
    with open_container(path) as container:
        for frame in container.decode(video_stream(container, path)):
            if frame.is_corrupt:
                raise VideoError(f"{path}: frame {count} is damaged; {REENCODE}")
            if count in wanted:
                frames[count] = np.rot90(rgb_of(frame), round(frame.rotation / 90) % 4)
            count += 1
    if not count:
        raise VideoError(f"{path}: the video stream holds no frame; {REENCODE}")
    return frames, count
