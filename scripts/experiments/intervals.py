"""How often intervals of a paired difference exclude a true zero, in simulated worlds: the table of
docs/does_seeing_help.md. Needs no model and some minutes:

    python scripts/experiments/intervals.py [WORLDS]
"""

from __future__ import annotations

import math
import sys
from itertools import product

import numpy as np

from llava.eval.two_way import students_t, two_way_t

COMPONENTS = [(0, 0, 1), (0.3, 0, 1), (0.1, 0.1, 1), (0.05, 0.3, 1), (0, 1, 1), (0.1, 1, 1), (0.3, 1, 1), (0.3, 1, 0),
              (0, 1, 0), (1, 0, 0)]  # fmt: skip
"""Standard deviations of seeds, of clips and of what is left, in a world."""
WORDS = ("equal", "3 to 40", "log-normal")
"""How many words clips have; of the last, one in six has more than e times the median, or less than an eth."""
METHODS = ("two-way t", "Student's t over seeds", "items as independent")


def exclude_zero(world: np.ndarray, words: np.ndarray) -> list[bool]:
    """Whether the interval of each method leaves out zero; `world` (S, C) are means of clips of `words` (C,)."""
    two_way = two_way_t(world, words)
    alone = students_t(two_way.per_seed, len(words))
    error = world.std(ddof=1) / math.sqrt(world.size)
    outside = [not found.low <= 0 <= found.high for found in (two_way, alone)]
    return [*outside, abs(float(world.mean())) > 1.96 * error]


def clip_words(kind: str, clips: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Words of each clip, and what V gains by them: longer clips gain more, with a mean over words of zero."""
    if kind == "equal":
        return np.ones(clips), np.zeros(clips)
    if kind == "3 to 40":
        words = generator.integers(3, 41, clips)
        # The mean over words is the mean square of lengths over their mean.
        return words, (words - (21.5 + (38**2 - 1) / 12 / 21.5)) / 10
    logarithms = generator.normal(size=clips)
    return np.exp(1.5 + logarithms), (logarithms - 1) / 2


def shares(seeds: int, clips: int, kind: str, worlds: int) -> np.ndarray:
    """(components, methods): the share of worlds without an effect in which each method finds one."""
    found = np.zeros((len(COMPONENTS), len(METHODS)))
    generator = np.random.default_rng(0)
    for row, (by_seed, by_clip, rest) in enumerate(COMPONENTS):
        for _ in range(worlds):
            words, gains = clip_words(kind, clips, generator)
            world = by_seed * generator.normal(size=(seeds, 1)) + by_clip * (gains + generator.normal(size=clips))
            found[row] += exclude_zero(world + rest * generator.normal(size=(seeds, clips)), words)
    return found / worlds


def main(worlds: int = 2000) -> None:
    """Prints the table: of each method, the least and the most over worlds of all components."""
    print(f"| seeds | clips | words a clip | {' | '.join(METHODS)} |\n| ---: | ---: | --- |{' ---: |' * len(METHODS)}")
    for seeds in (2, 3, 5, 8):
        for kind, clips in product(WORDS, (12, 100)):
            table = 100 * shares(seeds, clips, kind, worlds)
            cells = [f"{low:.1f} to {high:.1f}" for low, high in zip(table.min(0), table.max(0), strict=True)]
            print(f"| {seeds} | {clips} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
