"""The text that all arms read beside the captions."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.data.sources import ABOUT
from llava.errors import UserError
from llava.eval.result_files import sha256
from llava.study.finish import Command

CORPUS_FILE, MADE_OF = "text_corpus.jsonl", "text_corpus.made_of.json"


def corpus_of(files: Sequence[str], words: str, output: Path, command: Command) -> list[str]:
    """Files of records of a text corpus: those that `llava.data.corpus` has made as they are, all others made one in
    the study's folder, once.

    Args:
        words: to take of what is made: `all`, or a number such as 10M.

    Raises:
        UserError: for a file that is not there, for words of a corpus that is made already, and when the study's folder
            has one that was made of other text or words.
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
        file, note = output / CORPUS_FILE, output / MADE_OF
        # By contents: a file may have been moved, and another may be called as it was.
        asked = {"words": words, "sha256": [sha256(path) for path in plain], "files": plain}
        if not file.is_file():
            output.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(asked, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            command([sys.executable, "-m", "llava.data.corpus", *plain, "--words", words, "--output", str(file)],
                    "the text corpus")  # fmt: skip
        elif note.is_file():
            before = json.loads(note.read_text(encoding="utf-8"))
            if any(before[what] != asked[what] for what in ("words", "sha256")):
                raise UserError(
                    f"{file} was made of other text ({before['words']} words of {', '.join(before['files'])}; asked "
                    f"for are {words} words of {', '.join(plain)}): give the same, or choose another --output"
                )
        made.append(str(file))
    return made
