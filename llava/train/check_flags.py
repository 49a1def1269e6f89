"""Looks at the flags of a run and touches nothing: what the launch script does before it makes data and models.

python -m llava.train.check_flags --pending data_path,model_name_or_path --data_path demo/data/train.json ...
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from llava.errors import run_command
from llava.train.run_flags import parse_arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Looks at flags; the words that follow `--pending` name those whose files are still to be made.

    Raises:
        ValueError: as `parse_arguments`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    pending = words[1].split(",") if words[:1] == ["--pending"] else []
    logging.disable(logging.WARNING)  # The run will say so itself.
    try:
        parse_arguments(words[2:] if pending else words, pending)
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    run_command(main)
