"""Makes the built-in demo: clips of one coloured shape that moves, with Italian captions in the LLaVA JSON format.

    python scripts/make_demo_data.py --output_dir demo/data

Some (shape, colour, direction) triples never occur in training, though each of their values and pairs does: naming
them takes composition. `heldout_combinations` asks for that and is for the final table alone; `heldout_clips` are
unseen clips of trained triples. `--validation` adds the same of other triples and clips, for choosing a design:
`validation_combinations` and `validation`. Each split is written as `<split>_vi_it.json` (video and caption, paths
relative to `clips/`) and `<split>_t_it.json` (the same captions alone); `attributes.json` is the lexicon that
`llava.eval.attributes` scores captions with, `exchanges.tsv` the table that `llava.eval.visual_pairs` makes pairs by.

The same settings give the same files, whatever the number of processes. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import random
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import av
import numpy as np
from demo_captions import ATTRIBUTES, PHRASINGS, exchanges, lexicon, render_caption
from PIL import Image, ImageDraw

SIDE, FRAMES, FPS = 112, 12, 6
"""Pixels, frames and frames a second of every clip."""

SUPERSAMPLING = 4
JITTER = 12
"""Largest change of a channel of a colour or a background, of 255; `RGB` keeps that far from 0 and 255."""

MIN_TRAVEL = 0.75
"""The least share of the free range that a motion covers."""

HELDOUT_TRIPLES, VALIDATION_TRIPLES = 21, 8
"""Of the 128 (shape, colour, direction) triples: one in six for the final table, a few for choosing a design."""

SPLIT_SIZES = {
    "validation": 120,
    "validation_combinations": 160,
    "heldout_clips": 240,
    "heldout_combinations": 240,
}
"""Clips of each split except train."""

VALIDATION = ("validation", "validation_combinations")
"""Splits that are drawn when they are asked for."""

RADII = {"piccolo": 0.16, "grande": 0.27}
"""Half the extent of a shape, as a share of the side."""

RGB = {
    "rosso": (220, 30, 30),
    "arancione": (240, 130, 20),
    "giallo": (242, 215, 20),
    "verde": (40, 160, 50),
    "azzurro": (80, 200, 242),
    "blu": (25, 50, 200),
    "viola": (130, 40, 170),
    "rosa": (242, 150, 190),
    "nero": (12, 12, 12),
    "bianco": (243, 243, 243),
}

_ARM = 0.25
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "quadrato": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "croce": [
        *[(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)],
        *[(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
    ],
    "stella": [
        (r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i in range(10) for r in [(1, 0.4)[i % 2]]
    ],
}
"""Vertices for a radius of one, y downwards; a shape without an outline is a disc."""

Triple = tuple[str, ...]


@dataclass(frozen=True)
class Clip:
    """One scene: what is said about it and where its shape goes; positions and radius are shares of the side."""

    id: str
    path: str
    attributes: dict[str, str]
    caption: str
    colour: tuple[int, ...]
    background: tuple[int, ...]
    radius: float
    start: tuple[float, float]
    end: tuple[float, float]


# Planning: pure functions of the seed.


def split_triples(seed: int) -> dict[str, list[Triple]]:
    """Deals all (shape, colour, direction) triples to `heldout`, `validation` and `train`.

    Held-out triples are spread evenly over values and pairs of values, so that each of those stays in training.
    """
    triples = list(product(ATTRIBUTES["shape"], ATTRIBUTES["colour"], ATTRIBUTES["direction"]))
    rest = random.Random(f"{seed}/triples").sample(triples, len(triples))
    taken: Counter[tuple[str, ...]] = Counter()
    chosen: list[Triple] = []

    def parts(triple: Triple) -> list[tuple[str, ...]]:
        return [*combinations(triple, 1), *combinations(triple, 2)]

    while len(chosen) < HELDOUT_TRIPLES + VALIDATION_TRIPLES:
        triple = min(rest, key=lambda t: (max(taken[p] for p in combinations(t, 2)), sum(taken[p] for p in parts(t))))
        taken.update(parts(triple))
        rest.remove(triple)
        chosen.append(triple)
    return {"heldout": chosen[:HELDOUT_TRIPLES], "validation": chosen[HELDOUT_TRIPLES:], "train": rest}


def plan_clip(seed: int, split: str, index: int, triple: Triple) -> Clip:
    """Draws everything else about a clip from a generator of its own."""
    rng = random.Random(f"{seed}/{split}/{index}")
    attributes = dict(zip(("shape", "colour", "direction"), triple, strict=True))
    attributes |= {name: rng.choice(ATTRIBUTES[name]) for name in ("size", "background")}
    radius = RADII[attributes["size"]]
    free = 1 - 2 * radius
    travel = free * rng.uniform(MIN_TRAVEL, 1)
    low = radius + rng.uniform(0, free - travel)
    ends = (low, low + travel) if attributes["direction"] in ("destra", "basso") else (low + travel, low)
    across = rng.uniform(radius, 1 - radius)
    horizontal = attributes["direction"] in ("destra", "sinistra")
    start, end = ((p, across) if horizontal else (across, p) for p in ends)

    # Every channel of a colour moves by itself; those of a background together, so that it stays neutral.
    colour = tuple(channel + rng.randint(-JITTER, JITTER) for channel in RGB[attributes["colour"]])
    light = rng.randint(-JITTER, JITTER)
    background = tuple(channel + light for channel in RGB[attributes["background"]])

    return Clip(
        id=f"{split}_{index:05d}",
        path=f"{split}/{index:05d}.mp4",
        attributes={name: attributes[name] for name in ATTRIBUTES},
        caption=render_caption(attributes, rng.randrange(len(PHRASINGS))),
        colour=colour,
        background=background,
        radius=radius,
        start=start,
        end=end,
    )


def plan_split(seed: int, split: str, size: int, triples: Sequence[Triple]) -> list[Clip]:
    """The clips of a split; its triples take turns, in a new order each round, so that all occur equally often."""

    def rounds() -> Iterator[Triple]:
        rng = random.Random(f"{seed}/{split}")
        while True:
            yield from rng.sample(triples, len(triples))

    return [plan_clip(seed, split, i, triple) for i, triple in zip(range(size), rounds(), strict=False)]


def plan(seed: int, sizes: dict[str, int]) -> dict[str, list[Clip]]:
    """The clips of every split in `sizes`."""
    triples = split_triples(seed)
    kinds = {"validation_combinations": "validation", "heldout_combinations": "heldout"}
    return {split: plan_split(seed, split, size, triples[kinds.get(split, "train")]) for split, size in sizes.items()}


# Drawing and writing.


def draw(clip: Clip) -> np.ndarray:
    """The frames of a clip, (FRAMES, SIDE, SIDE, 3) uint8 RGB, anti-aliased."""
    radius = clip.radius * SIDE
    # Only the square around the shape is drawn large: nothing else of a frame is covered.
    box = min(SIDE, math.ceil(2 * radius) + 2)
    coverage = np.zeros((FRAMES, SIDE, SIDE), dtype=np.uint8)
    for t, share in enumerate(np.linspace(0, 1, FRAMES).tolist()):
        centre = [(a + (b - a) * share) * SIDE for a, b in zip(clip.start, clip.end, strict=True)]
        left, top = (min(max(math.floor(c - radius), 0), SIDE - box) for c in centre)
        x, y, r = ((centre[0] - left) * SUPERSAMPLING, (centre[1] - top) * SUPERSAMPLING, radius * SUPERSAMPLING)
        canvas = Image.new("L", (box * SUPERSAMPLING, box * SUPERSAMPLING))
        pen = ImageDraw.Draw(canvas)
        if outline := OUTLINES.get(clip.attributes["shape"]):
            pen.polygon([(x + r * u, y + r * v) for u, v in outline], fill=255)
        else:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        coverage[t, top : top + box, left : left + box] = canvas.reduce(SUPERSAMPLING)
    mix = np.linspace(0, 1, 256)[:, None]
    palette = np.rint((1 - mix) * np.array(clip.background) + mix * np.array(clip.colour)).astype(np.uint8)
    return palette[coverage]


def write_clip(clip: Clip, folder: Path) -> None:
    encode(draw(clip), folder / clip.path, FPS)


def encode(frames: np.ndarray, path: Path, rate: int) -> None:
    """Writes frames (T, H, W, 3) uint8 as H.264; a file that stands under its final name is always whole."""
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.mp4")
    try:
        with av.open(str(temporary), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_clips(clips: Sequence[Clip], folder: Path, num_workers: int) -> None:
    """Encodes clips on `num_workers` processes (at most one: in this one), with a progress bar."""
    for split in {Path(clip.path).parent for clip in clips}:
        (folder / split).mkdir(parents=True, exist_ok=True)
    on_processes(partial(write_clip, folder=folder), clips, num_workers, "demo clips")


def on_processes(work: Callable[[Any], None], items: Sequence[Any], num_workers: int, desc: str) -> None:
    """Does some work on each item on `num_workers` processes (at most one: in this one), with a progress bar."""
    # Here, since it would be loaded by each process that draws.
    from llava.progress import progress

    def follow(results: Iterable[None]) -> None:
        for _ in progress(results, total=len(items), desc=desc, unit="clip"):
            pass

    if num_workers <= 1:
        follow(map(work, items))
        return
    # Spawned, not forked: a fork of a process that runs threads (torch, a test runner) can hang.
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        follow(pool.map(work, items, chunksize=16))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def record(clip: Clip, with_video: bool) -> dict[str, Any]:
    """A clip as a record of the LLaVA JSON format, or its text-only twin, whose id ends in `_t`."""
    return {
        "id": clip.id if with_video else f"{clip.id}_t",
        **({"video": clip.path} if with_video else {}),
        "conversations": [
            {"from": "human", "value": "<video>" if with_video else ""},
            {"from": "gpt", "value": clip.caption},
        ],
        "meta": {"attributes": clip.attributes},
    }


def plan_hash(clips: Sequence[Any]) -> str:
    """Notices a change of the grammar or of the drawing plan, given as dataclasses, which no flag shows."""
    return hashlib.sha256(json.dumps([asdict(clip) for clip in clips], sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """`{"settings": ..., "complete": [splits]}` of the data set in `folder`, with all splits that it has or shall have.

    Raises:
        SystemExit: when it holds anything else. A split more or less is no other data set.
    """
    path = folder / "manifest.json"
    if not path.exists():
        # Hidden files are a manifest in the making, by another job.
        if folder.exists() and (
            not folder.is_dir() or any(not entry.name.startswith(".") for entry in folder.iterdir())
        ):
            raise SystemExit(f"{folder} is not empty and holds no demo data: choose another --output_dir or empty it")
        return {"settings": settings, "complete": []}
    manifest = json.loads(path.read_text(encoding="utf-8"))
    there, splits = manifest["settings"], manifest["settings"].get("splits", {})
    found = there | {"splits": {name: value for name, value in splits.items() if name in settings["splits"]}}
    wanted = settings | {"splits": {name: value for name, value in settings["splits"].items() if name in splits}}
    if found != wanted:
        differ = [
            json.dumps({key: value for key, value in a.items() if b.get(key) != value})
            for a, b in ((found, wanted), (wanted, found))
        ]
        raise SystemExit(
            f"{folder} holds demo data of other settings, {differ[0]} where {differ[1]} are asked for: "
            "choose another --output_dir or delete that folder"
        )
    every = dict(sorted((splits | settings["splits"]).items()))
    return {"settings": there | {"splits": every}, "complete": manifest["complete"]}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, help="folder to make (needed)")
    parser.add_argument("--num_train", type=int, default=2500, help="training clips (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--num_workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--validation", action="store_true", help=f"also {' and '.join(VALIDATION)}")
    parser.add_argument(
        "--grounding", action="store_true", help="the grounding demo instead: where and when (docs/grounding.md)"
    )
    args = parser.parse_args(argv)
    if args.output_dir is None:
        parser.error("--output_dir is needed: the folder to make")
    if args.num_train < 1:
        parser.error(f"--num_train must be at least 1, got {args.num_train}")
    if args.grounding:
        # Here, since it draws with what this module has.
        from grounding_demo import make

        make(args.output_dir, args.seed, args.num_train, args.num_workers)
        return

    others = {name: size for name, size in SPLIT_SIZES.items() if args.validation or name not in VALIDATION}
    splits = plan(args.seed, {"train": args.num_train} | others)
    manifest = read_manifest(
        args.output_dir,
        {
            "seed": args.seed,
            "format": [SIDE, FRAMES, FPS],
            "splits": {
                name: {"clips": len(clips), "plan_sha256": plan_hash(clips)} for name, clips in sorted(splits.items())
            },
        },
    )
    clip_folder = args.output_dir / "clips"
    clips = [clip for split in splits.values() for clip in split]
    missing = [clip for clip in clips if not (clip_folder / clip.path).exists()]
    table = args.output_dir / "exchanges.tsv"
    if set(splits) <= set(manifest["complete"]) and not missing and table.exists():
        print(f"demo data: {len(clips)} clips in {args.output_dir}, made before")
        return
    args.output_dir.mkdir(parents=True, exist_ok=True)
    kept = [name for name in manifest["complete"] if name not in splits]
    write_json(args.output_dir / "manifest.json", manifest | {"complete": kept})
    write_clips(missing, clip_folder, args.num_workers)
    for split, members in splits.items():
        write_json(args.output_dir / f"{split}_vi_it.json", [record(clip, with_video=True) for clip in members])
        write_json(args.output_dir / f"{split}_t_it.json", [record(clip, with_video=False) for clip in members])
    write_json(args.output_dir / "attributes.json", lexicon())
    rows = ["kind\tword\tother", *map("\t".join, exchanges())]
    write_text(table, "\n".join(rows) + "\n")
    write_json(args.output_dir / "manifest.json", manifest | {"complete": sorted([*kept, *splits])})
    size = sum((clip_folder / clip.path).stat().st_size for clip in clips)
    print(f"demo data: {len(clips)} clips in {args.output_dir}, {size / len(clips) / 1024:.1f} KiB a clip")


def run() -> None:
    """The command; what the system says of a file is one line."""
    try:
        main()
    except OSError as error:
        sys.exit(f"ERROR: {error.filename}: {error.strerror}; make room on its disk, or choose another --output_dir")


if __name__ == "__main__":
    run()
