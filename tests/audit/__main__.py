"""The audit: plants every fault of the table and prints where it was caught, `python -m tests.audit [WORDS ...]`.

    python -m tests.audit                all faults
    python -m tests.audit --quick        those that every test run audits
    python -m tests.audit caption grad   those whose name holds one of the words
    python -m tests.audit --sound        sound runs instead: of ten seeds, packed, resumed, of images, of text, ...

Exit status 1 when a fault was not caught where, or not named as, the table says, or when a sound run was not silent.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tests.audit.running import PLACES, run_fault, run_test
from tests.audit.sound import SOUND
from tests.audit.table import FAULTS
from tests.conftest import make_assets


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.audit", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only faults whose name holds one of these")
    parser.add_argument("--quick", action="store_true", help="only those that every test run audits")
    parser.add_argument("--sound", action="store_true", help="sound runs, which must be silent")
    parser.add_argument("--verbose", action="store_true", help="show all that was said about a fault that slipped")
    args = parser.parse_args()
    chosen = [f for f in (SOUND if args.sound else FAULTS) if f.quick or not args.quick]
    chosen = [f for f in chosen if not args.words or any(w.lower() in f.name.lower() for w in args.words)]
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("fault", "planted in", "must be caught", "as it must", "in the words"):
        table.add_column(column, overflow="fold")
    missed, started = 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        assets = make_assets(Path(root) / "assets")
        for number, fault in enumerate(chosen):
            print(f"{number + 1} of {len(chosen)}: {fault.name}", file=sys.stderr, flush=True)
            if fault.where == "test":
                caught, said = run_test(fault)
            else:
                folder = Path(root) / str(number)
                folder.mkdir()
                outcome = run_fault(fault, assets, folder)
                caught, said = outcome.found(fault.where, fault.words), outcome.summary()
            missed += not caught
            mark = "[green]yes[/]" if caught else "[bold red]NO[/]"
            place = fault.test if fault.where == "test" else PLACES[fault.where]
            table.add_row(fault.name, fault.kind, place, mark, fault.words)
            if not caught and args.verbose:
                print(said, file=sys.stderr)
    Console(width=160).print(table)
    what = "sound runs silent" if args.sound else "faults caught"
    print(f"{len(chosen) - missed} of {len(chosen)} {what}, {time.perf_counter() - started:.0f} s")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
