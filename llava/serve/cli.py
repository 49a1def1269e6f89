"""Captions at the command line: `python -m llava.serve.cli --model-path DIR --video a.mp4 b.mp4`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import torch

from llava.data.video import VideoError
from llava.errors import run_command, show
from llava.eval.captioning import Captioner, check_prompt, positive


def temperature(value: str) -> float:
    """A number above 0, for argparse."""
    number = float(value)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{value}: a number above 0; leave it out for greedy decoding")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line for each video: its path, a tab and its caption (line breaks escaped).

    Exit status 1 when one could not be read.
    """
    parser = argparse.ArgumentParser(prog="python -m llava.serve.cli", description=main.__doc__)
    parser.add_argument("--model-path", required=True, help="folder of a finished run or a checkpoint")
    parser.add_argument("--video", required=True, nargs="+", help="video files")
    parser.add_argument("--prompt", default="",
                        help="text that the caption continues; to a model of a chat format, the question")  # fmt: skip
    parser.add_argument("--vision-tower", help="where the model's tower lies now, if it has moved")
    parser.add_argument("--device", help="cuda, cpu, ...; the first GPU by default when there is one")
    parser.add_argument("--num-beams", type=positive, default=1)
    parser.add_argument("--temperature", type=temperature, help="sample at this temperature instead of greedy decoding")
    parser.add_argument("--max-new-tokens", type=positive, default=64)
    args = parser.parse_args(argv)
    try:
        device = torch.device(args.device) if args.device else None
        captioner = Captioner.from_pretrained(args.model_path, device, args.vision_tower)
        check_prompt(args.prompt, captioner.tokenizer, captioner.text_format.version)
    except (OSError, ValueError, RuntimeError) as error:  # torch: an unknown device, or one that is not there
        parser.exit(2, f"{parser.prog}: {error}\n")
    options = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens}
    if args.temperature is not None:
        options |= {"do_sample": True, "temperature": args.temperature}
    failed = 0
    for path in args.video:
        try:
            caption = captioner.caption(path, args.prompt, **options)
        except VideoError as error:
            print(f"{parser.prog}: {show(error)}", file=sys.stderr)
            failed = 1
            continue
        except ValueError as error:  # The prompt is too long, or options do not go together.
            parser.exit(2, f"{parser.prog}: {error}\n")
        print(f"{show(path)}\t{show(caption.text)}", flush=True)
        if not caption.ended:
            print(f"{parser.prog}: {show(path)}: the caption was cut at --max-new-tokens {args.max_new_tokens}, or at "
                  "the model's last position", file=sys.stderr)  # fmt: skip
    return failed


if __name__ == "__main__":
    run_command(main)
