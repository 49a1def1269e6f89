"""Joining the results of runs: what is missing, twice, different or no number is named."""

from __future__ import annotations

import io

import numpy as np
import pytest

from llava.errors import UserError
from llava.study.results import milestones, read_milestones, read_study, words_of
from tests.study.made import make_study


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path, seeds=2, clips=4)


def change(study, path, how):
    lines = (study / path).read_text().splitlines()
    (study / path).write_text("\n".join(how(lines)) + "\n")


def test_values_of_all_runs_stand_beside_each_other(study):
    tables = {t.test: t for t in read_study(study)}
    assert set(tables) == {"captions", "sighted_captions", "pairs_colour", "pairs_colour, mean per token"}
    table = tables["captions"]
    assert table.seeds == ("0", "1") and set(table.values) == {"V", "M", "T"}
    assert all(v.shape == (2, len(table.items)) for v in table.values.values())
    assert set(table.covariates) == {"frequency", "length", "visual_strength"}
    assert np.isnan(table.covariates["visual_strength"]).any(), "an empty cell is not a zero"
    assert set(tables["sighted_captions"].values) == {"V", "M"}
    # The order of rows is each file's own.
    change(study, "seed1/M/tests/blind_words.csv", lambda lines: [lines[0], *lines[:0:-1]])
    again = next(t for t in read_study(study) if t.test == "captions")
    assert np.array_equal(again.values["M"], table.values["M"])


def test_a_pair_counts_by_the_sum_and_by_the_mean_and_a_tie_half(study):
    row = "pairA,noun9,colour,9.0,10.0,3,5,none"
    tie = "pairB,noun9,colour,10.0,10.0,5,5,none"
    for path in study.glob("seed*/*/tests/pairs_colour.csv"):
        change(study, path.relative_to(study), lambda lines: [lines[0], row, tie])
    sums, means = (t for t in read_study(study) if t.test.startswith("pairs"))
    assert sums.values["V"].tolist() == [[1.0, 0.5]] * 2 and means.values["V"].tolist() == [[0.0, 0.5]] * 2


def test_a_caption_without_a_word_has_no_nats_a_word(study):
    for path in study.glob("seed*/*/tests/sighted_captions.csv"):
        change(study, path.relative_to(study), lambda lines: [*lines, "dots,clip0,0,2,1.5"])
    table = next(t for t in read_study(study) if t.test == "sighted_captions")
    assert "dots" not in table.items and len(table.items) == 8


def test_conditions_are_tests_of_their_own_and_text_has_none(study):
    for path in study.glob("seed*/[VM]/tests/pairs_colour.csv"):
        change(study, path.relative_to(study), lambda lines: [*lines, "p,n,colour,9.0,10.0,3,5,own"])
    tables = {t.test: t for t in read_study(study)}
    assert set(tables["pairs_colour"].values) == {"V", "M", "T"}
    assert set(tables["pairs_colour, own video"].values) == {"V", "M"}


@pytest.mark.parametrize(
    ("path", "how", "message"),
    [
        ("seed1/M/tests/blind_words.csv", lambda x: x[:-2], r"seed1/M: 2 of \d+ items of captions are missing \(capt"),
        ("seed0/V/tests/blind_words.csv", lambda x: x[:-1], "caption7, word . of captions is not in seed0/V"),
        ("seed1/V/tests/blind_words.csv", lambda x: [*x, x[1]], "caption0, word 0 stands there twice"),
        ("seed0/V/tests/blind_words.csv", lambda x: [*x, x[1]], "caption0, word 0 stands there twice"),
        ("seed0/T/tests/pairs_colour.csv", lambda x: [x[0], *x[2:]], "seed0/T: 1 of 8 items of pairs_colour are m"),
        ("seed1/M/tests/blind_words.csv", lambda x: [x[0], x[1].replace(",parola", ",altra"), *x[2:]],
         "caption0, word 0 is altra.*the same words"),
        ("seed0/M/tests/sighted_captions.csv", lambda x: [x[0], x[1].rpartition(",")[0] + ",nan", *x[2:]],
         "line 2: nats of item caption0 is nan, where a finite number"),
        ("seed0/M/tests/sighted_captions.csv", lambda x: [x[0], x[1].rpartition(",")[0] + ",", *x[2:]], "is empty"),
        ("seed0/M/tests/sighted_captions.csv", lambda x: [x[0], "a,b", *x[2:]], "not as many cells"),
        ("seed0/M/tests/sighted_captions.csv", lambda x: [x[0].replace("words", "w"), *x[1:]], "no column words"),
        ("seed0/M/tests/pairs_colour.csv", lambda x: [x[0], x[1].replace("none", "both"), *x[2:]], "condition both"),
        ("seed0/V/tests/blind_words.csv", lambda x: [x[0], x[1] + "x", *x[2:]], "visual_strength is .*x, where a n"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(study, path, how, message):
    change(study, path, how)
    with pytest.raises(UserError, match=message):
        read_study(study)


def test_runs_and_tests_that_are_missing_are_named(study, tmp_path):
    (study / "seed1/T/tests/pairs_colour.csv").unlink()
    with pytest.raises(UserError, match="seed1/T lacks pairs_colour.csv"):
        read_study(study)
    for path in (study / "seed1/M/tests").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no results of seed1/M"):
        read_study(study)
    with pytest.raises(UserError, match="no run of arm V or M"):
        read_study(tmp_path / "nowhere")


def test_milestones_are_those_that_all_runs_have(study):
    for name in ("chck_10M", "chck_9M", "chck_1B"):
        make_study(study, seeds=2, clips=4, within=f"{name}/tests")
    for path in (study / "seed1/T/chck_9M/tests").iterdir():
        path.unlink()
    assert milestones(study) == ["chck_10M", "chck_1B"]
    assert [words_of(n) for n in ("chck_7M", "chck_500K", "chck_1B", "chck_x")] == [7e6, 5e5, 1e9, float("inf")]


def test_a_milestone_that_lacks_a_test_is_named(study):
    make_study(study, seeds=2, clips=4, within="chck_1M/tests")
    (study / "seed1/M/chck_1M/tests/pairs_colour.csv").unlink()
    with pytest.raises(UserError, match="seed1/M lacks pairs_colour.csv at chck_1M, which others have"):
        next(read_milestones(study, ["chck_1M"]))


def test_the_long_csv_has_a_mean_a_word(study):
    out = io.StringIO()
    read_study(study, out)
    header, *rows = [line.split(",") for line in out.getvalue().splitlines()]
    sighted = [dict(zip(header, row, strict=True)) for row in rows if row[0] == "sighted_captions"]
    assert all(1 < float(row["value"]) < 2.5 and float(row["weight"]) >= 4 for row in sighted)


def test_a_norm_may_be_called_as_a_column_is(study):
    for path in study.glob("seed*/*/tests/blind_words.csv"):
        path.write_text(path.read_text().replace("visual_strength", "weight"))
    out = io.StringIO()
    (table,) = (t for t in read_study(study, out) if t.test == "captions")
    header = out.getvalue().splitlines()[0].split(",")
    assert "weight" in table.covariates and header.count("weight") == 1 and header[-1] == "norm_weight"
