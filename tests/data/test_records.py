from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.constants import VISUAL_TOKENS
from llava.data.coordinates import register
from llava.data.prompt import reserved_tokens
from llava.data.records import (
    DatasetError,
    Problem,
    Record,
    apply_policy,
    format_problems,
    load_records,
    missing_files,
    remarks,
    text_alone,
)
from tests.conftest import make_tokenizer


def record(i: int = 0, **changes: Any) -> dict:
    """A good record with a video; a change to None removes the key."""
    turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "Un gatto è sul divano."}]
    whole = {"id": f"r{i}", "video": f"{i}.mp4", "conversations": turns, **changes}
    return {key: value for key, value in whole.items() if value is not None}


def turns(human: str, gpt: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


def load(tmp_path: Path, *raw: Any, **options: Any) -> tuple[list[Record], list[Problem]]:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(raw))
    return load_records(path, **options)


def test_a_good_record(tmp_path: Path) -> None:
    raw = record(7, meta={"split": [3, 9.0], "topic": "gatti"}, other="fine")
    records, problems = load(tmp_path, raw, video_folder="/clips")
    assert problems == []
    assert records == [
        Record("r7", raw["conversations"], ("/clips/7.mp4",), (), (3, 9), raw["meta"], f"{tmp_path / 'data.json'}[0]")
    ]


def test_paths_take_their_folders(tmp_path: Path) -> None:
    raw = record(0, video=["a.mp4", "b.mp4"], image="c.png", conversations=turns("<image> <video> <video>", "Un cane."))
    records, problems = load(tmp_path, raw, record(1), video_folder=tmp_path / "v", image_folder="i")
    assert problems == []
    assert records[0].videos == (f"{tmp_path}/v/a.mp4", f"{tmp_path}/v/b.mp4")
    assert records[0].images == ("i/c.png",)
    assert load(tmp_path, record(1))[0][0].videos == ("1.mp4",)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "txt"])
@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_content_decides_the_format(tmp_path: Path, suffix: str, lines: bool, encoding: str) -> None:
    path = tmp_path / f"data.{suffix}"
    raw = [record(i) for i in range(3)]
    text = "\n\n".join(json.dumps(r, ensure_ascii=False) for r in raw) + "\n" if lines else json.dumps(raw, indent=1)
    path.write_text(text, encoding=encoding)
    records, problems = load_records(path)
    assert problems == []
    assert [r.id for r in records] == ["r0", "r1", "r2"]
    assert records[0].conversations[1]["value"] == "Un gatto è sul divano."
    assert [r.source for r in records] == (
        [f"{path}:1", f"{path}:3", f"{path}:5"] if lines else [f"{path}[{i}]" for i in range(3)]
    )


BAD: list = [
    pytest.param(["a list"], "malformed", "must be an object", id="no object"),
    pytest.param(record(id=""), "no id", "''", id="empty id"),
    pytest.param(record(id=float("nan")), "no id", "nan", id="id is not a number"),
    pytest.param(record(id=float("inf")), "no id", "inf", id="id is infinite"),
    pytest.param(record(id=True), "no id", "True", id="id is a truth value"),
    pytest.param(record(conversations=None), "malformed", "conversations must be a list", id="no conversations"),
    pytest.param(record(conversations=[]), "malformed", "at least one", id="no turn"),
    pytest.param(record(conversations=["<video>"]), "malformed", "turn 0 must be an object", id="turn is a text"),
    pytest.param(record(conversations=[{"from": "bot", "value": "x"}]), "malformed", "'bot'", id="unknown role"),
    pytest.param(record(conversations=[{"from": "gpt"}]), "malformed", "turn 0: value", id="no value"),
    pytest.param(record(video=3), "malformed", "video must be a path", id="video is a number"),
    pytest.param(record(video=["a.mp4", ""]), "malformed", "video must be a path", id="empty path"),
    pytest.param(record(meta=[1]), "malformed", "meta must be an object", id="meta is a list"),
    pytest.param(
        record(conversations=turns("<video> <video>", "Un cane.")), "count mismatch", "2 <video> in the text, but 1 ",
        id="two placeholders, one video",
    ),
    pytest.param(record(video=None), "count mismatch", "1 <video> in the text, but 0 ", id="no video"),
    pytest.param(
        record(conversations=turns("", "Un cane.")), "count mismatch", "0 <video> in the text, but 1 ",
        id="no placeholder",
    ),
    pytest.param(
        record(conversations=turns("<image>", "Un cane."), video=None), "count mismatch", "1 <image> in", id="no image"
    ),
    pytest.param(record(conversations=turns("<video>", " ")), "empty caption", "no gpt turn", id="empty caption"),
    pytest.param(
        record(conversations=turns("", " <video>\n")), "empty caption", "no gpt turn", id="placeholder as caption"
    ),
    pytest.param(
        record(conversations=[{"from": "human", "value": "<video> Un cane."}]), "empty caption", "no gpt turn",
        id="no gpt turn",
    ),
    pytest.param(
        record(conversations=turns("<video>", "fine\ud800")), "malformed", "half of a character", id="lone surrogate"
    ),
    pytest.param(record(conversations=turns("<video>", "\u200b\ufeff")), "empty caption", "no gpt turn", id="unseen"),
    pytest.param(record(conversations=turns("<video>", "Un\0gatto")), "control character", "'\\x00'", id="NUL"),
    pytest.param(
        record(conversations=turns("", "Il tag <video>.")), "misplaced placeholder", "in an answer", id="literal tag"
    ),
    pytest.param(
        record(conversations=turns("<video>", "Un cane.")[::-1]), "misplaced placeholder", "no word follows",
        id="caption before video",
    ),
    pytest.param(
        record(video=None, Video="a.mp4", conversations=turns("", "Un cane.")), "unread key", "'Video'", id="Video"
    ),
    pytest.param(
        record(video=None, videos=["a.mp4"], conversations=turns("Descrivi.", "Un cane.")), "count mismatch",
        "0 <video> in the text, but 1 ", id="videos without placeholder",
    ),
    pytest.param(record(video=None, videos=[{"path": "a.mp4"}]), "malformed", "videos must be a path", id="videos"),
    pytest.param(record(id="a\ud800"), "malformed", "id: contains", id="lone surrogate in an id"),
    pytest.param(record(video="a\ud800.mp4"), "malformed", "video: contains", id="lone surrogate in a path"),
    *[
        pytest.param(record(conversations=turns("<video>", f"Un {token} cane.")), "reserved token", token, id=token)
        for token in (*VISUAL_TOKENS, "<|endoftext|>")
    ],
    *[
        pytest.param(record(meta={"split": split}), "bad split", "expected two frame numbers", id=f"split {split}")
        for split in ([1], [1, 2, 3], "1-2", [5, 4], [-1, 4], [0.5, 3.25], ["0", "4"], [True, 4], [0, float("inf")],
                      [float("nan"), 3], {"start": 1})
    ],
]  # fmt: skip


@pytest.mark.parametrize(("raw", "kind", "message"), BAD)
def test_a_bad_record_is_one_problem_that_names_it(tmp_path: Path, raw: Any, kind: str, message: str) -> None:
    records, problems = load(tmp_path, record(99), raw)
    assert [p.kind for p in problems] == [kind]
    assert message in problems[0].message
    assert problems[0].source == f"{tmp_path / 'data.json'}[1]"
    assert [r.id for r in apply_policy(records, problems, "skip")] == ["r99"]


def test_all_problems_of_a_record_are_found(tmp_path: Path) -> None:
    raw = record(0, id="", meta={"split": 3}, conversations=turns("<image> <vid_patch>", ""))
    kinds = {p.kind for p in load(tmp_path, raw)[1]}
    assert kinds == {"no id", "bad split", "count mismatch", "reserved token", "empty caption"}


@pytest.mark.parametrize("split", [None, [4, 4], [0, 7]])
def test_good_splits(tmp_path: Path, split: list | None) -> None:
    records, problems = load(tmp_path, record(0, meta={"split": split}))
    assert problems == []
    assert records[0].split == (tuple(split) if split else None)


def test_text_only_and_null_files_are_fine(tmp_path: Path) -> None:
    raw = {"id": 12, "conversations": turns("", "Un cane."), "video": None, "image": []}
    records, problems = load(tmp_path, raw)
    assert problems == []
    assert records[0].id == "12"
    assert records[0].videos == records[0].images == ()


def test_records_without_an_id_are_called_by_file_and_place(tmp_path: Path) -> None:
    """Wherever the file lies, and whatever stands before it in a list of files."""
    raw = [record(0, id=None), record(1, id="eins"), {**record(2), "id": None}]
    records, problems = load(tmp_path, *raw)
    assert problems == [] and [r.id for r in records] == ["data.json[0]", "eins", "data.json[2]"]
    lines = tmp_path / "other" / "lines.jsonl"
    lines.parent.mkdir()
    lines.write_text("\n\n".join(json.dumps(r) for r in raw))
    assert [r.id for r in load_records(lines)[0]] == ["lines.jsonl:1", "eins", "lines.jsonl:5"]
    both, problems = load_records(f"{lines},{tmp_path / 'data.json'}")
    assert problems == []
    assert [r.id for r in both] == [
        "lines.jsonl:1", "lines.jsonl/eins", "lines.jsonl:5", "data.json[0]", "data.json/eins", "data.json[2]"
    ]  # fmt: skip


def test_float_ids_are_what_the_json_says(tmp_path: Path) -> None:
    records, problems = load(tmp_path, record(0, id=1.0), record(1, id=1), record(2, id=2.5), record(3, id=1.0))
    assert [r.id for r in records] == ["1.0", "1", "2.5", "1.0"]
    assert [(p.kind, p.source[-3:]) for p in problems] == [("duplicate id", "[3]")]


def test_clips_under_videos_are_read(tmp_path: Path) -> None:
    raw = record(0, video=None, videos=["a.mp4"]), record(1, images=["c.png"], video=None)
    raw[1]["conversations"] = turns("<image>", "Un cane.")
    records, problems = load(tmp_path, *raw)
    assert problems == [] and (records[0].videos, records[1].images) == (("a.mp4",), ("c.png",))


def test_a_repeated_key_names_record_and_key(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(f'[{json.dumps(record(0))}, {json.dumps(record(1))[:-1]}, "video": "2.mp4"}}]')
    records, problems = load_records(path)
    assert [(p.source, p.record_id, p.kind, p.message) for p in problems] == [
        (f"{path}[1]", "r1", "repeated key", "'video' stands there twice")
    ]
    assert [r.id for r in apply_policy(records, problems, "skip")] == ["r0"]


def test_remarks_stop_nothing(tmp_path: Path) -> None:
    records, problems = load(
        tmp_path, record(0), record(1, conversations=turns("<video>", "NaN")), record(2, thumbnail="2.jpg")
    )
    assert problems == []
    assert [(p.record_id, p.kind) for p in remarks(records)] == [("r1", "doubtful caption"), ("r2", "unread key")]
    assert remarks([text_alone(r) for r in records]) == remarks(records)
    assert format_problems(remarks(records), noun="remark").startswith("2 remarks in 2 records")


def test_white_space_around_placeholders_is_laid_out(tmp_path: Path) -> None:
    (read,), _ = load(tmp_path, record(0, conversations=turns("<video>\nDescrivi.", "Un gatto.\nDorme.")))
    assert read.conversations == turns("<video> Descrivi.", "Un gatto.\nDorme.")
    assert text_alone(read).conversations == turns("Descrivi.", "Un gatto.\nDorme.")


def test_ids_and_names_cannot_forge_a_line(tmp_path: Path) -> None:
    name = "a\nno problem in 1 records\x1b[2J\u202e.mp4"
    records, problems = load(tmp_path, record(0, id=name, video=name), record(1, video="\udce8.mp4"), video_folder="v")
    problems += missing_files(records)
    text = format_problems(problems)
    assert len(problems) == 2 and len(text.splitlines()) == 4
    assert all(c.isprintable() or c == "\n" for c in text)
    assert records[0].id == "a\\nno problem in 1 records\\x1b[2J\\u202e.mp4" and records[1].videos == ("v/\udce8.mp4",)
    assert "'v/\\udce8.mp4': no such file" in text


FAULTY = Path(__file__).resolve().parents[3] / "shared" / "data" / "faulty"


@pytest.mark.skipif(not FAULTY.is_dir(), reason=f"no faulty inputs at {FAULTY}")
@pytest.mark.parametrize(
    ("name", "clips", "kind", "ids"),
    [
        ("colon_name", "", "", ""),
        ("float_id", "", "", ""),
        ("path_that_looks_right", "clips", "missing file", "r0 r1 r2"),
        ("videos_key", "../clips", "count mismatch", "r1 r2 r3"),
        ("caption_before_video", "../clips", "misplaced placeholder", "r0 r1 r2 r3 r4 r5"),
        ("literal_tag", "../clips", "misplaced placeholder", "r3"),
        ("empty_looking_caption", "clips", "empty caption", "r1"),
        ("disguised/duplicate_keys.json", "", "repeated key", "r0"),
    ],
)
def test_faulty_inputs(name: str, clips: str, kind: str, ids: str) -> None:
    path = FAULTY / name if name.endswith(".json") else FAULTY / name / "data.json"
    records, problems = load_records(path, video_folder=path.parent / clips, allow_absolute_paths=True)
    problems += missing_files(records)
    assert [(p.kind, p.record_id) for p in problems] == [(kind, i) for i in ids.split()]


def test_real_records_are_clean(real_clips: Path) -> None:
    for path in real_clips.glob("*.json"):
        records, problems = load_records(path, video_folder=real_clips)
        assert len(records) == 12 and problems == missing_files(records) == remarks(records) == []


def test_duplicate_id_names_both_places(tmp_path: Path) -> None:
    records, problems = load(tmp_path, record(0), record(1), record(0, video="other.mp4"))
    assert [(p.kind, p.source[-3:]) for p in problems] == [("duplicate id", "[2]")]
    assert "data.json[0]" in problems[0].message
    assert [r.videos for r in apply_policy(records, problems, "skip")] == [("0.mp4",), ("1.mp4",)]


def test_reserved_tokens_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    raw = record(0, conversations=turns("<video>", "Il simbolo <pad> è strano."))
    assert load(tmp_path, raw)[1] == []
    assert [p.kind for p in load(tmp_path, raw, reserved=("<pad>",))[1]] == ["reserved token"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no such file.*--data_path"),
        (b"", "holds no record"),
        (b" \n", "holds no record"),
        (b"[]", "holds no record"),
        (b'[{"id": 1},\n {"id" 2}]', "line 2, column 8"),
        (b'{"id": 1,\n "conversations": []}', "line 1, column 10.*one JSON object on each line"),
        (b"id,caption\n1,gatto", "line 1, column 1"),
        (b'"text"', "holds str"),
        (b'[{"id": "a"},\n {"id": "caff\xe8"}]', "line 2: not UTF-8"),
        (b'{"id": "a"}\n{"id": "caff\xe8"}\n', "line 2: not UTF-8"),
    ],
)
def test_wrong_file_is_an_error_with_line_and_column(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "data.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DatasetError, match=message) as raised:
        load_records(path)
    assert str(path) in str(raised.value)


def test_later_line_that_is_not_json_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record(0)) + '\n{"id": \n' + json.dumps(record(1)))
    records, problems = load_records(path)
    assert [r.id for r in records] == ["r0", "r1"]
    assert [(p.kind, p.source) for p in problems] == [("not JSON", f"{path}:2")]


@pytest.mark.parametrize(("number", "value", "message"), [
    (0, "{", "record [0], line 1, column "),
    (15_555, '{"id": "x" "video": "a.mp4"}', "record [15555], line 1, column 2"),
    (10_000, "9" * 5000, "record [10000], Exceeds the limit"),
    (3, "[" * 100_000, "record [3], maximum recursion depth exceeded"),
])  # fmt: skip
def test_one_malformed_record_among_20_000(tmp_path: Path, number: int, value: str, message: str) -> None:
    """In a list that is written in one line, and in lines."""
    path = tmp_path / "data.json"
    rows = [json.dumps(record(i)) for i in range(20_000)]
    rows[number] = value
    path.write_text(f"[{', '.join(rows)}]")
    with pytest.raises(DatasetError) as raised:
        load_records(path)
    assert f"{path}: {message}" in str(raised.value)
    if number:
        path.write_text("\n".join(rows))
        records, problems = load_records(path)
        assert len(records) == 19_999 and [(p.kind, p.source) for p in problems] == [
            ("not JSON", f"{path}:{number + 1}")
        ]


def test_a_wrong_field_among_20_000_is_named_with_its_record(tmp_path: Path) -> None:
    raw = [record(i) for i in range(20_000)]
    raw[14_321] = record(14_321, conversations=[{"from": "human", "value": "<video>"}, {"from": "gpt", "value": 7}])
    _, problems = load(tmp_path, *raw)
    assert [(p.source[-7:], p.record_id, p.message) for p in problems] == [
        ("[14321]", "r14321", "turn 1: value must be a text, got 7")
    ]


OUTSIDE_PATHS = ["/etc/passwd", "../secret.mp4", "a/../../b.mp4", "a/../b.mp4", "..", "a\\..\\..\\b.mp4"]


@pytest.mark.parametrize("path", OUTSIDE_PATHS)
@pytest.mark.parametrize("key", ["video", "image"])
@pytest.mark.parametrize("folder", [None, "clips"])
def test_paths_stay_under_their_folder_unless_allowed(tmp_path: Path, path: str, key: str, folder: str | None) -> None:
    raw = {"id": "evil", key: ["fine.mp4", path], "conversations": turns(f"<{key}> <{key}>", "Un cane.")}
    folders = {"video_folder": folder, "image_folder": folder}
    records, problems = load(tmp_path, raw, record(1), **folders)
    assert [(p.kind, p.record_id) for p in problems] == [("path outside folder", "evil")]
    assert repr(path) in problems[0].message and key in problems[0].message
    assert "--allow_absolute_paths" in format_problems(problems)
    assert [r.id for r in apply_policy(records, problems, "skip")] == ["r1"]
    assert load(tmp_path, raw, **folders, allow_absolute_paths=True)[1] == []


@pytest.mark.parametrize("path", ["a..mp4", "..a/b.mp4", "a/b...mp4", "./a.mp4", "a b/ç.mp4"])
def test_odd_names_inside_the_folder_are_fine(tmp_path: Path, path: str) -> None:
    records, problems = load(tmp_path, record(0, video=path), video_folder=tmp_path)
    assert problems == [] and records[0].videos == (f"{tmp_path}/{path}",)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "0.mp4").write_bytes(b"x")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "0.mp4").symlink_to(tmp_path / "disk" / "0.mp4")
    (tmp_path / "clips" / "part").symlink_to(tmp_path / "disk")
    records, problems = load(tmp_path, record(0), record(1, video="part/0.mp4"), video_folder=tmp_path / "clips")
    assert problems == missing_files(records) == []


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "1.mp4").write_bytes(b"")
    (tmp_path / "2.mp4").mkdir()
    (tmp_path / "3.mp4").write_bytes(b"x")
    records, problems = load(
        tmp_path, *[record(i) for i in range(4)], record(4, video="0.mp4"), record(5, video="nul\0.mp4"),
        video_folder=tmp_path,
    )  # fmt: skip
    assert problems == []
    missing = missing_files(records)
    assert [(p.record_id, p.kind) for p in missing] == [(f"r{i}", "missing file") for i in (0, 1, 2, 4, 5)]
    for problem, words in zip(missing, ("no such file", "empty", "folder", "no such file", "null"), strict=True):
        assert words in problem.message
    assert missing[0].message == f"{str(tmp_path / '0.mp4')!r}: no such file"


def problems_of(count: int, kind: str = "bad split") -> list[Problem]:
    return [Problem(f"data.json[{i}]", f"r{i}", kind, f"message {i}") for i in range(count)]


def test_format_groups_and_counts() -> None:
    text = format_problems(problems_of(30) + problems_of(3, "missing file"), limit=10)
    assert text.splitlines()[0] == "33 problems in 30 records"
    assert "  bad split: 30 (meta.split counts frames" in text
    assert "  missing file: 3 (put the file there" in text
    assert "    data.json[4] id 'r4': message 4" in text
    assert "    ... and 25 more" in text
    assert text.count(": message") == 8
    assert format_problems(problems_of(30), limit=None).count(": message") == 30


def test_policy(tmp_path: Path) -> None:
    records, _ = load(tmp_path, record(0), record(1))
    bad = [Problem(records[0].source, "r0", "bad split", "message")]
    assert apply_policy(records, [], "stop") == records
    assert apply_policy(records, bad, "skip") == records[1:]
    with pytest.raises(DatasetError, match=r"data.json\[0\] id 'r0': message(.|\n)*--on_bad_sample skip"):
        apply_policy(records, bad, "stop")
    with pytest.raises(DatasetError, match="no record is left"):
        apply_policy(records[:1], bad, "skip")
    with pytest.raises(ValueError, match="stop or skip"):
        apply_policy(records, [], "replace")


def test_inputs_are_not_changed(tmp_path: Path) -> None:
    records, _ = load(tmp_path, record(0))
    assert not hasattr(records[0], "__dict__")
    with pytest.raises(AttributeError):
        records[0].id = "other"  # type: ignore[misc]


PLACES = "Dove? [<WIDTH-OUTPUT>"


@pytest.mark.parametrize(("more", "off", "on"), [
    ({"variables": {"spatial_width_output_locations": [0.25]}}, "<WIDTH-OUTPUT> in the text stands for a number", ""),
    ({"variables": {"spatial_width_output_locations": [1.25]}}, "no --mm_coordinates", "is 1.25, which is not from 0"),
    ({}, "there is no --mm_coordinates True", "1 <WIDTH-OUTPUT> in the text, but 0 numbers"),
    ({"caption": "Un gatto.", "variables": {"temporal_input_locations": [0.5]}}, "variables hold numbers", "0 <TEMP"),
    ({"caption": "A <TEMP-012>."}, "<TEMP-012> in the text stands for a number", ""),
    ({"caption": "A <TEMP-100>."}, "<TEMP-100> in the text", "<TEMP-100> is no coordinate: they are <TEMP-000> to <T"),
    ({"caption": "Un gatto.", "variables": {"temporal_input_locations": []}}, "", ""),
    ({"caption": "Un gatto.", "variables": None}, "", ""),
])  # fmt: skip
def test_numbers_of_a_record(tmp_path, more, off, on):
    raw = {"id": "r", "conversations": turns("", more.get("caption", PLACES))}
    raw |= {"variables": more["variables"]} if "variables" in more else {}
    (tmp_path / "data.json").write_text(json.dumps([raw]))
    for allowed, said in ((False, off), (True, on)):
        (record,), problems = load_records(tmp_path / "data.json", reserved=reserved_tokens(make_tokenizer(), allowed))
        assert [p.kind for p in problems] == ["coordinates"] * bool(said)
        assert all(said in p.message for p in problems)
        whole = allowed and not said and "variables" in more and more.get("caption") is None
        assert record.coordinates == ((0.25,) if whole else ())
    if off:
        assert "need --mm_coordinates True" in format_problems(problems or [Problem("x", "r", "coordinates", off)])


def test_a_tokenizer_that_knows_coordinates_allows_them():
    tokenizer = make_tokenizer()
    assert "<TEMP-INPUT>" in reserved_tokens(tokenizer) and "<TEMP-INPUT>" not in reserved_tokens(None)
    register(tokenizer)
    assert "<TEMP-INPUT>" not in reserved_tokens(tokenizer) and "<TEMP-INPUT>" in reserved_tokens(tokenizer, False)
