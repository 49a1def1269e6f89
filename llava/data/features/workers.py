"""Work on many files in processes that may hang or crash: each task has a time limit, and a dead worker is replaced.

A decoder is foreign code that reads foreign files. One clip in ten thousand makes it loop or crash, and neither may end
a run, hide itself, or take another clip along.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, TypeVar

from llava.config.groups import CLIP_TIMEOUT

__all__ = ["CLIP_TIMEOUT", "WorkerFailure", "ahead", "run_tasks"]

Task = TypeVar("Task")
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class WorkerFailure:
    """A task without result: `kind` is `took too long` or `reader crashed`."""

    kind: str
    message: str


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: Any = None
    started: float = field(default=0.0)


class Pool:
    """Processes that work on tasks, kept from one list of tasks to the next; leaving the context ends them.

    Args:
        work: can be pickled; an exception that it raises is raised here.
        num_workers: processes; 0 works in this one, without time limit.
        timeout: seconds for a task; the time that its result waits to be taken does not count.
    """

    def __init__(self, work: Callable[[Any], Any], num_workers: int, timeout: float | None = None) -> None:
        self.work, self.num_workers, self.timeout = work, num_workers, timeout
        self._context = process_context() if num_workers > 0 else None
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, Any], None, None]:
        """The work on every task, in any order: pairs of a task and its result, or its `WorkerFailure`.

        Where it is closed before its end, the processes are ended: some of them are at a task.
        """
        if self.num_workers < 1:
            yield from ((task, self.work(task)) for task in tasks)
            return
        pending = deque(tasks)
        workers, timeout = self._workers, self.timeout
        try:
            while pending or any(w.task is not None for w in workers):
                while len(workers) < min(self.num_workers, len(pending) + sum(w.task is not None for w in workers)):
                    workers.append(_start(self._context, self.work))
                for worker in workers:
                    if worker.task is None and pending:
                        _give(worker, pending)
                busy = [w for w in workers if w.task is not None]
                ready = set(wait([w.pipe for w in busy], timeout=_patience(busy, timeout)))
                for worker in busy:
                    if worker.pipe in ready:
                        task, result = worker.task, _take(worker)
                        if isinstance(result, WorkerFailure):
                            workers.remove(worker)
                        worker.task = None
                        yield task, _or_raise(result)
                    elif timeout is not None and time.monotonic() - worker.started > timeout and not worker.pipe.poll():
                        task = worker.task
                        workers.remove(worker)
                        _end(worker)
                        yield (
                            task,
                            WorkerFailure("took too long", f"no result after {timeout:g} s, so its process was ended"),
                        )
        except BaseException:  # GeneratorExit too.
            self._end()
            raise

    def _end(self) -> None:
        while self._workers:
            _end(self._workers.pop())


def run_tasks(
    work: Callable[[Task], Any], tasks: Sequence[Task], num_workers: int, timeout: float | None = None
) -> Generator[tuple[Task, Any], None, None]:
    """`Pool.run` of one list of tasks."""
    with Pool(work, num_workers, timeout) as pool:
        yield from pool.run(tasks)


def ahead(results: Generator[Task, None, None], depth: int) -> Iterator[Task]:
    """The same results, up to `depth` of them taken by a thread while the caller is at work on others: workers do not
    wait for it. `results` is closed with it.
    """
    taken: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    over = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                taken.put((kind, value), timeout=POLL_SECONDS / 10)
                return True
        return False

    def take() -> None:
        try:
            with contextlib.closing(results):
                if all(put("result", result) for result in results):
                    put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = taken.get()
            if kind == "result":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _without_main(work: Callable[[Any], Any]) -> Iterator[None]:
    """While active, processes start without importing the program that runs, which takes each of them seconds; unless
    the work is defined there.
    """
    function = work.func if isinstance(work, partial) else work
    main = sys.modules["__main__"]
    if getattr(function, "__module__", "__main__") != "__main__":
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def process_context() -> Any:
    """How processes are started: from a server that imports once.

    A plain fork would copy the threads' locks of torch and tqdm.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llava.data.dataset"])
    return context


def _start(context: Any, work: Callable[[Any], Any]) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    # It starts with the mask, so that a signal to the whole group of processes, such as Ctrl-C, is for this one alone,
    # which ends its workers itself.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    try:
        with _without_main(work):
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    try:
        ours.recv()  # It has started: imports do not count as time of a task.
    except EOFError as error:
        process.join()
        raise RuntimeError(f"a worker process could not start (exit status {process.exitcode})") from error
    return _Worker(process, ours)


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """The life of a worker: tasks in, results or exceptions out, until the pipe closes."""
    pipe.send(None)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            result = (True, work(task))
        except Exception as error:
            result = (False, error)
        pipe.send(result)


def _give(worker: _Worker, pending: deque[Any]) -> None:
    worker.task, worker.started = pending.popleft(), time.monotonic()
    # One that died between two tasks is found out when its result is read.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        worker.pipe.send(worker.task)


def _take(worker: _Worker) -> Any:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):  # OSError: it died in the middle of its message.
        worker.process.join()
        code = worker.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
        worker.pipe.close()
        return WorkerFailure("reader crashed", f"the process that read it died with {how} (decoder crash or no memory)")


def _or_raise(result: Any) -> Any:
    if isinstance(result, WorkerFailure):
        return result
    good, value = result
    if not good:
        raise value
    return value


def _patience(busy: Sequence[_Worker], timeout: float | None) -> float | None:
    if timeout is None:
        return None
    first = min(w.started for w in busy)
    return min(max(first + timeout - time.monotonic(), 0.0) + 0.01, POLL_SECONDS)


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.join()
