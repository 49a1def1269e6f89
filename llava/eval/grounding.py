"""Where and when, asked and scored: `python -m llava.eval.grounding RUN --data_path FILE --feature_cache DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.config.commands import parse
from llava.config.groups import DataFlags
from llava.config.ranges import COUNT
from llava.data.collator import vision_of
from llava.data.dataset import LazySupervisedDataset
from llava.data.features.extract import FeatureCache
from llava.data.features.quantised import dequantised
from llava.data.records import DatasetError, Record
from llava.data.square_numbers import loose_times
from llava.data.variables import fill
from llava.errors import UserError, fitted, run_command, show
from llava.eval.caption_scores import choose_metrics
from llava.eval.captioning import MARGIN_TOKENS, Caption, Captioner
from llava.eval.controls import other_samples
from llava.eval.coordinate_choice import CHOICES, MEDIAN
from llava.eval.data import device_of, read_for_evaluation, record_files, trained_on
from llava.eval.grounding_answers import MEASURES, Truth, other_than_answer, read_answer, truth_and_numbers
from llava.eval.grounding_scores import frame_grid
from llava.eval.grounding_table import Asked, examples_of, format_tasks, rows_of, scores_of
from llava.eval.references import answer_of, longest_reference
from llava.eval.result_files import Results, RunFlags, stamps
from llava.eval.sighted import clusters_of, open_seeing_cache
from llava.model.builder import load_pretrained_model
from llava.model.capabilities import max_positions
from llava.progress import progress

NAME = "grounding"
COLUMNS = (
    "item", "task", "clip", "split", "answer", "ended", *dict.fromkeys(m for ms in MEASURES.values() for m in ms),
    "other_answer", *dict.fromkeys(f"other_{m}" for ms in MEASURES.values() for m in ms),
)  # fmt: skip


@dataclass
class GroundingFlags:
    """The command's own flags."""

    ranges = {"batch_size": COUNT, "limit": COUNT, "num_beams": COUNT, "max_new_tokens": COUNT}

    feature_cache: str = field(kw_only=True, metadata={"help": "Folder where vision features are kept."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode clips."})
    batch_size: int = field(default=32, metadata={"help": "Answers that go through the model together."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first so many records."})
    on_bad_sample: str = field(
        default="stop",
        metadata={"help": "stop, or skip: leave bad records out, counted and listed.", "choices": ("stop", "skip")},
    )
    coordinate_choice: str = field(
        default=MEDIAN,
        metadata={"help": "Which coordinate of an axis is written: the median, or the likeliest.", "choices": CHOICES},
    )
    num_beams: int = field(default=1, metadata={"help": "Beams that are searched; 1 is greedy."})
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": f"Longest answer in tokens; by default the longest true one and {MARGIN_TOKENS} more."},
    )
    control: bool = field(default=True, metadata={"help": "Also ask with another clip's video, which is a floor."})
    metrics: list[str] = field(
        default_factory=list,
        metadata={"help": "Scores of words in answers; by default all that can be computed here."},
    )

    def __post_init__(self) -> None:
        choose_metrics(self.metrics)


class Asker:
    """Puts the questions of records to a model, which sees the records' own clips or others'.

    Args:
        captioner: of a model with coordinates and vision.
        cache: holds the features of all that is shown.
    """

    def __init__(self, captioner: Captioner, records: Sequence[Record], cache: FeatureCache, batch_size: int) -> None:
        model = captioner.model
        self.captioner, self.records, self.cache, self.batch_size = captioner, records, cache, batch_size
        self.dataset = LazySupervisedDataset(
            records, captioner.tokenizer, captioner.text_format.preprocess, max_positions(model), captioner.spec,
            model.processor_spec, cache, text_format=captioner.text_format,
        )  # fmt: skip

    def question(self, record: Record) -> str:
        """What is asked, with the numbers that it tells."""
        turns = record.conversations[: answer_of(record)]
        written = fill(turns, self.dataset.numbers(record), lambda _, number: f"{number:.2f} ")
        return " ".join(turn["value"] for turn in written).strip()

    def ask(self, places: Sequence[int], shown: Sequence[int], called: str, **options: Any) -> list[Caption]:
        """The answers to records, by their places, each with what the record at its place in `shown` shows.

        Those that show as many videos and images go through the model together.
        """
        kinds = [(len(self.records[s].videos), len(self.records[s].images)) for s in shown]
        order = sorted(range(len(places)), key=lambda i: kinds[i])
        chunks: list[list[int]] = []
        for i in order:
            if not chunks or len(chunks[-1]) == self.batch_size or kinds[chunks[-1][0]] != kinds[i]:
                chunks.append([])
            chunks[-1].append(i)
        answers: dict[int, Caption] = {}
        for chunk in progress(chunks, desc=called, unit="batch"):
            asked = [self.records[places[i]] for i in chunk]
            found = self.captioner.answer(
                [record.conversations[: answer_of(record)] for record in asked], options,
                [self.dataset.numbers(record) for record in asked], **self._vision([shown[i] for i in chunk]),
            )  # fmt: skip
            answers |= dict(zip(chunk, found, strict=True))
        return [answers[i] for i in range(len(places))]

    def _vision(self, shown: Sequence[int]) -> dict[str, Any]:
        samples = []
        for record in (self.records[s] for s in shown):
            samples.append({
                "video_features": [self.cache.stored(path, record.split) for path in record.videos],
                "image_features": [self.cache.stored(path, None, True) for path in record.images],
            })  # fmt: skip
        return dequantised(vision_of(samples))


def ask_all(asker: Asker, truths: Sequence[Truth], control: bool, **options: Any) -> list[Asked]:
    """All questions, with their own clips and, where `control` says so and there is one, with another of the kind.

    Files of the same content are one clip, with all their segments: what overlaps is not shown as another clip, and
    answers about it are not independent.

    Args:
        truths: (N,) of the asker's records; options: of transformers' `generate`.
    """
    records = asker.records
    every = list(range(len(records)))
    clips, _ = clusters_of(records, asker.cache.contents)
    own = asker.ask(every, every, "answers", **options)
    kinds = [(len(r.videos), len(r.images)) for r in records]
    others = {i: j for i, j in enumerate(other_samples(clips, kinds)) if j is not None} if control else {}
    swapped = asker.ask(list(others), list(others.values()), "answers, other video", **options)
    beside = dict(zip(others, swapped, strict=True))
    if control and len(others) < len(records):
        print(f"NO CONTROL for {len(records) - len(others)} records: there is no other clip to show in their place")
    asked = []
    for i, (record, truth, said) in enumerate(zip(records, truths, own, strict=True)):
        other = beside.get(i)
        read = None if other is None else read_answer(other.text, truth)
        asked.append(Asked(record, truth, clips[i], said, read_answer(said.text, truth), other, read))
    return asked


def truths_of(
    records: Sequence[Record], captioner: Captioner, on_bad_sample: str
) -> tuple[list[Record], list[Truth], list[str]]:
    """The records that are of a task, their truths, and what is said of others.

    Raises:
        DatasetError: under `stop`, for records of a task that cannot be scored.
    """
    square = captioner.spec.image_aspect_ratio, captioner.model.processor_spec
    kept, truths, bad, others = [], [], [], 0
    for record in records:
        if record.meta.get("task") is None or answer_of(record) is None or not (record.videos or record.images):
            others += 1
            continue
        try:
            truth, numbers = truth_and_numbers(record, *square)
            if wrong := other_than_answer(record, truth, numbers):
                raise UserError(wrong)
        except UserError as error:
            bad.append(str(error))
            continue
        truths.append(truth)
        kept.append(record)
    said = [f"{others} of {len(records)} records have no meta.task, nothing to see or no answer"] if others else []
    listed = [f"{len(bad)} records cannot be scored:", *bad[:8], *(["..."] if len(bad) > 8 else [])]
    if bad and on_bad_sample == "stop":
        raise DatasetError("\n".join(listed) + "\nmend the data, or leave these records out with --on_bad_sample skip")
    return kept, truths, [*said, *(listed if bad else [])]


def seeing_captioner(tokenizer: PreTrainedTokenizerBase, model: Any, coordinate_choice: str, run: str) -> Captioner:
    """A model's captioner; ValueError for one that writes no coordinates."""
    captioner = Captioner(tokenizer, model, coordinate_choice)
    if captioner.coordinates is None:
        raise UserError(f"{show(run)}: was trained without coordinates and says neither where nor when; name a run "
                        "that was trained with them (docs/grounding.md says how)")  # fmt: skip
    return captioner


def main(argv: Sequence[str] | None = None) -> int:
    """Answers to questions about where and when, scored beside answers that need no look.

    Writes grounding.csv and .json into the run's folder tests: a row an answer, with its measures.
    """
    run, data, flags = parse(
        main.__doc__, RunFlags, DataFlags, GroundingFlags, argv=argv, prog="python -m llava.eval.grounding"
    )
    tokenizer, model = load_pretrained_model(run.model_path, device_of(run.device), run.vision_tower)
    captioner = seeing_captioner(tokenizer, model, flags.coordinate_choice, run.model_path)
    cache = open_seeing_cache(flags.feature_cache, model, run.model_path)
    results = Results.of(run)
    files = stamps(record_files(data.data_path))
    records = read_for_evaluation(
        data.data_path, tokenizer, model, cache, data.video_folder, data.image_folder, flags.num_workers, flags.limit,
        flags.on_bad_sample, data.allow_absolute_paths, data.seed,
    )  # fmt: skip
    kept, truths, said = truths_of(records, captioner, flags.on_bad_sample)
    said += [remark] if (remark := loose_times(kept, captioner.spec)) else []
    if said:
        print(fitted(f"{show(data.data_path)}: " + "\n".join(said)))
    if not kept:
        raise UserError(
            f"--data_path {show(data.data_path)}: no record is of a grounding task; meta.task is to be one of "
            f"{', '.join(MEASURES)}, and meta.truth as llava.data.grounding.tasks writes it"
        )
    asker = Asker(captioner, kept, cache, flags.batch_size)
    longest = flags.max_new_tokens or longest_reference(kept, tokenizer) + MARGIN_TOKENS
    asked = ask_all(asker, truths, flags.control, max_new_tokens=longest, num_beams=flags.num_beams)
    grid = frame_grid(captioner.spec.num_frames)
    tasks = scores_of(asked, grid, choose_metrics(flags.metrics))
    cut = sum(not a.said.ended for a in asked)
    summary = {"tasks": tasks, "cut": cut, "examples": examples_of(asked, grid, asker.question)}
    settings = {
        **{name: getattr(flags, name) for name in ("coordinate_choice", "num_beams", "control")},
        "max_new_tokens": longest, "trained_on": trained_on(run.model_path, data.data_path, kept),
        "video_spec": asdict(captioner.spec), "mm_processor": model.processor_spec.to_dict(),
    }  # fmt: skip
    path = results.write(NAME, COLUMNS, rows_of(asked, grid), files, summary, settings)
    if settings["trained_on"]:
        print(f"{show(data.data_path)} is what the run TRAINED on: its answers may be known by heart")
    if cut:
        print(
            f"{cut} of {len(asked)} answers were CUT before their end: at {longest} new tokens (--max_new_tokens), or "
            "at the model's last position"
        )
    print(show(format_tasks(tasks), keep="\n") + f"\nwritten to {show(path)}")
    return 0


if __name__ == "__main__":
    run_command(main)
