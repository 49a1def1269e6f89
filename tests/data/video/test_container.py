from __future__ import annotations

import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from llava.config.video import VideoSpec
from llava.data.video import VideoError, container, probe_video, read_frames
from tests.data.video.clips import shown, write_gray

SPEC = VideoSpec(num_frames=2, video_fps=0)
PLAYLISTS = {
    "clip.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n../other.ts\n#EXT-X-ENDLIST\n",
    "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n../other.ts\n#EXT-X-ENDLIST\n",
    "list.txt": "ffconcat version 1.0\nfile ../other.ts\n",
    "concat.mp4": "ffconcat version 1.0\nfile other.ts\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_opens_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "clips").mkdir()
    write_gray(tmp_path / "other.ts")
    shutil.copy(tmp_path / "other.ts", tmp_path / "clips")
    (tmp_path / "clips" / name).write_text(PLAYLISTS[name])
    with pytest.raises(VideoError, match="which names other files"):
        probe_video(tmp_path / "clips" / name)


@pytest.mark.parametrize("name", ["text.txt", "text.mp4", "text.nfo", "text.ans"])
def test_a_text_is_no_video(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("hello world\n" * 200)
    with pytest.raises(VideoError, match=r"it is a text\); name a video file"):
        probe_video(tmp_path / name)


@pytest.mark.parametrize("name", ["clip.nut", "clip.ivf"])
def test_containers_that_are_not_known_are_refused(tmp_path: Path, name: str) -> None:
    path = write_gray(tmp_path / name, codec="libvpx", options={"deadline": "realtime"})
    with pytest.raises(VideoError, match="another kind than mov, matroska.*re-encode it"):
        probe_video(path)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_names_are_files_whatever_they_contain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    """mpeg4 is read by PyAV, H.264 by the decoder that seeks."""
    monkeypatch.chdir(tmp_path)
    write_gray(tmp_path / "clip.mp4", codec=codec)
    for name in ("12:30.mp4", "file:a.mp4", "concat:a|b.mp4", "pipe:0", os.fsdecode(b"perch\xe9.mp4")):
        shutil.copy("clip.mp4", name)
        assert shown(read_frames(name, SPEC)) == [0, 39]
    with pytest.raises(VideoError, match="No such file"):
        read_frames("http://localhost/clip.mp4", SPEC)


def test_pipes_and_folders_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="a pipe"):
        probe_video(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="a folder"):
        probe_video(tmp_path)


def test_audio_with_a_cover_picture_is_named_as_such(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as file:
        audio = file.add_stream("aac", rate=16000, layout="mono")
        cover = file.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        file.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        for stream, given in ((audio, frame), (audio, None), (cover, None)):
            file.mux(stream.encode(given))
    with pytest.raises(VideoError, match="the file holds audio with a cover picture") as raised:
        probe_video(tmp_path / "song.m4a")
    assert raised.value.kind == "no video stream"


def test_frames_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gray(tmp_path / "clip.mp4", frames=2)
    monkeypatch.setattr(container, "MAX_PIXELS", 64 * 48)
    probe_video(path)
    monkeypatch.setattr(container, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match="frames of 64 x 48 are above 3071 pixels"):
        probe_video(path)


def test_transparency_that_decoders_leave_out_is_refused(tmp_path: Path) -> None:
    options = {"deadline": "realtime", "auto-alt-ref": "0"}
    path = write_gray(tmp_path / "clip.webm", frames=4, codec="libvpx-vp9", pixels="yuva420p", options=options)
    with pytest.raises(VideoError, match="transparency .* put it on white"):
        probe_video(path)
