"""The command, on a small hand-made source of every form."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llava.data.convert.__main__ import main
from llava.data.convert.folder import read_cues
from llava.data.convert.tables import _split_in, arrow_files
from llava.data.json_records import DatasetError
from llava.data.records import load_records
from tests.conftest import colour_frames, write_clip

Convert = Callable[..., list[dict]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 2 s at 4 frames a second, under the names of several data sets."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "video0.mp4", colour_frames(0))
    data = (folder / "video0.mp4").read_bytes()
    for name in ("p1/1001.mp4", "p2/1002.MKV", "video7.mp4", "abc_000010_000020.mp4", "b_1_5.avi", "due.mp4",
                 "p1/due.mp4", "p2/due.mp4", "città.mp4"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture
def convert(tmp_path: Path, clips: Path) -> Convert:
    """Converts a text and gives the records, which training reads without a problem."""

    def run(source: str | bytes | Path, *flags: str, name: str = "captions.csv", split: str = "") -> list[dict]:
        path = source if isinstance(source, Path) else tmp_path / name
        if not isinstance(source, Path):
            path.write_bytes(source.encode() if isinstance(source, str) else source)
        output = tmp_path / "out.json"
        folder = [] if "--text_only" in flags or "--image_folder" in flags else ["--video_folder", str(clips)]
        assert main([str(path), "--output", str(output), *folder, *flags]) == 0
        part = output.with_stem(f"out_{split}") if split else output
        images = flags[flags.index("--image_folder") + 1] if "--image_folder" in flags else None
        assert load_records(part, image_folder=images, video_folder=clips)[1] == []
        return json.loads(part.read_text(encoding="utf-8"))

    return run


def captions(records: list[dict]) -> list[tuple[str, str]]:
    return [(r.get("video") or r.get("image") or "", r["conversations"][1]["value"]) for r in records]


def test_webvid_with_quotes_line_breaks_and_a_mark(
    convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "\ufeffvideoid,contentUrl,duration,page_dir,name\r\n"
        '1001,https://x/y.mp4,PT1S,p1,"Un ""gatto"",\nnero"\r\n'
        "1002,https://x/z.mp4,PT1S,p2,Perche\u0301 corre?\r\n"
        "1001,,,p1,Un altro.\r\n"
        "1001,,,p1,Un altro.\r\n"
        "1001,,,p1,  \r\n"
        "999,,,p1,Nessuno.\r\n"
        ",,,p1,Senza clip.\r\n"
        "1001,,,p1,Uno, due.\r\n"
    )
    records = convert(text)
    assert captions(records) == [
        ("p1/1001.mp4", 'Un "gatto", nero'),
        ("p2/1002.MKV", "Perch\u00e9 corre?"),
        ("p1/1001.mp4", "Un altro."),
    ]
    assert [r["id"] for r in records] == ["1001_0", "1002_0", "1001_1"]
    assert records[0]["conversations"][0] == {"from": "human", "value": "<video>"}
    out = capsys.readouterr().out
    assert "CSV (" in out and "columns: clip from videoid, caption from name, folder from page_dir" in out
    assert "3 records of 2 clips" in out and "clips missing: 1" in out
    for line in ("duplicate: 1", "empty caption: 1", "row without clip: 1", "unreadable row: 1"):
        assert line in out
    assert out.splitlines()[-1].startswith("next: python -m llava.data.check --data_path ")
    assert (tmp_path / "out.missing.txt").read_text() == "999\tno such file\t1 caption\n"
    left_out = (tmp_path / "out.left_out.txt").read_text()
    assert "captions.csv:10: unreadable row: 6 columns where there are 5" in left_out
    assert "captions.csv:6: duplicate" in left_out


def test_tsv_without_quotes_and_names_by_number(convert: Convert) -> None:
    text = 'clip\ttesto\n7\t"Ciao" disse\n0\t"Aperto\n0\tChiuso"\n'
    records = convert(text, "--caption_column", "testo", name="a.tsv")
    assert captions(records) == [("video7.mp4", '"Ciao" disse'), ("video0.mp4", '"Aperto'), ("video0.mp4", 'Chiuso"')]


def test_a_quotation_mark_far_down_a_table_without_quotes(convert: Convert, tmp_path: Path) -> None:
    rows = [f"v{i}\tUn uomo {i}" for i in range(1500)]
    rows[1200], rows[1400] = 'v1200\t"Ciao, dice', 'v1400\tDice "ciao"'
    rows[1450], rows[1452] = 'v1450\t"Ciao', 'v1452\tDice ciao"'
    records = convert("video\tcaption\n" + "\n".join(rows) + "\n", "--text_only", name="a.tsv")
    assert len(records) == 1500 and not (tmp_path / "out.left_out.txt").exists()
    assert captions(records)[1450:1453] == [("", '"Ciao'), ("", "Un uomo 1451"), ("", 'Dice ciao"')]


def test_a_table_that_quotes_keeps_quoting_after_one_wrong_row(convert: Convert) -> None:
    text = 'video;caption\nvideo0;"Uno"\nvideo7;"Un "gatto"\nvideo7;"Tre"\n'
    assert captions(convert(text)) == [("video0.mp4", "Uno"), ("video7.mp4", "Tre")]


def test_two_numbers_in_a_name_are_not_always_seconds(convert: Convert, tmp_path: Path) -> None:
    records = convert("video,caption\nvideo0_0_1,Uno\nvideo0_000000_000001,Due\n")
    assert [(r["conversations"][1]["value"], r["meta"]) for r in records] == [("Due", {"split": [0, 3]})]
    assert "video0_0_1\tno such file" in (tmp_path / "out.missing.txt").read_text()


def test_a_table_of_images(convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"x")
    for name in ("image", "filename"):
        records = convert(
            f"{name},caption\n1.jpg,Un piatto.\n", "--image_folder", str(tmp_path / "images"), "--overwrite"
        )
        assert captions(records) == [("1.jpg", "Un piatto.")]
        assert "video" not in records[0] and records[0]["conversations"][0]["value"] == "<image>"


def test_times_with_frames_are_no_seconds(convert: Convert, tmp_path: Path) -> None:
    text = "video;start;end;caption\nvideo0;00:00:00:12;00:00:01:00;Uno\nvideo0;0:00:00.5;0:01,5;Due\n"
    records = convert(text)
    assert [(r["conversations"][1]["value"], r["meta"]) for r in records] == [("Due", {"split": [2, 5]})]
    assert "must be seconds, got '00:00:00:12'" in (tmp_path / "out.left_out.txt").read_text()


def test_whole_clips_where_a_column_of_starts_is_told_off(convert: Convert) -> None:
    records = convert("video,start,caption\nvideo0,1,a\n", "--start_column", "none")
    assert captions(records) == [("video0.mp4", "a")] and "meta" not in records[0]


def test_table_without_header(convert: Convert) -> None:
    records = convert("video0.mp4;Uno\nvideo7.mp4;Due\n", "--no_header", "--clip_column", "1", "--caption_column", "2")
    assert captions(records) == [("video0.mp4", "Uno"), ("video7.mp4", "Due")]


def test_json_lines_with_a_language_in_the_key(convert: Convert) -> None:
    rows = [
        {"videoid": 1001, "name": "A cat", "name_it": "Un gatto"},
        {"videoid": "1002", "name": "A dog", "name_it": None},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert captions(convert(text, "--language", "italian", name="a.jsonl")) == [("p1/1001.mp4", "Un gatto")]
    english = convert(text, "--caption_column", "name", "--overwrite", name="a.jsonl")
    assert captions(english) == [("p1/1001.mp4", "A cat"), ("p2/1002.MKV", "A dog")]


def test_a_language_that_nothing_says_is_not_passed_over(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    assert captions(convert("video,caption\nvideo0,A cat\n", "--language", "it")) == [("video0.mp4", "A cat")]
    assert "--language it: the source says of 1 captions no language; they are taken" in capsys.readouterr().out
    convert("video,caption,language\nvideo0,Un gatto,Italian\n", "--language", "it", "--overwrite")
    assert "no language" not in capsys.readouterr().out


def test_several_languages_must_be_chosen_from(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        convert(json.dumps([{"videoid": 1001, "name": "A cat", "name_it": "Un gatto"}]), name="a.json")
    assert "name (no language named), name_it (it); choose by --language or --caption_column" in capsys.readouterr().err


MSR_VTT = {
    "info": {},
    "videos": [
        {"video_id": "video0", "split": "train", "start time": 137.7, "end time": 149.4},
        {"video_id": "video7", "split": "test", "start time": 0.0, "end time": 30.0},
    ],
    "sentences": [
        {"video_id": "video0", "sen_id": 1, "caption": "un gatto dorme"},
        {"video_id": "video0", "sen_id": 2, "caption": "un gatto su un divano"},
        {"video_id": "video7", "sen_id": 3, "caption": "una palla rotola"},
        {"video_id": "video9", "sen_id": 4, "caption": "di nessuno"},
    ],
}


@pytest.mark.parametrize("packed", [False, True])
def test_msr_vtt_keeps_its_splits(convert: Convert, capsys: pytest.CaptureFixture[str], packed: bool) -> None:
    data = json.dumps(MSR_VTT).encode()
    records = convert(gzip.compress(data) if packed else data, name="msr.json", split="train")
    assert captions(records) == [("video0.mp4", "un gatto dorme"), ("video0.mp4", "un gatto su un divano")]
    assert [r["id"] for r in records] == ["video0_0", "video0_1"]
    out = capsys.readouterr().out
    assert 'MSR-VTT ("videos" and "sentences")' in out and "row without clip: 1" in out
    assert "next: DATA_PATH=" in out and "out_test.json" in out


def test_a_video_of_two_splits_is_refused(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    twice = MSR_VTT | {"videos": [*MSR_VTT["videos"], {"video_id": "video7", "split": "train"}]}
    with pytest.raises(SystemExit):
        convert(json.dumps(twice), name="msr.json")
    assert "video 'video7' is in 'test' and 'train'" in capsys.readouterr().err


def test_a_clip_with_captions_in_two_splits_is_told(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    convert("video,caption,split\nvideo0,a,train\nvideo7,b,train\nvideo0,c,test\n", split="train")
    assert "clips in several splits: 1, such as video0.mp4 in train and test" in capsys.readouterr().out


def test_text_alone_keeps_the_clips_name(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    records = convert(json.dumps(MSR_VTT, indent=1), "--text_only", name="msr.json", split="test")
    assert records == [
        {
            "id": "video7_0",
            "conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "una palla rotola"}],
            "meta": {"clip": "video7"},
        }
    ]
    out = capsys.readouterr().out
    assert "not looked for" in out and "next: EXP_ID=1 DATA_PATH=" in out


def test_vatex_takes_the_language_that_is_asked_for(convert: Convert) -> None:
    content = [
        {"videoID": "abc_000010_000020", "enCap": ["A cat.", "A grey cat."], "chCap": ["\u4e00\u53ea\u732b"]},
        {"videoID": "video0_000000_000001", "enCap": ["A dog."], "chCap": ["\u72d7"]},
    ]
    records = convert(json.dumps(content), "--language", "en", name="vatex.json")
    assert captions(records) == [
        ("abc_000010_000020.mp4", "A cat."),
        ("abc_000010_000020.mp4", "A grey cat."),
        ("video0.mp4", "A dog."),
    ]
    # The file is of the whole video: the seconds in the name are frames of it, 4 a second.
    assert records[2]["meta"] == {"split": [0, 3]} and "meta" not in records[0]


def test_msvd_as_lines_and_as_table(convert: Convert) -> None:
    assert captions(convert("b_1_5 un uccello fa il bagno\nb_1_5 un uccello\n", name="AllVideoDescriptions.txt")) == [
        ("b_1_5.avi", "un uccello fa il bagno"),
        ("b_1_5.avi", "un uccello"),
    ]
    table = (
        "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
        "b,1,5,1,clean,9,Italian,Un uccello.\nb,1,5,2,clean,9,English,A bird.\n"
    )
    records = convert(table, "--language", "it", "--overwrite")
    assert captions(records) == [("b_1_5.avi", "Un uccello.")] and "meta" not in records[0]


def test_coco_captions_are_of_images(convert: Convert, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000000000009.jpg").write_bytes(b"x")
    content = {
        "images": [{"id": 9, "file_name": "000000000009.jpg"}],
        "annotations": [
            {"image_id": 9, "id": 1, "caption": "Un piatto."},
            {"image_id": 8, "id": 2, "caption": "Niente."},
        ],
    }
    records = convert(json.dumps(content), "--image_folder", str(tmp_path / "images"), name="coco.json")
    assert captions(records) == [("000000000009.jpg", "Un piatto.")] and "video" not in records[0]
    assert records[0]["conversations"][0]["value"] == "<image>"


def test_captions_by_clip(convert: Convert) -> None:
    content = {"video0": ["Uno.", "Due."], "video7": ["Tre."]}
    assert captions(convert(json.dumps(content), name="a.json")) == [
        ("video0.mp4", "Uno."), ("video0.mp4", "Due."), ("video7.mp4", "Tre."),
    ]  # fmt: skip


def test_folder_of_clips_with_texts_and_subtitles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "clips", tmp_path / "out.jsonl"
    (folder / "b").mkdir(parents=True)
    for name in ("a.mp4", "b/c.mp4", "nothing.mp4"):
        write_clip(folder / name, colour_frames(1))
    (folder / "a.txt").write_text("Un quadrato.\nSi muove.\n", encoding="utf-8-sig")
    (folder / "b" / "c.it.srt").write_text(
        "1\n00:00:00,000 --> 00:00:00,500\n<i>Va a</i>\ndestra.\n\n2\n00:00:00,500 --> 00:00:01,000\nAncora.\n\n"
        "3\n00:00:09,000 --> 00:00:10,000\nOltre la fine.\n\n4\nrotto\n"
    )
    (folder / "gone.vtt").write_text("WEBVTT\n\nNOTE x\n\n00:00.000 --> 00:01.000\nPerso.\n")
    assert main([str(folder), "--output", str(output)]) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(r["video"], r["conversations"][1]["value"], r.get("meta")) for r in records] == [
        ("a.mp4", "Un quadrato.", None),
        ("a.mp4", "Si muove.", None),
        ("b/c.mp4", "Va a destra.", {"split": [0, 1]}),
        ("b/c.mp4", "Ancora.", {"split": [2, 3]}),
    ]
    assert load_records(output, video_folder=folder)[1] == []
    out = capsys.readouterr().out
    assert "clips missing: 1" in out and "segment outside its clip: 1" in out and "unreadable row: 1" in out
    assert "clip without caption: 1" in out
    assert f"--video_folder {folder}" in out.splitlines()[-1]


def test_texts_beside_clips_with_dots_in_their_names(tmp_path: Path) -> None:
    folder, output = tmp_path / "clips", tmp_path / "out.json"
    folder.mkdir()
    for name in ("lezione.mp4", "lezione.uno.mp4", "lezione.it.mp4", "b.mov"):
        write_clip(folder / name, colour_frames(1))
        (folder / name).with_suffix(".txt").write_text(name)
    (folder / "b.txt").rename(folder / "b.mov.txt")
    (folder / "lezione.en.txt").write_text("English.")
    assert main([str(folder), "--output", str(output)]) == 0
    assert captions(json.loads(output.read_text())) == [
        ("b.mov", "b.mov"),
        ("lezione.mp4", "English."),
        ("lezione.it.mp4", "lezione.it.mp4"),
        ("lezione.mp4", "lezione.mp4"),
        ("lezione.uno.mp4", "lezione.uno.mp4"),
    ]


def test_a_cue_directly_below_the_header() -> None:
    header = "WEBVTT - titolo\n"
    cues = "00:00.000 --> 00:01.000\nPrima.\n\nNOTE 00:00.000 --> 00:01.000\n\n00:01.000 --> 00:02.000\nPoi.\n"
    assert [cue[1:] for cue in read_cues(header + cues)] == [(0.0, 1.0, "Prima."), (1.0, 2.0, "Poi.")]
    assert [cue[0] for cue in read_cues(header + cues)] == [2, 7]


def test_parquet_and_saved_datasets(convert: Convert, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    from pyarrow import parquet

    table = pa.table({"video": ["video0.mp4", "video7.mp4"], "caption": [["Uno.", "Due."], ["Tre."]]})
    folder = tmp_path / "data"
    folder.mkdir()
    parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    expected = [("video0.mp4", "Uno."), ("video0.mp4", "Due."), ("video7.mp4", "Tre.")]
    assert captions(convert(folder, split="train")) == expected
    saved = tmp_path / "saved"
    (saved / "test").mkdir(parents=True)
    (saved / "dataset_dict.json").write_text('{"splits": ["test"]}')
    with (
        pa.OSFile(str(saved / "test" / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as to,
    ):
        to.write_table(table)
    assert captions(convert(saved, split="test")) == expected


def test_parquet_without_pyarrow_says_what_to_install(
    convert: Convert, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit):
        convert(b"PAR1....", name="a.parquet")
    assert "pip install pyarrow" in capsys.readouterr().err


def test_columns_with_italian_names_are_guessed(convert: Convert) -> None:
    assert captions(convert("filmato,Didascalia\n1001,Un gatto.\n")) == [("p1/1001.mp4", "Un gatto.")]


@pytest.mark.parametrize(
    "names",
    [
        ("train/0000", "test/0000"),
        ("msr-train", "msr-test"),
        ("default/train/0000", "default/test/0000-of-1"),
        ("Train-00000-of-00001", "test"),
    ],
)
def test_the_splits_of_parquet_files_are_kept_apart(convert: Convert, tmp_path: Path, names: tuple[str, str]) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    from pyarrow import parquet

    for i, name in enumerate(names):
        path = tmp_path / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table({"video": ["video0.mp4"], "caption": [f"Testo {i}."]}), path)
    assert captions(convert(tmp_path / "data", split="train")) == [("video0.mp4", "Testo 0.")]
    assert captions(convert(tmp_path / "data", "--overwrite", split="test")) == [("video0.mp4", "Testo 1.")]


@pytest.mark.parametrize(
    ("path", "split"),
    [("train-00000-of-00002.parquet", "train"), ("default/validation/0000.parquet", "validation"),
     ("data/it-test.parquet", "test"), ("latest.parquet", ""), ("captions.parquet", ""),
     ("train2014/part.parquet", "train")],
)  # fmt: skip
def test_the_split_in_the_name_of_a_file(path: str, split: str) -> None:
    assert _split_in(path) == split


@pytest.mark.parametrize("names", [["train-00000-of-00002"], ["test-00000-of-00001", "train-00001-of-00002-9f3a"]])
def test_a_shard_that_is_missing_is_named(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / f"{name}.parquet").touch()
    with pytest.raises(
        DatasetError, match=r"train: 1 of its 2 files are missing, the first is train-0000[01]-of-00002"
    ):
        arrow_files(tmp_path)
    (tmp_path / "train-00000-of-00002.parquet").touch()
    (tmp_path / "train-00001-of-00002.parquet").touch()
    assert {split for split, _ in arrow_files(tmp_path)} >= {"train"}


def test_a_split_that_was_not_saved_whole_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "data-00000-of-00002.arrow").touch()
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DatasetError, match=r"test: holds no .arrow file"):
        arrow_files(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(DatasetError, match=r"data: 1 of its 2 files are missing, the first is data-00001-of-00002"):
        arrow_files(tmp_path)


def test_files_without_a_split_beside_others_that_have_one(tmp_path: Path) -> None:
    for name in ("train", "other"):
        (tmp_path / f"{name}.parquet").touch()
    with pytest.raises(DatasetError, match=r"other.parquet: its name says no split"):
        arrow_files(tmp_path)


@pytest.mark.parametrize(
    ("source", "flags", "message"),
    [
        (b"video,caption\nvideo0,perch\xe8 no\n", (), "line 2 is not UTF-8.*perch\u00e8.*--encoding latin-1"),
        (b"\xff\xfev\x00i\x00", (), "is UTF-16"),
        (b"video,caption\rvideo0,a\r", (), r"old Macs.*tr '.r' '.n'"),
        (b"", (), "is empty"),
        (b"PK\x03\x04", (), "ZIP archive"),
        (b"solo testo\nsenza colonne\n", (), "no table"),
        (b"a,b\n1,2\n", (), "no column.*'a', 'b'.*--clip_column"),
        (b"video,caption\nvideo0,a\n", ("--clip_column", "vid"), "no column 'vid'"),
        (b"video,caption\nnone,a\n", (), "no record was written.*is --video_folder right.*--text_only"),
        (b"video,caption,caption\nvideo0,a,b\n", (), "2 columns are called 'caption'"),
        (b"video,start,duration,caption\nvideo0,0,1,a\n", (), "'start' is the start.*--start_column none"),
        (b'[{"video": "video0", "timestamps": [[0, 1]], "sentences": ["a"]}]', (), "'timestamps' is the start"),
        (b'{"video0": ["a"], "video7": ["b"], "video0": ["c"]}', (), "'video0' stands twice"),
        (b"videoid,page_dir,name\nvideo0,a,Uno\nvideo0,b,Due\n", (), "'b/video0' and 'a/video0' are clips"),
        (b'{"id": "a", "conversations": []}\n', (), "reads already"),
        (b'[{"video": "a", "caption"', (), "no JSON"),
        (b"video,caption\nvideo0,a\n", ("--output", "x.csv"), "end it in .json"),
        (b"video,caption\nvideo0,a\n", ("--encoding", "klingon"), "is not known"),
        (b"video,caption\nvideo0,a\n", ("--video_folder", "nowhere"), "no such folder"),
    ],
)  # fmt: skip
def test_wrong_inputs(
    convert: Convert, capsys: pytest.CaptureFixture[str], source: bytes, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        convert(source, *flags)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) <= 12
    assert re.search(message, error), error


def test_half_a_character_in_a_name_is_left_out(convert: Convert, tmp_path: Path) -> None:
    records = convert('[{"video": "a\\ud800", "caption": "Uno"}, {"video": "b", "caption": "Due"}]', "--text_only")
    assert [r["meta"]["clip"] for r in records] == ["b"]
    assert "malformed: a\\ud800: the name: contains" in (tmp_path / "out.left_out.txt").read_text()


def test_latin_1_is_read_when_asked_for(convert: Convert) -> None:
    assert captions(convert("video,caption\nvideo0,perch\xe8\n".encode("latin-1"), "--encoding", "latin-1")) == [
        ("video0.mp4", "perch\u00e8")
    ]


def test_names_are_resolved_as_they_are_on_disk(convert: Convert, tmp_path: Path) -> None:
    text = "video,caption\n/data/x/p1/1001.mp4,Uno\ncitta\u0300,Due\np1/due,Tre\nempty,Quattro\ndue.mp4,Cinque\n"
    records = convert(text)
    assert captions(records) == [
        ("p1/1001.mp4", "Uno"), ("citt\u00e0.mp4", "Due"), ("p1/due.mp4", "Tre"), ("due.mp4", "Cinque"),
    ]  # fmt: skip
    assert "empty\tis empty (0 bytes)" in (tmp_path / "out.missing.txt").read_text()


def test_a_clip_of_the_same_name_in_another_folder_is_not_taken(convert: Convert, tmp_path: Path) -> None:
    records = convert("video,caption\np2/1001.mp4,Uno\n./p1/1001.mp4,Due\nold\\p2\\1002,Tre\n")
    assert captions(records) == [("p1/1001.mp4", "Due"), ("p2/1002.MKV", "Tre")]
    assert "p2/1001.mp4\tno such file; p1/1001.mp4 is called so too" in (tmp_path / "out.missing.txt").read_text()


def test_clips_of_two_folders_are_not_one_file(
    convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        convert("video,caption\nsalto/video7.mp4,Uno\ncorsa/video7.mp4,Due\n")
    assert "'corsa/video7.mp4' and 'salto/video7.mp4' are clips of two folders" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_earlier_files_are_kept(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.json").write_text("[]")
    with pytest.raises(SystemExit):
        convert("video,caption\nvideo0,a\n")
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_text() == "[]" and not list(tmp_path.glob(".*"))


def test_the_source_is_never_replaced(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '[{"video": "video0", "caption": "a"}]'
    with pytest.raises(SystemExit):
        convert(text, "--overwrite", name="out.json")
    assert "is the source itself" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_text() == text


def test_a_folder_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.csv"
    source.write_text("video,caption\nvideo0,a\n")
    with pytest.raises(SystemExit):
        main([str(source), "--output", str(tmp_path / "o.json")])
    assert "--video_folder DIR is needed" in capsys.readouterr().err
