"""What a container says: times, and whether seeking gives the frames of a full decode."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from llava.data.video import VideoError, probe, probe_video
from llava.data.video.probe import presentation_times
from tests.data.video.clips import faulty, remux, set_matrix, write_gray


def test_times_of_a_constant_rate(tmp_path: Path) -> None:
    info = probe_video(write_gray(tmp_path / "clip.mp4"))
    assert (info.num_frames, info.width, info.height, info.can_seek) == (40, 64, 48, True)
    np.testing.assert_allclose(info.times, np.arange(40) / 10, atol=1e-12)


def test_times_are_in_the_order_of_showing_and_start_at_the_first() -> None:
    times = presentation_times([3003, 6006, 4004, 5005], Fraction(1, 30000))
    assert times is not None and times.tolist() == [0, 1001 / 30000, 2002 / 30000, 3003 / 30000]
    assert presentation_times([0, None], Fraction(1, 10)) is None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts"])
def test_uneven_times_in_every_container(tmp_path: Path, suffix: str) -> None:
    milliseconds = [0, 40, 90, 250, 3000, 3100]
    info = probe_video(write_gray(tmp_path / f"clip{suffix}", milliseconds=milliseconds))
    np.testing.assert_allclose(info.times, np.array(milliseconds) / 1000, atol=1e-6)


def test_no_rate_in_the_header_is_no_error() -> None:
    info = probe_video(faulty("webm_without_rate/mr_jitter.webm"))
    assert info.num_frames == 120
    assert 3.9 < info.times[-1] < 4.1


def test_late_start_counts_from_the_first_frame(tmp_path: Path) -> None:
    info = probe_video(remux(write_gray(tmp_path / "source.mp4"), tmp_path / "late.mkv", 5 * 1024))
    assert info.can_seek
    np.testing.assert_allclose(info.times, np.arange(40) / 10, atol=1e-3)


def test_hidden_frames_of_vp8_have_no_time(tmp_path: Path) -> None:
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "7", "deadline": "good", "b": "100k"}
    path = write_gray(tmp_path / "clip.webm", frames=40, codec="libvpx", options=options, noise=True)
    with av.open(str(path)) as container:
        packets = sum(bool(p.size) for p in container.demux(video=0))
    if packets == 40:
        pytest.skip("this libvpx wrote no hidden frame")
    assert probe_video(path).num_frames == 40


def test_frames_without_times_are_decoded_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gray(tmp_path / "clip.mp4")
    real = probe._demux

    def without_times(*args):
        packets, end = real(*args)
        return [p._replace(pts=None) for p in packets], end

    monkeypatch.setattr(probe, "_demux", without_times)
    info = probe_video(path)
    np.testing.assert_allclose(info.times, np.arange(40) / 10, atol=1e-12)
    assert not info.can_seek


def test_a_raw_stream_without_times_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"clip\.h264: cannot be opened as a video \(a container of another kind"):
        probe_video(write_gray(tmp_path / "clip.h264"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip.gif", {"codec": "gif", "pixels": "rgb8", "options": {}}),
        ("clip.ts", {}),
        ("clip.avi", {"codec": "mpeg4"}),
        ("clip.mp4", {"codec": "libsvtav1", "options": {"preset": "12"}}),
        ("interlaced.mp4", {"options": {"x264-params": "interlaced=1"}}),
        ("open_gop.mp4", {"options": {"x264-params": "open-gop=1:keyint=12"}}),
        ("ten_bits.mp4", {"pixels": "yuv420p10le"}),
        ("half_the_chroma.mp4", {"pixels": "yuv422p"}),
        ("anamorphic.mp4", {"aspect": Fraction(2)}),
    ],
)
def test_seeking_is_not_trusted(tmp_path: Path, name: str, options: dict) -> None:
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this PyAV has no {options['codec']}")
    assert not probe_video(write_gray(tmp_path / name, **options)).can_seek


@pytest.mark.parametrize(
    ("matrix", "can_seek"),
    [
        ((1, 0, 0, 1), True), ((0, 1, -1, 0), True), ((-1, 0, 0, -1), True), ((0, -1, 1, 0), True),
        ((-1, 0, 0, 1), False), ((1, 0, 0, -1), False), ((0, 1, 1, 0), False), ((0, -1, -1, 0), False),
    ],
)  # fmt: skip
def test_seeking_is_trusted_with_turned_frames_alone(tmp_path: Path, matrix: tuple, can_seek: bool) -> None:
    path = set_matrix(write_gray(tmp_path / "clip.mp4", frames=4), *matrix)
    assert probe_video(path).can_seek == can_seek


def test_a_missing_attribute_is_not_a_bad_clip(tmp_path: Path) -> None:
    """PyAV 17 does not say whether the fields of a stream are interlaced; the first frame does."""
    packets = [probe._Packet(0, True, True, True)]

    def can_seek(**attributes) -> bool:
        context = SimpleNamespace(codec=SimpleNamespace(canonical_name="h264"), pix_fmt="yuv420p", **attributes)
        stream = SimpleNamespace(codec_context=context, sample_aspect_ratio=None)
        container = SimpleNamespace(
            format=SimpleNamespace(name="matroska,webm"), streams=SimpleNamespace(video=[stream])
        )
        return probe._can_seek(container, stream, packets)

    assert can_seek(field_order=1)
    assert not can_seek(field_order=2)
    assert can_seek()
    for name, parameters in (("plain.mp4", "interlaced=0"), ("interlaced.mp4", "interlaced=1")):
        path = write_gray(tmp_path / name, frames=4, options={"x264-params": parameters})
        with av.open(str(path)) as container:
            assert probe._is_plain(container, container.streams.video[0]) == (name == "plain.mp4")


def test_the_default_track_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "tracks.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, (width, height), default in zip(streams, [(64, 48), (32, 24)], [False, True], strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition.default if default else av.stream.Disposition.dub
        for i in range(4):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.zeros((stream.height, stream.width, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames, info.can_seek) == (32, 24, 4, False)


def test_a_video_is_asked_once_until_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(probe, "probe_video", lambda path: asked.append(path) or probe_video(path))
    path = write_gray(tmp_path / "a.mp4", frames=10)
    first = probe.known_video(path)
    assert probe.known_video(str(path)) is first and len(asked) == 1
    assert first.num_frames == 10 and not first.times.flags.writeable
    write_gray(path, frames=20)
    assert probe.known_video(path).num_frames == 20 and len(asked) == 2
    path.write_bytes(b"no video")
    for _ in range(2):
        with pytest.raises(VideoError, match="cannot be opened"):
            probe.known_video(path)
    path.unlink()
    with pytest.raises(VideoError, match="correct the path"):
        probe.known_video(path)
