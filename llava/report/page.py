"""One HTML page about a run, or about several next to each other: `python -m llava.eval.report RUN [RUN ...]`.

The page is one file without outside parts: inline CSS, SVG and script, frames as JPEG in base64. It reads
without scripts.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llava.config.commands import parse
from llava.config.flags import DataArguments, ModelArguments, TrainingArguments
from llava.errors import UserError, run_command
from llava.errors import show as show_text
from llava.eval.comparison import comparable
from llava.report.answers import did_it_learn, did_it_see, is_anything_wrong
from llava.report.card import CARD, write_card
from llava.report.drawing import HEIGHT, WIDTH, draw
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

IDENTITY_FLAGS = {"output_dir", "logging_dir", "run_name"}  # They differ between any two runs.
REPORT_FILE = "report.html"
FILLED_FLAGS = {"accelerator_config", "disable_tqdm", "hub_token"}  # transformers replaces their default by itself.
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


def differing(runs: Mapping[str, Run]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs: flags, versions and counts of the data, one value a run."""
    settings = []
    for run in runs.values():
        data = dict((run.record.get("data") or {}).get("train") or {})
        if data.get("sources"):
            data["sources"] = sources_line(data["sources"])
        versions = {f"version of {k}": v for k, v in (run.record.get("versions") or {}).items()}
        settings.append({**run.flags, **versions, **{f"training {k}": v for k, v in data.items()}})
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


def bounds_of(run: Run, label: str) -> dict[str, Any]:
    """The ends of the intervals of one row of scores; those of files of earlier versions have none."""
    return ((run.captions or {}).get("intervals") or {}).get(label) or {}


def show(value: Any) -> str:
    """A setting as the command line or JSON has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
    output = Path(output) if output else read[0].folder / REPORT_FILE if len(read) == 1 else Path("report.html")
    template = _environment().get_template("page.html.j2")
    page = template.render(
        runs=named,
        answers={n: [did_it_learn(r), did_it_see(r), is_anything_wrong(r)] for n, r in named.items()},
        drawings=[draw(p) for p in _panels(named)],
        gains=[draw(p) for p in gain_panels({n: r.controls or [] for n, r in named.items()})],
        flags=split_flags(read[0].flags),
        settings=differing(named),
        frames=Frames(video_folder, read[0].flags.get("video_folder")) if clips else None,
        script=Markup((Path(__file__).parent / "curves.js").read_text(encoding="utf-8")),
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    return output


def _panels(runs: Mapping[str, Run]) -> list[Panel]:
    if len(runs) > 1:
        return comparison_panels({name: run.log for name, run in runs.items()})
    (run,) = runs.values()
    return run_panels(run.log, [int(s) for a in run.alarms or [] if math.isfinite(s := number(a.get("step")))])


def _environment() -> Environment:
    """Jinja2 with everything escaped, control characters too, and no name undefined."""
    loader, blocks = FileSystemLoader(Path(__file__).parent), {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **blocks)
    environment.finalize = lambda value: show_text(value) if type(value) is str else value
    environment.globals |= {f.__name__: f for f in (bounds_of, gain_of, pick_samples, mark_words, share_of)}
    environment.globals |= {"make": MAKE, "conditions": CONDITIONS, "width": WIDTH, "height": HEIGHT}
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
