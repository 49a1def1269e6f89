"""One HTML page about a run, or about several next to each other: `python -m llava.eval.report RUN [RUN ...]`.

The page is one file without outside parts: inline CSS and SVG, frames as JPEG in base64.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llava.config import DataArguments, ModelArguments, TrainingArguments
from llava.errors import run_command
from llava.errors import show as show_text
from llava.eval.comparison import comparable
from llava.eval.report_plots import (
    CONDITIONS,
    Frames,
    Panel,
    comparison_panels,
    draw,
    format_interval,
    format_number,
    gain_of,
    gain_panels,
    number,
    run_panels,
)

MAKE = {
    "llava_run.json": "training writes it into its output folder",
    "trainer_state.json": "training writes it at its end and into every checkpoint",
    "alarms.jsonl": "training with --run_monitor True writes a line into it for each alarm, so there was none",
    "preflight.json": "training writes it before its first step, with --preflight quick or full",
    "controls.jsonl": "training with --eval_data_path and --controls True writes a line into it at each evaluation",
    "captions.json": "python -m llava.eval.captioning --model-path RUN --data_path FILE --video_folder DIR "
    "--feature_cache DIR --control --output RUN/captions.json",
}
"""The files of a run and what makes them."""
IDENTITY_FLAGS = {"output_dir", "logging_dir", "run_name"}  # They differ between any two runs.
FILLED_FLAGS = {"accelerator_config", "disable_tqdm", "hub_token"}  # transformers replaces their default by itself.
SAMPLES = 3


@dataclass(frozen=True)
class Run:
    """The files of a run's folder; None (or an empty dict) stands for a file that is not there."""

    folder: Path
    record: dict[str, Any]
    state: dict[str, Any] | None
    alarms: list[dict[str, Any]] | None
    preflight: dict[str, Any] | None
    controls: list[dict[str, Any]] | None
    captions: dict[str, Any] | None

    @property
    def flags(self) -> dict[str, Any]:
        return self.record.get("flags") or {}

    @property
    def log(self) -> list[dict[str, Any]]:
        return (self.state or {}).get("log_history") or []

    def values(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of each entry of the log that has `key`; values may be NaN."""
        return [(number(e.get("step")), number(e[key])) for e in self.log if key in e]


def read_run(folder: str | Path) -> Run:
    """Reads what there is in a run's folder.

    Raises:
        FileNotFoundError: when the folder is no run.
        ValueError: for a malformed file, naming it and the line.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("llava_run.json", "trainer_state.json")):
        raise FileNotFoundError(
            f"{folder}: no run (neither llava_run.json nor trainer_state.json); name the --output_dir of a training run"
        )
    run = Run(
        folder,
        _read_json(folder / "llava_run.json") or {},
        _read_json(folder / "trainer_state.json"),
        _read_lines(folder / "alarms.jsonl"),
        _read_json(folder / "preflight.json"),
        _read_lines(folder / "controls.jsonl"),
        _read_json(folder / "captions.json"),
    )
    _check_shapes(run)
    return run


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); mend the file, or remove it and make it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a JSON object was expected, found {type(value).__name__}; make the file again")
    return value


def _read_json(path: Path) -> dict[str, Any] | None:
    return _parse(path.read_bytes(), str(path)) if path.is_file() else None


def _read_lines(path: Path) -> list[dict[str, Any]] | None:
    if not path.is_file():
        return None
    lines = path.read_bytes().split(b"\n")
    return [_parse(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def _check_shapes(run: Run) -> None:
    """Refuses JSON that is well formed but not what the page reads."""

    def objects(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(v, dict) for v in value)

    def gains(line: dict[str, Any]) -> bool:
        named = line.get("gains") or {}
        units = [g or {} for g in named.values()] if isinstance(named, dict) else [None]
        return all(isinstance(u, dict) and all(not v or len(v) == 3 for v in u.values()) for u in units)

    sets = (run.captions or {}).get("captions") or {}
    found = {
        "llava_run.json": all(isinstance(run.record.get(k) or {}, dict) for k in ("flags", "versions", "data"))
        and objects(run.record.get("parameters") or []),
        "trainer_state.json": objects(run.log),
        "preflight.json": objects((run.preflight or {}).get("checks", [])),
        "controls.jsonl": all(map(gains, run.controls or [])),
        "captions.json": isinstance(sets, dict) and all(map(objects, sets.values())),
    }
    for name, good in found.items():
        if not good:
            raise ValueError(f"{run.folder / name}: the fields are not a run's; remove the file or make it again")


@dataclass(frozen=True)
class Answer:
    """An answer of the page's top: `tone` is good, warn, bad or plain."""

    question: str
    tone: str
    short: str
    text: str


def did_it_learn(run: Run) -> Answer:
    """From the first and last losses (of captions, where there are any) and from the lowest evaluation loss."""
    question = "Did it learn?"
    losses = [v for _, v in run.values("loss")]
    captions = [v for _, v in run.values("caption_loss") if math.isfinite(v)]
    finite = captions if len(captions) > 1 else [v for v in losses if math.isfinite(v)]
    what = "caption loss" if finite is captions else "training loss"
    if len(finite) < 2:
        return Answer(question, "plain", "Unknown", "Fewer than two training losses were logged.")
    ends = min(3, len(finite) // 2)
    first, last = median(finite[:ends]), median(finite[-ends:])
    change = f"from {first:.3f} to {last:.3f} nats per token"
    if losses and not math.isfinite(losses[-1]):
        return Answer(question, "bad", "It broke", f"The last training loss is not finite; before, it went {change}.")
    if last > 1.05 * first:
        return Answer(question, "bad", "No", f"The {what} rose {change}.")
    if last > 0.95 * first:
        return Answer(question, "warn", "Hardly", f"The {what} went {change}.")
    text = f"The {what} fell {change}."
    evaluations = [(s, v) for s, v in run.values("eval_loss") if math.isfinite(v)]
    if evaluations:
        step, best = min(evaluations, key=lambda point: point[1])
        final = evaluations[-1][1]
        if final > 1.02 * best:
            text += f" The evaluation loss was lowest at step {step:,.0f} ({best:.3f}) and has risen to {final:.3f}."
            return Answer(question, "warn", "Yes, then it overfitted", text)
        text += f" The evaluation loss ends at {final:.3f}."
    return Answer(question, "good", "Yes", text)


def did_it_see(run: Run) -> Answer:
    """From the interval of the visual information gain in the last line of controls."""
    question = "Did it see?"
    if "vision_tower" in run.flags and run.flags["vision_tower"] is None:
        return Answer(question, "plain", "Text only", "This run trains on text alone; there is nothing to see.")
    interval = gain_of(run.controls[-1], "video") if run.controls else None
    if interval is None:
        return Answer(question, "plain", "Not measured", f"No controls.jsonl: {MAKE['controls.jsonl']}.")
    if not all(map(math.isfinite, interval)):
        return Answer(question, "bad", "It broke", "The visual information gain is not a finite number.")
    mean, low, high = interval
    text = (
        f"With another clip's video a caption costs {abs(mean):.2f} nats {'more' if mean >= 0 else 'less'}. "
        f"Visual information gain {format_interval(interval)} nats per caption (95\u00a0%); the interval "
        f"{'includes' if low <= 0 <= high else 'excludes'} 0."
    )
    if low > 0:
        return Answer(question, "good", "Yes", text)
    if high < 0:
        text += " Its own video makes a caption less likely: check that clips and captions belong together."
        return Answer(question, "bad", "No, the reverse", text)
    return Answer(question, "warn", "Not shown", text)


def is_anything_wrong(run: Run) -> Answer:
    """Alarms, pre-flight, values that are not finite, and whether training came to its end."""
    bad, warn, fine = [], [], []
    if run.preflight is None:
        warn.append("There is no pre-flight check.")
    elif run.preflight.get("passed"):
        fine.append("Pre-flight passed.")
    else:
        failed = [str(c.get("check")) for c in run.preflight.get("checks", []) if c.get("status") == "FAIL"]
        bad.append(f"Pre-flight failed{': ' if failed else ''}{', '.join(failed)}.")
    if run.alarms:
        kinds = ", ".join(dict.fromkeys(str(a.get("kind")) for a in run.alarms))
        bad.append(f"{len(run.alarms)} alarm{'s' if len(run.alarms) > 1 else ''} ({kinds}).")
    elif run.flags.get("run_monitor") is False:
        warn.append("The monitor was off, so nothing could sound an alarm.")
    else:
        fine.append("No alarm on record.")
    if run.flags.get("experiment_faults"):
        bad.append(f"It was broken on purpose ({run.flags['experiment_faults']}).")
    for key, what in {"loss": "loss", "eval_loss": "evaluation loss", "grad_norm": "gradient norm"}.items():
        broken = [step for step, value in run.values(key) if not math.isfinite(value)]
        # The loss scaler of fp16 skips steps whose gradients overflow.
        if broken and not (key == "grad_norm" and run.flags.get("fp16")):
            times = "once" if len(broken) == 1 else f"{len(broken)} times"
            bad.append(f"The {what} was not finite {times}, first at step {broken[0]:,.0f}.")
    if run.state is None:
        warn.append("There is no trainer_state.json, so there are no curves.")
    elif not any("train_runtime" in e for e in run.log):
        at = f"step {run.state.get('global_step', '?')} of {run.state.get('max_steps', '?')}"
        warn.append(f"Training has not come to its end: {at}.")
    tone, short = ("bad", "Yes") if bad else ("warn", "Look again") if warn else ("good", "Nothing found")
    return Answer("Is anything wrong?", tone, short, " ".join(bad + warn + fine))


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
        data = (run.record.get("data") or {}).get("train") or {}
        versions = {f"version of {k}": v for k, v in (run.record.get("versions") or {}).items()}
        settings.append({**run.flags, **versions, **{f"training {k}": v for k, v in data.items()}})
    names = [n for n in dict.fromkeys(n for s in settings for n in s) if n not in IDENTITY_FLAGS]
    rows = {n: [show(s[n]) if n in s else "–" for s in settings] for n in names}
    return {n: values for n, values in rows.items() if len(set(values)) > 1}


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
    raise ValueError(f"{', '.join(map(str, folders))}: a run is named twice; name each once")


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
        raise ValueError("a report needs at least one run; name the --output_dir of a training run")
    read = [read_run(folder) for folder in runs]
    named = comparable(dict(zip(run_names([r.folder for r in read]), read, strict=True)))
    output = Path(output) if output else read[0].folder / "report.html" if len(read) == 1 else Path("report.html")
    template = _environment().get_template("report.html.j2")
    page = template.render(
        runs=named,
        answers={n: [did_it_learn(r), did_it_see(r), is_anything_wrong(r)] for n, r in named.items()},
        panels=_panels(named),
        gains=gain_panels({n: r.controls or [] for n, r in named.items()}),
        flags=split_flags(read[0].flags),
        settings=differing(named),
        frames=Frames(video_folder, read[0].flags.get("video_folder")) if clips else None,
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
    environment.globals |= {f.__name__: f for f in (gain_of, pick_samples, mark_words)}
    environment.globals |= {"make": MAKE, "conditions": CONDITIONS}
    environment.filters |= {"number": format_number, "interval": format_interval, "show": show, "draw": draw}
    return environment


def main(argv: Sequence[str] | None = None) -> int:
    """Writes one HTML page about a run, or one that compares several, and prints its path."""
    parser = argparse.ArgumentParser(prog="python -m llava.eval.report", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a training run")
    parser.add_argument("--output", type=Path, help="the page (default: RUN/report.html; of several, ./report.html)")
    parser.add_argument("--video_folder", help="prefix of the captions' video paths (default: the run's own)")
    parser.add_argument("--no_clips", action="store_true", help="leave frames of the clips out")
    args = parser.parse_args(argv)
    print(write_report(args.runs, args.output, not args.no_clips, args.video_folder))
    return 0


if __name__ == "__main__":
    run_command(main)
