"""Figures beside their floors: what could not be read, what has no other clip, words, the table, the examples."""

from __future__ import annotations

import json
import math

import pytest

from llava.data.records import Record
from llava.eval.captioning import Caption
from llava.eval.grounding_answers import Truth, read_answer
from llava.eval.grounding_scores import frame_grid
from llava.eval.grounding_table import OTHER, Asked, examples_of, format_tasks, rows_of, scores_of

GRID = frame_grid(4)
TURNS = [{"from": "human", "value": "<video> Quando?"}, {"from": "gpt", "value": "Ora."}]


def asked(truth, said, other=None, clip="a"):
    record = Record(f"{clip}/{said}", TURNS, (f"{clip}.mp4",), (), None, {}, "here")
    texts = [None if text is None else Caption(text, True, 3) for text in (said, other)]
    return Asked(record, truth, clip, texts[0], read_answer(said, truth), texts[1],
                 None if other is None else read_answer(other, truth))  # fmt: skip


def spans(*said, other="{<TEMP-000><TEMP-099>}"):
    """Answers to when something from 0 to 1/3 of each clip is."""
    return [asked(Truth("TVG", span=(0.0, 1 / 3)), text, other, f"clip{i}") for i, text in enumerate(said)]


RIGHT, HALF, NONE = "{<TEMP-000><TEMP-033>}", "{<TEMP-000><TEMP-066>}", "<TEMP-000>, credo"


def test_what_cannot_be_read_counts_0_and_has_a_figure_of_its_own_beside_it():
    found = scores_of(spans(RIGHT, HALF, NONE, NONE), GRID, [])["TVG"]
    part = found["measures"]["tIoU"]
    assert (found["records"], found["clips"], part["parsed"]) == (4, 4, 2)
    mean, half = part["figures"]["mean"], part["figures"]["> 0.5"]
    assert mean["value"][0] == pytest.approx(1.5 / 4) and mean["parsed_only"][0] == pytest.approx(0.75)
    assert half["value"][0] == 0.25 and half["parsed_only"][0] == 0.5, "half is not above half"
    assert mean["floors"][OTHER][0] == pytest.approx(1 / 3) == mean["floors"]["centre box, whole clip"][0]
    assert mean["floors"]["best constant answer"][0] == pytest.approx(1)
    assert found["constant"] == {"span": pytest.approx([0, 1 / 3])}
    lines = format_tasks({"TVG": found}).splitlines()
    assert lines[0] == "TVG: 4 questions about 4 clips; 2 without tIoU, which count 0"
    assert lines[1].split("  ")[-1].strip() == "best constant answer" and "read answers alone" in lines[1]
    assert lines[2].split()[:3] == ["tIoU", "mean", "0.375"] and lines[2].split()[-4:] == [
        "0.750",
        "0.333",
        "0.333",
        "1.000",
    ]
    assert lines[-1] == "  best constant answer: span (0.00, 0.33)"


def test_no_answer_that_can_be_read():
    found = scores_of(spans(NONE, NONE), GRID, [])["TVG"]
    figure = found["measures"]["tIoU"]["figures"]["mean"]
    assert figure["value"][0] == 0 and math.isnan(figure["parsed_only"][0])
    assert " – " in format_tasks({"TVG": found})


def test_a_floor_that_some_records_lack_is_left_out():
    listed = spans(RIGHT) + spans(RIGHT, HALF, other=None)[1:]
    floors = scores_of(listed, GRID, [])["TVG"]["measures"]["tIoU"]["figures"]["mean"]["floors"]
    assert list(floors) == ["centre box, whole clip", "best constant answer"]


def test_words_are_compared_with_their_own_record_and_resampled_with_their_clip():
    truths = [Truth("TR", text=text) for text in ("un gatto", "un cane", "un gatto", "una foca")]
    said = ["un gatto.", "un gatto", "un gatto", "una foca"]
    listed = [asked(t, s, "una foca", clip) for t, s, clip in zip(truths, said, "aabb", strict=True)]
    found = scores_of(listed, GRID, ["CIDEr-D"])["TR"]
    assert found["words"]["exact match"]["value"][0] == 0.75, "a full stop is none of the words"
    assert found["words"]["exact match"]["floors"][OTHER][0] == 0.25
    assert set(found["words"]) == {"exact match", "CIDEr-D"} and "constant" not in found
    assert "measures" in found and not found["measures"]
    assert "exact match" in format_tasks({"TR": found})


def test_rows_have_nothing_where_nothing_could_be_read():
    rows = rows_of(spans(RIGHT, NONE), GRID)
    assert [row["tIoU"] for row in rows] == [pytest.approx(1), None] and rows[1]["answer"] == NONE
    assert rows[0]["other_tIoU"] == pytest.approx(1 / 3) and rows[0]["clip"] == "clip0.mp4"


def test_examples_are_the_best_the_median_and_the_worst():
    listed = spans(NONE, RIGHT, HALF, HALF, "{<TEMP-050><TEMP-099>}")
    found = examples_of(listed, GRID, lambda record: "Quando?")
    assert [e["value"] for e in found] == [pytest.approx(1), pytest.approx(0.5), 0]
    assert json.dumps(found) and found[0]["said"]["span"] == pytest.approx((0, 1 / 3))
    assert len(examples_of(listed[:2], GRID, lambda record: "")) == 2
