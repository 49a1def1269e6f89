"""torchrun whose last lines are the run's own: `python llava/train/torchrun.py`, with torchrun's arguments.

torchrun ends a run that failed with a traceback of its own and a list of failures, some forty lines after what the run
said of itself. Here they are left out; a process that was killed, and could say nothing, is named.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import main as torchrun

ENDED_BY_TORCHRUN = {-signal.SIGTERM}
"""How a process ends that torchrun ends because another one failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs torchrun; the exit status is that of the process that failed first, where it said something."""
    # torchrun would set it too, with six lines about it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Its lines about processes that failed: each of these has said why, or is named below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        torchrun(argv)
    except ChildFailedError as error:
        said = [failure for failure in error.failures.values() if failure.exitcode > 0]
        if said:
            return min(said, key=lambda failure: failure.timestamp).exitcode
        print(f"\nERROR: {killed(error.failures.items())}", file=sys.stderr)
        return 1
    except SignalException as stop:
        # The processes were told too, and said what became of the run.
        return 128 + int(stop.sigval)
    return 0


def killed(failures: Iterable[tuple[int, ProcessFailure]]) -> str:
    """What there is to say of processes that a signal ended."""
    listed = list(failures)
    first = [f for f in listed if f[1].exitcode not in ENDED_BY_TORCHRUN] or listed
    names = ", ".join(f"rank {rank} (process {f.pid}) by {signal.Signals(-f.exitcode).name}" for rank, f in first)
    return (
        f"ended from outside: {names}. SIGKILL comes most often from the system when memory runs out (its log says "
        "so): lower --per_device_train_batch_size or --dataloader_num_workers; --resume_from_checkpoint auto goes on "
        "from the last checkpoint"
    )


if __name__ == "__main__":
    sys.exit(main())
