"""Boxes and spans as SVG: places, kinds, which frames are drawn."""

from __future__ import annotations

from xml.etree import ElementTree

from llava.report.boxes import SAID, TRUE, Marks, chosen, frames_svg, place_of, time_line

BOX, OTHER = (0.1, 0.2, 0.5, 0.8), (0.0, 0.0, 1.0, 0.25)
SVG = "{http://www.w3.org/2000/svg}"


def rects(svg):
    root = ElementTree.fromstring(f'<div xmlns="http://www.w3.org/2000/svg">{svg}</div>')
    return [
        (r.get("class"), *(float(r.get(k)) for k in ("x", "y", "width", "height"))) for r in root.iter(f"{SVG}rect")
    ]


def test_an_image_has_its_boxes_and_no_time_line():
    marks = Marks.of_example({"truth": {"box": BOX, "span": None, "listed": []}, "said": {"box": OTHER}})
    drawn = frames_svg({0: "data:x"}, 1, marks)
    assert rects(drawn) == [("true", 10, 20, 40, 60), ("said", 0, 0, 100, 25)]
    assert "timeline" not in drawn and "true box 0.10, 0.20, 0.50, 0.80; answered box" in drawn


def test_boxes_are_on_their_frames_and_spans_below():
    true, said = {"boxes": {"33": BOX}, "span": [0.0, 0.5]}, {"boxes": {"66": OTHER}, "span": [0.25, 1.0]}
    marks = Marks.of_example({"truth": true, "said": said})
    drawn = frames_svg({i: f"data:{i}" for i in range(4)}, 4, marks)
    frames = drawn.split("<svg")[1:]
    assert [rects(f"<svg{frame.split('</div>')[0]}") for frame in frames[:4]] == [
        [], [("true", 10, 20, 40, 60)], [("said", 0, 0, 100, 25)], [],
    ]  # fmt: skip
    assert rects(f"<svg{frames[4]}") == [("true", 0, 3, 400, 9), ("said", 200, 14, 600, 9)]
    assert frames[4].count('d="M') == 5, "a line, and a tick a frame"


def test_corners_in_the_wrong_order_and_markup_do_no_harm():
    assert rects(frames_svg({0: 'x"><script>'}, 1, Marks({SAID: [(0.9, 0.9, 0.1, 0.1)]}))) == [("said", 90, 90, 0, 0)]
    assert rects(time_line({SAID: (0.8, 0.2)})) == [("said", 640, 14, 2, 9)]


def test_which_frames_are_drawn():
    boxed = Marks(frames={TRUE: {place_of(i, 20): BOX for i in range(5, 17)}, SAID: {99: BOX}})
    assert chosen(4, boxed) == [0, 1, 2, 3], "few are drawn all"
    assert chosen(20, boxed) == [5, 7, 10, 12, 15, 19]
    assert chosen(100, Marks()) == [0, 20, 40, 59, 79, 99]
    assert Marks().is_empty and not boxed.is_empty and not Marks(spans={SAID: (0, 1)}).is_empty
