"""One planted fault, run through the real `main([...])` of training, and where it was caught."""

from __future__ import annotations

import contextlib
import html
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava.errors import message_of
from llava.train.train import main
from llava.train.trainer import LlavaTrainer
from tests.train.runs import flags

PLACES = {
    "refused": "before the first step",
    "warned": "before the first step (warning)",
    "alarm": "alarm within 20 steps",
    "end": "at the end",
    "test": "by a test",
    "silent": "nowhere: nothing is wrong",
}
"""Where a fault is caught: an error before the first step, a warning of pre-flight, an alarm (or an error) while it
trains, what the finished run says of itself, or the test suite. A sound run must be silent."""
LAST_ALARM = 20
PAST_PREFLIGHT = {"preflight": "off", "max_steps": 20}
"""Flags of a run in which something breaks later."""
PLANTED = "LLAVA_AUDIT_FAULT"
"""Environment variable that names the fault which the plugin `tests.audit.plugin` plants into a test run."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Fault:
    """A fault, how it is planted, and where and in which words it must be reported.

    Attributes:
        name: what is wrong, in a few words.
        kind: "data", "flags" or "code"; "none" for a sound run.
        where: one of `PLACES`.
        words: a regular expression that the message must match.
        plant: patches imported objects, (monkeypatch) -> None.
        data: other records, (records, folder with the clips) -> records; new files go into that folder.
        flags: flags of the run beyond those of `tests.train.runs.flags`; None leaves one out. A callable is called
            with the scene.
        prepare: called with the scene (`assets`, `folder`, `run`) before the run; returns further flags or None.
        experiment: 1 trains on text alone, 2 on video and text.
        test: the test that finds it, `file::name`, where only a test can.
        quick: part of what every test run audits.
    """

    name: str
    kind: str
    where: str
    words: str
    plant: Callable[[pytest.MonkeyPatch], None] | None = None
    data: Callable[[list[dict], Path], list[dict]] | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[SimpleNamespace], Mapping[str, Any] | None] | None = None
    experiment: int = 2
    test: str = ""
    quick: bool = False

    def __post_init__(self) -> None:
        assert self.where in PLACES, self.where
        assert self.kind in ("data", "flags", "code", "none"), self.kind
        assert bool(self.test) == (self.where == "test"), self.name


@dataclass(frozen=True)
class Outcome:
    """What a run with a fault said: its error, the warnings of pre-flight, alarms, and the page at its end."""

    steps: int
    error: str
    warnings: str
    alarms: tuple[tuple[int, str], ...]
    page: str

    def texts(self, where: str) -> list[str]:
        """What was said at a place."""
        if where == "refused":
            return [self.error] if self.error and not self.steps else []
        if where == "warned":
            return [self.warnings]
        if where == "alarm":
            early = [text for step, text in self.alarms if step <= LAST_ALARM]
            return early + ([self.error] if self.error and 0 < self.steps <= LAST_ALARM else [])
        return [text for _, text in self.alarms] + [self.page] + ([self.error] if self.steps else [])

    def found(self, where: str, words: str) -> bool:
        if where == "silent":
            return not (self.error or self.warnings or self.alarms) and self.steps > 0
        return any(re.search(words, text, re.DOTALL) for text in self.texts(where))

    def summary(self) -> str:
        """Everything that was said, for who looks why a fault was not found."""
        alarms = "\n".join(f"  step {step}: {text}" for step, text in self.alarms)
        return f"steps: {self.steps}\nerror: {self.error}\nwarnings: {self.warnings}\nalarms:\n{alarms}"


def run_fault(fault: Fault, assets: SimpleNamespace, folder: Path) -> Outcome:
    """Trains with the fault planted.

    Args:
        assets: as the fixture of `tests/conftest.py`.
        folder: an empty folder for data and run.
    """
    scene = SimpleNamespace(assets=assets, folder=folder, run=folder / "run")
    options = dict(fault.flags)
    if fault.data is not None:
        clips = folder / "clips"
        clips.mkdir()
        for clip in sorted(assets.clips.iterdir()):
            os.link(clip, clips / clip.name)
        source = assets.video_json if fault.experiment == 2 else assets.text_json
        records = fault.data(json.loads(source.read_text(encoding="utf-8")), clips)
        (folder / "data.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        options = {"data_path": folder / "data.json", **options}
        if fault.experiment == 2:
            options = {"video_folder": clips, "image_folder": clips, **options}
    steps, step = [0], LlavaTrainer.training_step

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        return step(self, *args, **kwargs)

    error, said = "", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        patch.setattr(LlavaTrainer, "training_step", counted)
        if fault.plant is not None:
            fault.plant(patch)
        if fault.prepare is not None:
            options |= fault.prepare(scene) or {}
        try:
            steps[0] = 0  # Those of this run alone.
            main(flags(assets, scene.run, fault.experiment, **options))
        except SystemExit as stop:
            error = f"{stop} {said.getvalue()}"
        except Exception as raised:
            # What is no message is a traceback for the user, and no way of saying what is wrong.
            error = message_of(raised) or f"TRACEBACK {type(raised).__name__}: {raised}"
        finally:
            logging.getLogger("llava").handlers.clear()
    return Outcome(steps[0], error, _warnings(scene.run), _alarms(scene.run), _page(scene.run))


def run_test(fault: Fault) -> tuple[bool, str]:
    """Whether the fault's test fails, and what it said, with the fault planted into a process of its own."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.audit.plugin", "-x", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, PLANTED: fault.name, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, fault.test], cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode == 1, done.stdout + done.stderr


def _warnings(run: Path) -> str:
    path = run / "preflight.json"
    checks = json.loads(path.read_text(encoding="utf-8"))["checks"] if path.is_file() else []
    return "\n".join(f"{c['check']}: {c['finding']}" for c in checks if c["status"] in ("warning", "FAIL"))


def _alarms(run: Path) -> tuple[tuple[int, str], ...]:
    path = run / "alarms.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return tuple((a["step"], f"{a['kind']}: {a['message']}") for a in map(json.loads, lines))


def _page(run: Path) -> str:
    path = run / "report.html"
    return html.unescape(re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8"))) if path.is_file() else ""
