"""The text that all arms read beside the captions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.data.sources import ABOUT
from llava.errors import UserError
from llava.study.finish import Command

CORPUS_FILE = "text_corpus.jsonl"


def corpus_of(files: Sequence[str], words: str, output: Path, command: Command) -> list[str]:
    """Files of records of a text corpus: those that `llava.data.corpus` has made as they are, all others made one in
    the study's folder, once.

    Args:
        words: to take of what is made: `all`, or a number such as 10M.

    Raises:
        UserError: for a file that is not there, and for words of a corpus that is made already.
    """
    if missing := [f for f in files if not Path(f).is_file()]:
        raise UserError(f"--text_corpus {missing[0]}: no such file")
    made = [f for f in files if Path(f + ABOUT).is_file()]
    plain = [f for f in files if f not in made]
    if words != "all" and not plain:
        raise UserError(
            f"--words {words}: {', '.join(made) or 'no --text_corpus'} has as many words as it has; python -m "
            "llava.data.corpus makes one of so many"
        )
    if plain:
        file = output / CORPUS_FILE
        if not file.is_file():
            output.mkdir(parents=True, exist_ok=True)
            command([sys.executable, "-m", "llava.data.corpus", *plain, "--words", words, "--output", str(file)],
                    "the text corpus")  # fmt: skip
        made.append(str(file))
    return made
