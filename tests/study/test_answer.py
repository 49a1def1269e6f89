"""A study's answer in words from made-up results: helps, harms, nothing shown, no verdict; and its pages."""

from __future__ import annotations

import csv
import json

import pytest

from llava.errors import UserError
from llava.study.answer import write_answer
from tests.study.made import make_study


def kind(folder, **options):
    return write_answer(make_study(folder, **options)).verdict


def test_a_planted_help_is_found_with_what_it_goes_with(tmp_path):
    verdict = kind(tmp_path, effect=-0.03, by_norm=-0.02, seeds=8)
    assert verdict.kind == "helps"
    assert (
        verdict.headline.startswith("Seeing helps: −0.0") and "nats a blind word, 8 seeds, 28 captions" in verdict.text
    )
    assert "The effect of seeing grows with visual strength (−0.0" in verdict.text
    assert "pilot" not in verdict.text and "V sees: −0.5" in verdict.text
    assert "Having any video, the wrong one (M − T): −0.0" in verdict.text


def test_a_planted_harm_is_found_and_five_seeds_are_a_pilot(tmp_path):
    verdict = kind(tmp_path, effect=0.03)
    assert verdict.kind == "harms" and "5 seeds are a pilot; a claim takes 8 or more" in verdict.text
    assert "No dependence of the effect on visual strength shown" in verdict.text


def test_nothing_is_found_where_nothing_is_and_it_says_what_could_have_been(tmp_path):
    verdict = kind(tmp_path, seeds=3, spread=0.03)
    assert verdict.kind == "no difference shown"
    assert "3 seeds are less than a pilot, which takes 5; a claim takes 8 or more" in verdict.text
    assert "not ruled out" in verdict.text and "3 seeds see an effect of 0." in verdict.text
    assert "to see one of 0.02 you would need about" in verdict.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sees": 0.0}, "V was not shown to see: on held-out captions with their own videos it is no better than M"),
        ({"share": 0.0}, "train with --blind_share 0.5"),
        ({"share": None}, "not recorded whether V and M were shown captions without video"),
        ({"seeds": 1}, "one seed cannot say how far the difference moves"),
        ({"seeds": 2}, "two seeds say too little"),
        ({"clips": 3}, "what was held out is 3 clips"),
    ],
)
def test_without_an_instrument_there_is_no_verdict(tmp_path, options, reason):
    verdict = kind(tmp_path, **({"effect": -0.03, "seeds": 3, "clips": 15} | options))
    assert verdict.kind == "no verdict" and reason in verdict.headline
    assert "What was measured, V − M on captions: " in verdict.text and "Each seed: " in verdict.text
    assert "grows with" not in verdict.text


def test_two_runs_that_are_one_are_no_null_result(tmp_path):
    make_study(tmp_path, seeds=3, clips=12)
    for seed in range(3):
        for name in ("blind_words.csv", "sighted_captions.csv", "pairs_colour.csv"):
            same = (tmp_path / f"seed{seed}" / "M" / "tests" / name).read_text()
            (tmp_path / f"seed{seed}" / "V" / "tests" / name).write_text(same)
    verdict = write_answer(tmp_path).verdict
    assert verdict.kind == "no verdict" and "the same to the last digit" in verdict.headline


def test_pairs_can_be_the_primary_test(tmp_path):
    answer = write_answer(make_study(tmp_path, effect=-0.3, seeds=3, clips=20), primary="pairs_colour")
    assert answer.verdict.kind == "helps" and "percentage points, 3 seeds, 40 pairs" in answer.text
    assert {r.part for r in answer.measured.classes} == {"adjective", "noun", "verb", "colour"}
    assert "pairs_colour: colour" in answer.page.read_text()
    begun = {"seeds": 5, "arms": ["V", "M"], "blind_share": 0.5, "flags": {}, "primary": "captions"}
    (tmp_path / "study.json").write_text(json.dumps(begun))
    later = write_answer(tmp_path, primary="pairs_colour").text
    assert "began with captions as its primary test, and pairs_colour was chosen later" in later
    assert "chosen later" not in write_answer(tmp_path).text
    with pytest.raises(UserError, match="no test blimp of both V and M; the tests are captions, pairs_colour"):
        write_answer(tmp_path, primary="blimp")


def test_the_pages_show_every_seed_and_every_value_is_in_one_csv(tmp_path):
    make_study(tmp_path, effect=-0.03, seeds=3, clips=12)
    for name, effect in (("chck_900K", 0.0), ("chck_10M", -0.01)):
        make_study(tmp_path, effect=effect, seeds=3, clips=12, within=f"{name}/tests")
    answer = write_answer(tmp_path)
    page, text = answer.page.read_text(), (tmp_path / "study.md").read_text()
    for seed in answer.measured.primary.two_way.per_seed:
        assert f"{seed:.3f}".replace("-", "−") in text and f"{seed:.3f}".replace("-", "−") in page
    assert text.index("**Seeing") < text.index("nats below zero favour V") < text.index("## Seeing: V − M")
    assert "nats below zero favour V" in page
    assert [b.name for b in answer.budgets] == ["900K words", "10M words", "the end"]
    for title in ("By word class", "On norms of words", "Did V see?", "At other budgets", "M − T"):
        assert title in page and title in text
    assert "<svg" in page and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    with (tmp_path / "items.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:7] == ["test", "run", "arm", "seed", "step", "item", "cluster"]
    words = [r for r in rows if r["test"] == "captions"]
    assert {r["run"] for r in words} == {f"seed{s}/{a}" for s in range(3) for a in "TVM"}
    mean = {a: sum(float(r["value"]) for r in words if r["arm"] == a) for a in "VM"}
    count = sum(r["arm"] == "V" for r in words)
    assert (mean["V"] - mean["M"]) / count == pytest.approx(answer.measured.primary.two_way.mean)
    assert words[0]["visual_strength"] and words[0]["unit"] == "nats" and words[0]["step"] == "100"
    with (tmp_path / "milestones.csv").open(newline="") as file:
        earlier = list(csv.DictReader(file))
    assert list(earlier[0]) == list(rows[0]) and len(earlier) == 2 * len(rows)
    assert earlier[0]["run"] == "seed0/V/chck_900K" and earlier[-1]["run"] == "seed2/T/chck_10M"
    for budget in answer.budgets[:2]:
        name = "chck_" + budget.name.removesuffix(" words")
        there = [r for r in earlier if r["test"] == "captions" and r["run"].endswith(name)]
        mean = {a: sum(float(r["value"]) for r in there if r["arm"] == a) / count for a in "VM"}
        assert mean["V"] - mean["M"] == pytest.approx(budget.result.two_way.mean), name


def test_foreign_names_do_not_break_the_page(tmp_path):
    make_study(tmp_path, seeds=3, clips=12)
    for path in tmp_path.glob("seed*/*/tests/blind_words.csv"):
        path.write_text(path.read_text().replace("noun", "<b>|noun").replace("visual_strength", "<i>vista"))
    answer = write_answer(tmp_path)
    page = answer.page.read_text()
    assert "<b>" not in page and "<i>" not in page and "&lt;b&gt;|noun" in page
    assert "<b>\\|noun" in (tmp_path / "study.md").read_text()


def test_runs_that_were_shown_different_shares_are_refused(tmp_path):
    make_study(tmp_path, seeds=2, clips=10)
    (tmp_path / "seed1/M/llava_run.json").write_text(json.dumps({"flags": {"blind_share": 0.25}}))
    with pytest.raises(UserError, match="0.5 in seed0/V, 0.25 in seed1/M"):
        write_answer(tmp_path)
