"""The table and the picture of docs/grounding.md, from what `llava.eval.grounding` wrote into runs of several seeds.

    for s in 0 1 2; do RECIPE=grounding_demo SEED=$s bash train_italian_video.sh; done
    python scripts/experiments/grounding.py output/grounding_demo_exp2_seed{0,1,2} --picture docs/grounding.png

The table has the median of the seeds, each seed's figure, and the same with another clip's video and by the best
constant answer. The picture has answers of the first run: of each task the best, the median and the worst one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import av
from PIL import Image, ImageDraw

FIGURES = (
    ("REC", "IoU", "mean"), ("REC", "IoU", "≥ 0.5"), ("TVG", "tIoU", "mean"), ("TVG", "tIoU", "> 0.5"),
    ("STVG", "tIoU", "mean"), ("STVG", "sIoU", "mean"), ("STVG", "vIoU", "mean"), ("STVG", "vIoU", "≥ 0.5"),
    ("SVG", "vIoU", "mean"), ("ELC", "tIoU", "mean"), ("ELC", "vIoU", "mean"), ("DGC", "matched IoU", "mean"),
)  # fmt: skip
WORDS = ("REG", "TR", "ELC", "DGC")
OTHER, CONSTANT = "another clip's video", "best constant answer"
SIDE, GAP = 84, 4
TRUE, SAID = (40, 160, 50), (220, 30, 200)


def read(run: str) -> dict[str, Any]:
    """The summary of a run's test."""
    return json.loads((Path(run) / "tests" / "grounding.json").read_text(encoding="utf-8"))["summary"]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A row a figure, in Markdown."""
    rows = ["| task | figure | median | seeds | another clip's video | best constant answer |", "| --- " * 6 + "|"]
    for task, measure, name in FIGURES:
        found = [run["tasks"].get(task, {}).get("measures", {}).get(measure) for run in runs]
        figures = [f["figures"].get(name) for f in found if f]
        if len(figures) != len(runs) or None in figures:
            continue
        label = f"{'mean ' if name == 'mean' else ''}{measure}{'' if name == 'mean' else f' {name}'}"
        rows.append(_row(task, label, [f["value"] for f in figures], [f["floors"] for f in figures]))
    for task in WORDS:
        words = [run["tasks"].get(task, {}).get("words", {}).get("exact match") for run in runs]
        if all(words):
            rows.append(_row(task, "words exact", [w["value"] for w in words], [w["floors"] for w in words]))
    return "\n".join(rows)


def _row(task: str, label: str, values: Sequence[Any], floors: Sequence[dict[str, Any]]) -> str:
    seeds = [v[0] for v in values]
    cells = [task, label, _shown(median(seeds)), " / ".join(map(_shown, seeds))]
    for floor in (OTHER, CONSTANT):
        each = [f[floor][0] for f in floors if floor in f]
        cells.append(_shown(median(each)) if each else "")
    return f"| {' | '.join(cells)} |"


def _shown(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)


def frames_of(path: Path) -> list[Image.Image]:
    """All frames of a clip, or the one of an image, as small squares."""
    if path.suffix == ".png":
        return [Image.open(path).convert("RGB").resize((SIDE, SIDE))]
    with av.open(str(path)) as container:
        return [f.to_image().resize((SIDE, SIDE)) for f in container.decode(video=0)]


def strip(example: dict[str, Any]) -> Image.Image:
    """The frames of an example with the true boxes and the answered ones, and both spans below."""
    frames, last = frames_of(Path(example["path"])), 99
    width = len(frames) * (SIDE + GAP) - GAP
    picture = Image.new("RGB", (width, SIDE + (0 if example["is_image"] else 3 * GAP)), "white")
    pen = ImageDraw.Draw(picture)
    for t, frame in enumerate(frames):
        left = t * (SIDE + GAP)
        picture.paste(frame, (left, 0))
        place = str(round(t * last / max(len(frames) - 1, 1)))
        for what, colour in (("truth", TRUE), ("said", SAID)):
            box = example[what]["box"] if example["is_image"] else example[what]["boxes"].get(place)
            if box:
                x1, y1, x2, y2 = (v * (SIDE - 1) for v in box)
                pen.rectangle((left + x1, y1, left + max(x1, x2), max(y1, y2)), outline=colour, width=2)
    if not example["is_image"]:
        for row, (what, colour) in enumerate((("truth", TRUE), ("said", SAID))):
            if span := example[what]["span"]:
                step = (SIDE + GAP) * (len(frames) - 1)
                a, b = (SIDE / 2 + v * step for v in span)
                y = SIDE + 3 + row * 4
                pen.rectangle((a, y, max(a, b), y + 2), fill=colour)
    return picture


def picture(run: dict[str, Any]) -> Image.Image:
    """Answers to REC side by side, and to STVG one below the other."""
    chosen = {task: [e for e in run["examples"] if e["task"] == task] for task in ("REC", "STVG")}
    rows = [[strip(e) for e in chosen["REC"]], *([strip(e)] for e in chosen["STVG"])]
    widths = [sum(p.width + GAP for p in row) for row in rows]
    heights = [max(p.height for p in row) + 2 * GAP for row in rows]
    whole = Image.new("RGB", (max(widths), sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for part in row:
            whole.paste(part, (left, top))
            left += part.width + GAP
        top += height
    return whole


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--picture", type=Path, help="a PNG to write, from the folder in which the runs were scored")
    args = parser.parse_args(argv)
    runs = [read(run) for run in args.runs]
    print(table(runs))
    if args.picture:
        picture(runs[0]).save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
