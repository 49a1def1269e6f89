"""One HTML page about a run, or about several next to each other: `python -m llava.eval.report RUN [RUN ...]`.

The page is one file without outside parts: inline CSS, SVG and script, frames as JPEG in base64. It reads
without scripts.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llava.config.commands import parse
from llava.constants import REPORT_FILE
from llava.errors import UserError, run_command
from llava.errors import show as show_text
from llava.eval.comparison import comparable
from llava.report.answers import did_it_learn, did_it_see, is_anything_wrong
from llava.report.boxes import CSS as BOXES_CSS
from llava.report.boxes import LEGEND
from llava.report.card import CARD, write_card
from llava.report.drawing import HEIGHT, WIDTH, draw
from llava.report.facts import UNKNOWN, facts_of
from llava.report.floors import OTHER_VIDEO, chance, start_loss, word_entropy
from llava.report.grounding import coordinate_lines, grounding_files, sections_of
from llava.report.intervals import BAR_WIDTH, gain_intervals
from llava.report.plots import (
    CONDITIONS,
    Frames,
    Panel,
    comparison_panels,
    format_figures,
    format_interval,
    format_number,
    gain_of,
    gain_panels,
    number,
    run_panels,
)
from llava.report.read import MAKE, Run, read_run
from llava.report.settings import command_of, differing, share_of, show, split_flags
from llava.report.tokens import MOST_PIECES

SAMPLES = 3


def words(text: str) -> list[str]:
    """Words without case; an apostrophe ends a word."""
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())


def mark_words(caption: str, reference: str) -> list[tuple[str, bool]]:
    """The caption in pieces, each with whether it is a word that the reference does not have."""
    known = set(words(reference))
    pieces = re.split(r"(\w+)", unicodedata.normalize("NFC", caption))
    return [(piece, i % 2 == 1 and piece.casefold() not in known) for i, piece in enumerate(pieces) if piece]


def pick_samples(captions: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, list[tuple[float, Mapping[str, Any]]]]]:
    """Best, median and worst captions with their values: by nats per token where every caption has them, else by how
    similar the words of caption and reference are (difflib's ratio). Below nine captions all are one group.

    Returns:
        the name of the value, and the captions of each group, best first.
    """
    nats = [number(c.get("nats_per_token")) for c in captions]
    if all(map(math.isfinite, nats)):
        name, keys, values = "nats per token", nats, nats
    else:
        pairs = [(words(str(c.get("caption", ""))), words(str(c.get("reference", "")))) for c in captions]
        values = [difflib.SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in pairs]
        name, keys = "similarity to the reference (0 to 1)", [-v for v in values]
    order = sorted(range(len(captions)), key=lambda i: keys[i])
    ranked = [(values[i], captions[i]) for i in order]
    if len(ranked) < 3 * SAMPLES:
        return name, {"All": ranked}
    middle = (len(ranked) - SAMPLES) // 2
    return name, {"Good": ranked[:SAMPLES], "Median": ranked[middle:][:SAMPLES], "Bad": ranked[-SAMPLES:]}


def bounds_of(run: Run, label: str) -> dict[str, Any]:
    """The ends of the intervals of one row of scores; those of files of earlier versions have none."""
    return ((run.captions or {}).get("intervals") or {}).get(label) or {}


def below(path: object, folder: str | None) -> str:
    """A path as it is named below a folder; as it is where it does not lie there."""
    named = Path(str(path))
    return str(named.relative_to(folder)) if folder and named.is_relative_to(folder) else str(path)


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all folders apart."""
    parts = [f.resolve().parts for f in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{', '.join(map(str, folders))}: a run is named twice; name each once")


def write_report(
    runs: Sequence[str | Path], output: Path | None = None, clips: bool = True, video_folder: str | None = None
) -> Path:
    """Writes the page about one run (by default RUN/report.html) or about several (report.html).

    Args:
        clips: show frames of the clips beside captions; they are read from `video_folder`, or from where the run's
            --video_folder was.

    Raises:
        FileNotFoundError, ValueError: from `read_run`; ValueError too for no run and for one that is named twice.
    """
    if not runs:
        raise UserError("a report needs at least one run; name the --output_dir of a training run")
    read = [read_run(folder) for folder in runs]
    named = comparable(dict(zip(run_names([r.folder for r in read]), read, strict=True)))
    output = Path(output) if output else read[0].folder / REPORT_FILE if len(read) == 1 else Path(REPORT_FILE)
    template = environment().get_template("page.html.j2")
    frames = Frames(video_folder, read[0].flags.get("video_folder")) if clips else None
    page = template.render(
        runs=named,
        answers={n: [did_it_learn(r), did_it_see(r), is_anything_wrong(r)] for n, r in named.items()},
        drawings=[draw(p) for p in _panels(named)],
        gains=gain_intervals({n: r.controls or [] for n, r in named.items()}),
        gains_over_time=[draw(p) for p in gain_panels({n: r.controls or [] for n, r in named.items()})],
        facts=facts_of(read[0]),
        command=command_of(read[0]),
        flags=split_flags(read[0].flags),
        settings=differing(named),
        frames=frames,
        grounding=lambda: sections_of(read[0].grounding, frames),  # After the captions, whose frames come first.
        style=part("page.css") + Markup(BOXES_CSS),
        scripts=[part("curves.js"), part("copy.js")],
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    return output


def _panels(runs: Mapping[str, Run]) -> list[Panel]:
    if len(runs) > 1:
        return comparison_panels({name: run.log for name, run in runs.items()})
    (run,) = runs.values()
    levels = [
        (chance(run), f"guessing (ln V, {chance(run):.2f})"),
        (word_entropy(run, "train"), f"how frequent each word is (unigram entropy, {word_entropy(run, 'train'):.2f})"),
    ]
    alarms = [int(s) for a in run.alarms or [] if math.isfinite(s := number(a.get("step")))]
    return run_panels(run.log, alarms, levels, start_loss(run))


def part(name: str) -> Markup:
    """A file of this package that stands in the page as it is."""
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))


@cache
def environment() -> Environment:
    """Jinja2 with everything escaped, control characters too, and no name undefined."""
    loader, blocks = FileSystemLoader(Path(__file__).parent), {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **blocks)
    environment.finalize = lambda value: show_text(value) if type(value) is str else value
    environment.globals |= {f.__name__: f for f in (
        below, bounds_of, coordinate_lines, gain_of, grounding_files, mark_words, pick_samples, share_of,
    )}  # fmt: skip
    environment.globals |= {"make": MAKE, "conditions": CONDITIONS, "width": WIDTH, "height": HEIGHT}
    environment.globals |= {
        "bar_width": BAR_WIDTH,
        "unknown": UNKNOWN,
        "other_video": OTHER_VIDEO,
        "most_pieces": MOST_PIECES,
        "boxes_legend": LEGEND,
    }
    environment.filters |= {
        "number": format_number,
        "interval": format_interval,
        "show": show,
        "figures": format_figures,
    }
    return environment


@dataclass
class ReportFlags:
    """The runs, and how they are shown."""

    runs: list[str] = field(
        metadata={
            "positional": True,
            "metavar": "RUN",
            "help": "Output folders of training runs; several are compared.",
        }
    )
    output: Path | None = field(
        default=None, metadata={"help": "The page (default: RUN/report.html; of several runs, ./report.html)."}
    )
    video_folder: str | None = field(
        default=None, metadata={"help": "Prefix of the captions' video paths; by default the run's own."}
    )
    clips: bool = field(default=True, metadata={"help": "Show frames of the clips beside captions."})


def main(argv: Sequence[str] | None = None) -> int:
    """Writes one HTML page about a run, or one that compares several, and prints its path."""
    (flags,) = parse(main.__doc__, ReportFlags, argv=argv, prog="python -m llava.eval.report")
    print(write_report(flags.runs, flags.output, flags.clips, flags.video_folder))
    for run in flags.runs:
        if (Path(run) / CARD).exists():  # With what was measured since training wrote it.
            write_card(run)
    return 0


if __name__ == "__main__":
    run_command(main)
