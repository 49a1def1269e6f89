"""What `--data_path` names: a file of records, several of them, or a YAML mixture, and which records of each are taken.

A mixture is LLaVA's::

    datasets:
      - json_path: clips/train.json
        sampling_strategy: random:25%     # all (default), first:N, end:N, random:N; N is a number or a share
        data_folder: clips                # instead of --video_folder and --image_folder
    seed: 7                               # of random, instead of --seed

What `random` takes is a function of the seed, the file's name and the number of its records: the same on every process
and in a resumed run, and part of what a larger N takes.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from llava.config.groups import DEFAULT_SEED
from llava.data.json_records import DatasetError, read_values
from llava.data.lookup import wrong_with_files
from llava.errors import UserError, show

STRATEGIES = "all, first:N, end:N or random:N, with N a number of records (1000) or a share of them (25%)"
ENTRY_KEYS = ("json_path", "sampling_strategy", "data_folder")
TOP_KEYS = ("datasets", "seed")
LARGEST = 4_000_000
"""Bytes of a mixture: tens of thousands of entries. A file of records may be named .yaml by mistake."""


@dataclass(frozen=True)
class Strategy:
    """Which records of a file are taken: `how` is all, first, end or random; `amount` a number, or a share up to 1."""

    how: str = "all"
    amount: int | Fraction = 0

    def __str__(self) -> str:
        if self.how == "all":
            return "all"
        is_share = isinstance(self.amount, Fraction)
        return f"{self.how}:{float(self.amount * 100):g}%" if is_share else f"{self.how}:{self.amount}"

    def number(self, total: int) -> int:
        """How many of `total` records are taken; a share is rounded up, as LLaVA does, and more than all are all."""
        if self.how == "all":
            return total
        return min(math.ceil(self.amount * total) if isinstance(self.amount, Fraction) else self.amount, total)


def parse_strategy(text: Any) -> Strategy:
    """A `sampling_strategy` as a mixture has it.

    Raises:
        ValueError: naming what is wrong and the strategies that there are.
    """
    if text == "all":
        return Strategy()
    how, _, amount = text.partition(":") if isinstance(text, str) else ("", "", "")
    how, amount = how.strip(), amount.strip()
    if how not in ("first", "end", "random"):
        raise UserError(f"sampling_strategy {_shown(text)} is not known: use {STRATEGIES}")
    share = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*%", amount, re.ASCII)
    if share and 0 < Fraction(share[1]) <= 100:
        return Strategy(how, Fraction(share[1]) / 100)
    if re.fullmatch(r"\d{1,15}", amount, re.ASCII) and int(amount):
        return Strategy(how, int(amount))
    raise UserError(f"sampling_strategy {_shown(text)} takes no such number: use {STRATEGIES}")


def choose(total: int, strategy: Strategy, draw: str) -> Sequence[int]:
    """Which of `total` records are taken: indices in the order of the file.

    Args:
        draw: what the choice of `random` is drawn from. The choice of a smaller number is part of that of a larger one.
    """
    number = strategy.number(total)
    if strategy.how == "end":
        return range(total - number, total)
    if strategy.how != "random" or number == total:
        return range(number)
    # Of Python's generators only `random()` promises the same numbers in every version.
    keys = random.Random(draw)
    ranks = [keys.random() for _ in range(total)]
    return sorted(sorted(range(total), key=ranks.__getitem__)[:number])


@dataclass(frozen=True)
class Entry:
    """A file of a mixture; without a `data_folder` its paths are below those of the flags."""

    path: str
    strategy: Strategy = field(default_factory=Strategy)
    data_folder: str | None = None


@dataclass(eq=False)
class Source:
    """Where records come from: a file, or what an entry of a mixture takes from it.

    `name` is unique among the sources, and short; `total` counts the records of the file once they have been read.
    """

    name: str
    path: str
    strategy: Strategy
    video_folder: str
    image_folder: str
    draw: str
    total: int = 0

    def values(self) -> Iterator[tuple[str, Any]]:
        """(place in the file, value) of every record that is taken, as `read_values` gives them.

        Raises:
            DatasetError: when the file cannot be read or holds no record.
        """
        self.total = 0
        if self.strategy.how == "all":
            for item in read_values(Path(self.path)):
                self.total += 1
                yield item
        else:
            values = list(read_values(Path(self.path)))
            self.total = len(values)
            yield from (values[i] for i in choose(self.total, self.strategy, self.draw))
        if not self.total:
            raise DatasetError(f"{show(self.path)}: holds no record; check --data_path")


def open_sources(
    data_path: str | Path,
    video_folder: str | Path | None = None,
    image_folder: str | Path | None = None,
    seed: int = DEFAULT_SEED,
) -> list[Source]:
    """The sources that a `--data_path` names; no file of records is read yet.

    Raises:
        DatasetError: with everything that is wrong with the paths and mixtures.
    """
    entries, problems = _read(str(data_path), seed)
    if problems:
        raise DatasetError("\n".join(f"{problem}; check --data_path" for problem in problems))
    names = short_names([entry.path for entry, _ in entries])
    sources, times = [], Counter[str]()
    for name, (entry, own_seed) in zip(names, entries, strict=True):
        times[name] += 1
        nth = times[name]
        videos, images = (video_folder, image_folder) if entry.data_folder is None else (entry.data_folder,) * 2
        path, draw = str(Path(entry.path)), f"{own_seed}/{show(os.path.basename(entry.path))}/{nth}"
        unique = name if nth == 1 else f"{name} ({nth})"
        sources.append(Source(unique, path, entry.strategy, str(videos or ""), str(images or ""), draw))
    return sources


def path_problems(data_path: str) -> list[str]:
    """What is wrong with a `--data_path`, as far as it can be told without reading records."""
    return _read(data_path, DEFAULT_SEED)[1]


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell different files apart; a file that is named twice has one name."""
    parts = [Path(p).parts for p in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [show(name) for name in names]


def split_paths(data_path: str) -> list[str]:
    """The paths of a `--data_path`: one, several with commas between them, each maybe with braces (`{a,b}.json`).

    Raises:
        ValueError: for braces that do not match, or nothing between two commas.
    """
    if os.path.exists(data_path):
        return [data_path]  # Commas and braces may be part of a name.
    parts = re.findall(r"(?:^|(?<=,))((?:\{[^{}]*\}|[^{},])*)(?=,|$)", data_path)
    if ",".join(parts) != data_path:
        raise UserError("braces that do not match, or lie in each other: write {a,b}.json")
    paths = []
    for part in map(str.strip, parts):
        pieces = re.split(r"\{([^{}]*)\}", part)
        choices = [[s.strip() for s in p.split(",")] if i % 2 else [p] for i, p in enumerate(pieces)]
        paths += ["".join(chosen) for chosen in itertools.product(*choices)]
        if not part or any("" in names for names in choices[1::2]):
            raise UserError("there is nothing between two of its commas, or at an end")
    return paths


def _read(data_path: str, seed: int) -> tuple[list[tuple[Entry, int]], list[str]]:
    """(entry, its seed) of everything that a `--data_path` names, and what is wrong with it."""
    try:
        paths = split_paths(data_path)
    except ValueError as error:
        return [], [f"{show(data_path)}: {error}"]
    found: list[tuple[Entry, int]] = []
    problems = [f"{show(path)}: is named twice" for path, n in Counter(paths).items() if n > 1]
    for path in dict.fromkeys(paths):
        missing = _missing(path)
        if missing:
            problems.append(f"{show(path)}: {missing}")
        elif path.casefold().endswith((".yaml", ".yml")):
            entries, own_seed, wrong = read_mixture(path)
            found += [(entry, seed if own_seed is None else own_seed) for entry in entries]
            problems += [f"{show(path)}: {w}" for w in wrong]
        else:
            found.append((Entry(path), seed))
    return found, problems


def _missing(path: str) -> str:
    """What is wrong with the path of a file; one that is empty is left to who reads it."""
    return wrong_with_files([path]).get(path, "") if not os.path.isfile(path) else ""


def read_mixture(path: str) -> tuple[list[Entry], int | None, list[str]]:
    """Entries and seed of a YAML mixture, and everything that is wrong with it, each with its entry and key."""
    try:
        content = _load_yaml(path)
    except ValueError as error:
        return [], None, [str(error)]
    if not isinstance(content, dict) or not isinstance(content.get("datasets"), list) or not content["datasets"]:
        listed = f" with the keys {', '.join(map(_shown, content))}" if isinstance(content, dict) else ""
        form = "datasets: and below it a list of entries, each with a json_path"
        return [], None, [f"holds {type(content).__name__}{listed}; a mixture is {form}"]
    problems = _unknown(content, TOP_KEYS)
    seed = content.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        problems.append(f"seed must be a whole number, got {_shown(seed)}")
        seed = None
    entries = []
    for i, raw in enumerate(content["datasets"]):
        entry, wrong = _read_entry(raw, os.path.dirname(path))
        problems += [f"datasets[{i}]: {w}" for w in wrong]
        entries += [entry] if entry else []
    return entries, seed, problems


def _read_entry(raw: Any, beside: str) -> tuple[Entry | None, list[str]]:
    """An entry, or None and what is wrong with it; `beside` is the folder of the mixture."""
    if not isinstance(raw, dict):
        return None, [f"an entry has the keys {', '.join(ENTRY_KEYS)}, got {_shown(raw)}"]
    wrong = _unknown(raw, ENTRY_KEYS)
    path, folder, strategy = raw.get("json_path"), raw.get("data_folder"), Strategy()
    if not isinstance(path, str) or not path:
        wrong.append(f"json_path must be the path of a file of records, got {_shown(path)}")
    elif missing := _missing(path):
        other = os.path.join(beside, path)
        here = f"; there is {other!r}, and paths are relative to the working directory" if os.path.isfile(other) else ""
        wrong.append(f"json_path {path!r}: {missing}{here}")
    elif path.casefold().endswith((".yaml", ".yml")):
        wrong.append(f"json_path {path!r}: a mixture names files of records, not other mixtures")
    if folder is not None and (not isinstance(folder, str) or not folder):
        wrong.append(f"data_folder must be the path of a folder, got {_shown(folder)}")
    elif folder is not None and not os.path.isdir(folder):
        other = os.path.join(beside, folder)
        here = f"; there is {other!r}, and paths are relative to the working directory"
        wrong.append(f"data_folder {folder!r}: no such folder{here if os.path.isdir(other) else ''}")
    try:
        strategy = parse_strategy(raw.get("sampling_strategy", "all"))
    except ValueError as error:
        wrong.append(str(error))
    return (None, [show(w) for w in wrong]) if wrong else (Entry(str(path), strategy, folder), [])


def _unknown(raw: dict[Any, Any], known: Sequence[str]) -> list[str]:
    """What is said of keys that are not read."""
    found = []
    for key in raw:
        if key not in known:
            close = difflib.get_close_matches(str(key)[:40], known, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            found.append(show(f"key {_shown(key)} is not read{hint}: use {', '.join(known)}"))
    return found


def _shown(value: Any) -> str:
    """A value of a mixture, short: a list or an object by its kind alone."""
    if isinstance(value, (dict, list, tuple, set)):
        return f"a {type(value).__name__}"
    return show(f"{str(value)[:80]!r}" if isinstance(value, str) else f"{value!r:.80}")


class _Loader(yaml.SafeLoader):
    """YAML without aliases, a few of which can stand for billions of values, and without keys that stand twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*) are not read", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, times in keys.items():
            if times > 1:
                raise yaml.MarkedYAMLError(problem=f"{show(key)} stands there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _load_yaml(path: str) -> Any:
    """The content of a YAML file; ValueError says what is wrong with it, and where."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UserError(f"is larger than {LARGEST // 1_000_000} MB; a mixture names files, records are JSON")
        return yaml.load(data, _Loader)
    except OSError as error:
        raise UserError(str(error.strerror)) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(show(f"{where}{error.problem or error.context}; a mixture is YAML")) from error
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise UserError(show(f"no YAML ({' '.join(str(error).split())[:200]})")) from error
