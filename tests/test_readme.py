"""README and docs keep their promises: the file tree is the disk's, commands and links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FILES = ROOT / "docs" / "files.md"
HEADING = "## Files"
# Folders named by one line for all that is in them.
WHOLE_FOLDERS = ("tests/assets",)
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
TREE_LINE = re.compile(r"^(?P<indent>(?:  )*)(?P<name>[^\s/]+/?)(?:\s{2,}(?P<what>\S.*))?$")
# [text](target) and <img src="target">, without what follows a #.
LINK = re.compile(r"""\]\(([^)\s#]+)|src="([^"#]+)""")


def parse_tree(block: str) -> tuple[list[str], list[str]]:
    """Paths of a tree: two spaces a level, folders end in `/`, then two or more spaces and what the thing is.

    Returns:
        files and folders, paths from the root, in the order of the lines.

    Raises:
        ValueError: for a line that is not of that form, a file without description, or a path named twice.
    """
    files: list[str] = []
    folders: list[str] = []
    parents: list[str] = []
    for line in filter(str.strip, block.splitlines()):
        match = TREE_LINE.match(line)
        depth = len(match["indent"]) // 2 if match else -1
        if match is None or depth > len(parents):
            raise ValueError(f"not a tree line (two spaces a level under a folder, name, two spaces, text): {line!r}")
        name = match["name"]
        del parents[depth:]
        path = "/".join([*parents, name.rstrip("/")])
        if path in files or path in folders:
            raise ValueError(f"{path} is named twice")
        if name.endswith("/"):
            folders.append(path)
            parents.append(name.rstrip("/"))
        elif not match["what"]:
            raise ValueError(f"{path} has no description")
        else:
            files.append(path)
    return files, folders


def repository_files() -> list[str]:
    """What git tracks and the disk has; without git, the disk less what .gitignore names."""

    def git(*args: str) -> str:
        try:
            return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return ""

    top = git("rev-parse", "--show-toplevel").strip()
    if top and Path(top).resolve() == ROOT:
        return [path for path in git("ls-files", "-z").split("\0") if path and (ROOT / path).exists()]
    ignored = [".git", *(ROOT / ".gitignore").read_text(encoding="utf-8").replace("/\n", "\n").split()]
    paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [str(p) for p in paths if not any(fnmatch(part, pattern) for part in p.parts for pattern in ignored)]


def file_tree() -> tuple[list[str], list[str]]:
    text = FILES.read_text(encoding="utf-8")
    assert f"\n{HEADING}\n" in text, f"docs/files.md has no heading {HEADING!r}"
    block = FENCE.search(text.split(f"\n{HEADING}\n")[1].split("\n## ")[0])
    assert block, f"no fenced block under {HEADING!r}"
    return parse_tree(block[1])


def test_parse_tree() -> None:
    block = "a/        top\n  b.py    one\n  c/\n    d.py  two words  and more\ne.toml  three\n"
    assert parse_tree(block) == (["a/b.py", "a/c/d.py", "e.toml"], ["a", "a/c"])


@pytest.mark.parametrize(
    "block",
    ["a.py", "a.py one", "a/  x\n    b.py  y", "a.py  x\n  b.py  y", " a.py  x", "a.py  x\na.py  x", "a/b.py  x"],
)
def test_parse_tree_refuses(block: str) -> None:
    with pytest.raises(ValueError):
        parse_tree(block)


def test_file_tree_equals_the_disk() -> None:
    named, folders = file_tree()
    expected = {
        path
        for path in repository_files()
        if not path.startswith(tuple(f"{folder}/" for folder in WHOLE_FOLDERS)) and not path.endswith("__init__.py")
    }
    gone = [p for p in named if not ((ROOT / p).is_file() or (ROOT / p).is_symlink())]
    gone += [f for f in folders if not (ROOT / f).is_dir()]
    assert gone == [], "docs/files.md names what is not there"
    assert sorted(expected - set(named)) == [], "docs/files.md lacks these files"


def test_commands_exist() -> None:
    text = README.read_text(encoding="utf-8")
    commands = "\n".join(FENCE.findall(text))
    for promised in ("bash train_italian_video.sh", "bash scripts/test.sh"):
        assert promised in commands, f"the README's blocks do not show `{promised}`"
    scripts = re.findall(r"\b(?:bash|sbatch|python|torchrun(?: --\S+(?: \d+)?)*) ([\w./]+\.(?:sh|py))\b", commands)
    assert [s for s in scripts if not (ROOT / s).is_file()] == []
    modules = re.findall(r"\bpython -m (llava[\w.]*)", commands)
    assert [m for m in modules if find_spec(m) is None] == []


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [a or b for a, b in LINK.findall(text)]
    local = [t for t in targets if not re.match(r"[a-z]+:", t)]
    assert [t for t in local if not (page.parent / t).exists()] == []
