"""The report's curves: which there are, thinning, medians."""

from __future__ import annotations

import numpy as np

from llava.report.plots import MAX_POINTS, Panel, Series, run_panels, running_median, thin
from tests.report.made import log_entries


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
    assert len(kept) <= MAX_POINTS and {0, 123, 4567, 9999} <= set(kept)
    assert np.isnan(values[kept]).any()
    assert len(thin(values[:MAX_POINTS])) == MAX_POINTS
    panel = Panel("Loss", "nats", [Series("training", np.arange(10_000.0), values, 0)])
    assert any("Thinned from 10,000 points" in note for note in panel.notes)


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


def test_the_loss_of_coordinates_is_a_curve_of_its_own():
    log = [{"step": s, "loss": 2.0, "eval_loss": 2.0, "eval_coordinate_loss": 3.0 / s} for s in (1, 2)]
    assert [s.label for s in run_panels(log, [])[0].series] == ["training", "evaluation", "evaluation, coordinates"]
    assert [s.label for s in run_panels([{"step": 1, "loss": 2.0}], [])[0].series] == ["training"]
