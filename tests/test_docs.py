"""The documentation builds without a warning, holds every page, and asks nobody else for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import llava

ROOT = Path(__file__).resolve().parents[1]
ASSETS = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


def pages(nav: object) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


class Assets(HTMLParser):
    """What a page loads from another place."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        place = dict(attrs).get(ASSETS.get(tag, "")) or ""
        if re.match(r"(https?:)?//", place):
            self.foreign.append(place)


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == llava.__version__ and cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = pages(yaml.safe_load(text)["nav"])
    assert sorted(named) == sorted(p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md"))


def test_pipes_in_tables_are_entities():
    """The site shows the backslash of an escaped one within code, as a part of the token."""
    wrong = [path.name for path in (ROOT / "docs").glob("*.md") if "\\|" in path.read_text(encoding="utf-8")]
    assert not wrong, "write <code>&#124;</code>"


def test_every_command_is_in_the_table_of_the_installation():
    listed = re.findall(r"^\| `(llava-[a-z-]+)` \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    scripts = re.findall(r"^(llava-[a-z-]+) =", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(scripts)


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason="pip install -c constraints.txt -e '.[docs]' builds the documentation")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    variables = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    for page in tmp_path.rglob("*.html"):
        assets = Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        assert assets.foreign == [], page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
    assert "preprocess_plain_lm" in (tmp_path / "reference.html").read_text(encoding="utf-8"), "from docstrings"
