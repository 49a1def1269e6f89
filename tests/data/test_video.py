"""Frame choice, reading and pixel values. In the clips made here, frame i is filled with the gray level 20 + 5 i."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from llava.config import ProcessorSpec, VideoSpec
from llava.data import video
from llava.data.video import VideoError, decode, frames_to_pixels, probe_video, read_frames, read_image, select_frames

ALL = VideoSpec(num_frames=4, force_sample=True)


def spec(**options) -> VideoSpec:
    return VideoSpec(**{"num_frames": 4, "video_fps": 0, **options})


def write_gray(
    path: Path, frames: int = 40, codec: str = "libx264", pixels: str = "yuv420p", options: dict | None = None,
    muxer: dict | None = None, size: tuple[int, int] = (64, 48), noise: bool = False,
) -> Path:  # fmt: skip
    width, height = size
    generator = np.random.default_rng(0)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=10, options={"g": "12"} if options is None else options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for i in range(frames):
            picture = np.full((height, width, 3), 20 + 5 * i, np.uint8)
            if noise:
                picture[: height // 2] = generator.integers(0, 255, (height // 2, width, 3))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown(frames: np.ndarray) -> list[int]:
    """Which frame of a gray clip each frame (T, H, W, 3) is, read from its last row."""
    return [round((float(frame[-8:].mean()) - 20) / 5) for frame in frames]


def remux(source: Path, target: Path, shift: int, **muxer: str) -> Path:
    """Copies packets with their times moved by `shift` ticks; negative times become an edit list."""
    with av.open(str(source)) as before, av.open(str(target), "w", options=muxer) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                after.mux(packet)
    return target


# ---- which frames


@pytest.mark.parametrize(
    ("settings", "total", "fps", "split", "expected"),
    [
        pytest.param({}, 10, 10, None, [0, 3, 6, 9], id="every frame is a candidate"),
        pytest.param({"num_frames": 1, "fast_latents": 2}, 9, 10, None, [4], id="one frame is the middle"),
        pytest.param({"video_fps": 1}, 45, 10, None, [0, 10, 30, 40], id="one candidate a second"),
        pytest.param({"video_fps": 1, "force_sample": True}, 45, 10, None, [0, 15, 29, 44], id="force_sample"),
        pytest.param({"video_fps": 1}, 25, 10, None, [0, 10, 10, 20], id="too few candidates repeat"),
        pytest.param({"video_fps": 99}, 4, 10, None, [0, 1, 2, 3], id="never denser than every frame"),
        pytest.param({"video_fps": 4}, 11, 10, None, [0, 3, 8, 10], id="steps of two frames and a half"),
        pytest.param({"frames_upbound": 5}, 101, 10, None, [0, 25, 75, 100], id="upbound thins and keeps both ends"),
        pytest.param({"frames_upbound": 50}, 10, 10, None, [0, 3, 6, 9], id="upbound above the candidates"),
        pytest.param({}, 2, 10, None, [0, 0, 1, 1], id="a short clip repeats"),
        pytest.param({}, 1, 10, None, [0, 0, 0, 0], id="one frame for all"),
        pytest.param({}, 100, 10, (10, 19), [10, 13, 16, 19], id="split, both ends included"),
        pytest.param({}, 100, 10, (7.0, 7.0), [7, 7, 7, 7], id="split of one frame"),
        pytest.param({}, 100, 10, (-5, 300), [0, 33, 66, 99], id="split is clipped"),
        pytest.param({"video_fps": 1}, 100, 10, (5, 40), [5, 15, 25, 35], id="video_fps counts from the split"),
    ],
)
def test_select_frames(settings: dict, total: int, fps: float, split: tuple | None, expected: list[int]) -> None:
    assert select_frames(total, fps, spec(**settings), split) == expected


@pytest.mark.parametrize(
    ("total", "fps", "split", "message"),
    [
        (0, 10, None, "at least one frame"),
        (10, 0, None, "frame rate"),
        (10, float("nan"), None, "frame rate"),
        (10, 10, (5, 4), "reversed"),
        (10, 10, (10, 12), "outside"),
        (10, 10, (-3, -1), "outside"),
        (10, 10, (0.5, 3.2), "multiply seconds by fps"),
        (10, 10, (0, float("nan")), "whole numbers"),
    ],
)
def test_select_frames_refuses(total: int, fps: float, split: tuple | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_frames(total, fps, ALL, split)


@given(
    total=st.integers(1, 5000),
    fps=st.floats(0.5, 240),
    num_frames=st.integers(1, 64),
    video_fps=st.one_of(st.just(0.0), st.floats(0.01, 300)),
    extra=st.one_of(st.none(), st.integers(0, 100)),
    force=st.booleans(),
    ends=st.one_of(st.none(), st.tuples(st.floats(0, 1), st.floats(0, 1))),
)
def test_select_frames_properties(total, fps, num_frames, video_fps, extra, force, ends) -> None:
    split = None if ends is None else tuple(sorted(int(e * (total - 1)) for e in ends))
    bound = 0 if extra is None else num_frames + extra
    settings = VideoSpec(num_frames, 2, 2, video_fps, bound, force)
    indexes = select_frames(total, fps, settings, split)
    first, last = split or (0, total - 1)
    assert len(indexes) == num_frames
    assert indexes == sorted(indexes)
    assert first <= indexes[0] and indexes[-1] <= last
    every = force or video_fps == 0 or video_fps >= fps
    if num_frames > 1:
        assert indexes[0] == first
        # The last candidate lies less than one candidate's distance from the end.
        assert indexes[-1] == last if every else last - indexes[-1] < fps / video_fps + 1
    available = last - first + 1 if every else int((last - first) * video_fps / fps)
    if num_frames <= available:
        assert len(set(indexes)) == num_frames
    gaps = np.diff(indexes)
    if every and not bound and len(gaps):
        assert gaps.max() - gaps.min() <= 1


# ---- reading


def test_reads_the_chosen_frames_by_decord(tmp_path: Path) -> None:
    path = write_gray(tmp_path / "clip.mp4")
    info = probe_video(path)
    assert info == video.VideoInfo(40, 10.0, 64, 48, "decord" if decode.decord else "pyav")
    frames = read_frames(path, ALL)
    assert frames.shape == (4, 48, 64, 3) and frames.dtype == np.uint8
    assert shown(frames) == [0, 13, 26, 39]
    assert shown(read_frames(path, ALL, (10, 13))) == [10, 11, 12, 13]
    assert shown(read_frames(path, spec(num_frames=3, video_fps=1))) == [0, 20, 30]
    assert shown(read_frames(write_gray(tmp_path / "two.mp4", frames=2), ALL)) == [0, 0, 1, 1]


def test_split_outside_the_clip_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"clip\.mp4: split \[40, 50\] lies outside .* correct meta\.split"):
        read_frames(write_gray(tmp_path / "clip.mp4"), ALL, (40, 50))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip.gif", {"codec": "gif", "pixels": "rgb8", "options": {}}),
        ("clip.ts", {}),
        ("clip.avi", {"codec": "mpeg4"}),
        ("clip.mp4", {"codec": "libsvtav1", "options": {"preset": "12"}}),
        ("interlaced.mp4", {"options": {"x264-params": "interlaced=1"}}),
        ("open_gop.mp4", {"options": {"x264-params": "open-gop=1:keyint=12"}}),
    ],
)
def test_pyav_reads_what_decord_gets_wrong(tmp_path: Path, name: str, options: dict) -> None:
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this PyAV has no {options['codec']}")
    path = write_gray(tmp_path / name, **options)
    assert probe_video(path).decoder == "pyav"
    assert shown(read_frames(path, ALL)) == [0, 13, 26, 39]


def test_edit_list_hides_frames(tmp_path: Path) -> None:
    source = write_gray(tmp_path / "source.mp4", options={"g": "12", "bf": "0"})
    path = remux(source, tmp_path / "edited.mp4", -5 * 1024, use_editlist="1", avoid_negative_ts="disabled")
    info = probe_video(path)
    assert (info.num_frames, info.decoder) == (35, "pyav")
    assert shown(read_frames(path, ALL)) == [5, 16, 28, 39]


def test_random_frames_by_decord_equal_a_full_decode(tmp_path: Path) -> None:
    path = write_gray(tmp_path / "clip.mp4", frames=47, noise=True)
    every = read_frames(path, spec(num_frames=47), use_decord=False)
    for first in range(0, 47, 3):
        assert np.array_equal(
            read_frames(path, spec(num_frames=3), (first, 46)),
            every[select_frames(47, 10, spec(num_frames=3), (first, 46))],
        )


def test_late_start_needs_no_fallback(tmp_path: Path) -> None:
    path = remux(write_gray(tmp_path / "source.mp4"), tmp_path / "late.mp4", 5 * 1024)
    assert probe_video(path).decoder == ("decord" if decode.decord else "pyav")
    assert shown(read_frames(path, ALL)) == [0, 13, 26, 39]


@pytest.mark.parametrize("use_decord", [True, False])
def test_rotated_clip_is_turned_upright(tmp_path: Path, use_decord: bool) -> None:
    path = write_gray(tmp_path / "clip.mp4", frames=4, noise=True)
    upright = read_frames(path, ALL)
    data = bytearray(path.read_bytes())
    # The matrix of the track header (ISO 14496-12, 8.3.2) lies 40 bytes after the version: [0 1 0; -1 0 0; 0 0 1].
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30))  # fmt: skip # noqa: E501
    path.write_bytes(data)
    frames = read_frames(path, ALL, use_decord=use_decord)
    assert np.array_equal(frames, np.rot90(upright, -1, axes=(1, 2)))


def test_pyav_is_the_fallback_when_decord_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_) -> None:
        raise RuntimeError("decord gives up")

    path = write_gray(tmp_path / "clip.mp4")
    monkeypatch.setattr(decode, "_read_decord", fail)
    assert shown(read_frames(path, ALL)) == [0, 13, 26, 39]


# ---- what cannot be read


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


def write_bytes(data: bytes) -> Callable[[Path], Path]:
    return lambda path: path if path.write_bytes(data) else path


FASTSTART = {"movflags": "faststart"}

BROKEN: list = [
    pytest.param(write_bytes(b""), "cannot be opened as a video", id="empty"),
    pytest.param(write_bytes(b"Un gatto.\n" * 99), "cannot be opened as a video", id="text"),
    pytest.param(write_audio, r"no video stream \(the file holds audio\)", id="audio alone"),
    pytest.param(lambda path: path, "No such file.*--video_folder", id="missing"),
    pytest.param(lambda path: cut(write_gray(path), 0.6), "neither video nor audio", id="cut, index at the end"),
    pytest.param(lambda path: cut(write_gray(path, muxer=FASTSTART), 0.9), "cut short", id="cut, index at the start"),
    pytest.param(lambda path: damage(write_gray(path, noise=True), 0.5), "cannot be decoded", id="damaged middle"),
]


@pytest.mark.parametrize(("make", "message"), BROKEN)
def test_broken_file_is_an_error_that_names_it(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match=message) as raised:
        read_frames(path, ALL)
    assert str(raised.value).startswith(f"{path}: ")
    assert raised.value.kind == ("no video stream" if "stream" in message else "unreadable")


def test_cut_matroska_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="cut short"):
        probe_video(cut(write_gray(tmp_path / "clip.mkv", noise=True), 0.5))


@pytest.mark.skipif(decode.decord is None, reason="no decord on this platform")
def test_damage_names_both_decoders(tmp_path: Path) -> None:
    path = write_gray(tmp_path / "clip.mp4", noise=True, options={"x264-params": "keyint=20:min-keyint=20:scenecut=0"})
    assert probe_video(path).decoder == "decord"
    # The second half is damaged.
    with pytest.raises(VideoError, match="decord: .*PyAV: "):
        read_frames(damage(path, 0.6), ALL)
    # Frames that depend on nothing damaged are read, which is why the check has a thorough mode.
    assert shown(read_frames(path, ALL, (0, 3))) == [0, 1, 2, 3]
    with pytest.raises(VideoError, match="cannot be decoded"):
        read_frames(path, ALL, (0, 3), use_decord=False)


# ---- images


def test_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, :10] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "photo.png"), np.rot90(picture, -1)[None])


def test_gray_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        Image.new(mode, (5, 4)).save(tmp_path / "image.png")
        assert read_image(tmp_path / "image.png").shape == (1, 4, 5, 3)


def test_broken_images(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with pytest.raises(VideoError, match="image.png: .*--image_folder"):
        read_image(path)
    path.write_text("no image")
    with pytest.raises(VideoError, match="image.png: cannot be opened"):
        read_image(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    with pytest.raises(VideoError, match="image.png: cannot be opened"):
        read_image(cut(path, 0.5))
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(path)
    with pytest.raises(VideoError, match="8 bits"):
        read_image(path)


# ---- pixel values


def noise(height: int, width: int, frames: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(240, 320), (320, 201), (100, 64), (224, 224)])
def test_crop_equals_the_processor_of_dinov2(shape: tuple[int, int]) -> None:
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3, do_center_crop=True,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], rescale_factor=1 / 255,
    )  # fmt: skip
    frames = noise(*shape)
    expected = processor([Image.fromarray(f) for f in frames], return_tensors="pt")["pixel_values"]
    pixels = frames_to_pixels(frames, ProcessorSpec(), "crop")
    assert pixels.shape == (2, 3, 224, 224) and pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected.float(), atol=1e-5, rtol=0)


def test_pad_surrounds_the_frame_with_the_mean_colour() -> None:
    processor = ProcessorSpec(image_size=56)
    pixels = frames_to_pixels(np.full((1, 28, 56, 3), 255, np.uint8), processor, "pad")
    # The mean colour is rounded to a byte, so it is 0 after normalisation but for half a step.
    assert pixels[:, :, :12].abs().max() < 0.5 / 255 / 0.224 + 1e-6
    assert pixels[:, :, -12:].abs().max() < 0.5 / 255 / 0.224 + 1e-6
    white = (1 - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    torch.testing.assert_close(pixels[0, :, 28, 28], white)


def test_square_squeezes_the_whole_frame() -> None:
    frames = noise(30, 90)
    pixels = frames_to_pixels(frames, ProcessorSpec(image_size=28), "square")
    resized = np.asarray(Image.fromarray(frames[1]).resize((28, 28), 3)).astype(np.float32) / 255
    expected = (resized - ProcessorSpec().image_mean) / ProcessorSpec().image_std
    torch.testing.assert_close(pixels[1], torch.from_numpy(expected).permute(2, 0, 1).float(), atol=1e-5, rtol=0)


def test_unknown_aspect_ratio_is_an_error() -> None:
    with pytest.raises(ValueError, match="anyres"):
        frames_to_pixels(noise(8, 8), ProcessorSpec(), "anyres")


# ---- real clips


def test_real_clips_by_decord_equal_a_full_decode(real_clips: Path) -> None:
    settings = VideoSpec(num_frames=8, fast_latents=1, slow_latents=1, force_sample=True)
    for path in sorted(real_clips.glob("*.mp4")):
        info = probe_video(path)
        assert info.decoder == ("decord" if decode.decord else "pyav"), path
        split = (info.num_frames // 3, info.num_frames // 2)
        with av.open(str(path)) as container:
            every = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert info.num_frames == len(every)
        for segment in (None, split):
            wanted = select_frames(len(every), info.fps, settings, segment)
            assert np.array_equal(read_frames(path, settings, segment), np.stack([every[i] for i in wanted])), path
