"""The demo data: splits, grammar, clips, determinism."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from itertools import combinations, product
from pathlib import Path

import decord
import numpy as np
import pytest

from llava.constants import DEFAULT_VIDEO_TOKEN
from llava.eval.attributes import check_lexicon, load_lexicon, score_caption
from llava.eval.visual_pairs import exchanged, read_exchanges

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TRIPLE = ("shape", "colour", "direction")
SMALL = {"validation": 1, "validation_combinations": 2, "heldout_clips": 1, "heldout_combinations": 2}


@pytest.fixture
def demo(monkeypatch):
    """The script as a module, with few clips in the splits besides train."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("make_demo_data")
    monkeypatch.setattr(module, "SPLIT_SIZES", SMALL)
    return module


@pytest.fixture
def captions(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("demo_captions")


def make(demo, folder: Path, *options: str) -> Path:
    demo.main(["--output_dir", str(folder), "--num_train", "6", "--num_workers", "1", "--validation", *options])
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def records(folder: Path, split: str, kind: str = "vi") -> list[dict]:
    return json.loads((folder / f"{split}_{kind}_it.json").read_text(encoding="utf-8"))


# Grammar, checked by rules that do not share code with the module.

FEMININE = {"croce", "stella"}
NOUNS = FEMININE | {"cerchio", "quadrato"}
FOUR_ENDINGS = {"rosso", "giallo", "azzurro", "piccolo"}
"""Adjectives in -o, whose feminine ends in -a; all others here have one singular form."""

VERB = r"(si muove|si sposta)"
TOWARDS = r"verso (destra|sinistra|l'alto|il basso)"
THING = r"un[a]? \w+ \w+ \w+"
GROUND = r"(nero|bianco)"
SENTENCES = (
    rf"{THING} {VERB} {TOWARDS} su( uno)? sfondo {GROUND}\.",
    rf"su uno sfondo {GROUND}, {THING} {VERB} {TOWARDS}\.",
    rf"sullo sfondo {GROUND} si vede {THING} che {VERB} {TOWARDS}\.",
    rf"c'è {THING} che {VERB} {TOWARDS} su uno sfondo {GROUND}\.",
    rf"lo sfondo è {GROUND} e {THING} {VERB} {TOWARDS}\.",
)


def agreed(adjective: str, noun: str) -> str:
    return adjective[:-1] + "a" if adjective in FOUR_ENDINGS and noun in FEMININE else adjective


def test_every_caption_is_correct_italian_and_scores_full_marks(captions):
    lexicon = captions.lexicon()
    names = list(captions.ATTRIBUTES)
    assert set(captions.ATTRIBUTES["shape"]) == NOUNS
    for values in product(*captions.ATTRIBUTES.values()):
        attributes = dict(zip(names, values, strict=True))
        noun = attributes["shape"]
        thing = " ".join(
            [
                "una" if noun in FEMININE else "un",
                agreed(attributes["size"], noun),
                noun,
                agreed(attributes["colour"], noun),
            ]
        )
        for phrasing in range(len(captions.PHRASINGS)):
            caption = captions.render_caption(attributes, phrasing)
            assert caption[0].isupper()
            assert thing in caption.lower()
            assert sum(bool(re.fullmatch(s, caption[0].lower() + caption[1:])) for s in SENTENCES) == 1, caption
            assert all(score_caption(caption, attributes, lexicon).values()), caption


def test_phrasings_differ_and_the_lexicon_is_sound(captions):
    check_lexicon(captions.lexicon())
    attributes = {name: values[0] for name, values in captions.ATTRIBUTES.items()}
    texts = {captions.render_caption(attributes, i) for i in range(len(captions.PHRASINGS))}
    assert len(texts) == len(captions.PHRASINGS) >= 6


# Splits.


@pytest.mark.parametrize("seed", range(5))
def test_held_out_triples_are_disjoint_and_their_pairs_stay_in_training(demo, seed):
    triples = demo.split_triples(seed)
    sets = {name: set(members) for name, members in triples.items()}
    assert {name: len(members) for name, members in sets.items()} == {"heldout": 21, "validation": 8, "train": 99}
    assert len(set().union(*sets.values())) == 128
    for held in (*sets["heldout"], *sets["validation"]):
        for places in combinations(range(3), 2):
            assert any(all(t[i] == held[i] for i in places) for t in sets["train"])


def test_no_held_out_triple_is_trained_on(demo):
    splits = demo.plan(0, {"train": 500, **dict.fromkeys(SMALL, 50)})
    triples = {name: {tuple(c.attributes[a] for a in TRIPLE) for c in clips} for name, clips in splits.items()}
    held = triples["heldout_combinations"], triples["validation_combinations"]
    assert not triples["train"] & (held[0] | held[1])
    assert not held[0] & held[1]
    assert triples["heldout_clips"] | triples["validation"] <= triples["train"]
    scenes = [(c.colour, c.background, c.start, c.end) for clips in splits.values() for c in clips]
    assert len(set(scenes)) == len(scenes), "two clips are the same"


def test_motion_covers_the_range_and_the_shape_stays_in_view(demo):
    axis = {"destra": (0, 1), "sinistra": (0, -1), "basso": (1, 1), "alto": (1, -1)}
    for clip in demo.plan(0, {"train": 300})["train"]:
        place, sign = axis[clip.attributes["direction"]]
        travelled = [b - a for a, b in zip(clip.start, clip.end, strict=True)]
        assert travelled[place] * sign >= 0.75 * (1 - 2 * clip.radius) - 1e-9
        assert travelled[1 - place] == 0
        assert all(clip.radius - 1e-9 <= p <= 1 - clip.radius + 1e-9 for p in (*clip.start, *clip.end))


# Files.


def test_a_small_run(demo, tmp_path):
    folder = make(demo, tmp_path / "demo")
    lexicon = load_lexicon(folder / "attributes.json")
    exchanges = read_exchanges(str(folder / "exchanges.tsv"))
    for split, size in {"train": 6, **SMALL}.items():
        seen, text = records(folder, split), records(folder, split, "t")
        assert len(seen) == len(text) == size
        for with_video, without in zip(seen, text, strict=True):
            assert with_video["conversations"][0] == {"from": "human", "value": DEFAULT_VIDEO_TOKEN}
            assert without["conversations"][0] == {"from": "human", "value": ""}
            assert "video" not in without
            caption = with_video["conversations"][1]
            assert caption == without["conversations"][1]
            assert all(score_caption(caption["value"], with_video["meta"]["attributes"], lexicon).values())
            wrong = {e.kind: made for e in exchanges if (made := exchanged(caption["value"], e))}
            assert list(wrong) == ["noun", "colour", "size", "direction", "background"]
            for text in wrong.values():
                told = score_caption(text, with_video["meta"]["attributes"], lexicon)
                assert sorted(told.values()) == [False, *[True] * 4], "one attribute is wrong"
            reader = decord.VideoReader(str(folder / "clips" / with_video["video"]))
            assert (len(reader), reader[0].shape, round(reader.get_avg_fps())) == (12, (112, 112, 3), 6)
    ids = [r["id"] for path in folder.glob("*_it.json") for r in json.loads(path.read_text(encoding="utf-8"))]
    assert len(set(ids)) == len(ids)


def test_a_clip_shows_what_its_caption_says(demo, tmp_path):
    """The centre of what is not background moves as planned, and has the planned colour."""
    folder = make(demo, tmp_path / "demo")
    for clip in demo.plan(0, {"train": 6})["train"]:
        reader = decord.VideoReader(str(folder / "clips" / clip.path))
        frames = [reader[i].asnumpy().astype(float) for i in (0, len(reader) - 1)]
        for frame, planned in zip(frames, (clip.start, clip.end), strict=True):
            rows, columns = np.nonzero(np.abs(frame - clip.background).max(-1) > 60)
            middle = [(a.min() + a.max() + 1) / 2 / demo.SIDE for a in (columns, rows)]
            # A star's and a triangle's outline is not centred vertically.
            assert middle == pytest.approx(planned, abs=0.15 * clip.radius + 0.015)
            x, y = (int(p * demo.SIDE) for p in planned)
            assert frame[y, x] == pytest.approx(clip.colour, abs=20)


def test_files_do_not_depend_on_the_number_of_processes(demo, tmp_path):
    assert contents(make(demo, tmp_path / "one")) == contents(make(demo, tmp_path / "two", "--num_workers", "2"))


def test_another_seed_gives_other_clips(demo, tmp_path):
    clips = [contents(make(demo, tmp_path / s, "--seed", s))["clips/train/00000.mp4"] for s in ("0", "1")]
    assert clips[0] != clips[1]


def test_a_finished_data_set_is_left_alone(demo, tmp_path, capsys, monkeypatch):
    folder = make(demo, tmp_path / "demo")
    monkeypatch.setattr(demo, "write_clip", None)
    make(demo, folder)
    assert "made before" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(demo, tmp_path, monkeypatch):
    folder, whole = tmp_path / "demo", contents(make(demo, tmp_path / "whole"))
    write_clip, written = demo.write_clip, []

    def stop_after_three(clip, folder):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(clip.path)
        write_clip(clip, folder)

    monkeypatch.setattr(demo, "write_clip", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        make(demo, folder)
    assert not list(folder.glob("*_it.json"))

    def only_new(clip, folder):
        assert clip.path not in written
        write_clip(clip, folder)

    monkeypatch.setattr(demo, "write_clip", only_new)
    assert contents(make(demo, folder)) == whole


def test_clips_for_choosing_a_design_are_drawn_when_they_are_asked_for_and_change_nothing_else(demo, tmp_path):
    few = ["--num_train", "6", "--num_workers", "1"]
    demo.main(["--output_dir", str(tmp_path / "demo"), *few])
    without = contents(tmp_path / "demo")
    assert not [name for name in without if "validation" in name]
    with_all = contents(make(demo, tmp_path / "demo"))
    assert {name for name in without if with_all[name] != without[name]} == {"manifest.json"}
    assert with_all == contents(make(demo, tmp_path / "at_once"))
    demo.main(["--output_dir", str(tmp_path / "demo"), *few])
    assert contents(tmp_path / "demo") == with_all


@pytest.mark.parametrize("option", [("--seed", "1"), ("--num_train", "7")])
def test_other_settings_in_the_same_folder_are_refused(demo, tmp_path, option):
    folder = make(demo, tmp_path / "demo")
    before = contents(folder)
    with pytest.raises(SystemExit, match="other settings.*choose another --output_dir"):
        make(demo, folder, *option)
    assert contents(folder) == before


def test_a_folder_with_other_files_is_refused(demo, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not empty"):
        make(demo, tmp_path)
