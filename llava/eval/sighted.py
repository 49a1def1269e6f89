"""Nats of captions after a video: `python -m llava.eval.sighted`, and what pairs with a video are measured by.

Whether a model saw is asked on held-out captions with their own clips' videos: a model that was trained on the right
videos must find them likelier than one that was trained on others' (docs/surprisal.md).

Letters in shapes: K targets of a caption, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llava.config.commands import parse
from llava.config.groups import DataFlags
from llava.config.ranges import COUNT
from llava.constants import IGNORE_INDEX
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.features.content import ContentHashes
from llava.data.features.extract import FeatureCache, open_cache
from llava.data.features.quantised import dequantised
from llava.data.prompt import pad_token_id
from llava.data.records import Record, text_alone
from llava.data.text_format import TextFormat
from llava.errors import UserError, run_command, show
from llava.eval.controls import with_vision_of
from llava.eval.data import device_of, read_for_evaluation, record_files, trained_on
from llava.eval.italian import word_forms
from llava.eval.loss import token_losses
from llava.eval.result_files import Results, RunFlags, stamps
from llava.eval.statistics import bootstrap_ratio
from llava.eval.text_scores import batches, check_finite, plain_format, to_device
from llava.model.builder import load_pretrained_model
from llava.model.capabilities import max_positions
from llava.model.vlm import VisionCausalLM
from llava.progress import progress

MOST_POSITIONS = 16384
"""Positions that go through the model together; those of videos have no logits."""
HASH_CHARACTERS = 16
COLUMNS = ("item", "cluster", "words", "tokens", "nats")


class SightedScorer:
    """Measures the text of records after the videos and images that they show, or after another record's.

    Args:
        tokenizer, model: of one checkpoint with vision, in fp32 and evaluation mode; `form`: its text format, plain LM.
        cache: holds the features of all that the records show.
        batch_size: records that go through the model together; results do not depend on it, but for rounding.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: VisionCausalLM,
        form: TextFormat,
        cache: FeatureCache,
        batch_size: int = 32,
    ) -> None:
        self.tokenizer, self.model, self.form, self.cache = tokenizer, model, form, cache
        self.batch_size = batch_size
        self.collate = DataCollatorForSupervisedDataset(pad_token_id(tokenizer))

    def score(
        self, records: Sequence[Record], shown: Sequence[Record] | None = None, called: str = "captions"
    ) -> list[np.ndarray]:
        """(K,) float64 nats of the targets of each record, its end the last of them.

        Args:
            shown: for each record the one whose videos and images it is given, as many as its own; itself by default.
            called: what a progress bar counts.

        Raises:
            ValueError: naming a record that the model has not enough positions for: nothing is cut.
            NotFinite: when the model gives no finite number.
        """
        most = max_positions(self.model)
        dataset = self._dataset(records, most)
        others = dataset if shown is None else self._dataset(shown, most)
        lengths = [len(dataset.whole_tokens(record)[0]) for record in records]
        for record, length in zip(records, lengths, strict=True):
            if length > most:
                raise UserError(
                    f"record {record.id!r} ({show(record.source)}): {length} positions with its video, and the model "
                    f"has {most}; shorten it"
                )
        found: list[np.ndarray] = [np.empty(0)] * len(records)
        plan = list(batches(lengths, self.batch_size, MOST_POSITIONS))
        for chunk in progress(plan, desc=called, unit="batch", disable=len(plan) < 2):
            samples = [with_vision_of(dataset[i], others[i]) for i in chunk]
            batch = dequantised(to_device(self.collate(samples), self.model.device))
            losses = token_losses(self.model, batch).double().cpu().numpy()
            targets = (batch["labels"][:, 1:] != IGNORE_INDEX).cpu().numpy()
            for row, i in enumerate(chunk):
                found[i] = losses[row][targets[row]]
                check_finite(found[i], f"record {records[i].id!r}")
        return found

    def _dataset(self, records: Sequence[Record], most: int) -> LazySupervisedDataset:
        return LazySupervisedDataset(
            records, self.tokenizer, self.form.preprocess, most, self.model.video_spec, self.model.processor_spec,
            self.cache, text_format=self.form,
        )  # fmt: skip


def clusters_of(records: Sequence[Record], contents: ContentHashes) -> tuple[list[str], int]:
    """What each record is of one kind with: the contents of the files that it shows, so that copies of a clip under
    other names and segments of one file are one; its id where it shows nothing.

    Returns:
        A name for each record, and how many of the files could not be read, which are known by their paths.
    """
    paths = [path for record in records for path in (*record.videos, *record.images)]
    hashes, errors = contents.resolve(paths, show_progress=True)
    names = {path: hashes[path][:HASH_CHARACTERS] if path in hashes else path for path in paths}
    return ["+".join(names[p] for p in (*r.videos, *r.images)) or r.id for r in records], len(errors)


@dataclass
class SightedFlags:
    """The command's own flags."""

    ranges = {"batch_size": COUNT, "limit": COUNT}

    feature_cache: str = field(kw_only=True, metadata={"help": "Folder where vision features are kept."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode clips."})
    batch_size: int = field(default=32, metadata={"help": "Captions that go through the model together."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first so many records."})


def main(argv: Sequence[str] | None = None) -> int:
    """Nats of held-out captions after their own clips' videos.

    Writes sighted_captions.csv and .json into the run's folder tests: a row a caption, with its words, its targets (its
    end is one) and their nats.
    """
    run, data, flags = parse(
        main.__doc__, RunFlags, DataFlags, SightedFlags, argv=argv, prog="python -m llava.eval.sighted"
    )
    tokenizer, model = load_pretrained_model(run.model_path, device_of(run.device), run.vision_tower)
    results = Results.of(run)
    files = stamps(record_files(data.data_path))
    form = plain_format(model, tokenizer, run.model_path)
    cache = open_seeing_cache(flags.feature_cache, model, run.model_path)
    records = read_for_evaluation(
        data.data_path, tokenizer, model, cache, data.video_folder, data.image_folder, flags.num_workers, flags.limit,
        allow_absolute_paths=data.allow_absolute_paths, seed=data.seed,
    )  # fmt: skip
    seeing = [r for r in records if r.videos or r.images]
    if len(seeing) < len(records):
        print(f"{show(data.data_path)}: {len(seeing)} of {len(records)} records have something to see")
    if not seeing:
        raise UserError(f"--data_path {show(data.data_path)}: no record has a video or an image")
    nats = SightedScorer(tokenizer, model, form, cache, flags.batch_size).score(seeing)
    clusters, _ = clusters_of(seeing, cache.contents)
    rows: list[dict[str, Any]] = [
        {"item": r.id, "cluster": c, "words": len(word_forms(form.words(text_alone(r).conversations))),
         "tokens": len(n), "nats": float(n.sum())}
        for r, c, n in zip(seeing, clusters, nats, strict=True)
    ]  # fmt: skip
    summary = {"captions": len(rows), "clusters": len(set(clusters))}
    for unit in ("words", "tokens"):
        summary[f"nats_per_{unit[:-1]}"] = bootstrap_ratio(
            [row["nats"] for row in rows], [row[unit] for row in rows], clusters
        )
    path = results.write("sighted_captions", COLUMNS, rows, files, summary)
    mean, low, high = summary["nats_per_word"]
    if trained_on(run.model_path, data.data_path, seeing):
        print(f"{show(data.data_path)} is what the run TRAINED on: its captions are not held out")
    print(
        f"{len(rows)} captions of {summary['clusters']} clips, each after its own video: {mean:.4f} nats a word "
        f"[{low:.4f}, {high:.4f}], {summary['nats_per_token'][0]:.4f} a token\nwritten to {show(path)}"
    )
    return 0


def open_seeing_cache(folder: str, model: VisionCausalLM, run: str) -> FeatureCache:
    """The feature cache of a model.

    Raises:
        ValueError: for a model that was trained on text alone.
    """
    if model.config.mm_hidden_size is None:
        raise UserError(f"{show(run)}: was trained on text alone and sees nothing; take a checkpoint with vision")
    return open_cache(folder, model)


if __name__ == "__main__":
    run_command(main)
