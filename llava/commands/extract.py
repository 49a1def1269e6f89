"""Computes the vision features of a data set once, ahead of training: `python -m llava.data.extract`.

    python -m llava.data.extract --data_path clips.json --video_folder clips --vision_tower facebook/dinov2-large \\
        --feature_cache output/feature_cache
    torchrun --nproc_per_node 4 -m llava.data.extract ...        one process a GPU
    python -m llava.data.extract ... --shard 3/16                the fourth of 16 parts, for job arrays
    python -m llava.data.extract ... --verify 64                 computes some again and compares
    python -m llava.data.extract ... --repair_features           checks all checksums, computes damaged ones again

Training with the same flags then finds every feature in the cache. Killed anywhere, the same command goes on with what
is missing; on SIGTERM, SIGUSR1 and Ctrl-C it writes what is finished and ends with status 85. A clip that cannot be
read, or takes too long, is reported at the end; the others are extracted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
from transformers.hf_argparser import string_to_bool

from llava.data.check import add_frame_flags, spec_of
from llava.data.features.extract import cache_settings, describe_cache, extract_features, verify_features
from llava.data.features.store import TOLERANCES, FeatureCache
from llava.data.features.workers import CLIP_TIMEOUT
from llava.data.paths import add_folder_flags
from llava.data.records import Problem, Record, format_problems, load_records, missing_files, without
from llava.errors import run_command
from llava.model.multimodal_encoder.base import PRECISIONS, resolve_precision
from llava.model.multimodal_encoder.builder import load_vision_tower


def parse_shard(value: str) -> tuple[int, int]:
    """`3/16` as (3, 16): the part, from 0, and how many there are."""
    try:
        part, parts = (int(n) for n in value.split("/"))
    except ValueError:
        part, parts = -1, 0
    if not 0 <= part < parts:
        raise argparse.ArgumentTypeError(f"{value!r}: expected PART/PARTS with 0 <= PART < PARTS, for instance 0/4")
    return part, parts


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags; those that training has too have its names and defaults."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="python -m llava.data.extract", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data_path",
        required=True,
        nargs="+",
        help="records, LLaVA JSON or JSONL, or mixtures of them (YAML); several share clips",
    )
    add_folder_flags(parser)
    add("--vision_tower", required=True, help="folder or hub name of a DINOv2, DINOv3, SigLIP or CLIP")
    add("--mm_vision_select_layer", type=int, default=-2, help="index into the tower's hidden states")
    add("--mm_vision_select_feature", default="patch", help="patch, or cls_patch")
    add("--vision_precision", choices=PRECISIONS, default="auto",
        help="of the tower; auto: bf16 where the device has it")  # fmt: skip
    add("--feature_cache", required=True, help="folder where features are kept; give training the same")
    add("--feature_dtype", choices=TOLERANCES, default="float16", help="what features are stored as")
    add("--repair_features", type=string_to_bool, nargs="?", const=True, default=False,
        help="first check the checksum of every cached feature, and compute damaged ones again")  # fmt: skip
    add_frame_flags(parser)
    add("--batch_size", type=int, default=16, help="clips that go through the tower together")
    add("--num_workers", type=int, default=cpus, help=f"processes that decode (default: {cpus})")
    add("--clip_timeout", type=float, default=CLIP_TIMEOUT, help="seconds that decoding one clip may take")
    add("--shard", type=parse_shard, default=(0, 1), metavar="PART/PARTS", help="extract this part of the clips alone")
    add("--verify", type=int, metavar="N", help="compute N cached clips again and compare; extracts nothing")
    add("--device", help="cuda, cpu, ...; this process's GPU by default when there is one")
    add("--bad_list", help="JSONL file for the records whose clips cannot be read")
    args = parser.parse_args(argv)
    for name in ("batch_size", "num_workers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: 1 or more")
    return args


def read_all(args: argparse.Namespace) -> tuple[list[Record], list[Problem]]:
    """The records of every file that can be read, and the problems of the others."""
    records: list[Record] = []
    problems: list[Problem] = []
    for path in args.data_path:
        some, wrong = load_records(
            path, args.image_folder, args.video_folder, allow_absolute_paths=args.allow_absolute_paths, seed=args.seed
        )
        records, problems = records + some, problems + wrong
    problems += missing_files(records)
    return without(records, problems), problems


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM, SIGUSR1 and Ctrl-C end nothing: they turn the answer of the function that is given to True. A
    second Ctrl-C ends at once.
    """
    received: list[int] = []
    names = [n for n in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, n)]

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    before = {n: signal.signal(getattr(signal, n), note) for n in names}
    try:
        yield lambda: bool(received)
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Extracts, or verifies; exit status 1 when a clip could not be read or differs from the cache.

    Raises:
        Stopped: on SIGTERM, SIGUSR1 and Ctrl-C, after what was finished is written.
    """
    args = parse_arguments(argv)
    # torchrun says which of its processes this is.
    rank, ranks, local = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = args.device or (f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    spec = spec_of(args)
    tower = load_vision_tower(args.vision_tower, args.mm_vision_select_layer, args.mm_vision_select_feature)
    tower.precision = resolve_precision(args.vision_precision, device)
    processor = tower.processor
    settings = cache_settings(
        tower.checksum(), args.mm_vision_select_layer, args.mm_vision_select_feature, spec, processor,
        tower.precision, args.feature_dtype,
    )  # fmt: skip
    cache = FeatureCache(args.feature_cache, settings, args.repair_features)
    if rank == 0:
        print(tower.describe(processor.image_size), describe_cache(cache), sep="\n", flush=True)
    tower = tower.to(device)
    records, problems = read_all(args)
    if args.verify:
        count, differing = verify_features(records, cache, tower, spec, processor, device, args.verify)
        print(f"{count} cached clips computed again, {len(differing)} problem(s): {cache.folder}")
        if differing:
            print(format_problems(differing, limit=None))
        if not count:
            raise LookupError(f"{cache.folder}: none of these clips is cached under these flags; extract first")
        return int(bool(differing))
    part, parts = args.shard
    with stop_signals() as stopped:
        problems += extract_features(
            records, cache, tower, spec, processor, device, args.batch_size, args.num_workers, args.clip_timeout,
            rank=part + parts * rank, world_size=parts * ranks, show_progress=rank == 0, should_stop=stopped,
        )  # fmt: skip
    print(f"rank {rank}, part {part} of {parts}: done, {len(problems)} problem(s): {cache.folder}")
    if problems:
        print(format_problems(problems))
        if args.bad_list:
            lines = "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in problems)
            Path(args.bad_list).write_text(lines, encoding="utf-8", errors="backslashreplace")
    return int(bool(problems))


if __name__ == "__main__":
    run_command(main)
