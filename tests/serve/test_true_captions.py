"""Which true caption belongs to which clip."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from llava.data.records import Record
from llava.serve.true_captions import beside, match, read_true_captions, score_lines
from tests.conftest import record


def make(path: str, caption: str = "Un gatto.", split: tuple[int, int] | None = None) -> Record:
    turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": caption}]
    return Record(path, turns, (path,), (), split, {}, "true.json[0]")


def test_a_record_is_of_the_clip_whose_path_ends_like_its_own():
    clips = ["data/a/0.mp4", "data/b/0.mp4", "data/b/10.mp4"]
    a, b, ten, other = make("a/0.mp4"), make("b/0.mp4"), make("10.mp4"), make("c/0.mp4")
    assert match(clips, [other, ten, b, a, b]) == {clips[0]: [a], clips[1]: [b, b], clips[2]: [ten]}


def test_letters_with_accents_may_be_composed_or_not():
    own = make("caffe\u0300.mp4")
    assert match(["caff\u00e8.mp4"], [own]) == {"caff\u00e8.mp4": [own]}


def test_a_record_that_may_be_of_two_clips_is_refused_until_its_folder_is_named(tmp_path):
    clips = [f"{tmp_path}/a/0.mp4", f"{tmp_path}/b/0.mp4"]
    with pytest.raises(ValueError, match=r"true\.json\[0\]: 0\.mp4 may be .*a/0\.mp4 and .*b/0\.mp4; .*--video_folder"):
        match(clips, [make("0.mp4")])
    own = make(clips[1])
    assert match(clips, [own], full=True) == {clips[1]: [own]}


def test_a_file_of_records_and_what_is_left_out(tmp_path):
    path = tmp_path / "true.json"
    segment = record("c", "Un pezzo.", "0.mp4") | {"meta": {"split": [0, 3]}}
    path.write_text(json.dumps([record("a", "Un gatto.", "0.mp4"), record("b", "Solo testo."), segment]))
    found, remarks = read_true_captions(str(path), ["x/0.mp4", "x/1.mp4"])
    assert {clip: [r.id for r in records] for clip, records in found.items()} == {"x/0.mp4": ["a"]}
    assert [r.removeprefix(f"{path}: ") for r in remarks] == [
        "1 captions of a segment (meta.split) are left out, since clips are captioned whole",
        "no true caption of 1 of 2 clips",
    ]
    found, _ = read_true_captions(str(path), [f"{tmp_path}/0.mp4"], str(tmp_path))
    assert list(found) == [f"{tmp_path}/0.mp4"]


def test_a_file_that_fits_no_clip_or_is_wrong_is_one_message(tmp_path):
    path = tmp_path / "true.json"
    path.write_text(json.dumps([record("a", "Un gatto.", "0.mp4")]))
    with pytest.raises(
        ValueError, match=r"1 captions of whole clips, the first of 0\.mp4, and none .* first of them 1\.mp4"
    ):
        read_true_captions(str(path), ["1.mp4"])
    path.write_text(json.dumps([record("a", "", "0.mp4"), record("b", "", "0.mp4")]))
    with pytest.raises(
        ValueError, match=r"--references .*: 2 problems, the first of them .*true\.json\[0\], empty"
    ) as error:
        read_true_captions(str(path), ["0.mp4"])
    assert "\n" not in str(error.value) and "on_bad_sample" not in str(error.value)


def test_captions_are_scored_beside_those_of_another_clip():
    records = {"a": [make("a", "Un gatto nero dorme.")], "b": [make("b", "Una barca bianca attraversa il lago.")]}
    text = score_lines({"a": "Un gatto nero dorme.", "b": "Una barca bianca attraversa il lago."}, records)
    assert text.startswith("scores on 2 clips with 2 true captions")
    assert re.search(r"^its own caption +1\.00 +10\.00 \[", text, re.MULTILINE)
    assert re.search(r"^another clip's caption +0\.00 +0\.00 \[", text, re.MULTILINE)
    assert "NO CIDEr-D" in score_lines({"a": "Un gatto."}, records)


def test_what_is_printed_beside():
    own = make("a", "Un gatto\nnero.")
    assert beside([]) == ""
    assert beside([own, replace(own, id="b")]) == "Un gatto\\nnero."
    assert beside([own, make("a", "Due.")]) == "Un gatto\\nnero. (and 1 more)"
