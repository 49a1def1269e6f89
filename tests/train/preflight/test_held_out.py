"""A clip is the same clip under every name."""

from __future__ import annotations

from llava.data.features.content import ContentHashes
from llava.data.records import Record
from llava.train.preflight.held_out import check_held_out


def clip(path, split=None):
    return Record("r", [], (str(path),), (), split, {}, "here")


def test_a_clip_that_was_trained_on_is_found_under_another_name(tmp_path):
    for name, content in {"a.mp4": b"1", "copy.mp4": b"1", "c.mp4": b"3"}.items():
        (tmp_path / name).write_bytes(content)
    contents, trained = ContentHashes(tmp_path / "contents"), [clip(tmp_path / "a.mp4")]
    for name in ("copy.mp4", "./a.mp4", "../" + tmp_path.name + "/a.mp4"):
        found = check_held_out(trained, [clip(f"{tmp_path}/{name}"), clip(tmp_path / "c.mp4")], contents)
        assert found.status == "warning" and found.finding.startswith("1 of 2 evaluation clips"), name
        assert "by content" in found.finding
    assert check_held_out(trained, [clip(f"{tmp_path}/./a.mp4")]).status == "warning"
    by_path = check_held_out(trained, [clip(tmp_path / "copy.mp4")])
    assert by_path.status == "ok" and "by path alone" in by_path.finding
    assert check_held_out(trained, [clip(tmp_path / "c.mp4")], contents).status == "ok"
    assert check_held_out(trained, [clip(tmp_path / "a.mp4", (0, 9))], contents).status == "ok", "another segment"
    assert check_held_out(trained, [Record("t", [], (), (), None, {}, "")]) is None
