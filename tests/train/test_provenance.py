"""What a run records of its code and its machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from llava.train.provenance import code_commit, cpu_name, hardware


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_is_that_of_the_checkout_and_says_when_files_differ(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert code_commit(package) is None, "no checkout"
    git(tmp_path, "init", "--quiet")
    assert code_commit(package) is None, "somebody else's checkout, which does not track the package"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "a")
    assert code_commit(package) == git(tmp_path, "rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = True\n")
    assert code_commit(package) == git(tmp_path, "rev-parse", "HEAD") + "-dirty"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_commit() is None


def test_a_processor_has_a_name(tmp_path):
    (tmp_path / "info").write_text("processor: 0\nmodel name\t: \nmodel name\t: Fast 9000: X\n")
    assert cpu_name(tmp_path / "info") == "Fast 9000: X"
    assert cpu_name(tmp_path / "none")
    found = hardware(torch.device("cpu"))
    assert found["device"] == found["cpu"] and found["memory"] is None and found["cores"] > 0
