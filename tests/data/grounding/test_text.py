"""Boxes and spans: written, with the numbers spelled, and read again."""

from __future__ import annotations

import pytest

from llava.data.coordinates import coordinate_token
from llava.data.grounding.text import (
    box_text,
    frame_boxes_text,
    parse_box,
    parse_boxes,
    parse_event,
    parse_frame_boxes,
    parse_phrases,
    parse_span,
    span_text,
    time_text,
)
from llava.data.variables import axis_of, fill

BOX = (10 / 99, 20 / 99, 30 / 99, 40 / 99)
SPELLED = "[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>]"


def spelled(written: tuple[str, list[float]]) -> str:
    text, numbers = written
    turns = fill([{"value": text}], numbers, lambda name, number: coordinate_token(axis_of(name), number))
    return turns[0]["value"]


def test_what_is_written_is_read() -> None:
    assert spelled(box_text(BOX)) == SPELLED and parse_box(f"Qui: {SPELLED}.") == pytest.approx(BOX)
    assert spelled(span_text((0.0, 1.0))) == "{<TEMP-000><TEMP-099>}" and parse_span("{<TEMP-000><TEMP-099>}") == (0, 1)
    other = (0.0, 0.0, 1.0, 1.0)
    text = spelled(frame_boxes_text({27 / 99: other, 9 / 99: BOX}))
    assert text == f"<TEMP-009>:{SPELLED} <TEMP-027>:[<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>]"
    assert parse_frame_boxes(text) == {9: pytest.approx(BOX), 27: other}
    assert parse_boxes(text) == [pytest.approx(BOX), other]
    assert time_text(0.5, "INPUT") == ("<TEMP-INPUT>", [0.5])
    assert box_text(BOX, "INPUT")[0] == "[<WIDTH-INPUT><HEIGHT-INPUT><WIDTH-INPUT><HEIGHT-INPUT>]"


def test_white_space_does_not_matter() -> None:
    assert parse_box(SPELLED.replace("<", " <").replace("]", "\n]")) == pytest.approx(BOX)
    assert parse_span("{ <TEMP-001>  <TEMP-002> }") == pytest.approx((1 / 99, 2 / 99))
    assert parse_frame_boxes(f"<TEMP-003> : {SPELLED}") == {3: pytest.approx(BOX)}


@pytest.mark.parametrize("text", [
    "", "Un gatto.", SPELLED[:-1], SPELLED.replace("<WIDTH-010>", ""), SPELLED.replace("HEIGHT-020", "WIDTH-020"),
    SPELLED.replace("010", "110"), SPELLED.replace("010", "OUTPUT"),
])  # fmt: skip
def test_what_is_no_box_is_none(text: str) -> None:
    assert parse_box(text) is None and parse_boxes(text) == []
    assert parse_frame_boxes(f"<TEMP-001>:{text}") == {}


@pytest.mark.parametrize("text", ["", "{<TEMP-001>}", "<TEMP-001><TEMP-002>", "{<TEMP-001><TEMP-100>}"])
def test_what_is_no_span_is_none(text: str) -> None:
    assert parse_span(text) is None


def test_of_several_boxes_for_a_time_the_first_counts() -> None:
    assert parse_frame_boxes(f"<TEMP-003>:{SPELLED} <TEMP-003>:{SPELLED.replace('010', '000')}")[3][0] == 10 / 99


def test_an_event_is_its_end_its_words_and_its_boxes() -> None:
    end, words, boxes = parse_event(f"<TEMP-044>, un gatto, nero, dorme. <TEMP-012>:{SPELLED} <TEMP-044>:{SPELLED}")
    assert (end, words) == (44 / 99, "un gatto, nero, dorme") and set(boxes) == {12, 44}
    assert parse_event(f"<TEMP-012>:{SPELLED}") == (None, "", {12: pytest.approx(BOX)})
    assert parse_event("un gatto") == (None, "un gatto", {})


def test_an_image_is_phrases_with_boxes() -> None:
    found = parse_phrases(f"un gatto {SPELLED} e un cane {SPELLED}.")
    assert found == [("un gatto", pytest.approx(BOX)), ("e un cane", pytest.approx(BOX))]
