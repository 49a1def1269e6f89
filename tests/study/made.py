"""Result files of made-up studies in which the truth is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

WORDS = [f"parola{i}" for i in range(60)]
KINDS = ["noun", "verb", "adjective"]


def write(path: Path, columns, rows, step=100):
    """A CSV as the tests write it, and what stands beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([repr(v) if isinstance(v, float) else v for v in row] for row in rows)
    path.with_suffix(".json").write_text(json.dumps({"step": step}))


def make_study(
    folder: Path,
    effect: float = 0.0,
    sees: float = -0.5,
    seeds: int = 5,
    clips: int = 14,
    by_norm: float = 0.0,
    share: float | None = 0.5,
    arms: str = "TVM",
    within: str = "tests",
    spread: float = 0.005,
    step: int = 100,
) -> Path:
    """A study whose V has `effect` nats a blind word beside M, and `sees` nats a sighted one.

    Args:
        by_norm: what one standard deviation of visual strength adds to the effect.
        spread: standard deviation of the effect over seeds.
    """
    generator = np.random.default_rng(7)
    visual, frequency = generator.normal(size=60), generator.integers(1, 500, 60)
    lengths = generator.integers(4, 9, 2 * clips)
    words = [generator.choice(60, n) for n in lengths]
    base = [3 + generator.normal(size=n) for n in lengths]
    hard, moves = 0.02 * generator.normal(size=clips), spread * generator.normal(size=seeds)
    hard, moves = hard - hard.mean(), moves - moves.mean()
    for seed in range(seeds):
        for arm in arms:
            rows, sighted, pairs = [], [], []
            for item, (chosen, nats) in enumerate(zip(words, base, strict=True)):
                clip = item // 2
                noisy = nats + 0.03 * generator.normal(size=len(nats)) + {"T": 0.05}.get(arm, 0.0)
                if arm == "V":
                    noisy = noisy + effect + moves[seed] + hard[clip] + by_norm * visual[chosen]
                for position, (word, value) in enumerate(zip(chosen, noisy, strict=True)):
                    norm = "" if word % 10 == 0 else float(visual[word])
                    rows.append(
                        ["captions", f"caption{item}", f"clip{clip}", position, WORDS[word], KINDS[word % 3], 1,
                         float(value), int(frequency[word]), len(WORDS[word]), norm]
                    )  # fmt: skip
                total = float(len(nats) * (2 + (sees if arm == "V" else 0) + 0.05 * generator.normal()))
                sighted.append([f"caption{item}", f"clip{clip}", len(nats), 2 * len(nats), total])
                good = 10 + generator.normal() + (5 * effect if arm == "V" else 0)
                pairs.append([f"pair{item}", f"noun{clip}", "colour", float(good), 10.0, 5, 5, "none"])
            tests = folder / f"seed{seed}" / arm / within
            columns = ["test", "item", "cluster", "position", "word", "class", "tokens", "nats"]
            write(tests / "blind_words.csv", [*columns, "frequency", "length", "visual_strength"], rows, step)
            if arm != "T":
                write(tests / "sighted_captions.csv", ["item", "cluster", "words", "tokens", "nats"], sighted, step)
            columns = ["item", "cluster", "phenomenon", "good_nats", "bad_nats", "good_tokens", "bad_tokens"]
            write(tests / "pairs_colour.csv", [*columns, "condition"], pairs, step)
            if share is not None:
                record = {"flags": {"blind_share": share if arm != "T" else 0.0}}
                (folder / f"seed{seed}" / arm / "llava_run.json").write_text(json.dumps(record))
    return folder
