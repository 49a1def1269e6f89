"""Numbers at placeholders: labels and values, exactly."""

from __future__ import annotations

import pytest
import torch

from llava.constants import COORDINATE_PLACEHOLDERS, COORDINATE_TOKENS, IGNORE_INDEX
from llava.data.coordinates import CoordinateTokens, coordinate_token, nearest
from llava.errors import UserError

NAMES = [*COORDINATE_TOKENS, *COORDINATE_PLACEHOLDERS]
TOKENS = CoordinateTokens({name: 1000 + 7 * n for n, name in enumerate(NAMES)})


def ids(*names: str | int) -> torch.Tensor:
    return torch.tensor([TOKENS.ids[n] if isinstance(n, str) else n for n in names])


def test_a_number_is_told_or_asked_for():
    told, asked = "<HEIGHT-INPUT>", "<TEMP-OUTPUT>"
    row = ids(3, told, asked, 4, asked)
    labels, coordinates = TOKENS.place(row, row, [0.5, 0.123, 1.0])
    assert labels.tolist() == [3, IGNORE_INDEX, *ids("<TEMP-012>").tolist(), 4, *ids("<TEMP-099>").tolist()]
    assert coordinates.tolist() == pytest.approx([-1, 0.5, 0.123, -1, 1.0])
    assert row.tolist() == ids(3, told, asked, 4, asked).tolist()


def test_what_is_not_supervised_stays_so():
    row = ids("<WIDTH-OUTPUT>", 4)
    labels, coordinates = TOKENS.place(row, torch.tensor([IGNORE_INDEX, 4]), [0.25])
    assert labels.tolist() == [IGNORE_INDEX, 4] and coordinates.tolist() == [0.25, -1]


def test_a_sequence_that_was_cut_has_its_first_numbers():
    row = ids("<WIDTH-OUTPUT>")
    assert TOKENS.place(row, row, [0.0, 1.0])[0].tolist() == ids("<WIDTH-000>").tolist()
    with pytest.raises(UserError, match="1 coordinate placeholders but 0 numbers"):
        TOKENS.place(row, row, [])


def test_the_nearest_coordinate():
    assert [nearest(v) for v in (-1, 0, 0.5 / 99, 0.51 / 99, 0.5, 1, 2)] == [0, 0, 0, 1, 49, 99, 99]
    assert coordinate_token("WIDTH", 12 / 99) == "<WIDTH-012>"
