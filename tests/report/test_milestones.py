"""Targets, words and the figure, in words and numbers."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from llava.eval.acquisition import age_of
from llava.eval.milestone_table import Learned, Measure, Milestones, WordCurve
from llava.eval.milestone_tests import Kept
from llava.report.drawing import WIDTH, amount_text, draw
from llava.report.milestones import learned_text, markdown, panels_of, svg, target_text, word_rows

WORDS = [1_000, 10_000, 100_000, 1_000_000, 10_000_000]


def found(models: int = 5) -> Milestones:
    kept = [Kept(Path(f"chck_{w}"), f"chck_{w}", w, w // 100) for w in WORDS[:models]]
    curves = [
        WordCurve("captions", word, kind, 9, 1, {"frequency": f, "length": float(len(word)), "AOA": math.nan}, nats)
        for word, kind, f, nats in (
            ("il", "function", 900.0, [2.0, 1.0, 1.0, 1.0, 1.0]), ("<b>|cane", "noun", 50.0, [9.0, 9.0, 4.0, 2.0, 2.0]),
            ("re", "noun", 20.0, [9.0, 9.0, 9.0, 3.0, 2.0]), ("xilofono", "noun", 1.0, [9.0, 9.0, 9.0, 8.9, 9.0]),
        )
    ]  # fmt: skip
    for curve in curves:
        curve.nats = curve.nats[:models]
    learned = Learned("captions", curves, [age_of(WORDS[:models], c.nats, 9.0) for c in curves], 7)
    nats = Measure("captions", [(v, v - 0.1, v + 0.1) for v in (9.0, 7.0, 5.0, 3.0, 2.0)][:models])
    right = Measure("pairs_x", [(v, math.nan, math.nan) for v in (0.5, 0.5, 0.625, 0.75, 1.0)][:models])
    return Milestones(kept, [nats], [right], [learned], ["frequency", "length", "AOA"])


def test_a_target_is_a_number_of_words_or_said_not_to_be_reached():
    made = found()
    assert "4 nats a word after about 316.2k words" in target_text(4, made.nats[0], made)
    assert "9 nats a word after 1k words or fewer" in target_text(9, made.nats[0], made)
    assert "1 nats a word is NOT REACHED: the lowest is 2.000, at chck_10000000" in target_text(1, made.nats[0], made)


def test_words_that_were_not_learned_are_said_and_counted():
    text = learned_text(found().learned[0], 5)
    assert "of 4 words 2 passed half-way" in text and "1 were there at the first, and 1 NEVER" in text
    assert "7 different words are too rare" in text and "by a sigmoid" in text
    few = learned_text(found(3).learned[0], 3)
    assert "no sigmoid was fitted: 3 models, and 4 are needed" in few
    assert "NOT MEASURED" in learned_text(Learned("t", [], [], 3), 5)


def test_the_page_holds_all_and_foreign_names_do_not_break_it():
    text = markdown("run", found(), [4.0], ["chck_1 is left out"])
    assert "| chck_100000 | 100,000 | 1,000 | 5.000 [4.900, 5.100] | 62.5 |" in text and "chck_1 is left out" in text
    assert "| noun | 3 | 2 | 1M |" in text and "| function | 1 | 1 | 1k |" in text
    assert "| captions | AOA | first milestone | 0 | not measured | not measured |" in text
    columns, rows = word_rows(found())
    assert rows[1]["first_words"] == 100_000 and rows[3]["first"] == "never" and columns[-1] == "chck_10000000"


def test_the_figure_has_words_on_a_logarithmic_axis():
    panels = panels_of(found(), [4.0])
    assert [p.series[0].label for p in panels] == ["captions", "pairs_x", "captions"]
    assert np.array(panels[2].series[0].values).tolist() == [25, 25, 50, 75, 75]
    drawing = draw(panels[0])
    places = [float(part.split(" ")[0]) for part in drawing.curves[0].line[1:].split("L")]
    assert np.ptp(np.diff(places)) < 0.05 and 0 < places[0] < places[-1] < WIDTH
    assert [t.text for t in drawing.x_ticks] == ["1k", "10k", "100k", "1M", "10M"]
    root = ElementTree.fromstring(svg(panels))
    assert root.tag.endswith("svg") and "target 4" in "".join(root.itertext()) and "chance" in "".join(root.itertext())


def test_numbers_of_words_in_short():
    assert [amount_text(v) for v in (7, 999, 1000, 2_500_000, 1e9)] == ["7", "999", "1k", "2.5M", "1B"]
