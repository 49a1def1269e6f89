"""Checks a data set before anything trains on it: `python -m llava.data.check --data_path … --video_folder …`.

Reads every record, opens every file as training would, and prints all problems at once. Exit code 0: none; 1: some.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llava.config.commands import parse, refuse
from llava.config.groups import CLIP_TIMEOUT, PROCESSES, DataFlags, FrameFlags, cpus
from llava.config.known_flags import known_flags
from llava.config.launch import OWN_DATA
from llava.config.ranges import COUNT
from llava.config.recipe import find_recipe, load_recipe
from llava.config.stages import COORDINATES
from llava.config.video import RESAMPLERS, VideoSpec, temporal_factor
from llava.constants import VISUAL_TOKENS
from llava.data.chat_formats import PLAIN, add_tokens, resolve
from llava.data.chat_formats import reserved as reserved_of
from llava.data.coordinates import register
from llava.data.dataset import measure_lengths
from llava.data.features.extract import Clip, distinct_clips
from llava.data.features.workers import WorkerFailure, run_tasks
from llava.data.prompt import reserved_tokens
from llava.data.records import (
    DatasetError,
    Problem,
    Record,
    format_problems,
    load_records,
    missing_files,
    remarks,
    unusable_paths,
    without,
)
from llava.data.sources import count_sources, format_sources
from llava.data.square_numbers import coordinate_problems, loose_times, other_shapes
from llava.data.text_format import text_format
from llava.data.text_start import NONE, TEXT_STARTS, choose_start, recorded_text
from llava.data.video import (
    REENCODE,
    VideoError,
    check_decodable,
    decoder_of,
    decoder_problem,
    probe_video,
    read_frames,
    read_image,
    segment_bounds,
    select_frames,
)
from llava.errors import UserError, run_command
from llava.foreign import config_values, load_tokenizer
from llava.progress import progress

PROG = "python -m llava.data.check"
CHEAP_PIXELS = 30_000_000
"""Videos of up to so many pixels in all frames are always decoded from start to end, which takes 0.2 to 0.5 s: 10 s of
320 x 240 at 30 frames per second are 23 million."""


@dataclass(frozen=True)
class FileReport:
    """What opening a file gave: a problem (`kind` is not empty), or how many distinct frames training would see.

    `is_whole`: every frame was decoded, not only what training sees; `cut_at`: frames of a clip that its segment ends
    beyond, else 0; `size`: width and height of a frame as it is shown, turned upright.
    """

    kind: str = ""
    message: str = ""
    distinct: int = 0
    is_whole: bool = False
    cut_at: int = 0
    size: tuple[int, int] = (0, 0)


def open_file(clip: Clip, spec: VideoSpec, thorough: bool = False, min_frames: int = 2) -> FileReport:
    """Reads a clip as training would; never raises, since any exception is a problem of the file."""
    path, split, is_image = clip
    try:
        if is_image:
            height, width = read_image(path).shape[1:3]
            return FileReport(distinct=1, is_whole=True, size=(width, height))
        info = probe_video(path)
        frames = read_frames(path, spec, split)
        first, last = segment_bounds(info.num_frames, split)
        if last - first + 1 < min_frames:
            what = "the video" if split is None else f"frames {first} to {last}"
            return FileReport(
                "too few frames",
                f"{path}: {what} has {last - first + 1} of at least {min_frames} frames; use a longer clip, name a "
                "still as image, or lower --min_frames",
            )
        is_whole = thorough or info.num_frames * info.width * info.height <= CHEAP_PIXELS
        if is_whole:
            check_decodable(path)
        if thorough and not np.array_equal(frames, read_frames(path, spec, split, full_decode=True)):
            return FileReport(
                "unreadable",
                f"{path}: {decoder_of(info, spec.video_decoder)}, which training would use, gives other frames than a "
                f"full decode; train with --video_decoder pyav, or {REENCODE}",
            )
        cut_at = info.num_frames if split is not None and split[1] >= info.num_frames else 0
        distinct = len(set(select_frames(info.times, spec, split)))
        height, width = frames.shape[1:3]
        return FileReport(distinct=distinct, is_whole=is_whole, cut_at=cut_at, size=(width, height))
    except VideoError as error:
        return FileReport(error.kind, str(error))
    except Exception as error:
        return FileReport("unreadable", f"{path}: {type(error).__name__}: {error}; {REENCODE}")


def open_all(
    clips: Sequence[Clip], work: Callable[[Clip], FileReport], num_workers: int, timeout: float = CLIP_TIMEOUT
) -> Iterator[tuple[Clip, FileReport]]:
    """`work` on every clip, in any order, in `num_workers` processes (0: in this one, without time limit)."""
    for clip, result in run_tasks(work, clips, num_workers, timeout):
        if isinstance(result, WorkerFailure):
            result = FileReport(result.kind, f"{clip[0]}: {result.message}; {REENCODE}")
        yield clip, result


def inspect_files(
    records: Sequence[Record],
    spec: VideoSpec,
    num_workers: int = 0,
    thorough: bool = False,
    min_frames: int = 2,
    show_progress: bool = False,
    timeout: float = CLIP_TIMEOUT,
) -> tuple[list[Problem], dict[Clip, FileReport]]:
    """Opens each distinct file, once for each segment: problems in the records' order, and the report of every clip."""
    problems = missing_files(records)
    absent = unusable_paths(records)
    users = {clip: named for clip, named in distinct_clips(records).items() if clip[0] not in absent}
    work = partial(open_file, spec=spec, thorough=thorough, min_frames=min_frames)
    results = open_all(list(users), work, num_workers, timeout)
    hidden = not (show_progress and users)
    reports = dict(progress(results, total=len(users), desc="files", unit="file", disable=hidden))
    for clip, named in users.items():
        report = reports[clip]
        if report.kind:
            problems += [Problem(r.source, r.id, report.kind, report.message) for r in named]
    return problems, reports


def cut_segments(records: Sequence[Record], reports: dict[Clip, FileReport]) -> list[Problem]:
    """What is said of each record whose segment ends beyond its clip, where it is cut."""
    return [
        Problem(
            r.source, r.id, "segment beyond the end",
            f"{clip[0]}: meta.split {list(r.split)} of frames 0 to {reports[clip].cut_at - 1}; it counts frames, both "
            "ends included",
        )
        for clip, named in distinct_clips(records).items()
        if clip in reports and reports[clip].cut_at
        for r in named
        if r.split is not None
    ]  # fmt: skip


def check_files(
    records: Sequence[Record],
    spec: VideoSpec,
    num_workers: int = 0,
    thorough: bool = False,
    min_frames: int = 2,
    timeout: float = CLIP_TIMEOUT,
) -> list[Problem]:
    """Problems of the files that `records` name: missing, unreadable, without video stream, with too few frames.

    Args:
        num_workers: processes that open files; 0 opens them in this one, which a crashing decoder would end.
        thorough: decode every video from start to end, which finds damage in frames that are not sampled; otherwise
            those of up to `CHEAP_PIXELS`.
        min_frames: fewer frames in a video (or its segment) are a problem. Above that, a video that has fewer frames
            than `spec.num_frames` is fine: some are repeated.
        timeout: seconds that opening one file may take, where `num_workers` is above 0.
    """
    return inspect_files(records, spec, num_workers, thorough, min_frames, timeout=timeout)[0]


def check_lengths(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    spec: VideoSpec,
    max_length: int,
    version: str = PLAIN,
    text_start: str = NONE,
) -> tuple[list[Problem], int]:
    """Records whose visual spans do not fit `max_length`, and the number of tokens of all after truncation.

    The tokenizer gets the visual tokens and those of the format `version`, and where a record has numbers the
    coordinate tokens, as training gives them to it.
    """
    tokenizer.add_tokens(list(VISUAL_TOKENS), special_tokens=True)
    if any(r.coordinates for r in records):
        register(tokenizer)
    add_tokens(version, tokenizer)
    form = text_format(version, tokenizer, text_start=text_start)
    lengths, problems = measure_lengths(records, tokenizer, spec, form, max_length)
    return problems, sum(min(n, max_length) for n in lengths)


@dataclass
class CheckFlags:
    """The command's own flags; those that training has too have its names and defaults."""

    ranges = {"min_frames": COUNT, "num_workers": PROCESSES}

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A model folder or hub name; with it the lengths in tokens are checked too."},
    )
    version: str = field(default=PLAIN, metadata={"help": "The format of the text, as in training."})
    text_start: str | None = field(
        default=None, metadata={"help": "What stands before the first word, as in training.", "choices": TEXT_STARTS}
    )
    mm_coordinates: bool | None = field(
        default=None,
        metadata={
            "help": "Whether records may have times and places as numbers, as in training. Default: as the model has "
            "them; without a model they may."
        },
    )
    model_max_length: int | None = field(
        default=None, metadata={"help": "Longest sequence, in tokens; by default the positions of the model."}
    )
    mm_perceiver_latents_fast: int = field(
        default=VideoSpec.fast_latents, metadata={"help": "Latents of a frame in the fast stream."}
    )
    mm_perceiver_latents: int = field(
        default=VideoSpec.slow_latents, metadata={"help": "Latents of a frame in the slow stream."}
    )
    mm_resampler_type: str = field(
        default="fast_slow_resampler", metadata={"help": "As in training.", "choices": RESAMPLERS}
    )
    mm_perceiver_temporal_factor: int | None = field(
        default=None, metadata={"help": "Frames that a row of the slow stream sums up, as in training."}
    )
    min_frames: int = field(
        default=2,
        metadata={
            "help": "Fewer frames in a video are a problem (a single frame is no video); with fewer than num_frames "
            "some are repeated, which is counted."
        },
    )
    num_workers: int = field(default_factory=cpus, metadata={"help": "Processes that open files; 0: this one."})
    clip_timeout: float = field(default=CLIP_TIMEOUT, metadata={"help": "Seconds that opening one file may take."})
    thorough: bool = field(
        default=False,
        metadata={"help": "Decode every video from start to end, not only those that take less than half a second."},
    )


def spec_of(flags: FrameFlags, **latents: int) -> VideoSpec:
    """The `VideoSpec` that the flags describe.

    Raises:
        ValueError: when they do not go together, or the decoder is not installed.
    """
    problem = decoder_problem(flags.video_decoder)
    if problem:
        raise UserError(problem)
    return flags.video_spec(**latents)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what is wrong with the data set, or a line that nothing is; returns the exit code."""
    data, frames, flags = parse(__doc__, DataFlags, FrameFlags, CheckFlags, argv=argv, prog=PROG)
    tokenizer = None
    try:
        version = resolve(flags.version)
        factor = temporal_factor(flags.mm_resampler_type, flags.mm_perceiver_temporal_factor)
        spec = spec_of(
            frames, fast_latents=flags.mm_perceiver_latents_fast, slow_latents=flags.mm_perceiver_latents,
            temporal_factor=factor,
        )  # fmt: skip
        if flags.model_name_or_path:
            tokenizer, max_length, recorded = _tokenizer(flags.model_name_or_path, flags.model_max_length)
            text_start = choose_start(flags.text_start, version, recorded)
    except (ValueError, OSError) as error:
        refuse(error, PROG)
    try:
        records, problems = load_records(
            data.data_path, data.image_folder, data.video_folder,
            (*reserved_tokens(tokenizer, flags.mm_coordinates), *reserved_of(version)), data.allow_absolute_paths,
            data.seed, version != PLAIN,
        )  # fmt: skip
    except DatasetError as error:
        print(error)
        return 1
    file_problems, reports = inspect_files(
        records, spec, flags.num_workers, flags.thorough, flags.min_frames, show_progress=True,
        timeout=flags.clip_timeout,
    )  # fmt: skip
    tokens = 0
    if tokenizer is not None:
        good = without(records, problems)
        too_long, tokens = check_lengths(good, tokenizer, spec, max_length, version, text_start)
        problems += too_long
    # What a crop cuts away depends on the tower; it asks for the same sizes as a pad.
    aspect = "pad" if spec.image_aspect_ratio == "crop" else spec.image_aspect_ratio
    sizes = {clip: report.size for clip, report in reports.items()}
    problems += file_problems + coordinate_problems(records, aspect, None) + other_shapes(records, sizes)
    cut = cut_segments(records, reports)
    timed = {record.source for record in records if record.coordinates}
    problems += [problem for problem in cut if problem.source in timed]  # Their times are of the whole segment.
    if len(sources := count_sources(records)) > 1:
        print(format_sources(sources))
    if doubtful := remarks(records) + [problem for problem in cut if problem.source not in timed]:
        print(format_problems(doubtful, noun="remark"))
    if problems:
        print(format_problems(problems, limit=None))
        return 1
    print(_summary(len(records), reports, spec) + (f", {tokens} tokens" if tokenizer else ""))
    if numbered := [r for r in records if r.coordinates]:
        numbers = sum(len(r.coordinates) for r in numbered)
        print(f"coordinates: {numbers} numbers in {len(numbered)} records, which train with --mm_coordinates True")
        if remark := loose_times(records, spec):
            print(f"remark: {remark}")
        if spec.image_aspect_ratio == "crop":
            print(
                "not checked: boxes that --image_aspect_ratio crop cuts away, which depends on the tower; a run looks"
            )
    unseen = len({clip[0] for clip, report in reports.items() if not report.is_whole})
    if unseen:
        print(
            f"not checked: {unseen} videos were decoded only as far as the frames that training sees need it; damage "
            "that a decoder conceals, or in frames that are not read, would be found with --thorough"
        )
    print(f"next: {_next_command(data, bool(numbered))}")
    return 0


def _next_command(data: DataFlags, has_numbers: bool) -> str:
    """The run on what was found to be right."""
    named = {"DATA_PATH": data.data_path, "VIDEO_FOLDER": data.video_folder, "IMAGE_FOLDER": data.image_folder}
    settings = [f"{name}={shlex.quote(str(value))}" for name, value in named.items() if value]
    if has_numbers:
        # The recipe is for records without numbers, and would freeze the coordinates.
        trained = load_recipe(find_recipe(OWN_DATA), known_flags()).flags["mm_tunable_parts"]
        settings += ["MM_COORDINATES=True", f"MM_TUNABLE_PARTS={trained},{COORDINATES}"]
    return " ".join([*settings, "bash train_italian_video.sh"])


def _summary(num_records: int, reports: dict[Clip, FileReport], spec: VideoSpec) -> str:
    videos = {clip: report for clip, report in reports.items() if not clip[2]}
    repeating = sum(report.distinct < spec.num_frames for report in videos.values())
    remark = f" ({repeating} clips have fewer than {spec.num_frames} frames to choose from and repeat some"
    remark += ")" if spec.force_sample else "; --force_sample True chooses from all)"
    return (
        f"no problem in {num_records} records: {len({clip[0] for clip in videos})} videos, "
        f"{len(reports) - len(videos)} images, {sum(r.distinct for r in videos.values())} distinct frames read"
        f"{remark if repeating else ''}"
    )


def _tokenizer(
    name_or_path: str, max_length: int | None
) -> tuple[PreTrainedTokenizerBase, int, Mapping[str, Any] | None]:
    """Tokenizer and positions of a model, and the text that it was trained with."""
    values = config_values(name_or_path, f"--model_name_or_path {name_or_path}")
    recorded = recorded_text(values)
    kind = str(values.pop("model_type", "")).removeprefix("llava_")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"--model_name_or_path {name_or_path}: transformers knows no model type {kind!r}")
    positions = getattr(CONFIG_MAPPING[kind].from_dict(values), "max_position_embeddings", None)
    if max_length is None and positions is None:
        raise UserError(f"--model_max_length: {name_or_path} takes sequences of any length; say how long yours may be")
    if max_length is not None and positions is not None and max_length > positions:
        raise UserError(f"--model_max_length {max_length} is beyond the {positions} positions of {name_or_path}")
    return load_tokenizer(name_or_path), max_length or positions, recorded


if __name__ == "__main__":
    run_command(main)
