"""The last steps of the launch script, after training: captions with their scores, and the report with both in it.

    python -m llava.commands.finish output/run --model-path output/run --data_path held_out.json ...

One process for both: what each imports takes longer than what it does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from llava.errors import run_command
from llava.eval import captioning
from llava.report import page


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of the run in the first word; the others, if there are any, are captioning's arguments.

    Raises:
        ValueError, FileNotFoundError: as `llava.eval.captioning` and `llava.report.page`; no report then follows.
    """
    run, *scored = sys.argv[1:] if argv is None else argv
    if scored:
        captioning.main(scored)
    # The launch script says where the report is.
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        return page.main([run])


if __name__ == "__main__":
    run_command(main)
