"""What the page shows, as text."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from llava.eval.captioning import Caption
from llava.serve.looking import OWN, TRUE, Look
from llava.serve.result import (
    FULL,
    caption_html,
    colour_of,
    frames_html,
    legend_html,
    look_html,
    message_html,
    table_html,
    total_html,
    words_html,
)
from llava.serve.word_gains import Word

HOSTILE = "<img src=x onerror=\"alert('1')\">&\u202e\n"
SHOWN = "&lt;img src=x onerror=&quot;alert(&#x27;1&#x27;)&quot;&gt;&amp;\\u202e\\n"


def test_colours_run_from_orange_over_white_to_blue():
    assert [colour_of(gain) for gain in (-FULL, 0.0, FULL)] == ["#f0963c", "#ffffff", "#569ce6"]
    assert colour_of(9 * FULL) == colour_of(FULL) and colour_of(-9 * FULL) == colour_of(-FULL)
    assert colour_of(FULL / 2) == "#aacef2"
    assert colour_of(float("nan")) == "#ffffff"


def test_words_carry_their_true_numbers():
    assert words_html([Word("Un", 0.25, 3.25), Word("gatto.", 1.0, 0.9996)]) == (
        '<p class="words"><span style="background:#569ce6" title="+3.000 nats: loss 0.250 with the clip, 3.250 with a '
        'black one">Un</span> <span style="background:#ffffff" title="+0.000 nats: loss 1.000 with the clip, 1.000 '
        'with a black one">gatto.</span></p>'
    )
    assert "In all -0.500 nats: loss 1.500 with the clip, 1.000 with a black one." in total_html(
        [Word("a", 1.0, 0.5), Word("b", 0.5, 0.5)]
    )
    assert "<td>Un</td><td>0.250</td><td>3.250</td><td>+3.000</td>" in table_html([Word("Un", 0.25, 3.25)])


def test_the_legend_has_the_colours_of_its_numbers():
    assert re.findall(r'background:(#\w+)"></i>([^<: ]+)', legend_html()) == [
        ("#f0963c", "&minus;3"), ("#fadcbe", "&minus;1"), ("#ffffff", "0"), ("#c7def7", "+1"), ("#569ce6", "+3"),
    ]  # fmt: skip
    assert "20 times likelier" in legend_html()


def test_captions_that_are_missing_cut_or_empty_say_so():
    assert caption_html("A", Caption("Un gatto.", True, 4)) == "<dt>A</dt><dd>Un gatto.</dd>"
    assert caption_html("A", Caption("Un", False, 64)) == "<dt>A</dt><dd>Un <em>(cut after 64 tokens)</em></dd>"
    assert "the model ends at once" in caption_html("A", Caption("", True, 1))
    assert caption_html("A", None, "no <b>") == "<dt>A</dt><dd><em>not measured: no &lt;b&gt;</em></dd>"


def test_frames_are_in_the_page_without_loss():
    frames = np.random.default_rng(0).integers(0, 255, (2, 5, 5, 3)).astype(np.uint8)
    html = frames_html(frames)
    found = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", html)]
    assert np.array_equal(np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in found]), frames)
    assert "2 frames of 5 &times; 5 pixels" in html


def seen(black: str = "Un cane.", text: str = "Un gatto.") -> Look:
    words = [Word(text, 1.0, 2.0)]
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    return Look(frames, Caption(text, True, 3), None, Caption(black, True, 3), {OWN: words, TRUE: words})


def test_a_caption_that_a_black_clip_has_too_is_called_so():
    assert "owes nothing to the video" not in look_html(seen(), "a.mp4")
    assert "owes nothing to the video" in look_html(seen(black="Un gatto."), "a.mp4")


def test_no_text_of_others_becomes_markup():
    html = look_html(seen(HOSTILE, HOSTILE), HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    assert "<img src=x" not in html and "\u202e" not in html
    assert html.count(SHOWN) >= 9
    assert message_html(HOSTILE) == f'<section class="look"><p class="wrong" role="alert">{SHOWN}</p></section>'
