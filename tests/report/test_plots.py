"""The report's curves: thinning, medians, labels, and values of every kind."""

from __future__ import annotations

import re

import numpy as np
import pytest

from llava.report.plots import Panel, Series, draw, run_panels, running_median, spread, thin, wrap_label
from tests.report.test_page import log_entries


def test_learning_rates_that_are_all_the_same_are_one_curve():
    same = run_panels(log_entries(**{"learning_rate/head": 1e-3, "learning_rate/projector": 1e-3}), [])
    other = run_panels(log_entries(**{"learning_rate/head": 1e-3, "learning_rate/projector": 2e-3}), [])
    assert [len(p.series) for p in same if p.title == "Learning rate"] == [1]
    assert [[s.label for s in p.series] for p in other if p.title == "Learning rate"] == [["head", "projector"]]


def test_long_curves_are_thinned_and_say_so():
    values = np.ones(10_000)
    values[[123, 4567]] = 50, -50
    values[7000:7003] = np.nan
    kept = thin(values)
    assert len(kept) <= 2000 and {0, 123, 4567, 9999} <= set(kept)
    assert np.isnan(values[kept]).any()
    assert len(thin(values[:2000])) == 2000
    panel = Panel("Loss", "nats", [Series("training", np.arange(10_000.0), values, 0)])
    assert any("Thinned from 10,000 points" in note for note in panel.notes)
    assert len(draw(panel)) < 80_000


def test_running_median_keeps_gaps():
    values = np.array([1.0, 9.0, 2.0, np.nan, 3.0] * 16)
    at, medians = running_median(values)
    assert at.tolist() == list(range(80))
    assert np.array_equal(np.isnan(medians), np.isnan(values))
    assert medians[6] == 2.5, "of 3, 1, 9 and 2, beside a gap"


def test_running_median_of_a_long_curve_is_that_of_all_its_values():
    values = np.where(np.random.default_rng(0).random(20_000) < 0.1, 100.0, 1.0)
    at, medians = running_median(values)
    assert len(at) == 400 and (medians == 1.0).all()
    values[:-7] = np.nan
    at, medians = running_median(values[:-2])
    assert np.isfinite(medians[-1])


def strokes(svg: str) -> list[set[str]]:
    """The heights of each thick line in the first colour."""
    thick = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--c0\); stroke-width: 1.5', svg)
    return [set(re.findall(r"[ML] \S+ (\S+)", path)) for path in thick]


def test_the_thick_line_is_the_median_of_what_was_thinned_too():
    values = np.where(np.random.default_rng(0).random(20_000) < 0.1, 100.0, 1.0)
    (line,) = strokes(draw(Panel("x", "y", [Series("", np.arange(20_000.0), values, 0)])))
    assert len(line) == 1


def test_a_curve_that_ends_at_0_on_a_logarithmic_axis_is_named():
    values = np.array([*range(1, 31), 0], dtype=float)
    assert len(strokes(draw(Panel("x", "y", [Series("a", np.arange(31.0), values, 0)], log=True)))) == 2


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-9, 0.0], [5.0], [-1.0, 1e6], [3.0, 3.0], [*range(1, 31), 0]])
def test_any_values_can_be_drawn(values, log):
    series = [
        Series(name, np.arange(len(values)), np.array(values, dtype=float), i)
        for i, name in enumerate(("a", "", "c" * 80))
    ]
    assert "nan" not in draw(Panel("x", "y", series, log=log)).lower()


def test_labels_do_not_overlap():
    assert spread([0.2, 0.8], [0.1, 0.1]) == pytest.approx([0.2, 0.8])
    assert spread([0.0, 0.0, 1.0, 1.0], [0.2] * 4) == pytest.approx([0.1, 0.3, 0.7, 0.9])
    assert wrap_label("demo_exp2_seed0") == ["demo_exp2_", "seed0"]
    assert wrap_label("a_rather_long_run_name_exp2_lr5e-4") == ["a_rather_lo…", "exp2_lr5e-4"]
