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


WORKERS = """
import pkgutil, sys
sys.modules["peft"] = None  # Where it is installed, transformers imports it, and models with it, for any of its flags.
import llava, llava.config, llava.data
for room in (llava.config, llava.data):
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        if module.name != "llava.data.extract":  # a command, which loads a tower
            __import__(module.name)
models = [m for m in sys.modules if m.startswith("transformers.models.") and ".modeling_" in m and ".auto." not in m]
heavy = ("transformers.trainer", "transformers.modeling_utils", "llava.model")
loaded = models + [m for m in heavy if m in sys.modules]
assert not loaded, loaded
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.for_model("llava_gpt2")
assert AutoModelForCausalLM._model_mapping[type(config)].__name__ == "LlavaGPT2ForCausalLM"
"""


BUILTIN_ERRORS = {"ValueError", "FileNotFoundError", "FileExistsError", "OSError", "LookupError", "FloatingPointError"}
CAUGHT_HERE = {"data/features/content.py", "data/features/shards.py", "data/prepared.py"}
"""Modules that raise and catch them for themselves."""
FAULTS = {
    "data/features/rows.py": 3, "data/video/select.py": 2, "data/video/transforms.py": 1, "eval/acquisition.py": 2,
    "eval/attributes.py": 1,
    "eval/controls.py": 1, "eval/power.py": 1, "eval/statistics.py": 1, "eval/two_way.py": 3, "model/builder.py": 2,
    "model/llava_arch.py": 1, "model/lora.py": 1, "model/loss.py": 1, "model/multimodal_encoder/base.py": 1,
    "model/packed_attention.py": 1, "model/remote_code.py": 2, "model/splice.py": 1, "train/checkpoint/files.py": 1,
}  # fmt: skip
"""How often a module says that it was called in a wrong way, which is a fault of the program and has a traceback."""


def test_errors_of_the_user_are_of_our_own_classes() -> None:
    """Others would cost a user a traceback: `llava.errors` has a class for each of them."""
    found: dict[str, int] = {}
    for path in SOURCES:
        name = path.relative_to(ROOT / "llava").as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = node.exc if isinstance(node, ast.Raise) else None
            if (
                isinstance(made, ast.Call)
                and getattr(made.func, "id", "") in BUILTIN_ERRORS
                and name not in CAUGHT_HERE
            ):
                found[name] = found.get(name, 0) + 1
    assert found == FAULTS


def test_rooms_import_only_what_is_below_them() -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed: pip install import-linter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr


def test_data_workers_do_not_pay_for_models() -> None:
    """And transformers still knows our models once it is asked."""
    result = subprocess.run([sys.executable, "-c", WORKERS], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_files_are_short() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert {p: n for p, n in lengths.items() if n > MAX_LINES} == {}, f"split files above {MAX_LINES} lines"


def test_imports_do_nothing() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == ""
