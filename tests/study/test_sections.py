"""Tables and figures of a study."""

from __future__ import annotations

import math

import pytest

from llava.study.measure import measure
from llava.study.sections import COMPARED, Budget, forest, row, sections_of
from tests.study.test_measure import table


@pytest.fixture(scope="module")
def measured():
    tables = [table(), table("pairs_x", "correct"), table("sighted_captions", arms="VM")]
    return measure(tables, "captions", "captions")


def test_parts_come_in_their_order_and_every_row_fits_its_header(measured):
    made = sections_of(measured, [], 0.02)
    assert [s.place for s in made] == ["tests", "classes", "norms", "sight", "costs", "arms", "power"]
    for section in made:
        assert all(len(cells) == len(section.header) for cells in section.rows)
    assert made[0].rows[0][0] == "captions (primary)" and "4 tests have a p" in made[0].text[1]
    assert "p is adjusted for 2 tests" in made[4].text[0] or "1 test." in made[4].text[0]
    assert made[5].rows[1][:2] == ["pairs_x", "% of pairs right"] and made[5].rows[2][2] == "–"


def test_whether_the_primary_test_was_named_before_is_said(measured):
    begun = {"seeds": 4, "arms": ["V", "M"], "blind_share": 0.5, "flags": {"max_steps": 40.0}}
    for named, said in ((None, "nothing records that it was named"), ("captions", "was named when the study began"),
                        ("blimp", "chosen after the study had begun with blimp")):  # fmt: skip
        assert said in sections_of(measured, [], 0.02, begun | {"primary": named})[0].text[1]
    last = sections_of(measured, [], 0.02, begun)[-1]
    assert list(last.rows) == [("seeds", "4"), ("arms", "V,M"), ("blind_share", "0.5"), ("max_steps", "40")]


def test_an_interval_stands_above_its_seeds(measured):
    (drawn,) = forest("x", [measured.primary, *measured.tests], "nats")
    (bar,) = drawn.bars
    assert len(bar.points) == 4 and min(bar.points) < bar.mean < max(bar.points)
    assert sum(bar.points) / 4 == pytest.approx(bar.mean)
    cells = dict(zip(COMPARED, row(measured.primary), strict=True))
    assert len(cells["each seed"].split()) == 4 and cells["p, Holm"] == "–"
    assert forest("x", [measured.primary], "correct") == []


def test_budgets_are_drawn_where_words_are_known(measured):
    levels = measured.levels["captions"]
    budgets = [
        Budget(name, words, measured.primary, levels)
        for name, words in (("1M words", 1e6), ("2M words", 2e6), ("the end", math.nan))
    ]
    section = next(s for s in sections_of(measured, budgets, 0.02) if s.place == "budgets")
    assert [r[0] for r in section.rows] == ["1M words", "2M words", "the end"]
    (panel,) = section.panels
    assert panel.x == "million words" and [s.label for s in panel.series] == list(levels)
    assert panel.series[0].steps.tolist() == [1.0, 2.0]
