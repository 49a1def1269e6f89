"""The trainer's flags by name, read from the source of the argument classes.

The launch script asks which flags there are, and looks at their values, before anything else happens. Reading the
source takes a tenth of a second; importing `transformers.TrainingArguments` takes several seconds.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava.config.llava_st import FLAGS
from llava.config.ranges import RANGES

BOOL, INT, FLOAT, LIST, TEXT = "bool", "int", "float", "list", "text"
WANTED = {BOOL: "True or False", INT: "a whole number", FLOAT: "a number", LIST: "a text, or several", TEXT: "a text"}
WORDS = {
    **dict.fromkeys(("yes", "true", "t", "y", "1"), True),
    **dict.fromkeys(("no", "false", "f", "n", "0"), False),
}
"""What transformers' parser takes for a truth value."""
GROUPS = {"ModelArguments": "Model", "DataArguments": "Data", "TrainingArguments": "Training"}
LIBRARY, OTHERS = "transformers.TrainingArguments", "LLaVA-ST's other flags"


def is_on(value: Any) -> bool:
    """Whether a flag that is true or false is given as true; a wrong word and no word are not."""
    return WORDS.get(str(value).lower(), False)


@dataclass(frozen=True)
class Known:
    """A flag, or another setting.

    Attributes:
        kind: one of BOOL, INT, FLOAT, LIST, TEXT.
        help: what it does; None where a listing leaves the flag out.
    """

    name: str
    kind: str
    default: Any
    help: str | None = ""
    group: str = ""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, a text or as YAML reads it; None when the parser takes it."""
        number: float | None = None
        fits = isinstance(value, (str, int, float))
        if isinstance(value, Mapping):
            fits = self.kind == TEXT and self.default in (None, "")  # JSON, which some flags take in braces
        elif isinstance(value, list):
            fits = self.kind == LIST and all(isinstance(v, str) for v in value)
        elif self.kind == BOOL:
            fits = str(value).lower() in WORDS
        elif self.kind in (INT, FLOAT):
            number = _number(value, self.kind)
            fits = number is not None
        elif isinstance(value, bool):
            fits = self.kind == TEXT and self.default in (None, "auto")
        if not fits:
            return f"{WANTED[self.kind]} is expected"
        if number is not None and self.name in RANGES and not RANGES[self.name].holds(number):
            return f"{RANGES[self.name]} is expected"
        return None


def _number(value: Any, kind: str) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return int(str(value)) if kind == INT else float(value)
    except (ValueError, OverflowError):
        return None


def read_class(source: str, name: str, group: str) -> list[Known]:
    """The fields of a dataclass in Python source, in their order."""
    body = next(n.body for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name)
    found = []
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.target.id.startswith("_") or "ClassVar" in ast.unparse(node.annotation):
            continue
        parts = {k.arg: k.value for k in node.value.keywords} if isinstance(node.value, ast.Call) else {}
        if _literal(parts.get("init")) is False:
            continue
        metadata = parts.get("metadata")
        texts = {}
        if isinstance(metadata, ast.Dict):
            texts = {_literal(k): _literal(v) for k, v in zip(metadata.keys, metadata.values, strict=True) if k}
        text = texts.get("help", "")
        hidden = text == "argparse.SUPPRESS"
        found.append(Known(node.target.id, _kind(ast.unparse(node.annotation)), _literal(parts.get("default")),
                           None if hidden else " ".join(str(text).split()), group))  # fmt: skip
    return found


def _kind(annotation: str) -> str:
    """As transformers' parser decides: of `str | X` it takes X, of `X | None` X, and of more a text."""
    outer = re.fullmatch(r"(Optional|Union)\[(.*)\]", annotation)
    if outer:
        annotation = outer[2].replace(", ", " | ") + (" | None" if outer[1] == "Optional" else "")
    parts = re.split(r"\s*\|\s*", annotation)
    if len(parts) == 2 and "None" not in parts and "str" in parts:
        parts.remove("str")
    parts = [part for part in parts if part != "None"]
    if len(parts) == 1 and parts[0].startswith("list["):
        return LIST
    return parts[0] if len(parts) == 1 and parts[0] in (BOOL, INT, FLOAT) else TEXT


def _literal(node: ast.AST | None) -> Any:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


@cache
def known_flags() -> dict[str, Known]:
    """Every flag that the trainer takes, by name: its own, those of transformers, those of LLaVA-ST."""
    library = find_spec("transformers")
    if library is None or library.origin is None:
        raise ImportError("transformers is not installed: source scripts/env.sh makes the environment")
    source = (Path(library.origin).parent / "training_args.py").read_text(encoding="utf-8")
    flags = {flag.name: flag for flag in read_class(source, "TrainingArguments", LIBRARY)}
    own = Path(__file__).with_name("flags.py").read_text(encoding="utf-8")
    for name, group in GROUPS.items():
        for flag in read_class(own, name, group):
            flags.pop(flag.name, None)
            flags[flag.name] = flag
    for other in FLAGS:
        if other.name not in flags:
            kind = (
                TEXT if other.default is None else {bool: BOOL, int: INT, float: FLOAT}.get(type(other.default), TEXT)
            )
            flags[other.name] = Known(other.name, kind, other.default, other.words, OTHERS)
    return flags


def unknown(name: str, known: Iterable[str]) -> str:
    """What is said of a name that is not known."""
    close = difflib.get_close_matches(name, list(known), 2)
    return f"did you mean {' or '.join(close)}?" if close else "--help lists all"


def given(argv: Sequence[str]) -> dict[str, Any]:
    """The flags of a command line with their values, the last one of each: True where none follows."""
    found: dict[str, Any] = {}
    name = None
    for word in argv:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            name = key.replace("-", "_")
            found[name] = value if equals else True
            name = None if equals else name
        elif name is not None:
            before = found[name]
            found[name] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return found


def argument_problems(argv: Sequence[str], known: Mapping[str, Known]) -> list[str]:
    """What is wrong with a command line, as far as names, kinds and ranges tell."""
    problems = []
    for name, value in given(argv).items():
        positive = known.get(name.removeprefix("no_"))
        if name not in known and (positive is None or positive.kind != BOOL):
            problems.append(f"--{name}: there is no such flag; {unknown('--' + name, [f'--{k}' for k in known])}")
        elif name in known and value is True and known[name].kind != BOOL:
            problems.append(f"--{name}: {WANTED[known[name].kind]} is expected after it")
        elif name in known and isinstance(value, list) and known[name].kind != LIST:
            problems.append(
                f"--{name} {' '.join(value)}: one value is expected; one with spaces or braces needs quotes"
            )
        elif name in known and (problem := known[name].problem(value)):
            problems.append(f"--{name} {value}: {problem}")
    return problems
