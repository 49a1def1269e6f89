"""Scenes of the grounding demo: one or two shapes, of which each appears or moves during part of the clip.

Functions of a seed: what there is to see, where and when, and the frames. Nothing here is estimated: boxes follow from
the outlines that are drawn, times from the frames. Processes that draw load this module alone.

Letters in shapes: T frames of a scene (one of an image), S its side in pixels.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from demo_captions import ADJECTIVES, ATTRIBUTES, GENDERS
from make_demo_data import JITTER, OUTLINES, RGB, encode
from PIL import Image, ImageDraw

SIDE, FRAMES, FPS = 112, 10, 5
"""Pixels, frames and frames a second of a clip. Frame `i` of 10 lies at `i / 9`, which is a coordinate token exactly:
time `11 i` of 99."""
SPAN_STEPS = (2, 3, 4)
"""Frames from the first to the last of an event, of nine: 22 to 44 % of the clip."""
RADII = (0.12, 0.22)
"""Smallest and largest extent of a shape from its centre, as a share of the side."""
TRAVEL = (0.25, 0.6)
"""How far a shape moves, as a share of the side."""
MARGIN = 0.01
"""Free room between two shapes that are there at once, as a share of the side."""
ALONE = 2
"""Of so many scenes one has a single shape; the others have two, which only the words of a question tell apart."""
SUPERSAMPLING = 4
HELDOUT_PAIRS, VALIDATION_PAIRS = 6, 4
"""Of the 32 (shape, colour) pairs; each shape and each colour stays in training."""

Pair = tuple[str, str]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """A shape and its event, in shares of the side; `first` and `last` are the frames of the event.

    One that appears is there from `first` to `last` and nowhere else, at `start`. One that moves is always there: at
    `start` up to `first`, at `end` from `last`.
    """

    shape: str
    colour: str
    rgb: tuple[int, int, int]
    radius: float
    event: str
    first: int
    last: int
    start: tuple[float, float]
    end: tuple[float, float]

    def centre(self, frame: int) -> tuple[float, float] | None:
        """Where it is in a frame; None where it is not to be seen."""
        if self.event == "appear" and not self.first <= frame <= self.last:
            return None
        share = min(max((frame - self.first) / max(self.last - self.first, 1), 0.0), 1.0)
        x, y = (a + (b - a) * share for a, b in zip(self.start, self.end, strict=True))
        return x, y

    def box(self, frame: int) -> Box | None:
        """The smallest box around its outline: x1, y1, x2, y2."""
        centre = self.centre(frame)
        return None if centre is None else box_at(self.shape, self.radius, centre)

    def boxes(self) -> dict[int, Box]:
        """By the frames of its event."""
        found = {frame: self.box(frame) for frame in range(self.first, self.last + 1)}
        return {frame: box for frame, box in found.items() if box is not None}


@dataclass(frozen=True)
class Scene:
    """A clip, or an image where `frames` is 1."""

    id: str
    path: str
    frames: int
    background: tuple[int, int, int]
    things: tuple[Thing, ...]


def box_at(shape: str, radius: float, centre: tuple[float, float]) -> Box:
    """The smallest box around a shape."""
    outline = OUTLINES.get(shape, [(-1, -1), (1, 1)])
    xs, ys = ([p[axis] * radius + centre[axis] for p in outline] for axis in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)


def apart(a: Thing, b: Thing, frames: int) -> bool:
    """Whether two things never touch where both are to be seen."""
    for frame in range(frames):
        one, other = a.box(frame), b.box(frame)
        if one is None or other is None:
            continue
        if all(one[axis] < other[axis + 2] + MARGIN and other[axis] < one[axis + 2] + MARGIN for axis in (0, 1)):
            return False
    return True


def split_pairs(seed: int) -> dict[str, list[Pair]]:
    """Deals the (shape, colour) pairs to `test`, `validation` and `train`, evenly over shapes and colours."""
    pairs = list(product(ATTRIBUTES["shape"], ATTRIBUTES["colour"]))
    rest = random.Random(f"{seed}/pairs").sample(pairs, len(pairs))
    taken: Counter[str] = Counter()
    chosen: list[Pair] = []
    while len(chosen) < HELDOUT_PAIRS + VALIDATION_PAIRS:
        pair = min(rest, key=lambda p: (max(taken[v] for v in p), sum(taken[v] for v in p)))
        taken.update(pair)
        rest.remove(pair)
        chosen.append(pair)
    return {"test": chosen[:HELDOUT_PAIRS], "validation": chosen[HELDOUT_PAIRS:], "train": rest}


def plan_scene(seed: int, kind: str, split: str, index: int, pairs: Sequence[Pair], frames: int) -> Scene:
    """Draws a scene from a generator of its own.

    Args:
        kind: `clips` or `images`, the folder.
        pairs: two (shape, colour) pairs of the split, of which the second may stay away.
    """
    rng = random.Random(f"{seed}/{kind}/{split}/{index}")
    number = 1 if index % ALONE == 0 else 2
    while True:
        things = tuple(_thing(rng, pair, frames) for pair in pairs[:number])
        if number == 1 or apart(*things, frames):
            break
    light = rng.randint(-JITTER, JITTER)
    ground = RGB[rng.choice(ATTRIBUTES["background"])]
    suffix = "mp4" if frames > 1 else "png"
    return Scene(
        id=f"{split}_{kind[:-1]}_{index:05d}",
        path=f"{split}/{index:05d}.{suffix}",
        frames=frames,
        background=(ground[0] + light, ground[1] + light, ground[2] + light),
        things=things,
    )


def _thing(rng: random.Random, pair: Pair, frames: int) -> Thing:
    shape, colour = pair
    radius = rng.uniform(*RADII)
    low, high = radius, 1 - radius
    start = end = (rng.uniform(low, high), rng.uniform(low, high))
    event, first, last = "appear", 0, 0
    if frames > 1:
        event = rng.choice(("appear", "move"))
        steps = rng.choice(SPAN_STEPS)
        first = rng.randrange(frames - steps)
        last = first + steps
    if event == "move":
        far, angle = rng.uniform(*TRAVEL), rng.uniform(0, 2 * math.pi)
        while True:
            end = (start[0] + far * math.cos(angle), start[1] + far * math.sin(angle))
            if all(low <= p <= high for p in end):
                break
            far, angle = rng.uniform(*TRAVEL), rng.uniform(0, 2 * math.pi)
    rgb = tuple(channel + rng.randint(-JITTER, JITTER) for channel in RGB[colour])
    return Thing(shape, colour, (rgb[0], rgb[1], rgb[2]), radius, event, first, last, start, end)


def plan_split(seed: int, kind: str, split: str, size: int, pairs: Sequence[Pair]) -> list[Scene]:
    """The scenes of a split; its pairs take turns in a new order each round, so that all occur equally often."""

    def turns() -> Iterator[Pair]:
        rng = random.Random(f"{seed}/{kind}/{split}")
        last: Pair | None = None
        while True:
            order = rng.sample(pairs, len(pairs))
            if order[0] == last:
                order.append(order.pop(0))
            last = order[-1]
            yield from order

    stream = turns()
    frames = FRAMES if kind == "clips" else 1
    return [plan_scene(seed, kind, split, i, (next(stream), next(stream)), frames) for i in range(size)]


def draw(scene: Scene) -> np.ndarray:
    """The frames of a scene, (T, S, S, 3) uint8 RGB, anti-aliased."""
    frames = np.empty((scene.frames, SIDE, SIDE, 3), dtype=np.float32)
    frames[:] = scene.background
    for t in range(scene.frames):
        for thing in scene.things:
            centre = thing.centre(t)
            if centre is not None:
                (left, top), share = coverage(thing.shape, thing.radius, centre)
                part = frames[t, top : top + len(share), left : left + len(share)]
                part += share[..., None] * (np.array(thing.rgb, dtype=np.float32) - part)
    return np.rint(frames).astype(np.uint8)


def coverage(shape: str, radius: float, centre: tuple[float, float]) -> tuple[tuple[int, int], np.ndarray]:
    """How much of each pixel a shape covers, float32 from 0 to 1: the square around it, and its left and top corner."""
    r = radius * SIDE
    size = min(SIDE, math.ceil(2 * r) + 2)
    left, top = (min(max(math.floor(c * SIDE - r), 0), SIDE - size) for c in centre)
    canvas = Image.new("L", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    x, y, r = ((centre[0] * SIDE - left) * SUPERSAMPLING, (centre[1] * SIDE - top) * SUPERSAMPLING, r * SUPERSAMPLING)
    if outline := OUTLINES.get(shape):
        pen.polygon([(x + r * u, y + r * v) for u, v in outline], fill=255)
    else:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return (left, top), np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def file_of(scene: Scene, folder: Path) -> Path:
    """Where a scene lies in the folder of clips and images."""
    return folder / ("clips" if scene.frames > 1 else "images") / scene.path


def write_scene(scene: Scene, folder: Path) -> None:
    """Writes a clip or an image; a file that stands under its final name is whole."""
    frames, path = draw(scene), file_of(scene, folder)
    if scene.frames > 1:
        encode(frames, path, FPS)
        return
    temporary = path.with_name(f".{path.name}")
    Image.fromarray(frames[0]).save(temporary, format="PNG")
    temporary.replace(path)


def phrase(thing: Thing) -> str:
    """Article, noun and colour in agreement: `la stella gialla`."""
    gender = GENDERS[thing.shape]
    return f"{'il' if gender == 'm' else 'la'} {thing.shape} {ADJECTIVES[thing.colour][gender]}"


def event_text(thing: Thing) -> str:
    """What it does: `la stella gialla appare`."""
    return f"{phrase(thing)} {'appare' if thing.event == 'appear' else 'si muove'}"
