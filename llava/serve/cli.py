"""Captions at the command line: `python -m llava.serve.cli --model-path DIR --video a.mp4 b.mp4`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.data.video import VideoError
from llava.errors import run_command
from llava.eval.captioning import Captioner


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line for each video: its path, a tab and its caption. Exit status 1 when one could not be read."""
    parser = argparse.ArgumentParser(prog="python -m llava.serve.cli", description=main.__doc__)
    parser.add_argument("--model-path", required=True, help="folder of a finished run or a checkpoint")
    parser.add_argument("--video", required=True, nargs="+", help="video files")
    parser.add_argument("--prompt", default="", help="text that the caption continues")
    parser.add_argument("--vision-tower", help="where the model's tower lies now, if it has moved")
    parser.add_argument("--device", help="cuda, cpu, ...; the first GPU by default when there is one")
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--temperature", type=float, help="sample at this temperature instead of greedy decoding")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args(argv)
    try:
        captioner = Captioner.from_pretrained(args.model_path, args.device, args.vision_tower)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    options = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens}
    if args.temperature is not None:
        options |= {"do_sample": True, "temperature": args.temperature}
    failed = 0
    for path in args.video:
        try:
            print(f"{path}\t{captioner([path], args.prompt, **options)[0]}", flush=True)
        except VideoError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    run_command(main)
