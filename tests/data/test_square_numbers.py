"""Samples with numbers: at their places, moved with the pixels, whole or not at all."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llava.config.video import ProcessorSpec, VideoSpec
from llava.constants import FILLER_INDEX, IGNORE_INDEX, VISUAL_TOKENS
from llava.data.chat_formats import add_tokens
from llava.data.coordinates import NO_COORDINATE, register
from llava.data.dataset import LazySupervisedDataset, measure_lengths
from llava.data.forms import targets_digest
from llava.data.grounding.annotation import Annotation, Event
from llava.data.grounding.tasks import TASKS, records_of
from llava.data.grounding.text import parse_box, parse_frame_boxes, parse_span
from llava.data.problems import REMEDIES
from llava.data.record_table import RecordTable, open_records
from llava.data.records import Record, text_alone
from llava.data.square_numbers import coordinate_problems, loose_times, moved_numbers
from llava.data.target_words import count_targets
from llava.data.text_format import text_format
from llava.data.token_table import open_tokens
from llava.data.variables import COORDINATES
from llava.data.words import differing_words
from llava.train.preflight.data import LabelCounts, count_labels, show_samples
from llava.train.preflight.words import check_samples, check_words
from tests.conftest import PROCESSOR, make_tokenizer
from tests.data.grounding.test_tasks import CLIP, IMAGE

PAD = "pad"
SPEC = VideoSpec(num_frames=2, fast_latents=1, slow_latents=4, image_aspect_ratio=PAD)
FORMS = ["plain", "vicuna_v1", "chatml"]


def tokenizer_of(version: str = "plain") -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISUAL_TOKENS)})
    register(tokenizer)
    add_tokens(version, tokenizer)
    return tokenizer


def rows() -> list[dict[str, Any]]:
    made = [r for a in (CLIP, IMAGE) for r in records_of(a, TASKS, "it", random.Random(0))]
    return [*made, {"id": "words", "conversations": [{"from": "gpt", "value": "Un gatto."}]}]


@pytest.fixture
def records(tmp_path: Path) -> RecordTable:
    (tmp_path / "data.json").write_text(json.dumps(rows()))
    table, problems = open_records(tmp_path / "cache", tmp_path / "data.json", is_chat=False)
    assert problems == [] and isinstance(table, RecordTable)
    return table


def dataset_of(
    records: Any, version: str = "plain", spec: VideoSpec | None = SPEC, limit: int = 512, **more: Any
) -> Any:
    tokenizer = more.pop("tokenizer", None) or tokenizer_of(version)
    form = text_format(version, tokenizer)
    processor = ProcessorSpec(image_size=28, resize_edge=28) if spec else None
    return LazySupervisedDataset(records, tokenizer, form.preprocess, limit, spec, processor, text_format=form, **more)


def said(dataset: Any, index: int) -> str:
    """What a sample supervises, as text."""
    labels = dataset.tokens(index)[1]
    return dataset.tokenizer.decode(labels[labels != IGNORE_INDEX], skip_special_tokens=True)


@pytest.mark.parametrize("version", FORMS)
def test_a_sample_supervises_the_truth_of_its_record(records: RecordTable, version: str) -> None:
    """Numbers in another order, told ones as targets, or a box that is not moved would not read as the truth."""
    shown = [r for r in records if r.id != "words"]
    dataset = dataset_of(shown, version)
    close = 0.5 / 99 + 1e-6
    for index, record in enumerate(shown):
        truth, text = record.meta["truth"], said(dataset, index)
        task = record.meta["task"]
        # 160 x 90 pixels in a square of 160: a height is moved to 35/160 + y * 90/160. The image is square.
        wide = record.meta["width"] != record.meta["height"]

        def moved(box: list[float], wide: bool = wide) -> Any:
            x1, y1, x2, y2 = box
            return pytest.approx(
                (x1, 35 / 160 + y1 * 90 / 160, x2, 35 / 160 + y2 * 90 / 160) if wide else box, abs=close
            )

        if task == "REC":
            assert parse_box(text) == moved(truth["box"])
        if task in ("TVG", "STVG"):
            assert parse_span(text) == pytest.approx(truth["span"], abs=close)
        if task in ("STVG", "SVG", "ELC"):
            assert parse_frame_boxes(text) == {int(i): moved(b) for i, b in truth["boxes"].items()}
        if task in ("REG", "TR"):
            assert truth["text"] in text and parse_box(text) is None and parse_span(text) is None
        ids, labels, numbers = dataset.numbered_tokens(index)
        told = torch.isin(ids, dataset.coordinates.told)
        assert bool(told.any()) == (task in ("REG", "TR", "SVG", "ELC")) and (labels[told] == IGNORE_INDEX).all()
        held = numbers[numbers != NO_COORDINATE].tolist()
        assert held == pytest.approx(moved_numbers(record, PAD)) and len(held) == len(record.coordinates)


@pytest.mark.parametrize("version", ["plain", "vicuna_v1"])
def test_prepared_samples_are_those_of_the_text(records: RecordTable, tmp_path: Path, version: str) -> None:
    tokenizer = tokenizer_of(version)
    form = text_format(version, tokenizer)
    listed = records.take(np.arange(len(records) - (version != "plain")))
    table = open_tokens(tmp_path / "cache", listed, tokenizer, form)
    plain, fast = (dataset_of(listed, version, tokenizer=tokenizer, prepared=t) for t in (None, table))
    assert table is not None and fast.differs_from_prepared() is None
    for index in range(len(listed)):
        assert all(map(torch.equal, plain.numbered_tokens(index), fast.numbered_tokens(index)))
    for limit in (512, 30):
        lengths = [measure_lengths(listed, tokenizer, SPEC, form, limit, t) for t in (None, table)]
        assert list(lengths[0][0]) == list(lengths[1][0]) and lengths[0][1] == lengths[1][1]
    assert {p.record_id for p in lengths[0][1]} >= {"clip_stvg_0", "clip_elc_0"}


def test_every_sample_has_numbers_where_the_tokenizer_knows_them(records: RecordTable) -> None:
    texts = [text_alone(r) for r in records]
    dataset = dataset_of(texts)
    for index in (*range(len(texts)), FILLER_INDEX):
        sample = dataset[index]
        assert sample["coordinates"].shape == sample["input_ids"].shape
        assert sample["coordinates"].dtype == torch.float32
    assert (dataset[len(texts) - 1]["coordinates"] == NO_COORDINATE).all()
    plain = make_tokenizer()
    assert "coordinates" not in LazySupervisedDataset([texts[-1]], plain, dataset.preprocess, 512)[0]


def test_the_same_numbers_with_the_video_and_without(records: RecordTable) -> None:
    shown = [r for r in records if r.id != "words"]
    dataset = dataset_of(shown)
    dataset.alone = dataset_of([text_alone(r) for r in shown], tokenizer=dataset.tokenizer)
    for index, record in enumerate(shown):
        assert said(dataset, index) == said(dataset, index + len(shown))
        assert dataset.numbers(text_alone(record)) == dataset.numbers(record)


def test_text_alone_predicts_what_a_run_on_video_predicts(records: RecordTable) -> None:
    """Numbers of the frame would be other targets, of another entropy, under the name of the same ones."""
    shown = [r for r in records if r.id != "words"]
    video = dataset_of(shown)
    text, squeezed = (
        dataset_of([text_alone(r) for r in shown], tokenizer=video.tokenizer, spec=None, image_aspect_ratio=aspect)
        for aspect in (PAD, "square")
    )
    assert [said(video, i) for i in range(len(shown))] == [said(text, i) for i in range(len(shown))]
    digests = [targets_digest(d.records, d.text_format, d.numbers) for d in (video, text, squeezed)]
    assert digests[0] == digests[1] != digests[2], "runs whose targets differ are not compared"
    numbers = set(video.coordinates.ids.values())
    counted = []
    for d in (video, text, squeezed):
        of = count_targets(d.records, d.tokenizer, text_format=d.text_format, numbers=d.numbers).values()
        total = sum((count.targets for count in of), Counter())
        counted.append({i: n for i, n in total.items() if i in numbers})
    assert counted[0] == counted[1] != counted[2]
    labels = Counter(i for n in range(len(shown)) for i in video.tokens(n)[1].tolist())
    assert counted[0] == {i: n for i, n in labels.items() if i in numbers}


def test_a_cut_that_would_lose_a_number_is_a_problem_before_training(records: RecordTable) -> None:
    shown = [r for r in records if r.meta.get("task") in ("STVG", "REC")]
    tokenizer = tokenizer_of()
    form = text_format("plain", tokenizer)
    lengths, _ = measure_lengths(shown, tokenizer, SPEC, form, 512)
    limit = max(lengths) - 1
    long = next(i for i, n in enumerate(lengths) if n > limit)
    # The last token is the bracket that closes the box; the tokenizer puts a space of its own before it.
    for less, kept in ((0, 12), (1, 12), (2, 11)):
        _, problems = measure_lengths(shown, tokenizer, SPEC, form, limit - less)
        assert [p.record_id for p in problems] == [shown[long].id]
        assert f"would be cut after {kept} of the 12 coordinates of the text: raise" in problems[0].message
    with pytest.raises(ValueError, match="of the 12 coordinates"):
        dataset_of(shown, limit=limit, tokenizer=tokenizer).tokens(long)
    literal = [Record("w", [{"from": "gpt", "value": "Un gatto " * 6 + "<TEMP-012>"}], (), (), None, {}, "d[0]")]
    assert measure_lengths(literal, tokenizer, SPEC, form, 8)[1][0].kind == "too long"


def test_numbers_that_have_no_place_in_the_picture_are_problems() -> None:
    box = (0.0, 0.2, 0.1, 0.9)
    marked = Annotation(id="a", image="a.png", width=200, height=100, events=[Event("x", None, {0.0: box})])
    (made,) = records_of(marked, ["REC"], "it", random.Random(0))
    record = Record("a", made["conversations"], (), ("a.png",), None, made["meta"], "d[0]", coordinates=box)
    assert coordinate_problems([record], PAD, PROCESSOR) == coordinate_problems([record], None, None) == []
    (problem,) = coordinate_problems([record], "crop", PROCESSOR)
    assert problem.kind == COORDINATES in REMEDIES and "[0.0, 0.2, 0.1, 0.9] is cropped away: leave" in problem.message
    spaced = [{**turn, "value": turn["value"].replace("><", ">, <")} for turn in record.conversations]
    assert len(coordinate_problems([replace(record, conversations=spaced)], "crop", PROCESSOR)) == 1
    (problem,) = coordinate_problems([record], "crop", None)
    assert "without a tower there is none: use pad or square" in problem.message
    unsized = replace(record, meta={})
    (problem,) = coordinate_problems([unsized], PAD, PROCESSOR)
    assert "expected meta.width and meta.height in pixels" in problem.message
    assert coordinate_problems([unsized], "square", PROCESSOR) == []
    text = replace(unsized, images=())
    assert coordinate_problems([text], PAD, PROCESSOR) == [] and moved_numbers(text, PAD) == box


def test_times_are_those_of_the_frames_that_are_seen(records: RecordTable) -> None:
    said = loose_times(records, SPEC)
    assert "'clip_tvg_0'" in said and "--video_fps 1 may end up to 1 s before" in said and "--force_sample True" in said
    ten = replace(SPEC, num_frames=10)
    assert loose_times(records, replace(ten, force_sample=True)) == loose_times(records, None) == ""
    assert loose_times([r for r in records if r.images], SPEC) == loose_times(records, replace(ten, video_fps=0)) == ""


def test_boxes_at_other_times_than_those_of_the_frames_that_are_seen_are_told_with_both_numbers(
    records: RecordTable,
) -> None:
    """Those of the clip are at frames 4 and 5 of ten."""
    spec = replace(SPEC, num_frames=8, force_sample=True)
    for taken in (records, list(records)):
        said = loose_times(taken, spec)
        assert said.startswith("3 records (record 'clip_stvg_0' for one) have boxes at times of 10 frames, and")
        assert "--num_frames is 8" in said and "again with --num_frames 8, or train with --num_frames 10" in said
    for shown in (10, 19, 28):
        assert loose_times(records, replace(spec, num_frames=shown)) == "", "every frame of ten is one of these"
    times = [r for r in records if "<TEMP-" in str(r.conversations) and "HEIGHT" not in str(r.conversations)]
    assert times and loose_times(times, spec) == "", "spans may begin and end between frames"
    stvg = next(r for r in records if r.id == "clip_stvg_0")
    rounded = replace(stvg, coordinates=tuple(round(number, 3) for number in stvg.coordinates))
    assert loose_times([rounded], replace(spec, num_frames=10)) == ""
    anywhere = replace(stvg, coordinates=(*stvg.coordinates[:2], 0.444444, *stvg.coordinates[3:7], 0.5017))
    anywhere = replace(anywhere, coordinates=(*anywhere.coordinates, *stvg.coordinates[8:]))
    assert "at times of no one number of frames, and --num_frames is 8" in loose_times([anywhere], spec)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """One sample a row, as the training collator lays them out."""
    length = max(len(s["input_ids"]) for s in samples)
    batch: dict[str, Any] = {"sample_ids": [s["sample_id"] for s in samples]}
    for key, padding in (("input_ids", 0), ("labels", IGNORE_INDEX), ("coordinates", NO_COORDINATE)):
        columns = [torch.nn.functional.pad(s[key], (0, length - len(s[key])), value=padding) for s in samples]
        batch[key] = torch.stack(columns)
    batch["labels"][:, 0] = IGNORE_INDEX
    segments = torch.arange(len(samples))[:, None].expand(-1, length).clone()
    for row, sample in enumerate(samples):
        segments[row, len(sample["input_ids"]) :] = -1
    batch["segment_ids"] = segments
    places = (batch["labels"].flatten() != IGNORE_INDEX).nonzero().flatten()
    return batch | {"supervised_positions": places}


@pytest.mark.parametrize("version", FORMS)
def test_pre_flight_reads_each_number_as_its_record_does(records: RecordTable, version: str) -> None:
    shown = [r for r in records if r.id != "words"]
    dataset = dataset_of(shown, version)
    dataset.forms = lambda: {"video": np.arange(len(shown))}
    assert [f.status for f in check_words(dataset, dataset.tokenizer)] == ["ok"]
    visual = dataset.tokenizer.convert_tokens_to_ids(list(VISUAL_TOKENS))
    counts = LabelCounts()
    for index, record in enumerate(shown):
        expected = len(record.videos) * SPEC.rows + len(record.images) * SPEC.image_rows
        count_labels(
            *dataset.tokens(index), record, dataset.tokenizer, visual, expected, counts, dataset.text_format,
            dataset.coordinates,
        )  # fmt: skip
    assert counts.problems == {}
    texts, _ = show_samples(dataset, dataset.tokenizer, visual, len(shown))
    dump = "".join(text.plain for text in texts)
    assert "INPUT" not in dump and "OUTPUT" not in dump and "TEMP-044" in dump and "WIDTH-010" in dump


def test_pre_flight_finds_numbers_that_are_not_those_of_the_record(records: RecordTable, monkeypatch: Any) -> None:
    record = next(r for r in records if r.meta.get("task") == "STVG")
    dataset = dataset_of([record])
    ids, labels = dataset.tokens(0)
    numbers = dataset.numbers(record)

    def reads(labels: torch.Tensor) -> Any:
        return differing_words(record, labels, dataset.tokenizer, False, dataset.text_format, numbers)

    assert reads(labels) is None
    for wrong in (tuple(reversed(numbers)), record.coordinates, (*numbers[:-1], 0.0)):
        assert reads(dataset.coordinates.place(ids, ids.where(labels != IGNORE_INDEX, -100), wrong)[0]) is not None
    count = LabelCounts()
    visual = dataset.tokenizer.convert_tokens_to_ids(list(VISUAL_TOKENS))
    count_labels(
        ids, ids.where(labels != IGNORE_INDEX, -100), record, dataset.tokenizer, visual, SPEC.rows, count,
        dataset.text_format, dataset.coordinates,
    )  # fmt: skip
    assert list(count.problems) == ["the label of a number that is asked for is no coordinate of its axis"]

    twin = dataset_of([text_alone(record)], spec=None)
    sample = twin[0]
    assert check_samples(twin, {0: sample}, collate, "text").status == "ok"
    other = {**sample, "coordinates": sample["coordinates"].flip(0)}
    found = check_samples(twin, {0: other}, collate, "text")
    assert found.status == "FAIL" and "other numbers than its variables give" in found.finding
    lost = check_samples(
        twin, {0: sample}, lambda s: {k: v for k, v in collate(s).items() if k != "coordinates"}, "text"
    )
    assert lost.status == "FAIL" and "coordinates of a sample change" in lost.finding


def test_numbers_that_are_told_and_supervised_are_found(records: RecordTable) -> None:
    record = next(r for r in records if r.meta.get("task") == "TR")
    dataset = dataset_of([record])
    ids, _ = dataset.tokens(0)
    visual = dataset.tokenizer.convert_tokens_to_ids(list(VISUAL_TOKENS))
    counts = LabelCounts()
    labels = ids.masked_fill(torch.isin(ids, torch.tensor(visual)), IGNORE_INDEX)
    count_labels(
        ids, labels, record, dataset.tokenizer, visual, SPEC.rows, counts, dataset.text_format, dataset.coordinates
    )
    assert list(counts.problems) == ["numbers that are told are targets"]
