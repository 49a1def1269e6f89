"""The settings of runs: which flags differ from their default, which between runs, and the command that repeats one."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any

from llava.config.flags import DataArguments, ModelArguments, TrainingArguments
from llava.report.plots import number
from llava.report.read import Run

IDENTITY_FLAGS = {"output_dir", "logging_dir", "run_name"}  # They differ between any two runs.
FILLED_FLAGS = {"accelerator_config", "disable_tqdm", "hub_token"}  # transformers replaces their default by itself.
COUNTED = {"sources", "supervised"}
"""Of the data: tables of their own, which are no setting as they stand."""


def default_flags() -> dict[str, Any]:
    """The defaults of all flags as JSON values; a flag that must be given has none."""
    defaults = {}
    for f in (*fields(ModelArguments), *fields(DataArguments), *fields(TrainingArguments)):
        value = f.default if f.default_factory is MISSING else f.default_factory()
        if value is not MISSING:
            defaults[f.name] = value.value if isinstance(value, Enum) else value
    return defaults


def split_flags(flags: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
    """Flags that differ from their default, as (value, default), and all others; a list of one equals its item."""
    defaults = default_flags()

    def same(name: str, value: Any) -> bool:
        default = defaults.get(name, ...)
        unset = [v is None or v is False or v in ("", []) for v in (value, default)]
        return all(unset) or name in FILLED_FLAGS or default in (value, *(value if isinstance(value, list) else []))

    changed = {n: (v, defaults.get(n, "none")) for n, v in flags.items() if not same(n, v)}
    return changed, {name: value for name, value in flags.items() if name not in changed}


def command_of(run: Run) -> list[str]:
    """The command that repeats a run, as words of a shell: its flags that differ from their default, as training takes
    them; empty where they were not recorded. Flags that this version does not know are left out.
    """
    if not run.flags:
        return []
    known = {f.name for group in (ModelArguments, DataArguments, TrainingArguments) for f in fields(group) if f.init}
    words = ["torchrun"]
    processes = (run.record.get("batch") or {}).get("processes", 1)
    words += ["--nproc_per_node", str(processes)] if processes != 1 else []
    words.append("llava/train/train.py")
    for name, (value, _) in split_flags(run.flags)[0].items():
        if name in known:
            words += [f"--{name}", *_flag_words(name, value)]
    return [shlex.quote(word) for word in words]


def _flag_words(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        empty = "none" if name == "report_to" else ""
        return [str(v) for v in value] or [empty]
    return ["none" if value is None else json.dumps(value) if isinstance(value, dict) else str(value)]


def differing(runs: Mapping[str, Run]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs: flags, commit, versions and counts of the data, one value a run."""
    settings = []
    for run in runs.values():
        data = dict((run.record.get("data") or {}).get("train") or {})
        sources = {"sources": sources_line(data["sources"])} if data.get("sources") else {}
        counts = {f"training {k}": v for k, v in data.items() if k not in COUNTED} | {
            f"training {k}": v for k, v in sources.items()
        }
        commit = {"commit": run.record["commit"]} if run.record.get("commit") else {}
        versions = {f"version of {k}": v for k, v in (run.record.get("versions") or {}).items()}
        settings.append({**run.flags, **commit, **versions, **counts})
    names = [n for n in dict.fromkeys(n for s in settings for n in s) if n not in IDENTITY_FLAGS]
    rows = {n: [show(s[n]) if n in s else "–" for s in settings] for n in names}
    return {n: values for n, values in rows.items() if len(set(values)) > 1}


def share_of(source: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> float:
    """The share of a source in the records of all, in per cent; NaN where that is not known."""
    total = sum(number(s.get("records")) for s in sources)
    return 100 * number(source.get("records")) / total if total else math.nan


def sources_line(sources: Sequence[Mapping[str, Any]]) -> str:
    """Which records a data set has of which file, in a line."""
    return ", ".join(f"{s.get('name')} ({s.get('strategy')}): {s.get('records')}" for s in sources)


def show(value: Any) -> str:
    """A setting as the command line or JSON has it; several versions as `name version, ...`."""
    if isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values()):
        return ", ".join(f"{name} {v}" for name, v in value.items())
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
