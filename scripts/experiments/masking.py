"""The table and the figure of scripts/experiments/masking.sh: python scripts/experiments/masking.py FOLDER

matplotlib draws it; the extra `dev` installs that.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

from llava.report.page import Run, read_run

VARIANTS = {
    "masked_trainable": ("masked, vocabulary trains", "#009E73"),
    "unmasked_trainable": ("unmasked, vocabulary trains", "#D55E00"),
    "masked_frozen": ("masked, vocabulary frozen", "#0072B2"),
    "unmasked_frozen": ("unmasked, vocabulary frozen", "#CC79A7"),
}
SET = "heldout_combinations_vi_it, true video"
EARLY = 200
TARGETS = (0.5, 0.25)


def value_at(run: Run, key: str, step: int) -> float:
    """The logged value nearest to a step."""
    return min(run.values(key), key=lambda pair: abs(pair[0] - step), default=(0, math.nan))[1]


def steps_to(run: Run, target: float) -> float:
    """The first logged step at which the caption loss is at or below a target; NaN when it never is."""
    return next((step for step, loss in run.values("caption_loss") if loss <= target), math.nan)


def accuracy(run: Run) -> list[tuple[float, float]]:
    """(step, share of held-out captions with every attribute right) of each checkpoint."""
    found = []
    for path in run.folder.glob("checkpoint-*/captions.json"):
        step = int(re.sub(r"\D", "", path.parent.name))
        found.append((float(step), json.loads(path.read_text())["scores"][SET]["all"]))
    return sorted(found)


def cell(values: Sequence[float], digits: int = 2) -> str:
    """The mean of a few seeds and, in brackets, each of them."""
    if not any(math.isfinite(v) for v in values):
        return "never"
    each = [f"{v:.{digits}f}" if math.isfinite(v) else "never" for v in values]
    mean = f"{sum(values) / len(values):.{digits}f}" if all(map(math.isfinite, values)) else "-"
    return f"{mean} ({', '.join(each)})"


def table(runs: dict[str, list[Run]]) -> str:
    """A Markdown table, one row a variant."""
    columns = [
        "run", f"total loss, step {EARLY}", f"caption loss, step {EARLY}", f"gradient norm, step {EARLY}",
        "total loss, end", "caption loss, end", *(f"steps to caption loss {t:g}" for t in TARGETS),
        "held-out caption loss", "held-out captions all right",
    ]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for name, (label, _) in VARIANTS.items():
        several = runs.get(name, [])
        if several:
            cells = [
                label,
                *(cell([value_at(r, key, EARLY) for r in several]) for key in ("loss", "caption_loss", "grad_norm")),
                *(cell([r.values(key)[-1][1] for r in several]) for key in ("loss", "caption_loss")),
                *(cell([steps_to(r, target) for r in several], 0) for target in TARGETS),
                cell([r.values("eval_loss")[-1][1] for r in several]),
                cell([accuracy(r)[-1][1] for r in several]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(runs: dict[str, list[Run]], path: Path) -> None:
    """Total loss, caption loss, gradient norm and held-out accuracy by step, one line a seed."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "masking", "font.size": 9})
    panels = (
        ("total loss, nats a target", "loss", True),
        ("caption loss, nats a word token", "caption_loss", True),
        ("gradient norm", "grad_norm", True),
        ("held-out captions with every attribute right", None, False),
    )
    drawing, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for axis, (title, key, log) in zip(axes.flat, panels, strict=True):
        for name, (label, colour) in VARIANTS.items():
            for i, run in enumerate(runs.get(name, [])):
                points = run.values(key) if key else [(0.0, 0.0), *accuracy(run)]
                axis.plot(*zip(*points, strict=True), color=colour, lw=1, alpha=0.8, label=None if i else label)
        axis.set_title(title, loc="left")
        axis.set_xlabel("step")
        axis.set_yscale("log" if log else "linear")
        if log:
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    drawing.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    drawing.savefig(path, metadata={"Date": None})


def main(folder: str) -> None:
    runs: dict[str, list[Run]] = {}
    for name in VARIANTS:
        runs[name] = [read_run(p.parent) for p in sorted(Path(folder).glob(f"{name}_seed*/captions.json"))]
    if not any(runs.values()):
        sys.exit(f"{folder}: no finished run; scripts/experiments/masking.sh makes them")
    text = table(runs)
    (Path(folder) / "masking.md").write_text(text + "\n", encoding="utf-8")
    figure(runs, Path(folder) / "masking.svg")
    print(f"{text}\n\nwritten: {folder}/masking.md, {folder}/masking.svg")


if __name__ == "__main__":
    main(*sys.argv[1:])
