"""Clips in the place of others: never one's own content, the same whatever files are called, or an error."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.data.features.content import ContentHashes
from llava.data.other_clips import clips_named, derange, other_clips
from llava.data.records import Record, text_alone
from llava.errors import UserError


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 99))
def test_no_clip_stays_in_its_group_and_each_is_shown_once(labels, seed):
    groups = np.unique(labels, return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(len(groups)), generator.permutation(len(groups))
    if 2 * np.bincount(groups).max() > len(groups):
        with pytest.raises(UserError, match="more than half"):
            derange(groups, *drawn)
        return
    image = derange(groups, *drawn)
    assert sorted(image) == list(range(len(groups)))
    assert (groups[image] != groups).all()


def test_every_exchange_of_four_clips_is_drawn_about_as_often():
    """There are nine derangements of four."""
    generator, found = np.random.default_rng(0), {}
    for _ in range(900):
        image = tuple(derange(np.arange(4), generator.permutation(4), generator.permutation(4)).tolist())
        found[image] = found.get(image, 0) + 1
    assert len(found) == 9 and min(found.values()) > 50, found


def clip(name: str, videos: list[Path], images: tuple[Path, ...] = (), split: tuple[int, int] | None = None) -> Record:
    turns = [{"from": "gpt", "value": f"{'<video>' * len(videos)}{'<image>' * len(images)} {name}"}]
    return Record(name, turns, tuple(map(str, videos)), tuple(map(str, images)), split, {}, f"x.json:{name}")


def write(folder: Path, **contents: bytes) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write(tmp_path / "clips", **{f"c{n}": bytes([n]) for n in range(8)}, copy0=bytes([0]), film=b"film")


def shown(records, tmp_path, seed=0):
    """What each record is shown, by its id."""
    others = other_clips(records, ContentHashes(tmp_path / "contents"), seed)
    return {r.id: others.of(records, i) for i, r in enumerate(records)}, others


def test_captions_of_a_clip_and_its_copies_are_shown_the_same_other_content(files, tmp_path):
    records = [clip(f"r{n}{m}", [files[f"c{n}"]]) for n in range(8) for m in range(2)]
    records += [clip("copy", [files["copy0"]]), text_alone(clip("text", [files["c1"]]))]
    found, others = shown(records, tmp_path)
    assert found.pop("text") == [] and len(others.named) == 8
    for n in range(8):
        assert found[f"r{n}0"] == found[f"r{n}1"]
    assert found["copy"] == found["r00"]
    content = {name: Path(clips[0][0]).read_bytes() for name, clips in found.items()}
    assert {content[f"r{n}0"] for n in range(8)} == {bytes([n]) for n in range(8)}, "each is shown"
    assert all(content[f"r{n}0"] != bytes([n]) for n in range(8)) and content["copy"] != bytes([0])


def test_it_depends_on_contents_and_seed_and_not_on_names_or_order(files, tmp_path):
    records = [clip(f"r{n}", [files[f"c{n}"]]) for n in range(8)]
    first, others = shown(records, tmp_path)
    mixed = records[:]
    random.Random(1).shuffle(mixed)
    moved = write(tmp_path / "elsewhere", **{f"z{7 - n}": bytes([n]) for n in range(8)})
    renamed = [clip(r.id, [moved[f"z{7 - int(r.id[1])}"]]) for r in mixed]
    second, again = shown(renamed, tmp_path)
    assert again.digest == others.digest
    for name, clips in first.items():
        assert Path(clips[0][0]).read_bytes() == Path(second[name][0][0]).read_bytes()
    assert shown(records, tmp_path, seed=1)[1].digest != others.digest


def test_segments_and_files_of_one_record_belong_together_and_kinds_stay(files, tmp_path):
    c = [files[f"c{n}"] for n in range(8)]
    records = [clip(f"s{n}", [files["film"]], split=(10 * n, 10 * n + 5)) for n in range(3)]
    records += [clip("pair", [c[0], c[1]]), clip("alone", [c[2]]), clip("again", [c[1]])]
    records += [clip("one", [], (c[3],)), clip("two", [c[6]], (c[4],)), clip("three", [], (c[5],))]
    for seed in range(12):
        found, _ = shown(records, tmp_path, seed)
        for record in records:
            own, others = clips_named(record), found[record.id]
            assert [kind for _, _, kind in own] == [kind for _, _, kind in others]
            assert not {path for path, _, _ in own} & {path for path, _, _ in others}
        assert str(c[0]) not in [path for path, _, _ in found["again"]], "it is told apart from what it is told with"
        segments = [(path, split) for clips in found.values() for path, split, _ in clips if path == str(files["film"])]
        assert {split for _, split in segments} <= {(0, 5), (10, 15), (20, 25)}, "with its own segment"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["c0"], r"1 different videos, of which 1 belong together \(.*c0\)"),
        (["c0", "copy0"], "1 different videos, of which 1 belong together"),
        (["c0"] * 3 + ["c1", "c2"], "3 of 5 records with videos show the same one"),
        (["c0", "copy0", "copy0", "c1", "c2"], "3 of 5 records with videos show the same one"),
    ],
)
def test_where_nothing_can_be_exchanged_it_says_so(names, words, files, tmp_path):
    with pytest.raises(UserError, match=f"--other_clips: .*{words}.*cut a long film into files"):
        shown([clip(f"r{n}", [files[name]]) for n, name in enumerate(names)], tmp_path)


def test_a_film_in_segments_is_one_clip_too_many(files, tmp_path):
    records = [clip(f"s{n}", [files["film"]], split=(n, n)) for n in range(3)] + [clip("c", [files["c0"]])] * 2
    with pytest.raises(UserError, match="4 different videos, of which 3 belong together"):
        shown(records, tmp_path)


def test_a_file_that_cannot_be_read_is_named(files, tmp_path):
    records = [clip("a", [files["c0"]]), clip("b", [tmp_path / "gone.mp4"])]
    with pytest.raises(ValueError, match="1 clips cannot be read, the first is .*gone.mp4"):
        shown(records, tmp_path)
