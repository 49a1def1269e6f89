"""Where transformers' own tests lie, and the marks that they use."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build" / "transformers-tests" / transformers.__version__
"""Where `scripts/test_versions.sh` puts them."""
TRANSFORMERS_TESTS = Path(os.environ.get("LLAVA_TRANSFORMERS_TESTS", PLACE))


def pytest_configure(config: pytest.Config) -> None:
    """Makes their marks known, since an unknown one is an error here."""
    files = [*TRANSFORMERS_TESTS.glob("test_modeling_common.py"), *TRANSFORMERS_TESTS.glob("*/test_*.py")]
    text = "".join(file.read_text("utf-8") for file in files)
    found = set(re.findall(r"@(?:pytest\.)?mark\.([a-z_0-9]+)", text))
    for mark in sorted(found - {"parametrize", "skip", "skipif", "xfail"}):
        config.addinivalue_line("markers", f"{mark}: of transformers' tests")
