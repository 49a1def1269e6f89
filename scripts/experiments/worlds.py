"""Draws a world in which it is known what seeing teaches: `python scripts/experiments/worlds.py --output_dir DIR`.

Nouns of four classes. A class is seen, as the pair of colours of the disc in a noun's clips, and never named. A taught
noun stands half of the time in a neutral frame and half with the verb of its class (`tolo che canta`); a rare noun
stands in neutral frames alone. Which verb goes with a rare noun can then be known only by who saw its clips:
`verbs_it.csv` asks that as a choice of four (chance .25), without any clip.

    train_vi_it.json, heldout_vi_it.json     captions and clips, paths relative to clips/
    verbs_it.csv                             noun, class, verb: the choices of each rare noun, the right one marked
    permuted_vi_it.json                      the training captions dealt out over the clips anew: nothing can be learnt

The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_demo_data import RGB, encode, write_json

SIDE, FRAMES = 56, 2
"""Pixels and frames of a clip."""
CLASSES = {
    "canta": ("rosso", "bianco"),
    "corre": ("verde", "nero"),
    "dorme": ("blu", "giallo"),
    "nuota": ("viola", "azzurro"),
}
"""The verb of each class, and the two colours of its clips."""
TAUGHT, RARE = 10, 15
"""Nouns of a class."""
SHOWN_TAUGHT, SHOWN_RARE, HELD_OUT = 24, 10, 240
"""Captions of a noun, and of the held-out set."""
NEUTRAL = ("ecco {}", "qui si vede {}", "questo è {}", "guarda {}", "un altro {}", "si tratta di {}")
WITH_VERB = "{} che {}"
JITTER = 24


@dataclass(frozen=True)
class Clip:
    """A disc of two halves, and what is said of it; positions and radius are shares of the side."""

    path: str
    noun: str
    verb: str
    caption: str
    colours: tuple[tuple[int, ...], ...]
    background: tuple[int, ...]
    centre: tuple[float, float]
    radius: float


def nouns(seed: int) -> dict[str, tuple[list[str], list[str]]]:
    """Taught and rare nouns of each verb's class: words that tell nothing of their class."""
    syllables = ["".join(pair) for pair in product("bdflmnprstv", "aeiou")]
    words = ["".join(word) for word in product(syllables, [s for s in syllables if s[1] == "o"])]
    drawn = iter(random.Random(f"{seed}/nouns").sample(words, len(CLASSES) * (TAUGHT + RARE)))
    return {verb: ([next(drawn) for _ in range(TAUGHT)], [next(drawn) for _ in range(RARE)]) for verb in CLASSES}


def plan(seed: int) -> dict[str, list[Clip]]:
    """The clips of `train` and `heldout`."""
    known = nouns(seed)
    said: dict[str, list[tuple[str, str, str]]] = {"train": [], "heldout": []}
    rng = random.Random(f"{seed}/captions")
    for verb, (taught, rare) in known.items():
        for noun in taught:
            said["train"] += [(noun, verb, WITH_VERB.format(noun, verb))] * (SHOWN_TAUGHT // 2)
            said["train"] += [(noun, verb, rng.choice(NEUTRAL).format(noun)) for _ in range(SHOWN_TAUGHT // 2)]
        for noun in rare:
            said["train"] += [(noun, verb, rng.choice(NEUTRAL).format(noun)) for _ in range(SHOWN_RARE)]
    everyone = [(noun, verb) for verb, lists in known.items() for noun in (*lists[0], *lists[1])]
    for noun, verb in rng.choices(everyone, k=HELD_OUT):
        said["heldout"].append((noun, verb, rng.choice(NEUTRAL).format(noun)))
    for captions in said.values():
        rng.shuffle(captions)
    return {
        split: [_clip(seed, split, number, *caption) for number, caption in enumerate(captions)]
        for split, captions in said.items()
    }


def _clip(seed: int, split: str, number: int, noun: str, verb: str, caption: str) -> Clip:
    rng = random.Random(f"{seed}/{split}/{number}")
    radius = rng.uniform(0.25, 0.4)
    light = rng.randint(90, 160)
    return Clip(
        f"{split}/{number:05d}.mp4", noun, verb, caption,
        tuple(tuple(min(max(c + rng.randint(-JITTER, JITTER), 0), 255) for c in RGB[name]) for name in CLASSES[verb]),
        (light, light, light), (rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius)), radius,
    )  # fmt: skip


def draw(clip: Clip) -> np.ndarray:
    """The frames of a clip, (FRAMES, SIDE, SIDE, 3) uint8 RGB."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    frame = np.empty((SIDE, SIDE, 3), np.uint8)
    frame[:] = clip.background
    inside = (x - clip.centre[0]) ** 2 + (y - clip.centre[1]) ** 2 <= clip.radius**2
    for half, colour in zip((x < clip.centre[0], x >= clip.centre[0]), clip.colours, strict=True):
        frame[inside & half] = colour
    return np.repeat(frame[None], FRAMES, axis=0)


def records(clips: Sequence[Clip], captions: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "id": Path(clip.path).with_suffix("").as_posix(),
            "video": clip.path,
            "conversations": [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": caption}],
        }
        for clip, caption in zip(clips, captions, strict=True)
    ]


def permuted(clips: Sequence[Clip], seed: int) -> list[str]:
    """The captions of the clips dealt out anew: each is said as often, and no clip tells anything of its own."""
    return random.Random(f"{seed}/permuted").sample([clip.caption for clip in clips], len(clips))


def choices(seed: int) -> list[dict[str, Any]]:
    """Each rare noun with the verb of every class."""
    return [
        {"noun": noun, "verb": verb, "sentence": WITH_VERB.format(noun, verb), "right": int(verb == own)}
        for own, (_, rare) in nouns(seed).items()
        for noun in rare
        for verb in CLASSES
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    splits, folder = plan(args.seed), args.output_dir / "clips"
    for split, clips in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for clip in clips:
            if not (folder / clip.path).exists():
                encode(draw(clip), folder / clip.path, rate=FRAMES)
        write_json(args.output_dir / f"{split}_vi_it.json", records(clips, [clip.caption for clip in clips]))
    train = splits["train"]
    write_json(args.output_dir / "permuted_vi_it.json", records(train, permuted(train, args.seed)))
    rows = choices(args.seed)
    with open(args.output_dir / "verbs_it.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"world {args.seed}: {', '.join(f'{len(clips)} clips {split}' for split, clips in splits.items())}")


if __name__ == "__main__":
    main()
