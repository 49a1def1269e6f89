"""The command: both files, what they hold, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from llava.data.check import main as check
from llava.data.convert.__main__ import main as convert
from llava.data.features.extract import distinct_clips
from llava.data.features.store import FeatureCache
from llava.data.records import load_records
from llava.data.split.__main__ import main, write_records
from tests.conftest import colour_frames, record, write_clip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data.json`: twelve clips of two captions each, the last a copy of the first under another name."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(11):
        write_clip(folder / f"{i}.mp4", colour_frames(i))
    (folder / "11.mp4").write_bytes((folder / "0.mp4").read_bytes())
    records = [record(f"{i}_{n}", f"Testo {i} {n}.", f"{i}.mp4") for n in range(2) for i in range(12)]
    records[0]["note"] = "città"
    (folder / "data.json").write_text(json.dumps(records))
    return folder


def split(data: Path, out: Path, *flags: str, name: str = "data.json") -> tuple[list[dict], list[dict]]:
    parts = (out / "train.json", out / "val.json")
    argv = [
        str(data / name),
        "--video_folder",
        str(data),
        "--train_output",
        str(parts[0]),
        "--val_output",
        str(parts[1]),
    ]
    assert main([*argv, "--num_workers", "0", "--overwrite", *flags]) == 0
    first, second = (json.loads(p.read_text(encoding="utf-8")) for p in parts)
    return first, second


def clips(records: list[dict]) -> set[str]:
    return {r["video"] for r in records}


def test_no_clip_is_on_both_sides_and_no_record_is_lost(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = json.loads((data / "data.json").read_text())
    for seed in range(4):
        train, held_out = split(data, tmp_path, "--seed", str(seed), "--val_maximum_share", ".25")
        assert clips(train).isdisjoint(clips(held_out)) and len(clips(held_out)) == 3
        assert len({"0.mp4", "11.mp4"} & clips(held_out)) != 1, "a copy is on the other side"
        assert sorted(r["id"] for r in train + held_out) == sorted(r["id"] for r in original)
        assert all(r in original for r in train + held_out)
    out = capsys.readouterr().out
    assert "12 clips in 11 groups, the largest of 2" in out and "2 clips have the bytes of another" in out
    assert "held out: 6 records of 3 clips (25.0%)" in out and "next: DATA_PATH=" in out


def test_the_split_does_not_depend_on_the_order_or_on_the_clips_being_there(data: Path, tmp_path: Path) -> None:
    _, first = split(data, tmp_path, "--val_minimum", "1", "--near_duplicates", "none")
    records = json.loads((data / "data.json").read_text())[::-1]
    texts = [{"id": r["id"], "conversations": [{"from": "human", "value": ""}, r["conversations"][1]],
              "meta": {"clip": r["video"].removesuffix(".mp4")}} for r in records]  # fmt: skip
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    _, second = split(tmp_path, tmp_path, "--val_minimum", "1", name="texts.json")
    assert sorted(r["id"] for r in first) == sorted(r["id"] for r in second) and len(first) == 2


def test_features_decide_where_the_cache_has_all_clips(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    records = load_records(data / "data.json", video_folder=data)[0]
    cache = FeatureCache(tmp_path / "cache", {"dtype": "float16"})
    features = np.random.default_rng(0).normal(size=(12, 2, 3, 16)).astype(np.float16)
    features[5] = features[2] + 0.001
    found = {cache.key(*clip): clip for clip in distinct_clips(records)}
    rows = [(key, clip[0]) for key, clip in found.items()]
    cache.write(rows, np.stack([features[int(Path(path).stem)] for _, path in rows]))
    _, held_out = split(data, tmp_path, "--feature_cache", str(tmp_path / "cache"), "--val_maximum_share", ".2")
    assert len({"2.mp4", "5.mp4"} & clips(held_out)) != 1
    out = capsys.readouterr().out
    assert "4 clips look like another, by features in" in out and "12 clips in 10 groups" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--val_fraction", "0"), "nothing was split: --val_fraction is 0"),
        (("--val_fraction", "2"), "--val_fraction 2"),
        (("--near_duplicates", "features"), "does not have all clips"),
        (("--feature_cache", "nowhere"), "--feature_cache nowhere: no such folder"),
        (("--near_duplicates", "looks"), "--near_duplicates"),
        (("--video_folder", "nowhere"), "missing file: 24"),
    ],
)
def test_what_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        split(data, tmp_path, *flags)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_of_few_clips_none_is_held_out(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = json.loads((data / "data.json").read_text())[:9]
    (data / "few.json").write_text(json.dumps(records))
    with pytest.raises(SystemExit):
        split(data, tmp_path, name="few.json")
    assert "of fewer than 10 clips none is held out" in capsys.readouterr().err


def test_earlier_files_are_kept(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "data_val.json").write_text("mine")
    with pytest.raises(SystemExit):
        main([str(data / "data.json"), "--video_folder", str(data)])
    assert "exist already" in capsys.readouterr().err and (data / "data_val.json").read_text() == "mine"


@pytest.mark.parametrize("named", [("a.json", "a.json"), ("data.json", "b.json"), ("a.json", "./data.json")])
def test_no_file_is_written_over_another(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], named: tuple[str, str]
) -> None:
    before = (data / "data.json").read_bytes()
    (tmp_path / "data.json").write_bytes(before)
    outputs = ["--train_output", str(tmp_path / named[0]), "--val_output", str(tmp_path / named[1])]
    with pytest.raises(SystemExit):
        main([str(tmp_path / "data.json"), "--video_folder", str(data), "--by_name", "--overwrite", *outputs])
    assert "name two other files by --train_output and --val_output" in capsys.readouterr().err
    assert (tmp_path / "data.json").read_bytes() == before and not (tmp_path / "a.json").exists()


def test_half_a_character_beside_the_text_is_kept(tmp_path: Path) -> None:
    records = [record(f"r{i}", f"Testo {i}.") | {"note": "\ud800"} for i in range(20)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    assert main([str(tmp_path / "a.json")]) == 0
    sides = [json.loads((tmp_path / f"a_{side}.json").read_text()) for side in ("train", "val")]
    assert sorted(r["id"] for side in sides for r in side) == sorted(r["id"] for r in records)
    assert {r["note"] for side in sides for r in side} == {"\ud800"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    write_records(path, [{"id": "before"}])

    def full(self: Path, *_: object, **__: object) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_records(path, [{"id": "after"}])
    assert path.read_text() == '{"id": "before"}\n' and [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_from_a_table_to_two_files(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{i},Testo {i}.\n" for i in range(12))
    (tmp_path / "captions.csv").write_text(f"videoid,name\n{rows}")
    argv = [str(tmp_path / "captions.csv"), "--video_folder", str(data), "--output", str(tmp_path / "all.json")]
    assert convert(argv) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("next: python -m llava.data.check ")
    assert check([*shlex.split(command), "--num_workers", "0"]) == 0
    assert main([str(tmp_path / "all.json"), "--video_folder", str(data), "--num_workers", "0"]) == 0
    settings = dict(word.split("=", 1) for word in capsys.readouterr().out.splitlines()[-1].split() if "=" in word)
    assert settings == {
        "DATA_PATH": str(tmp_path / "all_train.json"),
        "EVAL_DATA_PATH": str(tmp_path / "all_val.json"),
        "VIDEO_FOLDER": str(data),
    }
    found = [load_records(settings[k], video_folder=data) for k in ("DATA_PATH", "EVAL_DATA_PATH")]
    assert [len(records) for records, _ in found] == [11, 1] and not any(problems for _, problems in found)
