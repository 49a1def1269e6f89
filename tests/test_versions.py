"""What is installed by exact version lies within what the package says it needs, for every Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")

ROOT = Path(__file__).resolve().parents[1]
NEEDED = [Requirement(d) for d in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("needed", NEEDED, ids=lambda requirement: requirement.name)
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_pinned_versions_lie_within_the_bounds(needed, python):
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    (pin,) = [p for p in PINS if p.name == needed.name and (p.marker is None or p.marker.evaluate(environment))]
    (version,) = pin.specifier
    assert needed.specifier.contains(version.version), f"{pin} is not {needed}"
    assert any(s.operator == ">=" for s in needed.specifier), f"{needed.name} has no lower bound"


def test_transformers_is_bounded_by_what_is_tested():
    """5.24 renamed an argument that generation passes, and every caption failed."""
    (needed,) = [r for r in NEEDED if r.name == "transformers"]
    newest = max(next(iter(p.specifier)).version for p in PINS if p.name == "transformers")
    major, minor, *_ = newest.split(".")
    assert needed.specifier.contains(newest) and not needed.specifier.contains(f"{major}.{int(minor) + 1}.0")
