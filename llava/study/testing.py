"""All tests of a finished run in one process: what each imports takes longer than most of them do.

    python -m llava.study.testing RUN '{"blind_words": ["-m", "llava.eval.surprisal", "RUN", ...], ...}'

After each test its command is noted beside the results, with the hashes of the files that it names and of what it
found: a study that goes on makes those that are missing, those of which a file has changed, and those that somebody has
made in another way since.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from llava.errors import run_command
from llava.eval.result_files import FOLDER, sha256

COMMANDS_FILE = "commands.json"
"""In the folder of a run's results: the command that made each."""
MILESTONES = "milestones"
"""The results of the models that a run kept after so many words, and their folder."""


def result_of(folder: Path, name: str) -> Path:
    """What a test says of its results, for the run in a folder."""
    return folder / (MILESTONES if name == MILESTONES else FOLDER) / f"{name}.json"


def noted(folder: Path) -> dict[str, Any]:
    """What made the results of the run in a folder, by the name of the test; what cannot be read is not there."""
    try:
        found = json.loads((folder / FOLDER / COMMANDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def made_by(words: Sequence[str]) -> dict[str, Any]:
    """A command as it is noted: its words, and the hashes of the files among them."""
    return {"words": list(words), "files": {word: sha256(word) for word in words if Path(word).is_file()}}


def make(folder: Path, wanted: Mapping[str, Sequence[str]]) -> None:
    """Makes tests, one after the other.

    Args:
        folder: of the run; wanted: by the name of the test `-m`, a module, and the arguments of its `main`.

    Raises:
        Everything that a test does; those before it stay.
    """
    for name, words in wanted.items():
        print(f"\ntest {name}", flush=True)
        described = made_by(words)
        import_module(words[1]).main(list(words[2:]))
        described["result"] = sha256(result_of(folder, name))
        text = json.dumps({**noted(folder), name: described}, indent=1, ensure_ascii=False)
        (folder / FOLDER).mkdir(exist_ok=True)
        (folder / FOLDER / COMMANDS_FILE).write_text(f"{text}\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the tests of the run in the first word that the second one lists."""
    folder, wanted = sys.argv[1:] if argv is None else argv
    make(Path(folder), json.loads(wanted))
    return 0


if __name__ == "__main__":
    run_command(main)
