"""Blind surprisal: nats of every word of held-out captions and of texts, with no video for any model.

It asks what a model learned of language, and not what a clip tells about its caption: `python -m llava.eval.surprisal`.
The words are those of `llava.eval.italian`, the nats those of `llava.eval.text_scores`, summed over the pieces of a
word; marks and the end of a text are kept apart from the words (docs/surprisal.md).

Letters in shapes: N words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from llava.config.commands import parse
from llava.config.groups import DEFAULT_SEED, FolderFlags
from llava.config.ranges import COUNT
from llava.data.features.content import ContentHashes
from llava.data.json_records import DatasetError
from llava.data.prompt import join_turns, reserved_tokens
from llava.data.records import apply_policy, load_records, text_alone
from llava.errors import UserError, run_command, show
from llava.eval.data import device_of, record_files, trained_on
from llava.eval.italian import MARK, class_of, form, owners, sums, units
from llava.eval.result_files import Results, RunFlags, file_name, stamps
from llava.eval.sighted import clusters_of
from llava.eval.statistics import bootstrap_ratio
from llava.eval.text_scores import TextNats, TextScorer, load_without_tower, plain_format
from llava.eval.word_tables import Classes, Norm, frequencies_for, is_table, read_classes, read_norms

CAPTIONS = "captions"
BLIND = "blind_words"
COLUMNS = ("test", "item", "cluster", "position", "word", "class", "tokens", "nats", "frequency", "length")
END = "end"


@dataclass(frozen=True)
class Text:
    """A text that is measured: `place` names it in messages, `cluster` is what it is not independent of."""

    test: str
    item: str
    cluster: str
    text: str
    place: str


def read_texts(path: str) -> list[Text]:
    """The texts of a plain file: each line is one, a sentence or a document; empty lines are passed over.

    Raises:
        DatasetError: naming a file that cannot be read, or holds nothing.
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DatasetError(f"--text {show(path)}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"--text {show(path)}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    name = file_name(path)
    found = [Text(name, str(n), str(n), line.strip(), f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DatasetError(f"--text {show(path)}: holds no text")
    return found


class Rows(NamedTuple):
    """Of one text: rows of its words, rows of its marks and its end, how many tokens reach into another word or mark,
    and how many words and marks have no token of their own for that reason, and no row.
    """

    words: list[dict[str, Any]]
    marks: list[dict[str, Any]]
    reaching: int
    absorbed: int


def rows_of(text: Text, nats: TextNats, classes: Classes, covariates: Sequence[Norm]) -> Rows:
    """The rows of a text, whose positions count words and marks from 0; nats are NaN where a piece was not measured."""
    parts = units(text.text)
    owner, reaches = owners(text.text, nats.offsets, parts)
    total, tokens = sums(nats.nats, owner, len(parts))
    whose = {"test": text.test, "item": text.item, "cluster": text.cluster}
    words, marks = [], []
    for position in np.flatnonzero(tokens).tolist():
        unit = parts[position]
        word = form(text.text[unit.start : unit.end])
        kind = MARK if unit.kind == MARK else class_of(word, unit.kind, classes.classes)
        row = {**whose, "position": position, "word": word, "class": kind, "tokens": int(tokens[position]),
               "nats": float(total[position])}  # fmt: skip
        if unit.kind == MARK:
            marks.append(row)
        else:
            known = {norm.name: norm.of(word, classes.lemmas) for norm in covariates}
            words.append({**row, "length": len(word), **known})
    marks.append({**whose, "position": len(parts), "word": "", "class": END, "tokens": 1, "nats": nats.end})
    return Rows(words, marks, int(reaches.sum()), int((tokens == 0).sum()))


def summarise(
    words: Sequence[Mapping[str, Any]], marks: Sequence[Mapping[str, Any]], norms: Sequence[str], floor: bool = False
) -> dict[str, Any]:
    """What the rows of one test say.

    Args:
        norms: the names of the columns of numbers.
        floor: whether frequencies are those of the training words, so that there is a floor.

    Returns:
        `texts`, `clusters`, `words`, `unmeasured` (words without nats), `nats_per_word` with the ends of its 95 %
        interval over clusters, `classes` and `apart` (marks and ends), each with its number and mean; `norms`, each
        with the words and different forms that have a value, Spearman's correlation of the value with the mean nats
        over forms, and the mean nats of the words below and above the median form; `unigram`, the mean nats of the
        words that occur in training, and those of who knows nothing but how often each of them does.

    Raises:
        DatasetError: where no word was measured.
    """
    known = [row for row in words if not math.isnan(row["nats"])]
    if not known:
        raise DatasetError(f"{show(words[0]['test']) if words else 'the texts'}: no word could be measured")
    every = [*words, *marks]
    summary: dict[str, Any] = {
        "texts": len({row["item"] for row in every}),
        "clusters": len({row["cluster"] for row in every}),
        "words": len(known),
        "unmeasured": len(words) - len(known),
        "nats_per_word": bootstrap_ratio(
            [r["nats"] for r in known], np.ones(len(known)), [r["cluster"] for r in known]
        ),
        "classes": _means(known),
        "apart": _means([row for row in marks if not math.isnan(row["nats"])]),
        "unigram": _unigram(known) if floor else None,
        "norms": {},
    }
    for name in norms:
        having = [row for row in known if row.get(name) is not None]
        forms: dict[str, list[float]] = {}
        values = {row["word"]: float(row[name]) for row in having}
        for row in having:
            forms.setdefault(row["word"], []).append(row["nats"])
        found: dict[str, Any] = {"words": len(having), "forms": len(forms), "spearman": None, "low": None, "high": None}
        if len(set(values.values())) > 1:
            middle = float(np.median(list(values.values())))
            low, high = (
                [r["nats"] for r in having if (values[r["word"]] > middle) == above] for above in (False, True)
            )
            means = [float(np.mean(forms[w])) for w in values]
            if len(forms) > 2 and len(set(means)) > 1:
                found["spearman"] = float(spearmanr(list(values.values()), means).statistic)
            found |= {"low": float(np.mean(low)), "high": float(np.mean(high)) if high else None}
        summary["norms"][name] = found
    return summary


def _unigram(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    seen = [row for row in rows if row["frequency"]]
    if not seen:
        return None
    floor = [-math.log(row["frequency"] / 1e6) for row in seen]
    return {"words": len(seen), "model": float(np.mean([r["nats"] for r in seen])), "unigram": float(np.mean(floor))}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["class"], []).append(row["nats"])
    return {name: {"number": len(n), "nats": float(np.mean(n))} for name, n in sorted(groups.items())}


def format_summary(test: str, found: Mapping[str, Any]) -> str:
    """A test's summary as text."""
    mean, low, high = found["nats_per_word"]
    interval = f"[{low:.4f}, {high:.4f}]" if low == low else "[one cluster]"
    lines = [
        f"{test}: {mean:.4f} nats a word {interval}, {found['words']} words of {found['texts']} texts "
        f"({found['clusters']} clusters), no video"
    ]
    if found["unmeasured"]:
        lines.append(f"  {found['unmeasured']} words NOT MEASURED: nothing stands before the first token of a text")
    for name, group in {**found["classes"], **found["apart"]}.items():
        lines.append(f"  {name:<12}{group['number']:>8}  {group['nats']:.4f}")
    if found["unigram"]:
        part = found["unigram"]
        lines.append(
            f"  of {part['words']} words that occur in training: {part['model']:.4f}; by their frequencies alone "
            f"{part['unigram']:.4f}"
        )
    for name, norm in found["norms"].items():
        line = f"  {name}: {norm['words']} of {found['words']} words, {norm['forms']} forms"
        if norm["high"] is not None:
            line += f"; {norm['low']:.4f} nats up to the median form, {norm['high']:.4f} above"
        if norm["spearman"] is not None:
            line += f"; Spearman {norm['spearman']:+.3f} over forms"
        lines.append(line)
    return show("\n".join(lines), keep="\n")


@dataclass
class SurprisalFlags(FolderFlags):
    """The command's own flags."""

    ranges = {"batch_size": COUNT, "context": COUNT, "limit": COUNT}

    data_path: str | None = field(default=None, metadata={"help": "Held-out records, whose captions are measured."})
    text: list[str] = field(
        default_factory=list,
        metadata={"help": "Plain text files, UTF-8: each line is a text, a sentence or a document."},
    )
    classes: str | None = field(
        default=None,
        metadata={"help": "Table of words with a column class (noun, verb, …) and perhaps lemma; without it words are "
                  "function, content or number."},
    )  # fmt: skip
    norms: list[str] = field(default_factory=list, metadata={"help": "Tables of words with columns of numbers."})
    column: list[str] = field(default_factory=list, metadata={"help": "The columns of --norms that are taken."})
    word_column: str | None = field(
        default=None,
        metadata={"help": "Column of --norms with the words; found by its name, or the first, by default."},
    )
    frequency: str | None = field(
        default=None,
        metadata={"help": "Records whose words are counted, or a TSV or CSV of words with a column frequency or count; "
                  "the run's training records by default."},
    )  # fmt: skip
    batch_size: int = field(default=32, metadata={"help": "Texts that go through the model together."})
    context: int | None = field(
        default=None,
        metadata={"help": "Longest text in tokens, read in windows beyond it; the model's positions by default."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use only the first so many records."})
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of vision features, which knows the contents of clips and keeps them."},
    )
    seed: int = field(default=DEFAULT_SEED, metadata={"help": "Of what a YAML mixture takes at random."})

    def __post_init__(self) -> None:
        if self.data_path is None and not self.text:
            raise UserError("--data_path or --text is needed: what is measured")
        names = [CAPTIONS] * (self.data_path is not None) + [file_name(path) for path in self.text]
        if twice := [n for n in names if names.count(n) > 1]:
            raise UserError(f"two tests would be called {twice[0]}: rename a file of --text")
        if taken := [c for c in self.column if c in COLUMNS]:
            raise UserError(f"--column {taken[0]}: the results have a column of that name; rename it in the table")


def captions_of(flags: SurprisalFlags, reserved: Sequence[str]) -> tuple[list[Text], list[str]]:
    """The words of held-out records, and what is to be said of their clusters.

    Raises:
        DatasetError: with the problems of the records.
    """
    records, problems = load_records(
        flags.data_path, flags.image_folder, flags.video_folder, reserved, flags.allow_absolute_paths, flags.seed
    )  # fmt: skip
    # Of numbers the text alone holds no more than their places.
    records = [r for r in apply_policy(records, problems, "stop") if not r.coordinates][: flags.limit]
    with TemporaryDirectory() as nowhere:
        contents = ContentHashes(Path(flags.feature_cache or nowhere) / "contents")
        clusters, unread = clusters_of(records, contents)
    remarks = []
    if unread:
        remarks.append(
            f"{unread} files of {show(flags.data_path)} cannot be read (--video_folder), and are told apart by their "
            "paths: copies of a clip count as different clips"
        )
    texts = [join_turns(text_alone(r).conversations) for r in records]
    return [
        Text(CAPTIONS, r.id, c, text, r.source) for r, c, text in zip(records, clusters, texts, strict=True)
    ], remarks  # fmt: skip


class BlindTest:
    """What is measured of every checkpoint alike; its tables are read once.

    Args:
        run: the folder whose record says which data were trained on, for frequencies.

    Raises:
        DatasetError: for tables that cannot be read, or lack a column.
    """

    def __init__(self, flags: SurprisalFlags, run: str) -> None:
        self.flags = flags
        self.files = stamps([*(record_files(flags.data_path) if flags.data_path else []), *flags.text])
        listed = {"norms": flags.norms, "classes": [flags.classes], "frequency": [flags.frequency]}
        self.tables = {name: stamps(paths) for name, paths in listed.items()}
        self.norms = read_norms(flags.norms, flags.column, flags.word_column)
        self.classes = read_classes(flags.classes) if flags.classes else Classes()
        self.frequency, self.said = frequencies_for(flags.frequency, run)
        self._texts: tuple[list[Text], list[str]] | None = None

    @property
    def tests(self) -> list[str]:
        """Names of the tests, captions first."""
        return [CAPTIONS] * (self.flags.data_path is not None) + [file_name(path) for path in self.flags.text]

    @property
    def settings(self) -> dict[str, Any]:
        """What else the results follow from than model and files: kept with them."""
        flags = self.flags
        return {
            **{name: [made["sha256"] for made in listed] for name, listed in self.tables.items()},
            "frequencies": self.frequency and self.frequency.digest, "tests": self.tests,
            "columns": [n.name for n in self.norms], "word_column": flags.word_column, "limit": flags.limit,
            "longest": flags.context, "seed": flags.seed, "video_folder": flags.video_folder,
            "image_folder": flags.image_folder,
        }  # fmt: skip

    def texts(self, reserved: Sequence[str]) -> tuple[list[Text], list[str]]:
        """All texts, and what is to be said of them; read once, since a run's checkpoints share their tokenizer."""
        if self._texts is None:
            found, remarks = captions_of(self.flags, reserved) if self.flags.data_path is not None else ([], [])
            self._texts = [*found, *(t for path in self.flags.text for t in read_texts(path))], remarks
        return self._texts


def main(argv: Sequence[str] | None = None) -> int:
    """Nats of every word of held-out captions and of texts, with no video.

    Writes blind_words.csv (a row a word) and blind_marks.csv (a row a run of punctuation, and a row an end of text),
    each with its .json, into the run's folder tests.
    """
    run, flags = parse(main.__doc__, RunFlags, SurprisalFlags, argv=argv, prog="python -m llava.eval.surprisal")
    measure(run, BlindTest(flags, run.model_path))
    return 0


def measure(run: RunFlags, test: BlindTest) -> None:
    """Measures one checkpoint, writes its files and prints what they say.

    Raises:
        ValueError: from records, texts and `TextScorer`.
    """
    flags = test.flags
    tokenizer, model = load_without_tower(run.model_path, device_of(run.device))
    results = Results.of(run)
    form_of_text = plain_format(model, tokenizer, run.model_path)
    texts, remarks = test.texts(reserved_tokens(tokenizer))
    remarks = [test.said, *remarks]
    scorer = TextScorer(tokenizer, model, form_of_text, flags.batch_size, flags.context)
    nats = scorer.score([t.text for t in texts], [t.place for t in texts])
    norms, frequency = test.norms, test.frequency
    covariates = [*([frequency] if frequency else []), *norms]
    rows = [rows_of(text, found, test.classes, covariates) for text, found in zip(texts, nats, strict=True)]
    words, marks = ([row for part in rows for row in part[which]] for which in (0, 1))
    if flags.data_path is not None and trained_on(run.model_path, flags.data_path):
        remarks.append(f"{show(flags.data_path)} is what the run TRAINED on: its captions are not held out")
    if unknown := sum(n.unknown for n in nats):
        remarks.append(f"{unknown} tokens are the tokenizer's unknown token, which is no word: their nats mean little")
    if reaching := sum(part.reaching for part in rows):
        remarks.append(
            f"{reaching} tokens reach into the next word or mark and are counted for the first; "
            f"{sum(part.absorbed for part in rows)} words and marks have no token of their own, and no row"
        )
    if windowed := sum(n.windows > 1 for n in nats):
        remarks.append(f"{windowed} texts are longer than {scorer.context} tokens and were read in windows")
    remarks += [
        f"{n.name}: {n.repeated} words have several rows, of which the mean is taken" for n in norms if n.repeated
    ]
    names = [n.name for n in norms]
    summary: dict[str, Any] = {
        "remarks": remarks, "text_start": form_of_text.text_start, "context": scorer.context,
        "vocabulary": model.get_output_embeddings().weight.shape[0],
    }  # fmt: skip
    # A table's frequencies may be of anything.
    floor = frequency is not None and not is_table(flags.frequency)
    summary["tests"] = {
        test: summarise(
            *([r for r in rows if r["test"] == test] for rows in (words, marks)), ["frequency", *names], floor
        )
        for test in dict.fromkeys(t.test for t in texts)
    }
    told = (test.files, summary, test.settings, [made for listed in test.tables.values() for made in listed])
    path = results.write(BLIND, [*COLUMNS, *names], words, *told)
    results.write("blind_marks", COLUMNS[:8], marks, *told)
    for test, found in summary["tests"].items():
        print(format_summary(test, found))
    print("\n".join([*(show(r) for r in remarks), f"written to {show(path)}"]))


if __name__ == "__main__":
    run_command(main)
