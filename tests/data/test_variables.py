"""The numbers of a conversation, in reading order, and what is wrong with them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llava.data.variables import (
    VARIABLES,
    coordinate_word,
    fill,
    frame_places,
    placeholders_in,
    read_variables,
    variables_of,
    without_coordinates,
)
from tests.data.test_captions import talk

TURNS = talk(
    "<video>\nDa <TEMP-INPUT> in [<WIDTH-INPUT><HEIGHT-INPUT>]?", "{<TEMP-OUTPUT><TEMP-OUTPUT>} <WIDTH-OUTPUT>",
    "E <TEMP-INPUT>?", "<WIDTH-OUTPUT>",
)  # fmt: skip
GIVEN = {
    "temporal_input_locations": [0.1, 0.6], "spatial_width_input_locations": [0.2],
    "spatial_height_input_locations": [0.3], "temporal_output_locations": [0.4, 0.5],
    "spatial_width_output_locations": [0, 1],
}  # fmt: skip


def test_keys_are_those_of_llava_st() -> None:
    assert VARIABLES["spatial_height_output_locations"] == "<HEIGHT-OUTPUT>" and len(VARIABLES) == 6
    assert VARIABLES["temporal_input_locations"] == "<TEMP-INPUT>"


def test_numbers_come_in_reading_order_over_the_conversation() -> None:
    numbers, wrong = read_variables(TURNS, GIVEN)
    assert wrong == [] and numbers == (0.1, 0.2, 0.3, 0.4, 0.5, 0.0, 0.6, 1.0)
    text = "".join(turn["value"] for turn in TURNS)
    assert {k: v for k, v in variables_of(text, numbers).items() if v} == GIVEN
    with pytest.raises(ValueError):
        variables_of(text, numbers[1:])
    written = fill(TURNS, numbers, lambda name, number: f"{name[1]}{number:g}")
    assert [turn["value"] for turn in written] == ["<video>\nDa T0.1 in [W0.2H0.3]?", "{T0.4T0.5} W0", "E T0.6?", "W1"]
    assert read_variables(talk("<video>", "Un gatto."), None) == ((), [])
    assert read_variables(talk("<video>", "Un gatto."), dict.fromkeys(VARIABLES, [])) == ((), [])


@pytest.mark.parametrize(("given", "said"), [
    ({**GIVEN, "temporal_input_locations": [0.1]}, r"2 <TEMP-INPUT> in the text, but 1 numbers \(few\)"),
    ({**GIVEN, "spatial_width_output_locations": [0, 1, 1]}, r"2 <WIDTH-OUTPUT> in the text, but 3 numbers \(many\)"),
    ({**GIVEN, "spatial_height_output_locations": [0.5]}, r"0 <HEIGHT-OUTPUT> in the text, but 1 numbers"),
    ({**GIVEN, "temporal_output_locations": [0.4, 1.5]}, r"temporal_output_locations\[1\] is 1.5, which is not from 0"),
    ({**GIVEN, "temporal_output_locations": [-0.1, 0.5]}, r"temporal_output_locations\[0\] is -0.1, which is not"),
    ({**GIVEN, "temporal_output_locations": [0.4, float("nan")]}, r"\[1\] must be a number from 0 to 1, got nan"),
    ({**GIVEN, "temporal_output_locations": [0.4, "0.5"]}, r"\[1\] must be a number from 0 to 1, got '0.5'"),
    ({**GIVEN, "temporal_output_locations": [0.4, True]}, r"\[1\] must be a number from 0 to 1, got True"),
    ({**GIVEN, "temporal_output_locations": [0.4, float("inf")]}, r"\[1\] is inf, which is not from 0 to 1"),
    ({**GIVEN, "temporal_output_locations": [0.4, 10**400]}, r"\[1\] is 10000.*, which is not from 0 to 1"),
    ({**GIVEN, "temporal_output_locations": [0.6, 0.4]}, r"a span \[0.6, 0.4\] ends before it begins"),
    ({**GIVEN, "temporal_output_locations": 0.4}, "temporal_output_locations must be a list of numbers, got 0.4"),
    ({**GIVEN, "temporal_locations": [0.4]}, "variables has a key 'temporal_locations'; known are temporal_input"),
    ([0.1], "variables must be an object of lists of numbers, got list"),
    (None, "2 <TEMP-INPUT> in the text, but 0 numbers"),
])  # fmt: skip
def test_what_is_wrong_is_named(given: Any, said: str) -> None:
    numbers, wrong = read_variables(TURNS, given)
    assert numbers == () and any(re.search(said, message) for message in wrong), wrong


BOX = "[<WIDTH-{0}><HEIGHT-{0}>{1}<WIDTH-{0}><HEIGHT-{0}>]"


@pytest.mark.parametrize(("way", "space"), [("OUTPUT", ""), ("OUTPUT", ", "), ("INPUT", " ")])
def test_a_box_that_is_a_corner_and_a_size_is_named(way: str, space: str) -> None:
    """It would be trained on as it stands."""
    box = BOX.format(way, space)
    turns = talk(f"<image> {box}?", "Un gatto.") if way == "INPUT" else talk("<image>", f"Un gatto {box}.")
    keys = [f"spatial_{axis}_{way.lower()}_locations" for axis in ("width", "height")]
    assert read_variables(turns, dict(zip(keys, ([0.2, 0.5], [0.3, 0.3]), strict=True)))[1] == [], "a line may be"
    numbers, wrong = read_variables(turns, dict(zip(keys, ([0.6, 0.3], [0.2, 0.8]), strict=True)))
    assert numbers == () and "a box [0.6, 0.2, 0.3, 0.8] ends before it begins: a box is x1, y1, x2, y2" in wrong[0]
    assert read_variables(turns, dict(zip(keys, ([0.2, 0.3], [0.8, 0.1]), strict=True)))[1] != []


def test_told_and_asked_are_not_exchanged() -> None:
    told = {"temporal_input_locations": [0.5]}
    asked = {"temporal_output_locations": [0.5]}
    assert read_variables(talk("Da <TEMP-INPUT>?", "Sì."), told)[1] == []
    assert read_variables(talk("Quando?", "<TEMP-OUTPUT>"), asked)[1] == []
    assert "<TEMP-INPUT> in an answer" in read_variables(talk("Quando?", "<TEMP-INPUT>"), told)[1][0]
    assert "<TEMP-OUTPUT> in a question" in read_variables(talk("Da <TEMP-OUTPUT>?", "Sì."), asked)[1][0]


def test_times_of_boxes_of_frames_are_found_among_the_numbers() -> None:
    box = "[<WIDTH-OUTPUT><HEIGHT-OUTPUT><WIDTH-OUTPUT><HEIGHT-OUTPUT>]"
    text = f"<TEMP-INPUT>: {{<TEMP-OUTPUT><TEMP-OUTPUT>}} <TEMP-OUTPUT>:{box} <TEMP-OUTPUT> : {box} <TEMP-010>:{box}"
    assert frame_places(text) == [3, 8]
    assert frame_places("Un gatto: dorme.") == frame_places(box) == []


def test_words_that_stand_for_coordinates() -> None:
    assert placeholders_in("a <TEMP-INPUT><video><TEMP-012> <WIDTH-OUTPUT>") == ["<TEMP-INPUT>", "<WIDTH-OUTPUT>"]
    assert coordinate_word("a <TEMP-999> b") == "<TEMP-999>" and coordinate_word("<HEIGHT-INPUT>") == "<HEIGHT-INPUT>"
    assert coordinate_word("<TEMP> <video>") == ""
    box = "[<WIDTH-OUTPUT><HEIGHT-001><WIDTH-OUTPUT><HEIGHT-OUTPUT>]"
    assert without_coordinates(f"un gatto {box} in {{<TEMP-INPUT><TEMP-INPUT>}}.").split() == ["un", "gatto", "in", "."]
    assert without_coordinates("un gatto [] {}") == "un gatto [] {}"
