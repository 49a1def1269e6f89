"""What scripts/env.sh asks of pip, which is a stub here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = """#!/bin/sh
case "$*" in
    *"pip install"*)
        while [ "$1" != -c ]; do shift; done
        cp "$2" "$(dirname "$0")/../constraints-seen.txt" ;;
esac
"""


@pytest.mark.parametrize(("extras", "pinned"), [("", True), ("docs", True), ("docs,web", False)])
def test_the_web_extra_is_free_of_the_one_version_that_gradio_refuses(tmp_path, extras, pinned):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    variables = {**os.environ, "VENV": str(tmp_path), "LLAVA_EXTRAS": extras}
    result = subprocess.run(["bash", "scripts/env.sh"], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    seen = (tmp_path / "constraints-seen.txt").read_text().splitlines()
    assert seen == [line for line in lines if pinned or not line.startswith("pillow==")]
