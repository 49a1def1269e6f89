"""Computes the vision features of a data set once, ahead of training: `python -m llava.data.extract`.

    python -m llava.data.extract --data_path clips.json --video_folder clips --vision_tower facebook/dinov2-large \\
        --feature_cache output/feature_cache
    torchrun --nproc_per_node 4 -m llava.data.extract ...        one process a GPU
    python -m llava.data.extract ... --shards s3://bucket/dir    into a bucket, as tars; training reads them there
    python -m llava.data.extract ... --work output/work          any number of jobs share the clips (docs/shards.md)
    python -m llava.data.extract --status output/work            how far they are
    python -m llava.data.extract ... --shard 3/16                the fourth of 16 parts, whoever does the others
    python -m llava.data.extract ... --verify 64                 computes some again and compares
    python -m llava.data.extract ... --repair_features           checks all checksums, computes damaged ones again

Training with the same flags then finds every feature in the cache. Killed anywhere, the same command goes on with what
is missing; on SIGTERM, SIGUSR1 and Ctrl-C it writes what is finished and ends with status 85. A clip that cannot be
read, or takes too long, is reported at the end; the others are extracted.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import torch

from llava.config.commands import check_output, parse, refuse
from llava.config.groups import CLIP_TIMEOUT, FrameFlags, ManyDataFlags, cpus
from llava.config.ranges import COUNT, Range
from llava.data.check import spec_of
from llava.data.features.extract import cache_settings, describe_cache, extract_features, verify_features
from llava.data.features.jobs import LEASE, status
from llava.data.features.parts import extract_parts
from llava.data.features.remote import is_remote
from llava.data.features.store import TOLERANCES, FeatureCache
from llava.data.records import Problem, Record, format_problems, load_records, missing_files, without
from llava.errors import NotCached, UserError, fitted, run_command
from llava.model.multimodal_encoder.base import PRECISIONS, resolve_precision
from llava.model.multimodal_encoder.builder import load_vision_tower

PROG = "python -m llava.data.extract"


@dataclass
class ExtractFlags:
    """The command's own flags; those that training has too have its names and defaults."""

    ranges = {
        "batch_size": COUNT, "num_workers": Range(1, 4096, whole=True), "verify": COUNT, "lease": Range(0, above=True),
    }  # fmt: skip

    vision_tower: str = field(metadata={"help": "Folder or hub name of a DINOv2, DINOv3, SigLIP or CLIP."})
    feature_cache: str | None = field(
        default=None, metadata={"help": "Folder where features are kept; give training the same."}
    )
    shards: str | None = field(
        default=None,
        metadata={
            "help": "In place of --feature_cache: a folder or s3://bucket/folder that gets them as tars, as WebDataset "
            "has them; give training the same as --feature_cache.",
            "metavar": "DIR",
        },
    )
    work: Path | None = field(
        default=None,
        metadata={"help": "Folder on a file system that all jobs see: those with the same one share the clips, and "
                  "take over what a killed one left.", "metavar": "DIR"},
    )  # fmt: skip
    lease: float = field(
        default=LEASE, metadata={"help": "Seconds without a sign of life after which a job's part is taken over."}
    )
    mm_vision_select_layer: int = field(default=-2, metadata={"help": "Index into the tower's hidden states."})
    mm_vision_select_feature: str = field(default="patch", metadata={"help": "patch, or cls_patch."})
    vision_precision: str = field(
        default="auto",
        metadata={"help": "Of the tower; auto: bf16 where the device has it.", "choices": PRECISIONS},
    )
    feature_dtype: str = field(
        default="float16", metadata={"help": "What features are stored as.", "choices": tuple(TOLERANCES)}
    )
    repair_features: bool = field(
        default=False,
        metadata={"help": "First check the checksum of every cached feature, and compute damaged ones again."},
    )
    batch_size: int = field(default=16, metadata={"help": "Clips that go through the tower together."})
    num_workers: int = field(default_factory=cpus, metadata={"help": "Processes that decode."})
    clip_timeout: float = field(default=CLIP_TIMEOUT, metadata={"help": "Seconds that decoding one clip may take."})
    shard: str = field(
        default="0/1", metadata={"help": "Extract this part of the clips alone.", "metavar": "PART/PARTS"}
    )
    verify: int | None = field(
        default=None, metadata={"help": "Compute so many cached clips again and compare; extracts nothing."}
    )
    device: str | None = field(
        default=None, metadata={"help": "cuda, cpu, ...; this process's GPU by default when there is one."}
    )
    bad_list: Path | None = field(
        default=None, metadata={"help": "JSONL file for the records whose clips cannot be read."}
    )

    def __post_init__(self) -> None:
        if (self.feature_cache is None) == (self.shards is None):
            raise UserError(
                "give --feature_cache, a folder on disk, or --shards, a folder of tars or s3://bucket/folder"
            )
        if self.feature_cache is not None and is_remote(self.feature_cache):
            raise UserError(f"--feature_cache {self.feature_cache}: extraction writes into a bucket by --shards")
        if self.part_of_parts() != (0, 1) and self.work is not None:
            raise UserError("--shard and --work: the jobs of --work share the clips by themselves")
        check_output("--bad_list", self.bad_list)

    def part_of_parts(self) -> tuple[int, int]:
        """The part that is extracted, from 0, and how many there are."""
        try:
            part, parts = (int(n) for n in self.shard.split("/"))
        except ValueError:
            part, parts = -1, 0
        if not 0 <= part < parts:
            raise UserError(f"--shard {self.shard}: expected PART/PARTS with 0 <= PART < PARTS, for instance 0/4")
        return part, parts


@dataclass
class StatusFlags:
    """What shows how far the jobs of a list of work are."""

    status: Path = field(metadata={"help": "The folder that they have as --work.", "metavar": "DIR"})


def read_all(data: ManyDataFlags) -> tuple[list[Record], list[Problem]]:
    """The records of every file that can be read, and the problems of the others."""
    records: list[Record] = []
    problems: list[Problem] = []
    for path in data.data_path:
        some, wrong = load_records(
            path, data.image_folder, data.video_folder, allow_absolute_paths=data.allow_absolute_paths, seed=data.seed
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
    words = sys.argv[1:] if argv is None else list(argv)
    if any(word.split("=")[0] == "--status" for word in words):
        (asked,) = parse(__doc__, StatusFlags, argv=words, prog=PROG)
        print(status(asked.status))
        return 0
    data, frames, flags = parse(__doc__, ManyDataFlags, FrameFlags, ExtractFlags, argv=argv, prog=PROG)
    try:
        spec = spec_of(frames)
    except ValueError as error:
        refuse(error, PROG)
    # torchrun says which of its processes this is.
    rank, ranks, local = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = flags.device or (f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    tower = load_vision_tower(flags.vision_tower, flags.mm_vision_select_layer, flags.mm_vision_select_feature)
    tower.precision = resolve_precision(flags.vision_precision, device)
    processor = tower.processor
    settings = cache_settings(
        tower.checksum(), flags.mm_vision_select_layer, flags.mm_vision_select_feature, spec, processor,
        tower.precision, flags.feature_dtype,
    )  # fmt: skip
    cache = FeatureCache(
        flags.shards or flags.feature_cache, settings, flags.repair_features, shards=bool(flags.shards)
    )
    if rank == 0:
        print(tower.describe(processor.image_size), describe_cache(cache), sep="\n", flush=True)
    tower = tower.to(device)
    records, problems = read_all(data)
    if flags.verify:
        count, differing = verify_features(records, cache, tower, spec, processor, device, flags.verify)
        print(f"{count} cached clips computed again, {len(differing)} problem(s): {cache.folder}")
        if differing:
            print(format_problems(differing, limit=None))
        if not count:
            raise NotCached(f"{cache.folder}: none of these clips is cached under these flags; extract first")
        return int(bool(differing))
    part, parts = flags.part_of_parts()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("llava").setLevel(logging.INFO)
    options = (cache, tower, spec, processor, device, flags.batch_size, flags.num_workers, flags.clip_timeout)
    with stop_signals() as stopped:
        if flags.work is not None:
            problems += extract_parts(flags.work, flags.lease, records, *options, should_stop=stopped)
        else:
            problems += extract_features(
                records, *options, rank=part + parts * rank, world_size=parts * ranks, show_progress=rank == 0,
                should_stop=stopped,
            )  # fmt: skip
    print(f"rank {rank}, part {part} of {parts}: done, {len(problems)} problem(s): {cache.folder}")
    if problems:
        print(fitted(format_problems(problems)))
        if flags.bad_list:
            lines = "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in problems)
            flags.bad_list.write_text(lines, encoding="utf-8", errors="backslashreplace")
    return int(bool(problems))


if __name__ == "__main__":
    run_command(main)
