"""What a run was made of: code, machine, time, data and tokenizer, each fact "not recorded" where no file has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from llava.data.arms import describe
from llava.report.floors import chance, word_entropy
from llava.report.plots import number
from llava.report.read import Run

UNKNOWN = "not recorded"


class Fact(NamedTuple):
    """A name and what is known of it; `value` is `UNKNOWN` where nothing is."""

    name: str
    value: str


def facts_of(run: Run) -> dict[str, list[Fact]]:
    """The facts of a run in groups."""
    return {"Run": _run_facts(run), "Data": _data_facts(run), "Tokenizer": _tokenizer_facts(run)}


def _run_facts(run: Run) -> list[Fact]:
    record, batch, machine = run.record, run.record.get("batch") or {}, run.record.get("hardware") or {}
    version, commit = (record.get("versions") or {}).get("llava"), record.get("commit")
    code = [f"llava {version}"] if version else []
    if commit:
        code.append(f"commit {commit.removesuffix('-dirty')}{' with local changes' * commit.endswith('-dirty')}")
    elif "commit" in record:
        code.append("installed, without a checkout")
    device = ""
    if machine:
        count = number(batch.get("processes"))
        memory = f" ({machine['memory']:g} GiB)" if number(machine.get("memory")) > 0 else ""
        device = f"{f'{count:.0f} × ' if count > 1 else ''}{machine.get('device')}{memory}"
        other = f"{machine.get('cpu')}, " if machine.get("cpu") != machine.get("device") else ""
        device += f"; {other}{machine.get('cores')} CPU cores"
    steps = (run.state or {}).get("global_step")
    size = f" of {batch['global']:,} samples" if batch.get("global") else ""
    return [
        Fact("Code", ", ".join(code) or UNKNOWN),
        Fact("Hardware", device or UNKNOWN),
        Fact("Duration", _duration(run)),
        Fact("Steps", UNKNOWN if steps is None else f"{steps:,}{size}{_epochs(run)}"),
        Fact("Seed", str(run.flags.get("seed", UNKNOWN))),
    ]


def _duration(run: Run) -> str:
    entries = [e for e in run.log if "train_runtime" in e]
    if not entries:
        return UNKNOWN
    total, last = number(entries[-1].get("total_train_runtime")), number(entries[-1]["train_runtime"])
    if math.isfinite(total):
        return f"{seconds_text(total)} of training"
    return f"{seconds_text(last)} of training; what came before, if it was resumed, was {UNKNOWN}"


def _epochs(run: Run) -> str:
    epoch = number((run.state or {}).get("epoch"))
    return f", {epoch:.3g} epochs" if math.isfinite(epoch) else ""


def seconds_text(seconds: float) -> str:
    """A time in its two largest units: `12.3 s`, `4 min 10 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def _data_facts(run: Run) -> list[Fact]:
    data = run.record.get("data") or {}
    train, evaluation = data.get("train") or {}, data.get("eval") or {}
    sources = train.get("sources") or []
    words = sum(number(s.get("words")) for s in sources) if sources else math.nan
    return [
        Fact("Files", ", ".join(str(s.get("name")) for s in sources) or UNKNOWN),
        Fact("Records", _count(train.get("records"))),
        Fact("Clips", _count(train.get("clips"))),
        *([Fact("Shown in training", describe(run.record["arm"]))] if run.record.get("arm") else []),
        Fact("Words", _count(words)),
        Fact("Held out", _held_out(run, evaluation) if data else UNKNOWN),
        *_repeated(evaluation),
    ]


def _held_out(run: Run, evaluation: Mapping[str, Any]) -> str:
    split = run.record.get("split") or {}
    if split.get("held_out") and not run.flags.get("eval_data_path"):
        share = f"{_count(split['held_out'])} of {_count(split.get('total'))} {split.get('of', 'clips')}"
        return f"{share}, {_count(split.get('captions'))} captions"
    if evaluation:
        name = ", ".join(str(s.get("name")) for s in evaluation.get("sources") or [])
        records, clips = _count(evaluation.get("records")), _count(evaluation.get("clips"))
        return f"{name or 'an evaluation file'}: {records} records of {clips} clips"
    return "nothing: what it says of new clips was not measured"


def _repeated(evaluation: Mapping[str, Any]) -> list[Fact]:
    if "repeated" not in evaluation:
        return []
    of = f"{_count(evaluation['repeated'])} of {_count(evaluation.get('records'))}"
    return [Fact("Evaluation texts that training has word by word", of)]


def _tokenizer_facts(run: Run) -> list[Fact]:
    entries = (run.record.get("tokenizer") or {}).get("entries")
    counted = ((run.record.get("data") or {}).get("train") or {}).get("supervised") or {}
    facts = [Fact("Entries", _count(entries)), Fact("ln V, the loss of guessing", _nats(chance(run)))]
    if not counted:
        return [*facts, Fact("Tokens a word", UNKNOWN), Fact("Unknown", UNKNOWN), Fact("Unigram entropy", UNKNOWN)]
    for kind, found in counted.items():
        of = f" ({kind})" if len(counted) > 1 else ""
        rate, unknown, tokens = (number(found.get(k)) for k in ("tokens_per_word", "unknown", "tokens"))
        share = f"{100 * unknown / tokens:.2g} % of the targets" if tokens > 0 else UNKNOWN
        facts += [
            Fact(f"Tokens a word{of}", f"{rate:.2f}" if math.isfinite(rate) else UNKNOWN),
            Fact(f"Unknown{of}", share if math.isfinite(unknown) else "the tokenizer has no such token"),
            Fact(f"Unigram entropy of the targets{of}", _nats(word_entropy(run, "train", kind))),
        ]
    return facts


def _count(value: Any) -> str:
    value = number(value)
    return f"{value:,.0f}" if math.isfinite(value) else UNKNOWN


def _nats(value: float) -> str:
    return f"{value:.2f} nats" if math.isfinite(value) else UNKNOWN
