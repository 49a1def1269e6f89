"""Captions at the command line: `python -m llava.serve.cli --model_path DIR --video a.mp4 clips/ 'more/*.webm'`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from llava.config.commands import check_output, parse, refuse
from llava.config.groups import DEFAULT_SEED, ModelFlags
from llava.config.ranges import COUNT, Range
from llava.data.records import Record
from llava.data.video import VideoError
from llava.errors import UserError, fitted, run_command, show
from llava.eval.captioning import Captioner, check_prompt
from llava.eval.coordinate_choice import CHOICES, MEDIAN
from llava.eval.data import device_of, share_label, trained_share
from llava.eval.references import reference_of
from llava.serve.caption_file import CaptionFile, check_caption_file
from llava.serve.clips import find_clips
from llava.serve.drawn import ShowFile
from llava.serve.looking import to_frames
from llava.serve.true_captions import beside, read_true_captions, score_lines

PROG = "python -m llava.serve.cli"


@dataclass
class CaptionFlags:
    """What is captioned, and where the captions go."""

    _argument_group_name = "clips"

    video: list[str] = field(
        metadata={"help": "Videos, images, folders (videos in and below them) and patterns such as 'clips/**/*.mp4'."}
    )
    prompt: str = field(
        default="",
        metadata={"help": "Text that the caption continues; to a model of a chat format, the question."},
    )
    output: Path | None = field(
        default=None,
        metadata={
            "help": "File for a row a clip, .jsonl or .csv, written as they come; clips that cannot be read too."
        },
    )
    show: Path | None = field(
        default=None,
        metadata={"help": "HTML file for the frames that the model sees, with boxes and spans of its answers drawn."},
    )
    references: str | None = field(
        default=None,
        metadata={"help": "True captions, LLaVA JSON or JSONL: printed beside, and the captions are scored by them."},
    )
    video_folder: str | None = field(default=None, metadata={"help": "Prefix of the video paths in --references."})

    def __post_init__(self) -> None:
        check_caption_file("--output", self.output)
        check_output("--show", self.show)
        if self.video_folder is not None and self.references is None:
            raise UserError(f"--video_folder {self.video_folder}: has an effect with --references only")


@dataclass
class GenerationFlags:
    """How a caption is written."""

    _argument_group_name = "generation"
    ranges = {
        "num_beams": COUNT, "temperature": Range(0, above=True), "max_new_tokens": COUNT,
        "top_p": Range(0, 1, above=True), "top_k": COUNT, "repetition_penalty": Range(0, above=True),
    }  # fmt: skip

    temperature: float | None = field(
        default=None,
        metadata={"help": "Sample at this temperature, 1 being the model's own probabilities; greedy without it."},
    )
    top_p: float | None = field(
        default=None, metadata={"help": "Sample among the likeliest tokens that have this share of the probability."}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Sample among so many of the likeliest tokens; among all without it."}
    )
    num_beams: int = field(default=1, metadata={"help": "Beams that are searched; 1 is none."})
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "Above 1, tokens that are there already become less likely; 1 is none."}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Longest caption in tokens."})
    coordinate_choice: str = field(
        default=MEDIAN,
        metadata={"help": "Which coordinate of an axis is written: the median, or the likeliest.", "choices": CHOICES},
    )
    seed: int = field(
        default=DEFAULT_SEED,
        metadata={"help": "Of what is sampled; each clip begins with it, whichever clips are captioned beside it."},
    )

    def __post_init__(self) -> None:
        for flag in ("top_p", "top_k"):
            if getattr(self, flag) is not None and self.temperature is None:
                raise UserError(f"--{flag} {getattr(self, flag)}: has an effect with --temperature only")

    def options(self) -> dict[str, Any]:
        """These flags as arguments of transformers' `generate`."""
        options = {n: getattr(self, n) for n in ("num_beams", "repetition_penalty", "max_new_tokens")}
        if self.temperature is None:
            return options
        # Written out: transformers samples among the 50 likeliest tokens where nothing is said.
        sampling = {"temperature": self.temperature, "top_p": self.top_p or 1.0, "top_k": self.top_k or 0}
        return options | {"do_sample": True} | sampling


def caption_clips(
    captioner: Captioner,
    clips: Sequence[str],
    prompt: str,
    generation: GenerationFlags,
    true_captions: Mapping[str, Sequence[Record]] | None = None,
    file: CaptionFile | None = None,
    drawings: ShowFile | None = None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Captions clip by clip, printing each and writing its row.

    Args:
        true_captions: records by clip, printed beside.
        drawings: where answers are drawn.

    Returns:
        the caption of each clip, and of each that could not be read the reason.

    Raises:
        ValueError: for a prompt that leaves no room, and for options that do not go together.
    """
    captions: dict[str, str] = {}
    failed: dict[str, str] = {}
    for path in clips:
        records = (true_captions or {}).get(path, ())
        known = [reference_of(r) for r in records]
        torch.manual_seed(generation.seed)
        try:
            caption = captioner.caption(path, prompt, **generation.options())
        except VideoError as error:
            failed[path] = fitted(show(error))
            print(f"{PROG}: {failed[path]}", file=sys.stderr)
            if file:
                file.add(clip=path, references=known, error=failed[path])
            continue
        captions[path] = caption.text
        if drawings:
            pixels = captioner.read_pixels(path)
            drawings.add(path, to_frames(pixels, captioner.model.processor_spec), caption.text)
        columns = [show(path), show(caption.text), *([] if true_captions is None else [beside(records)])]
        print("\t".join(columns), flush=True)
        if not caption.ended:
            print(f"{PROG}: {show(path)}: the caption was cut at --max_new_tokens {generation.max_new_tokens}, or at "
                  "the model's last position", file=sys.stderr)  # fmt: skip
        if file:
            file.add(
                clip=path, caption=caption.text, ended=caption.ended, tokens=caption.tokens, references=known,
            )  # fmt: skip
    return captions, failed


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each video: its path, a tab and its caption (line breaks escaped); with --references another
    tab and the true caption, and at the end the scores.

    Exit status 1 when a clip could not be read; each is named with the reason.
    """
    trained, flags, generation = parse(main.__doc__, ModelFlags, CaptionFlags, GenerationFlags, argv=argv, prog=PROG)
    disable_progress_bar()  # Of loading weights, which takes no time here.
    true_captions = file = None
    try:
        clips, remarks = find_clips(flags.video)
        if flags.references:
            true_captions, more = read_true_captions(flags.references, clips, flags.video_folder)
            remarks += more
        captioner = Captioner.from_pretrained(trained.model_path, device_of(trained.device), trained.vision_tower)
        check_prompt(flags.prompt, captioner.tokenizer, captioner.text_format.version)
        if flags.output:
            common = {"prompt": flags.prompt, "model": trained.model_path, **asdict(generation)}
            file = CaptionFile(flags.output, common)
    except (OSError, ValueError, RuntimeError) as error:  # torch: a device that is not there
        refuse(error, PROG)
    captioner.coordinate_choice = generation.coordinate_choice
    drawings = ShowFile(flags.show) if flags.show else None
    for remark in remarks:
        print(f"{PROG}: {remark}", file=sys.stderr)
    with file or nullcontext():
        try:
            captions, failed = caption_clips(captioner, clips, flags.prompt, generation, true_captions, file, drawings)
        except ValueError as error:  # The prompt is too long, or options do not go together.
            refuse(error, PROG)
        finally:
            if drawings:
                drawings.write()
            if file and file.rows < len(clips):
                print(f"{PROG}: {file.rows} of {len(clips)} clips are in {show(flags.output)}", file=sys.stderr)
    scored = {clip: text for clip, text in captions.items() if clip in (true_captions or {})}
    if scored:
        known = [replace(record, videos=(clip,)) for clip in scored for record in true_captions[clip]]
        label = share_label(trained_share(trained.model_path, flags.references, known))
        print(f"\n{show(score_lines(scored, true_captions, label), keep=chr(10))}")
    if failed:
        print(f"{PROG}: {len(failed)} of {len(clips)} clips could not be read, see above", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    run_command(main)
