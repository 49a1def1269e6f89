"""Rules of the layout that no other test would notice: file lengths, layers, imports that do nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "llava").rglob("*.py"))
MAX_LINES = 400

IMPORT_ALL = """
import os, pkgutil, socket, sys
from importlib.util import find_spec
for name in ("accelerate", "decord", "transformers.trainer"):  # these change the environment; that is theirs
    if find_spec(name):
        __import__(name)
import torch

def refuse(*args, **kwargs):
    raise OSError("network use at import")

socket.socket.connect = socket.getaddrinfo = refuse
def state():
    return list(sys.path), dict(os.environ), torch.get_rng_state().tolist(), torch.get_num_threads()

before = state()
import llava
names = [m.name for m in pkgutil.walk_packages(llava.__path__, "llava.")]
for name in names:
    __import__(name)
assert state() == before, "sys.path, the environment, torch's random state or its thread count changed"
assert len(names) > 10, names
"""


def imported_modules(source: str, package: str) -> set[str]:
    """Full names of the modules that `source`, a module of `package`, imports anywhere (functions included)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import llava.train.train as t", "llava.train.train"),
        ("from llava import train", "llava.train"),
        ("def f():\n    from ..train import stages", "llava.train.stages"),
        ("from . import prompt", "llava.data.prompt"),
    ],
)
def test_imported_modules(source: str, expected: str) -> None:
    assert expected in imported_modules(source, "llava.data")


@pytest.mark.parametrize("layer", ["data", "model"])
def test_data_and_model_do_not_know_training(layer: str) -> None:
    files = [p for p in SOURCES if p.is_relative_to(ROOT / "llava" / layer)]
    assert files
    guilty = {}
    for path in files:
        package = ".".join(path.relative_to(ROOT).parent.parts)
        modules = imported_modules(path.read_text(encoding="utf-8"), package)
        if wrong := sorted(m for m in modules if m == "llava.train" or m.startswith("llava.train.")):
            guilty[str(path.relative_to(ROOT))] = wrong
    assert not guilty, "pass what is needed in as an argument instead"


def test_files_are_short() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert {p: n for p, n in lengths.items() if n > MAX_LINES} == {}, f"split files above {MAX_LINES} lines"


def test_imports_do_nothing() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == ""
