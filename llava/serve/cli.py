"""Captions at the command line: `python -m llava.serve.cli --model_path DIR --video a.mp4 b.mp4`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from llava.config.commands import parse, refuse
from llava.config.groups import ModelFlags
from llava.config.ranges import COUNT, Range
from llava.data.video import VideoError
from llava.errors import fitted, run_command, show
from llava.eval.captioning import Captioner, check_prompt
from llava.eval.data import device_of

PROG = "python -m llava.serve.cli"


@dataclass
class CaptionFlags:
    """What is captioned, and how."""

    ranges = {"num_beams": COUNT, "temperature": Range(0, above=True), "max_new_tokens": COUNT}

    video: list[str] = field(metadata={"help": "Video files."})
    prompt: str = field(
        default="",
        metadata={"help": "Text that the caption continues; to a model of a chat format, the question."},
    )
    num_beams: int = field(default=1, metadata={"help": "Beams that are searched; 1 is greedy decoding."})
    temperature: float | None = field(
        default=None, metadata={"help": "Sample at this temperature; leave it out for greedy decoding."}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Longest caption in tokens."})


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line for each video: its path, a tab and its caption (line breaks escaped).

    Exit status 1 when one could not be read.
    """
    trained, flags = parse(main.__doc__, ModelFlags, CaptionFlags, argv=argv, prog=PROG)
    try:
        captioner = Captioner.from_pretrained(trained.model_path, device_of(trained.device), trained.vision_tower)
        check_prompt(flags.prompt, captioner.tokenizer, captioner.text_format.version)
    except (OSError, ValueError, RuntimeError) as error:  # torch: a device that is not there
        refuse(error, PROG)
    options = {"num_beams": flags.num_beams, "max_new_tokens": flags.max_new_tokens}
    if flags.temperature is not None:
        options |= {"do_sample": True, "temperature": flags.temperature}
    failed = 0
    for path in flags.video:
        try:
            caption = captioner.caption(path, flags.prompt, **options)
        except VideoError as error:
            print(f"{PROG}: {fitted(show(error))}", file=sys.stderr)
            failed = 1
            continue
        except ValueError as error:  # The prompt is too long, or options do not go together.
            refuse(error, PROG)
        print(f"{show(path)}\t{show(caption.text)}", flush=True)
        if not caption.ended:
            print(f"{PROG}: {show(path)}: the caption was cut at --max_new_tokens {flags.max_new_tokens}, or at "
                  "the model's last position", file=sys.stderr)  # fmt: skip
    return failed


if __name__ == "__main__":
    run_command(main)
