"""A list of work that any number of jobs share through a folder: who is at which part, and which are finished.

Parts are claimed by creating a file that must not be there, which a shared file system (NFS 3 and later, Lustre, GPFS)
does for one job alone. `000007.0` is the first claim of part 7; a job that takes the part over creates `000007.1`, and
of several claims the one with the highest number counts, so that nothing is ever removed under somebody. A job that is
stopped gives its part back with `000007.1.free`, and `000007.done` says that the part is finished, and what came of it.

No clock but a job's own is trusted. A job at work changes the time of its claim every few seconds; whether that is the
right time does not matter, since another job looks whether it *changes*, for a whole lease by its own monotonic clock.
What a file system shows late (NFS keeps attributes for up to 60 s) must fit into the lease with a heartbeat. A job that
stood still for longer than that and then went on has its part done twice: features are then stored twice, either of
which is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from llava.data.features.content import load_json, replace_file
from llava.errors import UserError

PART = 128
"""Clips of a part: a shard or so, with DINOv2-large and four frames."""
LEASE = 300.0
"""Seconds without a sign of life after which a part is taken over."""
BEATS = 10
"""Signs of life in a lease."""
LIST = "list.json"


@dataclass(frozen=True)
class Claim:
    """A part that this job is at."""

    part: int
    turn: int
    path: Path


@dataclass
class WorkList:
    """The parts of some items, which every job makes from the same list.

    Args:
        folder: one for each list, on a file system that all jobs see.
        items: how many there are in all.
        size: how many a part has.
        lease: seconds.
    """

    folder: Path
    items: int
    size: int = PART
    lease: float = LEASE
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def parts(self) -> int:
        return -(-self.items // self.size)

    def slice(self, part: int) -> slice:
        """The items of a part."""
        return slice(part * self.size, min((part + 1) * self.size, self.items))

    def create(self, about: dict[str, Any]) -> None:
        """Makes the folder and writes down what the list is, for `--status`; others may do the same at the same time.

        Raises:
            OSError: when the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / LIST).exists():
            _write(self.folder / LIST, {"items": self.items, "size": self.size, **about})

    def claim(self) -> Claim | None:
        """A part for this job: one that nobody is at, else one whose job showed no sign of life for a lease. None when
        there is none, for now or for good.
        """
        turns, done = self.state()
        freed = {name for name in os.listdir(self.folder) if name.endswith(".free")}
        start = crc32(_me().encode())  # Jobs that start together do not all ask for the first part.
        order = [(start + n) % self.parts for n in range(self.parts)]
        open_parts = [part for part in order if part not in done]
        begun = [part for part in open_parts if part in turns]
        lost = [
            p for p in begun if f"{self._path(p, str(turns[p])).name}.free" in freed or not self._alive(p, turns[p])
        ]
        for part in (*(p for p in open_parts if p not in turns), *lost):
            claim = self._try(part, turns.get(part, -1) + 1)
            if claim is not None:
                return claim
        return None

    def state(self) -> tuple[dict[int, int], set[int]]:
        """The turn of the newest claim of each part that was ever claimed, and the parts that are finished."""
        turns: dict[int, int] = {}
        done: set[int] = set()
        for name in os.listdir(self.folder):
            number, _, what = name.partition(".")
            if not number.isdecimal():
                continue
            if what == "done":
                done.add(int(number))
            elif what.isdecimal():
                turns[int(number)] = max(int(what), turns.get(int(number), -1))
        return turns, done

    def finished(self) -> bool:
        return len(self.state()[1]) == self.parts

    def outcomes(self) -> list[Any]:
        """What the finished parts gave, in their order."""
        return [load_json(self._path(part, "done"))["outcome"] for part in sorted(self.state()[1])]

    @contextmanager
    def working(self, claim: Claim) -> Iterator[None]:
        """Shows signs of life while the body runs. A part whose body fails is free for others at once."""
        over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(claim.path, over), daemon=True)
        beat.start()
        try:
            yield
        except BaseException:
            over.set()
            with suppress(OSError):
                claim.path.with_name(f"{claim.path.name}.free").touch()
            raise
        finally:
            over.set()
            beat.join()

    def finish(self, claim: Claim, outcome: Any, seconds: float) -> None:
        """Marks a part as finished; of two jobs that did it, the first is believed.

        Args:
            outcome: for `outcomes`, as JSON.
        """
        path = self._path(claim.part, "done")
        if not path.exists():
            _write(path, {"outcome": outcome, "seconds": round(seconds, 3), **_who()})

    def _beat(self, path: Path, over: threading.Event) -> None:
        while not over.wait(self.lease / BEATS):
            with suppress(OSError):
                os.utime(path)

    def _try(self, part: int, turn: int) -> Claim | None:
        path = self._path(part, str(turn))
        try:
            number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return None
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(_who(), file)
        return Claim(part, turn, path)

    def _alive(self, part: int, turn: int) -> bool:
        """Whether a claim changed within a lease, as far as this job has watched it."""
        path = self._path(part, str(turn))
        try:
            beat = path.stat().st_mtime_ns
        except OSError:
            return True  # Gone in this moment: the next look says more.
        before, since = self._seen.get(path.name, (None, 0.0))
        if beat != before:
            self._seen[path.name] = beat, self.clock()
            return True
        return self.clock() - since < self.lease

    def _path(self, part: int, suffix: str) -> Path:
        return self.folder / f"{part:06d}.{suffix}"


def work_through(
    work: WorkList,
    do: Callable[[slice, bool], Any],
    should_stop: Callable[[], bool],
    say: Callable[[str], object],
    wait: Callable[[float], object] = time.sleep,
) -> int:
    """Does part after part until all are finished, those of jobs that died included; how many this job did.

    Args:
        do: gives the outcome of the items of a slice; its second argument says whether another job began with it.
        should_stop: asked before each part and while it waits; within a part `do` asks.
    """
    count, waiting = 0, False
    while not work.finished() and not should_stop():
        claim = work.claim()
        if claim is None:
            if not waiting:
                say(f"no part is free; waiting for the other jobs, whose parts are taken over after {work.lease:g} s "
                    "without a sign of life")  # fmt: skip
            waiting = True
            wait(min(work.lease / BEATS, 5.0))
            continue
        waiting = False
        if claim.turn:
            say(f"part {claim.part}: taken over from a job that was stopped, or died")
        began = work.clock()
        with work.working(claim):
            outcome = do(work.slice(claim.part), claim.turn > 0)
            work.finish(claim, outcome, work.clock() - began)
        count += 1
        say(f"part {claim.part} finished, {len(work.state()[1])} of {work.parts}")
    return count


def list_name(*what: object) -> str:
    """A name for a list of work that equal lists have, and no others."""
    return hashlib.sha256(json.dumps(what, default=str).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def status(root: Path, clock: Callable[[Path], float] | None = None) -> str:
    """A table of the lists of work below a folder: what is finished, who is at what, how long the rest may take.

    Args:
        clock: seconds on the clock that the folder's files have their times from.

    Raises:
        UserError: when there is no list.
    """
    folders = sorted(path.parent for path in root.glob(f"*/{LIST}"))
    if not folders:
        raise UserError(f"--status {root}: no list of work there; it is the folder that extraction has as --work")
    now = (clock or _now)(root)
    return "\n\n".join(_table(folder, now) for folder in folders)


def _table(folder: Path, now: float) -> str:
    about = load_json(folder / LIST)
    work = WorkList(folder, about["items"], about["size"])
    turns, done = work.state()
    ended = [load_json(work._path(part, "done")) for part in sorted(done)]
    count = sum(work.slice(part).stop - work.slice(part).start for part in done)
    problems, seconds = sum(len(e["outcome"]) for e in ended), sum(e["seconds"] for e in ended)
    claimed = sorted((part, turn) for part, turn in turns.items() if part not in done)
    lines = [
        f"{about.get('title', folder.name)}",
        f"  clips     {count:,} of {work.items:,} ({count / max(work.items, 1):.1%}), {problems:,} problem(s)",
        f"  parts     {len(done):,} finished, {len(claimed):,} claimed, "
        f"{work.parts - len(done) - len(claimed):,} free, of {work.parts:,}",
    ]
    if count and seconds:
        rate = count / seconds
        lines.append(f"  speed     {rate:.2g} clips/s a job")
        if claimed:
            left = (work.items - count) / rate / len(claimed)
            lines.append(f"  to go     about {left / 3600:.2g} h with {len(claimed)} job(s)")
    if claimed:
        lines.append(f"  {'part':>8}  {'job':<32}  {'taken over':>10}  last sign of life")
    for part, turn in claimed:
        path = work._path(part, str(turn))
        with suppress(OSError, ValueError):
            who = load_json(path)
            age = max(now - path.stat().st_mtime, 0)
            lines.append(f"  {part:>8}  {who['job']:<32.32}  {turn:>10}  {age:.0f} s ago")
    return "\n".join(lines)


def _now(folder: Path) -> float:
    """The time that the file system gives a file that is written now."""
    path = folder / f".now-{_me()}"
    try:
        path.write_bytes(b"")
        return path.stat().st_mtime
    finally:
        path.unlink(missing_ok=True)


def _me() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _who() -> dict[str, Any]:
    """Who is at a part, for people."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    name = f"{job}_{task}" if task else job
    return {"job": f"{name} on {socket.gethostname()}" if name else _me()}


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value)
    replace_file(path, lambda file: file.write(text.encode()))
