"""A refactor must keep the loss curve: 20 CPU steps with fixed seeds, in fp32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from tests.train.runs import train

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "assets" / "golden_losses.json").read_text())


@pytest.mark.skipif(
    not transformers.__version__.startswith(tuple(f"{version}." for version in GOLDEN["transformers"])),
    reason=f"random weights are drawn in another order than by transformers {' and '.join(GOLDEN['transformers'])}",
)
@pytest.mark.parametrize("experiment", [1, 2])
def test_the_loss_curve_is_the_golden_one(assets, tmp_path, experiment):
    """To renew the curve after a change of the mathematics, write what this run gives and say why in the commit."""
    curve = train(assets, tmp_path / "run", experiment, max_steps=20, lr_scheduler_type="cosine")
    assert curve == pytest.approx(GOLDEN[f"experiment {experiment}"], abs=2e-3), curve
