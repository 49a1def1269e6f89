"""Worlds with known truth: what is drawn in them, and that the instrument passes there and broken ones do not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scripts.experiments import calibrate

worlds = calibrate.worlds  # The module that it runs.
SEEDS = 120


def test_only_clips_tell_the_class_of_a_rare_noun():
    splits = worlds.plan(0)
    known = worlds.nouns(0)
    rare = {noun: verb for verb, (_, nouns) in known.items() for noun in nouns}
    assert len(rare) == 60 and len({n for lists in known.values() for names in lists for n in names}) == 100
    for clip in splits["train"] + splits["heldout"]:
        words = clip.caption.split()
        assert clip.noun in words and not {"rosso", "blu", "verde", "giallo"} & set(words)
        assert clip.noun not in rare or not set(worlds.CLASSES) & set(words), "a rare noun has no verb"
    taught = [clip for clip in splits["train"] if clip.noun not in rare]
    assert all(clip.verb in clip.caption.split() for clip in taught if "che" in clip.caption.split())
    assert Counter("che" in clip.caption.split() for clip in taught) == {True: 480, False: 480}
    assert set(Counter(clip.noun for clip in splits["train"] if clip.noun in rare).values()) == {10}


def test_a_class_is_seen_in_the_colours_of_its_clips():
    by_class = {}
    for clip in worlds.plan(0)["train"][:200]:
        frame = worlds.draw(clip)[0].reshape(-1, 3).astype(int)
        shown = {tuple(colour) for colour in frame.tolist()}
        assert shown == {*map(tuple, clip.colours), clip.background}
        by_class.setdefault(clip.verb, []).append(np.concatenate(clip.colours))
    means = {verb: np.mean(rows, axis=0) for verb, rows in by_class.items()}
    for verb, rows in by_class.items():
        for row in rows:
            assert min(means, key=lambda v: np.abs(means[v] - row).sum()) == verb


def test_permuted_captions_are_the_same_captions_and_tell_nothing():
    train = worlds.plan(3)["train"]
    dealt = worlds.permuted(train, 3)
    assert Counter(dealt) == Counter(clip.caption for clip in train)
    kept = np.mean(
        [caption.split()[-1] == clip.caption.split()[-1] for caption, clip in zip(dealt, train, strict=True)]
    )
    assert kept < 0.1
    assert worlds.permuted(train, 3) == dealt != worlds.permuted(train, 4)


def test_a_choice_is_right_for_the_likeliest_verb_and_a_tie_shares():
    asked = worlds.choices(0)[:8]
    nats = [1.0, 2.0, 2.0, 2.0, 3.0, 1.0, 3.0, 3.0]
    assert list(calibrate.right_choices(asked, nats).values()) == [1.0, 0.0]
    assert list(calibrate.right_choices(asked[:4], [1.0, 1.0, 2.0, 2.0]).values()) == [0.5]


def runs(rng: np.random.Generator) -> list[dict]:
    """Results as training leaves them: seeds differ much in what V learned, pairs of one seed little in all else."""
    found = []
    nouns = [f"n{i}" for i in range(60)]
    for seed in range(SEEDS):
        seen, level = rng.normal(0.6, 0.12), rng.normal(6.9, 0.05)
        items = rng.normal(0, 0.6, 240)
        for arm in "VMNPQ":
            right = rng.random(60) < (seen if arm == "V" else 0.25)
            blind = level - (0.06 if arm == "V" else 0) + rng.normal(0, 0.005) + items + rng.normal(0, 0.02, 240)
            found.append({"arm": arm, "seed": seed, "blind": blind.tolist(),
                          "choice": dict(zip(nouns, right.astype(float).tolist(), strict=True))})  # fmt: skip
    return found


@pytest.fixture(scope="module")
def trained() -> list[dict]:
    return runs(np.random.default_rng(5))


def test_the_instrument_passes_and_broken_ones_do_not(trained):
    rows = calibrate.table(trained)
    assert not calibrate.faults(rows)
    held = {(r["world"], r["measure"]): r for r in rows if r["seeds"] == 3 and r["world"] != "planted"}
    assert set(held) == {(w, m) for w in ("permuted", "swapped", "a/a") for m in ("choice", "blind")}
    assert held["permuted", "choice"]["replicates"] == 40 and held["a/a", "choice"]["replicates"] == 20
    for broken, wrong in (("unpaired", "half an interval"), ("items", "a true zero"), ("same", "the planted effect")):
        assert any(wrong in fault for fault in calibrate.faults(calibrate.table(trained, broken))), broken


def test_no_two_replicates_share_a_run(trained):
    known = {(run["arm"], run["seed"]): run for run in trained}
    for world in calibrate.WORLDS:
        used = [id(run) for pairs in calibrate.replicates(world, known) for pair in pairs for run in pair]
        assert len(used) == len(set(used)) and used


def test_what_is_not_there_yet_is_trained_once(tmp_path, monkeypatch, capsys):
    asked, made = [], {(run["arm"], run["seed"]): run for run in runs(np.random.default_rng(1))}

    def train(folder: Path, arm: str, seed: int, steps: int) -> dict:
        asked.append((arm, seed))
        return made[arm, seed] | {"cpu_seconds": 1.0}

    monkeypatch.setattr(calibrate, "train", train)
    monkeypatch.setattr(calibrate, "make_world", lambda folder: None)
    folder = ["--output", str(tmp_path)]
    calibrate.main([*folder, "--seeds", "2", "--arms", "VM", "--share", "1/2"])
    calibrate.main([*folder, "--seeds", "2", "--arms", "VM"])
    assert sorted(asked) == [("M", 0), ("M", 1), ("V", 0), ("V", 1)]
    assert len(list(tmp_path.glob("runs_*.jsonl"))) == 2
    assert "of the verbs right" in capsys.readouterr().out
    for flags in (["--arms", "VX"], ["--broken", "all"]):
        with pytest.raises(ValueError, match="VX|X;|all"):
            calibrate.main([*folder, *flags])


def test_half_a_line_and_runs_of_other_steps_are_no_runs(tmp_path, capsys):
    path = tmp_path / "runs_1_of_1.jsonl"
    run = {"arm": "V", "seed": 0, "steps": 400}
    calibrate.add_run(path, run)
    calibrate.add_run(path, run | {"seed": 1, "steps": 9})
    with open(path, "a") as file:
        file.write('{"arm": "V", "seed": 2, "cho')
    calibrate.add_run(path, run | {"seed": 3})
    assert [r["seed"] for r in calibrate.read_runs(tmp_path, 400)] == [0, 3]
    said = capsys.readouterr().out
    assert "runs_1_of_1.jsonl:3: cut off" in said and "1 runs of other than 400 steps" in said


@pytest.mark.slow
def test_a_short_form_trains_judges_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(worlds, "plan", lambda seed, plan=worlds.plan: {k: v[:48] for k, v in plan(seed).items()})
    folder = ["--output", str(tmp_path), "--seeds", "1", "--steps", "3"]
    calibrate.main([*folder, "--arms", "VQT"])
    lines = [json.loads(line) for line in (tmp_path / "runs_1_of_1.jsonl").read_text().splitlines()]
    assert [line["arm"] for line in lines] == ["V", "Q", "T"]
    for line in lines:
        assert len(line["choice"]) == 60 and len(line["blind"]) == 48 and np.isfinite(line["blind"]).all()
