"""Controls that prove sight: the caption loss when the video is another one, out of order, blank, or half missing.

*Visual information gain* is loss(another clip's video) - loss(true video): how many nats of the caption the model
reads off its own clip. The other gains compare with the true video likewise, one for time order and one a stream.

Letters in shapes: B batch, L positions, V videos, T frames, S pixels, P patches, Dv width of the tower, N captions.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from llava.config.commands import check_output, parse
from llava.config.groups import DataFlags, EvaluationFlags
from llava.config.ranges import COUNT
from llava.config.video import ProcessorSpec, VideoSpec
from llava.constants import IGNORE_INDEX
from llava.data.collator import VISION_KEYS, DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.features.extract import open_cache
from llava.data.features.quantised import dequantised
from llava.data.positions import visual_positions
from llava.data.prompt import pad_token_id, video_tokens
from llava.data.records import Record
from llava.data.text_format import recorded_format
from llava.errors import UserError, run_command, show
from llava.eval.clip_gains import clips_that_help_less
from llava.eval.coordinate_gains import CoordinateNats, format_coordinates
from llava.eval.data import device_of, read_for_evaluation
from llava.eval.loss import coordinate_targets, token_losses
from llava.eval.statistics import LEAST_CLUSTERS, bootstrap_ratio
from llava.model.builder import load_pretrained_model
from llava.model.capabilities import max_positions

GAINS = {"video": "other", "time": "shuffled", "blank": "blank", "fast": "no_fast", "slow": "no_slow"}
"""Each gain and the condition that it takes from the true video's loss."""
CONDITIONS = ("true", *GAINS.values())
VIDEO_KEYS = ("pixel_values_videos", "video_features")
CONTROLS_FILE = "controls.jsonl"
EVALUATION, TRAINING = "evaluation clips", "training clips"
"""What the controls were measured on. On clips that a model was trained on a gain shows that it tells them apart, which
it may have learned by heart, with wrong captions as with right ones."""


def other_samples(clips: Sequence[Any], kinds: Sequence[Any], seed: int = 0) -> list[int | None]:
    """For each sample, the index of one with another clip and the same kind: a random rotation of the distinct clips.

    Args:
        clips: what each sample shows, hashable; equal means the same clip.
        kinds: samples are exchanged within a kind only, for instance the number of videos.

    Returns:
        An index for each sample, None where its kind has a single clip.
    """
    generator = np.random.default_rng(seed)
    first: dict[Any, int] = {}
    members: dict[Any, list[Any]] = {}
    for index, pair in enumerate(zip(kinds, clips, strict=True)):
        if pair not in first:
            first[pair] = index
            members.setdefault(pair[0], []).append(pair)
    successor: dict[Any, int] = {}
    for listed in members.values():
        shuffled = [listed[i] for i in generator.permutation(len(listed))]
        if len(shuffled) > 1:
            successor |= {pair: first[shuffled[(i + 1) % len(shuffled)]] for i, pair in enumerate(shuffled)}
    return [successor.get(pair) for pair in zip(kinds, clips, strict=True)]


def shuffle_frames(videos: torch.Tensor, seed: int | Sequence[int] = 0) -> torch.Tensor:
    """(V, T, ...) with each video's frames in another order; unchanged for a single frame.

    Every frame moves: a random cyclic permutation (Sattolo 1986), another one for each video.

    Args:
        seed: of all, or one for each video, whose order then does not depend on those beside it.
    """
    frames = videos.shape[1]
    if isinstance(seed, int):
        generators = [np.random.default_rng(seed)] * len(videos)
    else:
        generators = [np.random.default_rng(one) for one in seed]
    orders = []
    for generator in generators:
        cycle = generator.permutation(frames)
        order = np.empty(frames, dtype=np.int64)
        order[cycle] = np.roll(cycle, 1)
        orders.append(torch.from_numpy(order))
    index = torch.stack(orders).to(videos.device)
    return videos[torch.arange(len(videos), device=videos.device)[:, None], index]


def shuffle_seeds(records: Sequence[Record]) -> list[int]:
    """A seed for each video of some records in reading order, from its file's name and segment: a clip's frames get the
    same order in every batch, process and folder.
    """
    names = [repr((Path(path).name, record.split)) for record in records for path in record.videos]
    return [zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names]


def stream_mask(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, video_ids: Sequence[int], spec: VideoSpec, removed: str
) -> torch.Tensor:
    """The attention mask (B, L) with one stream of every video hidden from all positions.

    Args:
        video_ids: token ids that videos are written with.
        removed: `fast`, the first `spec.fast_rows` positions of each video, or `slow`, the rest.
    """
    positions = visual_positions(input_ids, video_ids)
    place = (positions.cumsum(dim=1) - 1) % spec.rows
    fast = place < spec.fast_rows
    return attention_mask.masked_fill(positions & (fast if removed == "fast" else ~fast), 0)


def black_pixels(processor: ProcessorSpec) -> torch.Tensor:
    """A black frame as the tower sees it, (3, S, S)."""
    values = [-mean / std for mean, std in zip(processor.image_mean, processor.image_std, strict=True)]
    return torch.tensor(values)[:, None, None].expand(3, processor.image_size, processor.image_size)


@dataclass(frozen=True)
class ControlLosses:
    """Summed nats (N,) of every caption under each of `CONDITIONS`; and its number of tokens, its clip, its record's id
    and the paths that this names, each (N,). Of a model with coordinates those among the targets, too.
    """

    nats: dict[str, np.ndarray]
    tokens: np.ndarray
    clips: np.ndarray
    ids: np.ndarray
    paths: np.ndarray
    coordinates: CoordinateNats | None = None

    def join(self, more: Sequence[ControlLosses]) -> ControlLosses:
        """These losses and more, those of other ranks."""
        parts = [self, *more]
        return ControlLosses(
            {c: np.concatenate([p.nats[c] for p in parts]) for c in self.nats},
            *(np.concatenate([getattr(p, name) for p in parts]) for name in ("tokens", "clips", "ids", "paths")),
            self.coordinates and self.coordinates.join([p.coordinates for p in more]),
        )

    def summary(self, step: int | None = None, measured_on: str | None = None) -> dict[str, Any]:
        """Losses and gains per caption and per token, gains as mean and 95 % bootstrap interval over clips; and the
        clips that help less than another one.

        Args:
            measured_on: `EVALUATION`, `TRAINING` or None, where it is not known whether the clips were trained on.
        """
        captions, tokens = len(self.tokens), float(self.tokens.sum())
        losses = {
            c: {"per_caption": float(nats.sum() / captions), "per_token": float(nats.sum() / tokens)}
            for c, nats in self.nats.items()
        }
        gains = {}
        for gain, condition in GAINS.items():
            if condition in self.nats:
                difference = self.nats[condition] - self.nats["true"]
                gains[gain] = {
                    "per_caption": bootstrap_ratio(difference, np.ones(captions), self.clips),
                    "per_token": bootstrap_ratio(difference, self.tokens, self.clips),
                }
        counts = {"captions": captions, "clips": len(np.unique(self.clips)), "tokens": int(tokens)}
        # JSON has no NaN; an interval that does not exist is null.
        clean = {
            g: {u: [None if math.isnan(x) else x for x in triple] for u, triple in units.items()}
            for g, units in gains.items()
        }
        less = clips_that_help_less(self.nats["true"], self.nats["other"], self.clips, self.ids, self.paths)
        numbers = self.coordinates.summary(self.clips) if self.coordinates is not None else None
        return {
            "step": step, "measured_on": measured_on, **counts, "losses": losses, "gains": clean, "help_less": less,
            **({"coordinates": numbers} if numbers else {}),
        }  # fmt: skip


def choose_samples(records: Sequence[Record], limit: int | None = None) -> tuple[list[int], list[int]]:
    """Indices of records with video, evenly spread when there are more than `limit`, and for each its other one.

    Raises:
        ValueError: when no record with a video has another clip to be compared with.
    """
    clips = [_clip(r) for r in records]
    kinds = [(len(r.videos), len(r.images)) for r in records]
    others = other_samples(clips, kinds)
    chosen = [i for i, r in enumerate(records) if r.videos and others[i] is not None]
    if not chosen:
        raise UserError("the controls need at least two records with different videos")
    if limit is not None and len(chosen) > limit:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, limit).round().astype(int)]
    return chosen, [others[i] for i in chosen]


@torch.no_grad()
def control_losses(
    model: nn.Module,
    dataset: Any,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    pairs: Sequence[tuple[int, int]],
    batch_size: int,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> ControlLosses:
    """Losses of samples under each condition; the frames' order is left alone when a video has a single one.

    Args:
        model: unwrapped, in evaluation mode, on its device.
        dataset: `LazySupervisedDataset`.
        pairs: (sample, sample with another video), from `choose_samples`.
        context: entered around every forward pass, for autocast.
    """
    spec, ids = model.video_spec, model.config.visual_token_ids
    video_ids = sorted({ids[token] for token in video_tokens(spec)})
    blank = _blank_video(model)
    nats: dict[str, list[float]] = {}
    tokens: list[float] = []
    records: list[Record] = []
    numbers = CoordinateNats.measured(model)
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        samples = [dataset[i] for i, _ in chunk]
        swapped = [with_vision_of(s, dataset[j]) for s, (_, j) in zip(samples, chunk, strict=True)]
        batch, other = (dequantised(_to(collate(s), model.device)) for s in (samples, swapped))
        key = next(k for k in VIDEO_KEYS if k in batch)
        conditions = {
            "true": batch,
            "other": other,
            "blank": batch | {key: blank(key, batch[key])},
            **{
                f"no_{stream}": batch
                | {"attention_mask": stream_mask(batch["input_ids"], batch["attention_mask"], video_ids, spec, stream)}
                for stream in ("fast", "slow")
            },
        }
        if spec.num_frames > 1:
            seeds = shuffle_seeds([dataset.records[i] for i, _ in chunk])
            conditions["shuffled"] = batch | {key: shuffle_frames(batch[key], seeds)}
        for name in (c for c in CONDITIONS if c in conditions):
            with context():
                losses = token_losses(model, conditions[name])
            nats.setdefault(name, []).extend(losses.sum(dim=1).tolist())
            if numbers is not None:
                numbers.add(name, losses, coordinate_targets(model, batch["labels"]))
        tokens += (batch["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
        records += [dataset.records[i] for i, _ in chunk]
    return ControlLosses(
        {c: np.array(n) for c, n in nats.items()},
        np.array(tokens),
        np.array([_clip(r) for r in records]),
        np.array([r.id for r in records]),
        np.array([", ".join([*r.videos, *r.images]) for r in records]),
        numbers,
    )


def with_vision_of(sample: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's text with another sample's videos and images."""
    return {k: v for k, v in sample.items() if k not in VISION_KEYS} | {k: other[k] for k in VISION_KEYS if k in other}


def _clip(record: Record) -> str:
    """What a record shows, as a name that is the same on every rank."""
    return repr((record.videos, record.images, record.split))


def _blank_video(model: nn.Module) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Black videos in place of given ones: (V, T, 3, S, S) pixels or the tower's features of them (V, T, P, Dv)."""
    pixels = black_pixels(model.processor_spec).to(model.device)
    kept: dict[str, torch.Tensor] = {"pixel_values_videos": pixels}

    def blank(key: str, videos: torch.Tensor) -> torch.Tensor:
        if key not in kept:
            if model.vision_tower is None:
                raise ValueError("the blank video needs the vision tower: call attach_vision_tower() first")
            tower = model.vision_tower.to(model.device)
            given = pixels[None].to(tower.vision_model.dtype)
            # FSDP brings weights together when the whole model is called, and here its tower is called alone.
            whole = {n: p.full_tensor() for n, p in tower.named_parameters() if isinstance(p, DTensor)}
            kept[key] = functional_call(tower, whole, (given,))[0]
        return kept[key].to(videos.dtype).expand_as(videos)

    return blank


def _to(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def format_controls(summary: Mapping[str, Any]) -> str:
    """Losses and gains of a summary as aligned text."""
    where = f" ({summary['measured_on']})" if summary.get("measured_on") else ""
    few = "; too few to tell a gain from chance" if summary["clips"] < LEAST_CLUSTERS else ""
    of = f"{summary['captions']} captions of {summary['clips']} clips{where}{few}"
    lines = [
        f"controls on {of}, nats a caption (a token):",
        f"  {'condition':<10}{'loss':>18}  {'gain over it, 95 % interval':>32}",
    ]
    names = {condition: gain for gain, condition in GAINS.items()}
    for condition, loss in summary["losses"].items():
        line = f"  {condition:<10}{loss['per_caption']:>9.3f} ({loss['per_token']:.3f})"
        if condition in names:
            units = summary["gains"][names[condition]]
            line += f"{_interval(units['per_caption']):>28} ({units['per_token'][0]:+.3f})"
        lines.append(line)
    lines += format_coordinates(summary.get("coordinates"))
    less = summary["help_less"]
    lines.append(f"  {less['less']} of {less['clips']} clips help their own captions less than another clip does")
    for clip in less["listed"][:5]:
        lines.append(f"    {show(clip['path'])} ({show(', '.join(clip['ids']))}): {clip['gain']:+.2f}")
    return "\n".join(lines)


def _interval(triple: Sequence[float | None]) -> str:
    mean, low, high = triple
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if low is not None else f"{mean:+.3f} [one clip]"


@dataclass
class ControlFlags:
    """The command's own flags."""

    ranges = {"batch_size": COUNT, "limit": COUNT}

    batch_size: int = field(default=32, metadata={"help": "Captions that go through the model together."})
    limit: int | None = field(default=None, metadata={"help": "Use so many records, evenly spread."})
    output: Path | None = field(default=None, metadata={"help": "JSON file for the result."})

    def __post_init__(self) -> None:
        check_output("--output", self.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Caption loss of a checkpoint under true, other, shuffled and blank videos and without each stream.

    The records are to have videos that were not trained on.
    """
    trained, data, flags = parse(
        main.__doc__, EvaluationFlags, DataFlags, ControlFlags, argv=argv, prog="python -m llava.eval.controls"
    )
    tokenizer, model = load_pretrained_model(trained.model_path, device_of(trained.device), trained.vision_tower)
    cache = open_cache(trained.feature_cache, model)
    records = read_for_evaluation(
        data.data_path, tokenizer, model, cache, data.video_folder, data.image_folder, trained.num_workers,
        allow_absolute_paths=data.allow_absolute_paths, seed=data.seed,
    )  # fmt: skip
    length = max_positions(model)
    form = recorded_format(model.config, tokenizer)
    dataset = LazySupervisedDataset(
        records, tokenizer, form.preprocess, length, model.video_spec, model.processor_spec, cache, text_format=form
    )
    chosen, others = choose_samples(records, flags.limit)
    if len(chosen) < len(records):
        print(f"{data.data_path}: {len(chosen)} of {len(records)} records")
    collate = DataCollatorForSupervisedDataset(pad_token_id(tokenizer))
    losses = control_losses(model, dataset, collate, list(zip(chosen, others, strict=True)), flags.batch_size)
    summary = losses.summary()
    print(format_controls(summary))
    if flags.output:
        flags.output.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_command(main)
