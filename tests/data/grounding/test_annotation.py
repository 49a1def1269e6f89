"""An annotation says what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from llava.data.grounding.annotation import Annotation, Event
from llava.errors import UserError


@pytest.mark.parametrize(("fields", "said"), [
    ({"video": "a.mp4", "image": "a.png"}, "a video or an image"),
    ({}, "a video or an image"),
    ({"image": "a.png", "width": 0, "events": [Event("x", None, {0.0: (0, 0, 1, 1)})]}, "0 x 10 pixels"),
    ({"image": "a.png", "events": [Event(" ")]}, r"events\[0\]: its text is empty"),
    ({"image": "a.png", "events": [Event("x <TEMP-001>")]}, "its text holds <TEMP-001>"),
    ({"video": "a.mp4", "events": [Event("x", (0.5, 0.2))]}, r"its span \[0.5, 0.2\] is not"),
    ({"video": "a.mp4", "events": [Event("x", (0.5, 1.2))]}, r"its span \[0.5, 1.2\] is not"),
    ({"image": "a.png", "events": [Event("x", None, {0.0: (0.5, 0, 0.5, 1)})]}, "its box .* at 0 is not x1 < x2"),
    ({"image": "a.png", "events": [Event("x", None, {0.0: (0.5, 0, 1.5, 1)})]}, "all from 0 to 1"),
    ({"video": "a.mp4", "events": [Event("x", None, {2.0: (0.5, 0, 1.0, 1)})]}, "the time 2 of a box"),
])  # fmt: skip
def test_what_is_wrong_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"annotation 'clip': .*{said}"):
        Annotation(**{"id": "clip", "width": 20, "height": 10, "events": [], **fields})
