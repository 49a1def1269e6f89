"""Minimal pairs: which of two sentences is likelier, without a video, after their own, after another clip's.

The score of a sentence is the nats of its tokens, summed or as the mean a token; its end is not among them, as in
lm-eval and the BabyLM pipeline. The rule of the first token is that of `llava.eval.text_scores`: a checkpoint without a
text start is not asked for first tokens, after a video either, so that its conditions can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llava.config.commands import parse
from llava.config.groups import DEFAULT_SEED, PROCESSES
from llava.config.ranges import COUNT
from llava.constants import DEFAULT_VIDEO_TOKEN
from llava.data.features.extract import FeatureCache, extract_features
from llava.data.json_records import DatasetError
from llava.data.paths import leaves_folder, place
from llava.data.records import Record, apply_policy, missing_files
from llava.data.text_format import TextFormat
from llava.data.text_start import EOS
from llava.errors import UserError, run_command, show
from llava.eval.accuracy import clustered_share, correct
from llava.eval.controls import other_samples
from llava.eval.data import device_of
from llava.eval.pair_files import Columns, Pair, read_pairs, summarise
from llava.eval.result_files import Results, RunFlags, file_name, stamps
from llava.eval.sighted import SightedScorer, clusters_of, open_seeing_cache
from llava.eval.text_scores import TextScorer, check_texts, load_without_tower, plain_format, reserved_texts
from llava.model.builder import load_pretrained_model
from llava.model.vlm import VisionCausalLM

NONE, OWN, OTHER = CONDITIONS = ("none", "own", "other")
COLUMNS = (
    "item", "cluster", "phenomenon", "good_nats", "bad_nats", "good_tokens", "bad_tokens", "condition",
)  # fmt: skip
ALL = "all"
MEASURES = ("sum", "mean")

Score = tuple[float, int]
"""Nats of a sentence, and the number of its tokens that they are the sum of."""


def score_blind(scorer: TextScorer, pairs: Sequence[Pair]) -> list[tuple[Score, Score]]:
    """The scores of the good and the bad sentence of each pair, with nothing shown.

    Raises:
        ValueError: from `TextScorer.score`.
    """
    sentences = [s for pair in pairs for s in (pair.good, pair.bad)]
    found = [t.measured for t in scorer.score(sentences, [p.place for p in pairs for _ in range(2)], "sentences")]
    return list(zip(found[::2], found[1::2], strict=True))


def records_of(pairs: Sequence[Pair], video_folder: str | None, allow_absolute_paths: bool = False) -> list[Record]:
    """A record of each sentence after its clip: two a pair, the good one first.

    Raises:
        DatasetError: naming a clip outside the folder.
    """
    records = []
    for number, pair in enumerate(pairs):
        clip = pair.clip or ""
        if leaves_folder(clip) and not allow_absolute_paths:
            raise DatasetError(
                f"{show(pair.place)}: {clip!r} leaves its folder; write it relative to --video_folder, or allow every "
                "path with --allow_absolute_paths"
            )
        for which, sentence in (("good", pair.good), ("bad", pair.bad)):
            turns = [{"from": "human", "value": DEFAULT_VIDEO_TOKEN}, {"from": "gpt", "value": sentence}]
            records.append(
                Record(f"{number} {which}", turns, (place(clip, video_folder),), (), pair.split, {}, pair.place)
            )  # fmt: skip
    return records


def score_sighted(
    scorer: SightedScorer, records: Sequence[Record], clips: Sequence[str], condition: str, seed: int = DEFAULT_SEED
) -> list[tuple[Score, Score]]:
    """The scores of pairs after their own video, or another clip's, which is the same for both sentences.

    Args:
        records: from `records_of`; clips: the content that each of them shows.
        condition: `OWN` or `OTHER`.
        seed: of which other clip it is.

    Raises:
        ValueError: for another clip's video where there is a single clip; and from `SightedScorer.score`.
    """
    shown = list(range(len(records)))
    if condition == OTHER:
        shown = [i for i in other_samples(clips, [0] * len(records), seed) if i is not None]
        if len(shown) < len(records):
            raise UserError("--conditions other needs two different clips: there is one")
    # The same tokens after the same clip are measured once: a tie is one to the last bit.
    sources = [(clips[i], records[i].split) for i in shown]
    texts = [r.conversations[1]["value"] for r in records]
    rows = scorer.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    keys = [(tuple(ids), source) for ids, source in zip(rows, sources, strict=True)]
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    nats = scorer.score(
        [records[i] for i in first.values()],
        [records[shown[i]] for i in first.values()],
        f"sentences, {condition} video",
    )
    has_start = scorer.form.text_start == EOS
    known = {key: _sentence(n, has_start) for key, n in zip(first, nats, strict=True)}
    return list(zip(*([known[key] for key in keys][which::2] for which in (0, 1)), strict=True))


def _sentence(nats: np.ndarray, has_start: bool) -> Score:
    """The score of targets whose last one is the end; without a text start the first token is left out too."""
    kept = nats[0 if has_start else 1 : -1]
    return float(kept.sum()), len(kept)


def rows_of(
    pairs: Sequence[Pair], clusters: Sequence[str], scores: Sequence[tuple[Score, Score]], condition: str
) -> list[dict[str, Any]]:
    """Rows of the CSV, by `COLUMNS`.

    Raises:
        ValueError: naming a pair of which a sentence has no token that is measured.
    """
    for pair, score in zip(pairs, scores, strict=True):
        if not all(tokens for _, tokens in score):
            raise UserError(
                f"{show(pair.place)}: a sentence is a single token, which a checkpoint without a text start is not "
                "asked for: take the pair out"
            )
    return [
        dict(zip(COLUMNS, (p.item, c, p.phenomenon, good[0], bad[0], good[1], bad[1], condition), strict=True))
        for p, c, (good, bad) in zip(pairs, clusters, scores, strict=True)
    ]


def accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the rows of one condition say, by phenomenon, and of `ALL`.

    Returns:
        For each `pairs`, `clusters`, `ties` (of the sums), and for `sum` and `mean` the share of pairs that are right
        with the ends of its 95 % interval over clusters; chance is 0.5.
    """
    kinds = list(dict.fromkeys(row["phenomenon"] for row in rows))
    groups = {kind: [r for r in rows if r["phenomenon"] == kind] for kind in kinds if kind} if len(kinds) > 1 else {}
    found = {}
    for kind, group in {**groups, ALL: list(rows)}.items():
        good, bad, good_tokens, bad_tokens = (np.array([r[c] for r in group], dtype=float) for c in COLUMNS[3:7])
        clusters = [r["cluster"] for r in group]
        values = {"sum": correct(good, bad), "mean": correct(good / good_tokens, bad / bad_tokens)}
        found[kind] = {
            "pairs": len(group), "clusters": len(set(clusters)), "ties": int((good == bad).sum()),
            **{m: clustered_share(values[m], clusters) for m in MEASURES},
        }  # fmt: skip
    return found


def format_accuracies(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The accuracies of each condition as aligned text."""
    width = max(len(show(kind)) for kinds in summary.values() for kind in kinds)
    lines = [f"{'video':<6} {'phenomenon':<{max(width, 10)}} {'pairs':>6}  by the sum, 95 %     by the mean a token"]
    for condition, kinds in summary.items():
        for kind, found in kinds.items():
            cells = "  ".join(
                f"{v:.3f} {f'[{low:.3f}, {high:.3f}]' if low == low else '[one cluster]'}"
                for v, low, high in map(found.get, MEASURES)
            )
            lines.append(f"{condition:<6} {show(kind):<{max(width, 10)}} {found['pairs']:>6}  {cells}")
    return "\n".join(
        [*lines, "the share of pairs whose better sentence is likelier; chance is 0.500, a tie counts half"]
    )


@dataclass
class PairFlags:
    """The command's own flags."""

    ranges = {"batch_size": COUNT, "context": COUNT, "num_workers": PROCESSES}

    files: list[str] = field(
        metadata={"positional": True, "metavar": "FILE", "help": "Files of pairs: JSON lines, TSV or CSV."}
    )
    conditions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What is shown before the sentences: none, own (the pair's video), other (another clip's). By "
            "default none, and all three with --video_folder.",
        },
    )
    video_folder: str | None = field(default=None, metadata={"help": "Prefix of the pairs' video paths."})
    allow_absolute_paths: bool = field(
        default=False, metadata={"help": "Pairs may name files outside it, by absolute paths or by `..`."}
    )
    feature_cache: str | None = field(default=None, metadata={"help": "Folder where vision features are kept."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode clips."})
    batch_size: int = field(default=32, metadata={"help": "Sentences that go through the model together."})
    context: int | None = field(
        default=None, metadata={"help": "Longest sentence in tokens; the model's positions by default."}
    )
    seed: int = field(default=DEFAULT_SEED, metadata={"help": "Of which other clip is shown."})

    def __post_init__(self) -> None:
        self.conditions = list(dict.fromkeys(self.conditions or (CONDITIONS if self.video_folder else (NONE,))))
        if unknown := [c for c in self.conditions if c not in CONDITIONS]:
            raise UserError(f"--conditions {unknown[0]}: use {', '.join(CONDITIONS)}")
        if self.sees and self.feature_cache is None:
            raise UserError("--feature_cache is needed where videos are shown: folder where vision features are kept")
        names = [file_name(path) for path in self.files]
        if twice := [n for n in names if names.count(n) > 1]:
            raise UserError(f"two files are called {twice[0]}, and their results would be too: rename one")

    @property
    def sees(self) -> bool:
        """Whether any condition shows a video."""
        return any(c != NONE for c in self.conditions)


@dataclass
class _Model:
    """A checkpoint with all that pairs are scored by."""

    tokenizer: PreTrainedTokenizerBase
    model: VisionCausalLM
    form: TextFormat
    flags: PairFlags
    cache: FeatureCache | None

    def measure(self, pairs: Sequence[Pair], columns: Columns) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The rows of all conditions and their summary, by condition."""
        flags, rows, summary = self.flags, [], {}
        clusters = [p.cluster for p in pairs]
        seen = [i for i, p in enumerate(pairs) if p.clip]
        records, clips = self._records([pairs[i] for i in seen]) if flags.sees and seen else ([], [])
        if clips and columns.cluster is None:
            for i, clip in zip(seen, clips[::2], strict=True):
                clusters[i] = clip
        if seen and len(seen) < len(pairs) and flags.sees:
            print(f"  {len(pairs) - len(seen)} pairs have no video: measured without one alone")
        for condition in flags.conditions:
            chosen = list(range(len(pairs))) if condition == NONE else seen
            if not chosen:
                print(f"no pair has a video: NOT MEASURED with {condition} video (--clip names its column)")
                continue
            if condition == NONE:
                scores = score_blind(
                    TextScorer(self.tokenizer, self.model, self.form, flags.batch_size, flags.context), pairs
                )
            else:
                scorer = SightedScorer(self.tokenizer, self.model, self.form, self.cache, flags.batch_size)
                scores = score_sighted(scorer, records, clips, condition, flags.seed)
            part = rows_of([pairs[i] for i in chosen], [clusters[i] for i in chosen], scores, condition)
            rows += part
            summary[condition] = accuracies(part)
        return rows, summary

    def _records(self, pairs: Sequence[Pair]) -> tuple[list[Record], list[str]]:
        """Records of the sentences with their features in the cache, and the content of each one's clip."""
        records = records_of(pairs, self.flags.video_folder, self.flags.allow_absolute_paths)
        sentences = [(s, p.place) for p in pairs for s in (p.good, p.bad)]
        check_texts(*zip(*sentences, strict=True), reserved_texts(self.tokenizer))
        problems = missing_files(records[::2])
        if not problems:
            problems = extract_features(
                records, self.cache, self.model.vision_tower, self.model.video_spec, self.model.processor_spec,
                self.model.device, num_workers=self.flags.num_workers,
            )  # fmt: skip
        apply_policy(records, problems, "stop")
        return records, clusters_of(records, self.cache.contents)[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Which sentence of each minimal pair a checkpoint finds likelier, by phenomenon.

    Reads BLiMP (JSON lines), MultiBLiMP, CLEVER, and any TSV or CSV whose columns are named. Writes pairs_NAME.csv and
    .json into the run's folder tests: a row a pair and condition.
    """
    run, flags, columns = parse(
        main.__doc__, RunFlags, PairFlags, Columns, argv=argv, prog="python -m llava.eval.pairs"
    )
    made = stamps(flags.files)
    measure(run, flags, columns, {path: read_pairs(path, columns) for path in flags.files}, made)
    return 0


def measure(
    run: RunFlags,
    flags: PairFlags,
    columns: Columns,
    files: Mapping[str, tuple[list[Pair], list[str]]],
    made: Sequence[Mapping[str, Any]],
) -> None:
    """Measures one checkpoint, writes the files of each file of pairs, and prints what they say.

    Args:
        files: pairs and remarks by path, from `read_pairs`; `made`: `stamps` of the paths.

    Raises:
        ValueError: from the scorers.
    """
    device = device_of(run.device)
    if flags.sees:
        tokenizer, model = load_pretrained_model(run.model_path, device, run.vision_tower)
    else:
        tokenizer, model = load_without_tower(run.model_path, device)
    form = plain_format(model, tokenizer, run.model_path)
    cache = open_seeing_cache(flags.feature_cache, model, run.model_path) if flags.sees else None
    measured = _Model(tokenizer, model, form, flags, cache)
    for path, (pairs, remarks) in files.items():
        results = Results.of(run)
        print(f"{show(path)}: {summarise(pairs)}")
        for remark in [*remarks, *first_tokens(tokenizer, form, pairs)]:
            print(f"  {show(remark)}")
        rows, summary = measured.measure(pairs, columns)
        if not rows:
            continue
        read = [m for m in made if m["path"] == path]
        table = results.write(
            f"pairs_{file_name(path)}", COLUMNS, rows, read, {"remarks": remarks, "accuracy": summary},
            {"text_start": form.text_start, **settings_of(flags, columns)},
        )  # fmt: skip
        print(f"{format_accuracies(summary)}\nwritten to {show(table)}")


def settings_of(flags: PairFlags, columns: Columns) -> dict[str, Any]:
    """What else the results follow from than model and file: kept with them."""
    return {
        "conditions": flags.conditions, "seed": flags.seed, "longest": flags.context, **asdict(columns)
    }  # fmt: skip


def first_tokens(tokenizer: PreTrainedTokenizerBase, form: TextFormat, pairs: Sequence[Pair]) -> list[str]:
    """What a checkpoint without a text start cannot say of pairs."""
    if form.text_start == EOS:
        return []
    firsts = [
        [ids[:1] for ids in tokenizer([getattr(p, side) for p in pairs], add_special_tokens=False)["input_ids"]]
        for side in ("good", "bad")
    ]
    number = sum(a != b for a, b in zip(*firsts, strict=True))
    return [
        "the checkpoint was trained without a text start (--text_start none), so that first tokens are not measured; "
        f"{number} of {len(pairs)} pairs differ in them"
    ]


if __name__ == "__main__":
    run_command(main)
