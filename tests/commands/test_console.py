"""The commands of an installation, and what a wheel holds."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from llava.config.known_flags import known_flags
from llava.config.launch import launch_settings
from llava.config.recipe import find_recipe, load_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_every_command_says_what_it_does(command, monkeypatch, capsys):
    module, function = PROJECT["scripts"][command].split(":")
    assert command == f"llava-{function.replace('_', '-')}"
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as end:
        getattr(import_module(module), function)()
    assert end.value.code in (0, None)
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_wheel_holds_the_whole_package(tmp_path):
    """And so a run from scratch needs nothing of the repository: every file under `llava/`, and the recipes."""
    pytest.importorskip("setuptools", "77", reason="needs setuptools 77 or newer: pip install -U setuptools")
    source = tmp_path / "source"
    leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "llava", source / "llava", symlinks=True, ignore=leave_out)
    shutil.copytree(ROOT / "recipes", source / "recipes")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
        recipe = yaml.safe_load(wheel.read("llava/recipes/italian.yaml"))
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "llava").rglob("*") if p.is_file()}
    here |= {f"llava/recipes/{p.name}" for p in (ROOT / "recipes").glob("*.yaml")}
    assert {p for p in here if "__pycache__" not in p} == held
    assert recipe == yaml.safe_load((ROOT / "recipes" / "italian.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["tiny", "tiny.yaml", "recipes/tiny.yaml"])
def test_recipes_are_found_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(find_recipe(name), known_flags(), launch_settings())
    assert [Path(file).name for file in recipe.files] == ["tiny.yaml", "demo.yaml"]
    (tmp_path / "tiny.yaml").write_text("max_steps: 3\n")
    assert find_recipe("tiny.yaml") == "tiny.yaml", "a file of one's own comes first"
    with pytest.raises(FileNotFoundError, match="those that come along: demo, .*instruct, italian, .*tiny"):
        load_recipe(find_recipe("none"), known_flags())
