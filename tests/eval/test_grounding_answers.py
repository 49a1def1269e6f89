"""Answers of every task: read, measured, and beside answers that need no look."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from llava.config.video import ProcessorSpec
from llava.data.coordinates import coordinate_token
from llava.data.grounding.annotation import Annotation, Event
from llava.data.grounding.tasks import TASKS, records_of
from llava.data.records import Record
from llava.data.variables import axis_of, fill, read_variables
from llava.errors import UserError
from llava.eval.grounding_answers import (
    CENTRE_WHOLE,
    CONSTANT,
    FIRST_BOX,
    MEASURES,
    Answer,
    constant_answers,
    measured,
    other_than_answer,
    read_answer,
    truth_of,
    words_alone,
)
from llava.eval.grounding_scores import frame_grid

GRID = frame_grid(12)
BOX = (0.2, 0.3, 0.5, 0.7)
MOVED = {i / 11: (0.1 + i / 100, 0.2, 0.4 + i / 100, 0.6) for i in range(3, 7)}


def as_record(raw, answer=1):
    turns = raw["conversations"]
    numbers, wrong = read_variables(turns, raw["variables"])
    assert not wrong
    shown = {"videos": (raw["video"],), "images": ()} if "video" in raw else {"videos": (), "images": (raw["image"],)}
    made = Record(raw["id"], turns, **shown, split=None, meta=raw["meta"], source=raw["id"])
    filled = fill(turns, numbers, lambda name, number: coordinate_token(axis_of(name), number))
    return made, filled[answer]["value"]


@pytest.fixture(scope="module")
def raws():
    """A record of each task, as a file has it."""
    clip = Annotation("c", 64, 64, [Event("un cerchio rosso si muove", (3 / 11, 6 / 11), MOVED)], video="c.mp4")
    cat, dog = Event("un gatto", None, {0.0: BOX}), Event("un cane", None, {0.0: (0, 0, 0.1, 1)})
    image = Annotation("i", 64, 64, [cat, dog], image="i.png")
    made = [*records_of(clip, TASKS, "it", random.Random(0)), *records_of(image, TASKS, "it", random.Random(0))]
    return {raw["meta"]["task"]: raw for raw in reversed(made)}


@pytest.fixture(scope="module")
def records(raws):
    """A record of each task, and the answer that is right."""
    return {task: as_record(raw) for task, raw in raws.items()}


@pytest.mark.parametrize("task", TASKS)
def test_the_right_answer_of_every_task_is_right_and_no_answer_counts_0(records, task):
    record, answer = records[task]
    truth = truth_of(record, "square", None)
    found = measured(read_answer(answer, truth), truth, GRID)
    assert set(found) == set(MEASURES[task])
    for value, parsed in found.values():
        assert parsed and value > 0.93, "but for coordinates of a hundredth"
    assert all(v == (0.0, False) for v in measured(read_answer("non so", truth), truth, GRID).values())
    if truth.text and task not in ("REC", "TVG", "STVG", "SVG"):
        assert read_answer(answer, truth).text == truth.text


def test_what_the_words_of_an_answer_are(records):
    record, answer = records["DGC"]
    assert words_alone(answer) == "un gatto e un cane ." == truth_of(record, "square", None).text
    assert truth_of(records["ELC"][0], "square", None).text == "un cerchio rosso si muove"


def test_a_span_that_is_too_long_costs_a_tube(records):
    record, answer = records["STVG"]
    truth = truth_of(record, "square", None)
    right = measured(read_answer(answer, truth), truth, GRID)
    longer = replace(read_answer(answer, truth), span=(0.0, 6 / 11))
    found = measured(longer, truth, GRID)
    assert found["tIoU"][0] == pytest.approx(0.5, abs=1e-5) and found["vIoU"][0] == pytest.approx(
        right["vIoU"][0] * 4 / 7
    )
    assert found["sIoU"] == right["sIoU"], "where both are, the boxes are as before"


def test_boxes_are_scored_where_answers_are(records):
    """A frame twice as wide as high: the tower sees it padded, or its middle."""
    record = replace(records["REC"][0], meta={**records["REC"][0].meta, "width": 128})
    padded = truth_of(record, "pad", None)
    assert padded.box == pytest.approx((0.2, 0.4, 0.5, 0.6))
    processor = ProcessorSpec(image_size=64, resize_edge=64)
    cropped = truth_of(record, "crop", processor)
    assert cropped.box == pytest.approx((0.0, 0.3, 0.5, 0.7)), "cut at the edge of the crop"
    gone = replace(record, meta={**record.meta, "truth": {"box": (0.0, 0.0, 0.1, 1.0), "text": "x"}})
    with pytest.raises(UserError, match="its box is not in the picture that --image_aspect_ratio crop"):
        truth_of(gone, "crop", processor)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "meta.task is None; known are REC"),
        ({"task": "VQA"}, "meta.task is 'VQA'"),
        ({"task": "STVG"}, "no span and no boxes, which STVG"),
        ({"task": "REG", "truth": {"box": BOX}}, "no text, which REG"),
        ({"task": "STVG", "truth": {"span": [0, 1], "boxes": {"a": BOX}}}, "is not that of STVG"),
        ({"task": "STVG", "truth": {"span": [0, 1], "boxes": [BOX]}}, "is not that of STVG"),
        (
            {"task": "STVG", "truth": {"span": [0, 1], "boxes": {"250": BOX}}},
            r"boxes\[250\] is at no coordinate of time",
        ),
        ({"task": "TVG", "truth": {"span": [3.2, 7.5]}}, r"span is \[3.2, 7.5\], expected its first and last time"),
        ({"task": "TVG", "truth": {"span": [0.8, 0.2]}}, r"span is \[0.8, 0.2\], expected its first"),
        ({"task": "TVG", "truth": {"span": [float("nan"), 0.2]}}, r"span is \[nan, 0.2\]"),
        ({"task": "TVG", "truth": {"span": [0.1, 0.2, 0.3]}}, r"span is \[0.1, 0.2, 0.3\]"),
        ({"task": "REC", "truth": {"box": [0, 0, 50, 50]}}, r"box is \[0, 0, 50, 50\], expected x1 < x2 and y1 < y2"),
        ({"task": "REC", "truth": {"box": [0.6, 0.6, 0.2, 0.2]}}, "expected x1 < x2 and y1 < y2"),
        ({"task": "REC", "truth": {"box": [0.1, 0.1, 0.5]}}, "expected x1 < x2"),
        (
            {"task": "DGC", "truth": {"phrases": [["un gatto", [0.1, 0.1, 0.1, 0.5]]]}},
            r"phrases\[0\] is \[0.1, 0.1, 0.1",
        ),
    ],
)
def test_a_record_that_cannot_be_scored_is_named(meta, message):
    with pytest.raises(UserError, match=message) as raised:
        truth_of(Record("r7", [], (), (), None, meta, "data.json[3]"), "square", None)
    assert "data.json[3] id 'r7'" in str(raised.value)


def test_no_box_of_a_record_that_is_scored_is_cropped_away(records):
    """Else a line would be drawn through the frames without one, a phrase left out, and a question tell no box."""
    wide, processor = {"width": 400, "height": 100}, ProcessorSpec(image_size=64, resize_edge=64)
    edge, centre = (0.0, 0.1, 0.1, 0.5), (0.4, 0.1, 0.6, 0.5)
    truths = {
        "SVG": {"span": [0, 0.5], "boxes": {"0": centre, "22": edge, "44": centre}, "text": "x"},
        "REG": {"box": edge, "text": "x"},
        "DGC": {"phrases": [["un gatto", edge], ["un cane", centre]]},
    }
    for task, truth in truths.items():
        record = replace(records[task][0], meta={**wide, "task": task, "truth": truth})
        assert truth_of(record, "square", None)
        with pytest.raises(UserError, match="its box is not in the picture that --image_aspect_ratio crop"):
            truth_of(record, "crop", processor)
    turns = [{"from": "human", "value": "<video> " + "[" + "<WIDTH-INPUT><HEIGHT-INPUT>" * 2 + "]"}]
    turns.append({"from": "gpt", "value": "x"})
    elc = {"task": "ELC", "truth": {"span": [0, 0.5], "boxes": {"0": centre}, "text": "x"}, **wide}
    told = replace(records["ELC"][0], conversations=turns, meta=elc, coordinates=edge)
    with pytest.raises(UserError, match="its box is not in the picture"):
        truth_of(told, "crop", processor)


def whole(raw):
    """A record with its numbers, as it is read."""
    numbers, _ = read_variables(raw["conversations"], raw["variables"])
    return replace(as_record(raw)[0], coordinates=numbers)


@pytest.mark.parametrize("task", TASKS)
def test_a_record_whose_own_answer_is_not_its_truth_is_named(raws, task):
    """Two places that say what is true would make the scores of one of them."""
    record = whole(raws[task])
    truth = truth_of(record, "square", None)
    assert other_than_answer(record, truth, record.coordinates) == ""
    if task in ("REG", "TR", "ELC"):
        other = replace(truth, text="a cat")  # Somebody translated the answers.
        assert "and meta.truth.text 'a cat': mend" in other_than_answer(record, other, record.coordinates)
    if not MEASURES[task]:
        return
    moved = [number + 0.02 if number < 0.9 else number - 0.02 for number in record.coordinates]
    assert re.search(r"id '.*': \w+.*: its answer has .* and meta.truth \[", other_than_answer(record, truth, moved))
    said = {"from": "gpt", "value": record.conversations[1]["value"].replace("><", ">, <")}
    spaced = replace(record, conversations=[record.conversations[0], said])
    assert "has nothing and meta.truth" in other_than_answer(spaced, truth, record.coordinates)


@pytest.mark.parametrize("text", ["un cerchio si muove...", "È un  cerchio.", "uno [due] {tre}, quattro", "a . b ."])
def test_whatever_words_an_event_has_are_read_as_they_are(text):
    clip = Annotation("c", 64, 64, [Event(text, (0.0, 1.0), {0.0: BOX, 1.0: BOX})], video="c.mp4")
    image = Annotation("i", 64, 64, [Event(text, None, {0.0: BOX})], image="i.png")
    for raw in (r for a in (clip, image) for r in records_of(a, TASKS, "it", random.Random(0))):
        record = whole(raw)
        assert other_than_answer(record, truth_of(record, "square", None), record.coordinates) == ""


def test_more_frames_than_coordinates_have_the_boxes_that_answers_are_read_to_have():
    boxes = {i / 249: (0.2 + i / 1000, 0.2, 0.6 + i / 1000, 0.8) for i in range(250)}
    clip = Annotation("c", 64, 64, [Event("un cerchio", (0.0, 1.0), boxes)], video="c.mp4")
    (raw,) = records_of(clip, ["STVG"], "it", random.Random(0))
    record = whole(raw)
    truth = truth_of(record, "square", None)
    assert len(truth.boxes) == 100 and other_than_answer(record, truth, record.coordinates) == ""


def test_answers_that_need_no_look(records):
    truths = {task: truth_of(record, "square", None) for task, (record, _) in records.items()}
    found = constant_answers([truths["STVG"]] * 2, GRID)
    assert list(found) == [CENTRE_WHOLE, CONSTANT]
    values = {name: measured(answers[0], truths["STVG"], GRID) for name, answers in found.items()}
    assert values[CENTRE_WHOLE]["tIoU"][0] == pytest.approx(3 / 11, abs=1e-5)
    assert values[CONSTANT]["tIoU"][0] > 0.97 and 0.6 < values[CONSTANT]["vIoU"][0] < 0.98, "the box moves"
    elc = constant_answers([truths["ELC"]], GRID)
    assert measured(elc[CENTRE_WHOLE][0], truths["ELC"], GRID)["tIoU"][0] == pytest.approx(3 / 8, abs=1e-5), (
        "the start is told"
    )
    assert measured(elc[CONSTANT][0], truths["ELC"], GRID)["tIoU"][0] > 0.97
    assert 0.5 < measured(elc[FIRST_BOX][0], truths["ELC"], GRID)["vIoU"][0] < values[CONSTANT]["vIoU"][0] + 0.1
    svg = constant_answers([truths["SVG"]], GRID)[CONSTANT][0]
    assert sorted(svg.boxes) == [27, 36, 45, 54], "the span is told"
    assert measured(constant_answers([truths["REC"]], GRID)[CONSTANT][0], truths["REC"], GRID)["IoU"][0] > 0.9
    assert constant_answers([truths["REG"]], GRID) == {} == constant_answers([], GRID)
    assert measured(Answer(), truths["TR"], GRID) == {}
