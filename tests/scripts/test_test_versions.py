"""`scripts/budget.sh` says what took too long, and `scripts/test_versions.sh` gives each leg its versions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
BUDGET = """
set -euo pipefail
source scripts/budget.sh
trap budget EXIT
late() { SECONDS=$((SECONDS + $1)); }
broken() { late 61; false && true; echo unreached; return 3; }
stage install 5 late 299
stage tests 20 late 1201
noted docs 2 'among the tests'
"""


def bash(script: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)


def test_a_stage_over_its_budget_is_said_loudly_and_fails_nothing():
    found = bash(BUDGET)
    assert found.returncode == 0, found.stderr
    assert re.search(r"^install +4:59 +5:00 *$", found.stdout, re.MULTILINE)
    assert re.search(r"^tests +20:01 +20:00 +OVER BUDGET$", found.stdout, re.MULTILINE)
    assert re.search(r"^docs +0:00 +2:00 +among the tests$", found.stdout, re.MULTILINE)
    assert re.search(r"^whole +25:00 +40:00", found.stdout, re.MULTILINE)
    assert "!!! OVER BUDGET: tests took 20:01 of 20:00 minutes" in found.stdout


def test_a_stage_that_fails_ends_the_check_and_the_time_is_still_said():
    found = bash(BUDGET + "stage other 1 broken\necho after\n")
    assert found.returncode == 3 and "after" not in found.stdout
    assert re.search(r"^other +1:01 +1:00 +OVER BUDGET, FAILED \(3\)$", found.stdout, re.MULTILINE)


def test_nothing_runs_beyond_the_limit_of_the_whole():
    found = bash(BUDGET + "late 2000\nlimited echo ran\n")
    assert found.returncode == 124 and "ran" not in found.stdout and "40 minutes for the whole are over" in found.stderr
    assert "tests took" in found.stdout
    assert bash("source scripts/budget.sh\nlimited echo ran").stdout == "ran\n"


def pins(text: str) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(requirement.name, []).append(requirement)
    return found


def test_each_leg_has_its_own_versions_of_what_transformers_needs_and_the_others_of_the_constraints():
    script = (ROOT / "scripts" / "test_versions.sh").read_text()
    function = script[script.index("constraints_of() {") :].split("\n}\n")[0] + "\n}\n"
    pinned = pins((ROOT / "constraints.txt").read_text())
    low = pins((ROOT / "constraints" / "transformers-lowest.txt").read_text())
    legs = {
        leg: pins(bash(f"LOWEST=constraints/transformers-lowest.txt\n{function}constraints_of {leg}").stdout)
        for leg in ("lowest", "newest", "python3.12")
    }
    assert set(low) == {"transformers", "tokenizers", "huggingface-hub"}
    assert legs["lowest"] == pinned | low and legs["python3.12"] == pinned
    assert legs["newest"] == {name: value for name, value in pinned.items() if name not in low}


def test_the_lowest_transformers_is_the_first_within_bounds():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")

    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bounds,) = [r.specifier for r in map(Requirement, needed) if r.name == "transformers"]
    (low,) = pins((ROOT / "constraints" / "transformers-lowest.txt").read_text())["transformers"]
    version = Version(next(iter(low.specifier)).version)
    assert version in bounds and f"{version.major}.{version.minor - 1}.99" not in bounds
