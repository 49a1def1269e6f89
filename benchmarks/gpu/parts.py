"""Parts of `python -m benchmarks.gpu`: each in a process of its own, within a time of its own, its rows kept as they
come, so that neither a crash nor a part that hangs takes others along.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import Size

Row = dict[str, Any]

LEAST_SECONDS = 1.0
"""What a part is not begun with less than."""
LOG_LINES = 40
"""Of what a part that failed printed, kept from its end."""
PROBE_SECONDS = 120.0
"""For the imports of all parts, and for a first touch of the device."""


@dataclass(frozen=True)
class Setting:
    """What every part is given.

    Attributes:
        folder: shared by the parts of one call: what one of them makes, the next ones find.
        size: the model that is measured; equality is looked at on it with a few samples.
        tiny: whether to show only that everything runs.
        batch: samples of a step; the part `step` finds how many fit.
        rate: samples a second of that step alone; 0 where it was not measured.
        repeats: of each measurement, where `seconds` suffice.
        seconds: that the part may take.
        ceilings: FLOP/s of large matrix products by type, from the part `machine`.
    """

    device: str
    folder: Path
    size: Size
    tiny: bool
    batch: int
    repeats: int
    seconds: float = 60.0
    rate: float = 0.0
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def half(self) -> torch.dtype:
        """The 16-bit type that the device trains in."""
        native = self.device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16

    def autocast(self, dtype: torch.dtype | None = None) -> torch.autocast:
        return torch.autocast(self.device, self.half if dtype is None else dtype)


@dataclass(frozen=True)
class Part:
    """A part: its rows are made one by one by `work`; `share` is its weight in the time of all, `tiny` that with a tiny
    model, where it is another.
    """

    name: str
    title: str
    work: Callable[[Setting], Iterator[Row]]
    share: float
    tiny: float | None = None

    def weight(self, setting: Setting) -> float:
        return self.tiny if setting.tiny and self.tiny is not None else self.share


@dataclass
class Outcome:
    """How a part went. `failures` is empty where everything ran and everything that must be equal is."""

    name: str
    title: str
    limit: float
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    log: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "status": "failed" if self.failures else "done"}


def measured(measure: str, value: float, unit: str, note: str = "", **more: Any) -> Row:
    """A figure; `more` goes into the JSON alone, but for `sets`, which later parts find in their `Setting`."""
    return {"kind": "measured", "measure": measure, "value": value, "unit": unit, "note": note, **more}


def paired(measure: str, plain: float, fast: float, unit: str, note: str = "") -> Row:
    """Two ways beside each other; the ratio is how many times less the second takes."""
    return {"kind": "paired", "measure": measure, "plain": plain, "fast": fast, "unit": unit, "ratio": plain / fast,
            "note": note}  # fmt: skip


def compared(check: str, error: float, allowed: float, note: str = "") -> Row:
    """A fast path beside the plain one; an `error` that is not a number is as wrong as one above `allowed`."""
    return {"kind": "compared", "measure": check, "value": error, "allowed": allowed, "equal": error <= allowed,
            "note": note}  # fmt: skip


def not_here(measure: str, why: str) -> Row:
    """What this machine or these versions do not have."""
    return {"kind": "not here", "measure": measure, "note": why}


def broke(measure: str, error: BaseException) -> Row:
    """What raised; the part goes on with its other rows and counts as failed."""
    return {"kind": "broke", "measure": measure, "note": f"{type(error).__name__}: {error}".strip()}


def fact(name: str, value: Any) -> Row:
    return {"kind": "fact", "measure": name, "value": value, "note": ""}


class NotHereError(Exception):
    """Raised by what this machine or these versions do not have, with the reason."""


def trying(measure: str, work: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows of `work`; what it raises is a row that says so."""
    try:
        yield from work()
    except NotHereError as reason:
        yield not_here(measure, str(reason))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        yield broke(measure, error)


def run_part(part: Part, setting: Setting, limit: float, method: str = "fork") -> Outcome:
    """The part in a process of its own, begun by a `method` of multiprocessing, which is ended with all of its own when
    `limit` seconds are over.
    """
    outcome = Outcome(part.name, part.title, limit)
    if limit < LEAST_SECONDS:
        outcome.failures.append("not begun: no time was left; give more --minutes")
        return outcome
    start = time.monotonic()
    log = setting.folder / f"{part.name}.log"
    # mypy knows of the methods by their names alone.
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    # Some seconds are left for its start, which is no measurement.
    given = replace(setting, seconds=0.8 * limit)
    process = context.Process(target=_work, args=(part.work, given, log, theirs))
    process.start()
    theirs.close()
    try:
        while True:
            if not ours.poll(max(0.0, start + limit - time.monotonic())):
                outcome.failures.append(f"ended after its {limit:.0f} s: give more --minutes, or it hangs")
                break
            try:
                kind, value = ours.recv()
            except EOFError:
                process.join()
                outcome.failures.append(f"its process ended with status {process.exitcode} and without a word")
                break
            if kind == "row":
                outcome.rows.append(value | {"at": round(time.monotonic() - start, 1)})
                continue
            if kind == "failed":
                outcome.failures.append(value)
            break
    finally:
        _end(process)
        ours.close()
    outcome.seconds = time.monotonic() - start
    outcome.failures += [f"{r['measure']}: {r['note']}" for r in outcome.rows if r["kind"] == "broke"]
    outcome.failures += [
        f"{r['measure']}: differs by {r['value']:.3g}, allowed are {r['allowed']:.3g}"
        for r in outcome.rows if r["kind"] == "compared" and not r["equal"]
    ]  # fmt: skip
    if not outcome.rows and not outcome.failures:
        outcome.failures.append("it ended without a single row")
    if outcome.failures and log.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        outcome.log = "\n".join(lines[-LOG_LINES:])
    return outcome


def method_for(parts: Sequence[Part], setting: Setting) -> str:
    """How processes of parts are begun. On CPU they are forks, which import nothing again. What has touched a GPU
    cannot be forked: there they are forks of a server, which imports what the parts need and leaves the device alone.
    Where such a fork does not reach the device, each part imports everything by itself.
    """
    if setting.device == "cpu":
        return "fork"
    modules = sorted({part.work.__module__ for part in parts})
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
    probe = Part("probe", "A fork that reaches the device", reach, 1)
    outcome = run_part(probe, setting, PROBE_SECONDS, "forkserver")
    # An import that fails in the server is passed over there.
    imported = [name for row in outcome.rows for name in row["value"]]
    problems = outcome.failures or [f"{name} is not imported there" for name in modules if name not in imported]
    if not problems:
        return "forkserver"
    print(f"each part imports everything by itself, which takes time of it; a server of forks failed: {problems[0]}")
    return "spawn"


def reach(setting: Setting) -> Iterator[Row]:
    """What was imported before it touched the device."""
    found = sorted(sys.modules)
    torch.zeros(1, device=setting.device)
    yield fact("imported", found)


def run_parts(
    parts: Sequence[Part], setting: Setting, minutes: float, tell: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """All parts within `minutes`: each gets its share of what is left, so that time one did not need is the others'."""
    end = time.monotonic() + 60 * minutes
    method, outcomes = method_for(parts, setting), []
    for i, part in enumerate(parts):
        share = part.weight(setting) / sum(p.weight(setting) for p in parts[i:])
        outcome = run_part(part, setting, share * (end - time.monotonic()), method)
        for row in outcome.rows:
            setting = replace(setting, **row.get("sets", {}))
        outcomes.append(outcome)
        tell(outcome)
    return outcomes


def _work(work: Callable[[Setting], Iterator[Row]], setting: Setting, log: Path, answer: Connection) -> None:
    """In the process of a part: a session of its own, whose every process ends with it; what it prints is kept."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(out, descriptor)
    # By lines: its process may be ended at any moment.
    sys.stdout = sys.stderr = os.fdopen(out, "w", buffering=1, encoding="utf-8", errors="replace")
    faulthandler.enable(file=out)
    try:
        for row in work(setting):
            answer.send(("row", row))
        answer.send(("done", ""))
    except BaseException as error:
        traceback.print_exc()
        answer.send(("failed", f"{type(error).__name__}: {error}".strip()))
    finally:
        answer.close()


def _end(process: Any) -> None:
    """Ends a process and the session that it leads."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()
