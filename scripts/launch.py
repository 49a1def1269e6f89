"""Prints what train_italian_video.sh is to do, as bash assignments; `--help` prints what can be set.

Looks at every variable, argument and recipe first, which takes less than a second, and asks torch for GPUs last.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def load_without_models() -> None:
    """Has `llava` be the package without its first lines, which import transformers and take seconds."""
    package = ModuleType("llava")
    package.__path__ = [str(ROOT / "llava")]
    sys.modules["llava"] = package


def main() -> None:
    load_without_models()
    from llava.config.hardware import hardware
    from llava.config.launch import plan
    from llava.config.launch_help import help_text

    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        print(help_text())
        return
    try:
        is_first = os.environ.get("NODE_RANK", "0") in ("", "0")
        todo = plan(os.environ, arguments, hardware, is_first, ROOT)
        print(todo.shell([name for name, path in todo.pending.items() if not Path(path).exists()]))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"ERROR: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
