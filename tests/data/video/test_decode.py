"""The frames that are read: the chosen ones, as a player shows them, the same by every decoder."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from llava.config.video import VideoSpec
from llava.data.video import VideoError, decode, decoder_of, probe_video, read_frames, reader_versions, select_frames
from llava.data.video.decode import as_shown, decoder_problem
from tests.data.video.clips import damage, faulty, numbers, remux, set_matrix, shown, write_gray

ALL = VideoSpec(num_frames=4, force_sample=True)
SEEKING = ("decord", "torchcodec")


def spec(**options) -> VideoSpec:
    return VideoSpec(**{"num_frames": 4, "video_fps": 0, **options})


@pytest.fixture(params=SEEKING)
def seeking(request: pytest.FixtureRequest) -> str:
    """Each decoder that seeks, where it can be imported."""
    problem = decoder_problem(request.param)
    if problem:
        pytest.skip(problem)
    return request.param


# ---- the chosen frames


def test_reads_the_chosen_frames(tmp_path: Path, seeking: str) -> None:
    path = write_gray(tmp_path / "clip.mp4")
    settings = {"video_decoder": seeking}
    assert decoder_of(probe_video(path), seeking) == seeking
    frames = read_frames(path, spec(**settings))
    assert frames.shape == (4, 48, 64, 3) and frames.dtype == np.uint8
    assert shown(frames) == [0, 13, 26, 39]
    assert shown(read_frames(path, spec(**settings), (10, 13))) == [10, 11, 12, 13]
    assert shown(read_frames(path, spec(num_frames=3, video_fps=1, **settings))) == [0, 20, 30]
    assert shown(read_frames(write_gray(tmp_path / "two.mp4", frames=2), spec(**settings))) == [0, 0, 1, 1]


def test_split_outside_the_clip_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"clip\.mp4: split \[40, 50\] lies outside .* correct meta\.split"):
        read_frames(write_gray(tmp_path / "clip.mp4"), ALL, (40, 50))


def test_a_clip_without_a_rate_is_seen_once_a_second() -> None:
    path = faulty("webm_without_rate/mr_jitter.webm")
    times = probe_video(path).times
    nearest = [int(np.argmin(np.abs(times - second))) for second in range(4)]
    assert nearest == pytest.approx([0, 30, 60, 90], abs=2)
    assert numbers(read_frames(path, VideoSpec())) == nearest


@pytest.mark.parametrize("settings", [{}, {"num_frames": 33}, {"video_fps": 2, "num_frames": 17}, {"video_fps": 0.3}])
def test_every_container_gives_the_same_frames(settings: dict) -> None:
    seen = {
        suffix: numbers(read_frames(faulty(f"vfr_nominal_rate/vfr.{suffix}"), VideoSpec(**settings)))
        for suffix in ("webm", "mp4")
    }
    assert seen["webm"] == seen["mp4"]
    if not settings:
        times = probe_video(faulty("vfr_nominal_rate/vfr.webm")).times
        # Four of the times 0 to 32 s, evenly spread: 0, 11, 21 and 32.
        assert seen["mp4"] == [int(np.argmin(np.abs(times - t))) for t in (0, 11, 21, 32)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_pause_repeats_its_frame(tmp_path: Path, suffix: str) -> None:
    path = write_gray(tmp_path / f"clip{suffix}", milliseconds=[0, 100, 200, 4000, 4100])
    assert shown(read_frames(path, spec(num_frames=5, video_fps=1))) == [0, 2, 2, 3, 3]


def test_frames_hidden_in_the_decoder_do_not_shift_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where packets have no picture of their own, times and numbers are those of the decoder."""
    path = write_gray(tmp_path / "clip.avi", codec="mpeg4")
    real = decode.known_video

    def one_more(path: str):
        info = real(path)
        return type(info)(np.append(info.times, 99.0), info.width, info.height, info.can_seek)

    monkeypatch.setattr(decode, "known_video", one_more)
    assert shown(read_frames(path, spec(video_fps=1))) == [0, 10, 20, 30]


def test_edit_list_hides_frames(tmp_path: Path) -> None:
    source = write_gray(tmp_path / "source.mp4", options={"g": "12", "bf": "0"})
    path = remux(source, tmp_path / "edited.mp4", -5 * 1024, use_editlist="1", avoid_negative_ts="disabled")
    info = probe_video(path)
    assert (info.num_frames, info.can_seek) == (35, False)
    assert shown(read_frames(path, ALL)) == [5, 16, 28, 39]


# ---- every decoder gives the frames of a full decode


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip.gif", {"codec": "gif", "pixels": "rgb8", "options": {}}),
        ("clip.ts", {}),
        ("clip.avi", {"codec": "mpeg4"}),
        ("clip.mp4", {"codec": "libsvtav1", "options": {"preset": "12"}}),
        ("interlaced.mp4", {"options": {"x264-params": "interlaced=1"}}),
        ("open_gop.mp4", {"options": {"x264-params": "open-gop=1:keyint=12"}}),
        ("ten_bits.mp4", {"pixels": "yuv420p10le", "noise": True}),
        ("clip.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
    ],
)
def test_what_cannot_be_sought_is_decoded_in_full(tmp_path: Path, seeking: str, name: str, options: dict) -> None:
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this PyAV has no {options['codec']}")
    path = write_gray(tmp_path / name, **options)
    frames = read_frames(path, spec(video_decoder=seeking))
    assert shown(frames) == [0, 13, 26, 39]
    assert np.array_equal(frames, read_frames(path, spec(), full_decode=True))


@pytest.mark.parametrize(
    "parameters",
    [
        "colormatrix=bt709:colorprim=bt709:transfer=bt709", "colormatrix=smpte170m", "colormatrix=bt470bg",
        "colormatrix=bt2020nc", "fullrange=on", "fullrange=on:colormatrix=bt709", "bframes=3:b-pyramid=normal:ref=4",
    ],
)  # fmt: skip
def test_seeking_equals_a_full_decode(tmp_path: Path, seeking: str, parameters: str) -> None:
    options = {"x264-params": f"{parameters}:keyint=12"}
    path = write_gray(tmp_path / "clip.mp4", frames=47, noise=True, options=options)
    assert decoder_of(probe_video(path), seeking) == seeking
    every = read_frames(path, spec(num_frames=47), full_decode=True)
    times = probe_video(path).times
    settings = spec(num_frames=3, video_decoder=seeking)
    for first in range(0, 47, 5):
        wanted = select_frames(times, settings, (first, 46))
        assert np.array_equal(read_frames(path, settings, (first, 46)), every[wanted])


def test_vp9_by_seeking_equals_a_full_decode(tmp_path: Path, seeking: str) -> None:
    path = write_gray(tmp_path / "clip.webm", codec="libvpx-vp9", options={"g": "12"}, noise=True)
    assert decoder_of(probe_video(path), seeking) == seeking
    for segment in (None, (7, 30)):
        found = read_frames(path, spec(video_decoder=seeking), segment)
        assert np.array_equal(found, read_frames(path, spec(), segment, full_decode=True))


def test_late_start_needs_no_full_decode(tmp_path: Path, seeking: str) -> None:
    path = remux(write_gray(tmp_path / "source.mp4"), tmp_path / "late.mp4", 5 * 1024)
    assert decoder_of(probe_video(path), seeking) == seeking
    assert shown(read_frames(path, spec(video_decoder=seeking))) == [0, 13, 26, 39]


# ---- as a player shows them


TURNS: list[tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = [
    ((1, 0, 0, 1), lambda f: f),
    ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
    ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
    ((0, -1, 1, 0), lambda f: np.rot90(f, 1)),
    ((-1, 0, 0, 1), lambda f: f[:, ::-1]),
    ((1, 0, 0, -1), lambda f: f[::-1]),
    ((0, 1, 1, 0), lambda f: f.transpose(1, 0, 2)),
    ((0, -1, -1, 0), lambda f: f.transpose(1, 0, 2)[::-1, ::-1]),
]


@pytest.mark.parametrize(("matrix", "turn"), TURNS)
def test_turned_and_mirrored_frames(tmp_path: Path, seeking: str, matrix: tuple, turn: Callable) -> None:
    path = write_gray(tmp_path / "clip.mp4", frames=4, noise=True)
    stored = read_frames(path, ALL)
    set_matrix(path, *matrix)
    expected = np.stack([turn(frame) for frame in stored])
    assert np.array_equal(read_frames(path, spec(video_decoder=seeking)), expected)
    assert np.array_equal(read_frames(path, spec(), full_decode=True), expected)


def test_a_pixel_goes_where_the_matrix_says() -> None:
    """(x, y) is shown at (a x + c y, b x + d y), moved to the picture's corner."""
    frame = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    for matrix, _ in TURNS:
        a, b, c, d = matrix
        places = {(a * x + c * y, b * x + d * y): frame[y, x] for y in range(2) for x in range(3)}
        left, top = (min(p[i] for p in places) for i in (0, 1))
        found = as_shown(frame, tuple(v << 16 for v in matrix))  # type: ignore[arg-type]
        assert all(found[y - top, x - left] == value for (x, y), value in places.items()), matrix


@pytest.mark.parametrize(
    ("name", "turn"), [("hflip", lambda f: f[:, :, ::-1]), ("transpose", lambda f: f.transpose(0, 2, 1, 3))]
)
def test_reflections_of_the_faulty_clips(name: str, turn: Callable) -> None:
    seen = read_frames(faulty(f"mirrored_matrix/{name}.mp4"), VideoSpec())
    assert numbers(turn(seen)) == [0, 30, 60, 90]


def test_pixels_become_square(tmp_path: Path) -> None:
    path = write_gray(tmp_path / "clip.mp4", aspect=Fraction(16, 9), noise=True)
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    frames = read_frames(path, ALL)
    assert frames.shape == (4, 48, 114, 3)
    assert np.array_equal(frames[0], np.asarray(Image.fromarray(stored).resize((114, 48), Image.Resampling.BICUBIC)))
    # The width of the stored frame is the height of one that is turned.
    assert read_frames(set_matrix(path, 0, 1, -1, 0), ALL).shape == (4, 114, 48, 3)


def test_pixels_of_the_faulty_clip_become_square() -> None:
    assert read_frames(faulty("anamorphic/sar.mp4"), ALL).shape == (4, 120, 320, 3)


@pytest.mark.parametrize("aspect", [400, 1e-3])
def test_an_absurd_pixel_aspect_ratio_is_an_error(aspect: float) -> None:
    with pytest.raises(VideoError, match=rf"clip\.mp4: pixels {aspect:g} times as wide as high"):
        decode._square_pixels("clip.mp4", np.zeros((48, 64, 3), np.uint8), aspect)


# ---- which decoder


def test_auto_is_decord_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe_video(write_gray(tmp_path / "clip.mp4"))
    assert decoder_of(info, "pyav") == "pyav"
    assert decoder_of(info) == ("decord" if decode.decord else "pyav")
    monkeypatch.setattr(decode, "decord", None)
    assert decoder_of(info) == "pyav"
    with pytest.raises(ValueError, match="--video_decoder decord: .*torchcodec or auto"):
        decoder_of(info, "decord")


def test_a_decoder_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Could not load libtorchcodec.\nLikely causes: ...")

    monkeypatch.setattr(decode, "_torchcodec", fail)
    with pytest.raises(ValueError, match=r"torchcodec: .*Could not load libtorchcodec.*pip install.*FFmpeg"):
        reader_versions("torchcodec")


def test_versions_are_those_of_the_decoder() -> None:
    versions = reader_versions()
    assert versions.keys() == {"decord", "av", "pillow"}
    assert reader_versions("decord") == versions or decode.decord is None
    assert reader_versions("pyav") == {**versions, "decord": "none"}
    if decoder_problem("torchcodec") is None:
        assert reader_versions("torchcodec").keys() == {"torchcodec", "ffmpeg", "av", "pillow"}


def test_pyav_is_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeking: str) -> None:
    def fail(*_) -> None:
        raise RuntimeError("the decoder gives up")

    path = write_gray(tmp_path / "clip.mp4")
    monkeypatch.setattr(decode, f"_read_{seeking}", fail)
    assert shown(read_frames(path, spec(video_decoder=seeking))) == [0, 13, 26, 39]


def test_damage_names_both_decoders(tmp_path: Path, seeking: str) -> None:
    path = write_gray(tmp_path / "clip.mp4", noise=True, options={"x264-params": "keyint=20:min-keyint=20:scenecut=0"})
    settings = spec(video_decoder=seeking)
    assert decoder_of(probe_video(path), seeking) == seeking
    # The second half is damaged.
    with pytest.raises(VideoError, match=f"{seeking}: .*PyAV: "):
        read_frames(damage(path, 0.6), settings)
    # Frames that depend on nothing damaged are read, which is why the check has a thorough mode. (decord reads ahead.)
    if seeking == "torchcodec":
        assert shown(read_frames(path, settings, (0, 3))) == [0, 1, 2, 3]
    with pytest.raises(VideoError, match="cannot be decoded"):
        read_frames(path, settings, (0, 3), full_decode=True)


# ---- real clips


def test_real_clips_by_seeking_equal_a_full_decode(real_clips: Path, seeking: str) -> None:
    settings = VideoSpec(num_frames=8, fast_latents=1, slow_latents=1, force_sample=True, video_decoder=seeking)
    for path in sorted(real_clips.glob("*.mp4")):
        info = probe_video(path)
        assert decoder_of(info, seeking) == seeking, path
        with av.open(str(path)) as container:
            every = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert info.num_frames == len(every)
        for segment in (None, (info.num_frames // 3, info.num_frames // 2)):
            wanted = select_frames(info.times, settings, segment)
            assert np.array_equal(read_frames(path, settings, segment), np.stack([every[i] for i in wanted])), path


def test_real_clips_are_seen_once_a_second(real_clips: Path) -> None:
    for path in sorted(real_clips.glob("*.mp4")):
        times = probe_video(path).times
        count = int(times[-1]) + 1
        assert select_frames(times, VideoSpec(num_frames=count)) == [
            int(np.argmin(np.abs(times - second))) for second in range(count)
        ], path
