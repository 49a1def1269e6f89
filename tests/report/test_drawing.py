"""The report's drawings: axes, paths, the table of the numbers, and what the page's script makes of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from llava.report.drawing import HEIGHT, WIDTH, Drawing, draw, linear_ticks, log_ticks, tick_text
from llava.report.page import write_report
from llava.report.plots import Panel, Series
from tests.report.made import log_entries, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def drawing(values: list[float], log: bool = False, **options) -> Drawing:
    steps = np.arange(1.0, len(values) + 1)
    return draw(Panel("x", "y", [Series("a", steps, np.array(values, dtype=float), 0)], log=log, **options))


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) ([-\d.]+)", path)]


def test_a_curve_goes_through_its_points():
    (curve,) = drawing([0.0, 5.0, 10.0]).curves
    # A twentieth of the height is free above and below, a fiftieth of the width beside steps 0 and 3.
    rim, side = HEIGHT * 0.05 / 1.1, WIDTH * 0.02 / 1.04
    assert points(curve.line) == [
        (pytest.approx(side + (WIDTH - 2 * side) * step / 3, abs=0.01), pytest.approx(y, abs=0.01))
        for step, y in ((1, HEIGHT - rim), (2, HEIGHT / 2), (3, rim))
    ]
    assert curve.dots.count("M") == 3 and curve.thin == curve.band == ""


def test_a_logarithmic_axis_has_equal_ratios_at_equal_distances():
    drawn = drawing([1.0, 10.0, 100.0], log=True)
    heights = [y for _, y in points(drawn.curves[0].line)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.02)
    assert [t.text for t in drawn.y_ticks] == ["1", "2", "5", "10", "20", "50", "100"]
    assert drawing([1.0, 2.0], log=True).data["log"] is False, "less than a factor of 3"


def test_what_is_not_finite_is_a_gap_and_what_stands_alone_a_dot():
    values = [1.0] * 40 + [np.nan, 2.0, np.nan] + [1.0] * 40
    (curve,) = drawing(values).curves
    assert curve.thin.count("M") == 3 and curve.dots.count("M") == 1
    assert "nan" not in f"{curve}"


def test_many_points_have_their_median_drawn_over_them():
    values = np.where(np.random.default_rng(0).random(20_000) < 0.1, 100.0, 1.0)
    (curve,) = drawing(values.tolist()).curves
    assert len({y for _, y in points(curve.line)}) == 1, "of all values, not of those that were left"
    assert {y for _, y in points(curve.thin)} > {y for _, y in points(curve.line)}
    assert len(curve.thin) + len(json.dumps(drawing(values.tolist()).data)) < 60_000


def test_intervals_are_a_band_and_hover_shows_them():
    mean = np.array([1.0, np.nan, 3.0])
    series = Series("gain", np.array([1.0, 2.0, 3.0]), mean, 1, mean - 1, mean + 1)
    drawn = draw(Panel("x", "y", [series], zero=True))
    assert len(points(drawn.curves[0].band)) == 4
    assert drawn.data["series"] == [
        {"steps": [1, 2, 3], "values": [1, None, 3], "low": [0, None, 2], "high": [2, None, 4]}
    ]
    assert drawn.zero is not None and drawn.y_ticks[0].at == pytest.approx(drawn.zero)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-9, 0.0], [5.0], [-1.0, 1e6], [3.0, 3.0], [*range(1, 31), 0]])
def test_any_values_can_be_drawn(values, log):
    drawn = drawing(values, log)
    assert "nan" not in f"{drawn.curves}{drawn.x_ticks}{drawn.y_ticks}".lower()
    assert all(-0.01 <= y <= HEIGHT + 0.01 for _, y in points(drawn.curves[0].line))
    json.dumps(drawn.data, allow_nan=False)


def test_ticks_are_round_numbers():
    assert linear_ticks(0, 28_000) == [0, 10_000, 20_000]
    assert linear_ticks(-0.3, 1.1) == pytest.approx([0, 0.5, 1])
    assert log_ticks(-1, 1.5) == pytest.approx([0.1, 1, 10])
    assert log_ticks(0.01, 0.05) == [10**0.01, 10**0.05], "no round number in between"
    assert [tick_text(v) for v in (0, 0.0005, 1e-5, -2.5, 20_000)] == ["0", "0.0005", "1e-5", "−2.5", "20,000"]


def test_the_table_has_every_step_or_an_even_choice():
    short = drawing([1.0, 2.0])
    assert (short.table, short.steps) == ([(1, [1]), (2, [2])], 2)
    long = drawing(list(range(1000)))
    assert (len(long.table), long.table[0][0], long.table[-1][0], long.steps) == (60, 1, 1000, 1000)
    two = draw(Panel("x", "y", [Series(n, np.array([s]), np.array([7.0]), 0) for n, s in (("a", 1.0), ("b", 2.0))]))
    assert str(two.table) == "[(1.0, [7.0, nan]), (2.0, [nan, 7.0])]"


EVENTS = """<script>
Element.prototype.setPointerCapture = () => {};  // It knows no pointers of scripts.
const hit = document.querySelector(".hit"), figure = hit.closest("figure"), box = hit.getBoundingClientRect();
const send = (type, share) => hit.dispatchEvent(
  new PointerEvent(type, { clientX: box.left + share * box.width, clientY: box.top + 9, bubbles: true }));
const seen = () => [figure.querySelector(".at").textContent, figure.querySelector("output").textContent,
  figure.querySelector(".area").getAttribute("viewBox"), figure.querySelectorAll(".axes text").length > 3,
  figure.querySelector("button").hidden];
const steps = [];
send("pointermove", 0.5); steps.push(seen());
send("pointerdown", 0.5); send("pointermove", 0.75); send("pointerup", 0.75); steps.push(seen());
hit.dispatchEvent(new MouseEvent("dblclick")); steps.push(seen());
figure.querySelector(".drawing").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" })); steps.push(seen());
document.title = JSON.stringify(steps);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with: apt-get install chromium")
def test_hover_zoom_and_keys_in_a_browser(tmp_path: Path):
    path = write_report([write_run(tmp_path / "run", trainer_state={"log_history": log_entries()})])
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{EVENTS}</body>"), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None, done.stderr
    hovered, zoomed, whole, key = json.loads(found[1].replace("&quot;", '"'))
    every = f"0 0 {WIDTH} {HEIGHT}"
    # A loss of 8 / step, of twelve steps.
    assert hovered == ["step 6", "1.333", every, True, True]
    x, y, width, height = map(float, zoomed[2].split())
    assert (x, width, zoomed[4]) == (pytest.approx(WIDTH / 2), pytest.approx(WIDTH / 4), False)
    assert y > 0 and y + height < HEIGHT, "the values of steps 6 to 9, below those before and above those after"
    assert whole[2:] == [every, True, True]
    assert key[:2] == ["step 1", "8"]
