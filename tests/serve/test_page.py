"""What the page answers, without Gradio."""

from __future__ import annotations

import re
from html import unescape

import pytest

from llava.eval.captioning import Captioner
from llava.serve.examples import Example
from llava.serve.page import NO_OTHER, Page


@pytest.fixture(scope="module")
def page(assets, run):
    examples = [Example(str(assets.clips / f"clip{i}.mp4"), caption="Un gatto nero.", note="Seen.") for i in range(2)]
    return Page(Captioner.from_pretrained(run, "cpu"), examples, max_new_tokens=3)


def text_of(html: str) -> str:
    return unescape(re.sub("<[^>]+>", "|", html))


def test_an_example_stands_beside_the_next_with_its_true_caption(page):
    text = text_of(page.show_example(1))
    assert "This clip (clip1.mp4)" in text and "Another clip (clip0.mp4)" in text and "A black clip" in text
    assert "The true caption" in text and "Seen." in text
    assert "This clip (clip0.mp4)" in text_of(page.show_example(0, prompt=None, given=None))


def test_a_file_stands_beside_the_one_that_is_named_or_an_example(assets, page):
    path = str(assets.clips / "clip2.mp4")
    text = text_of(page.show_file(path))
    assert "This clip (clip2.mp4)" in text and "Another clip (clip0.mp4)" in text and "The true caption" not in text
    assert "Another clip (clip3.mp4)" in text_of(page.show_file(path, str(assets.clips / "clip3.mp4"), " ", "Un cane."))
    assert "Your text" in text_of(page.show_file(path, None, "", "Un cane."))
    alone = Page(page.captioner, [], max_new_tokens=1)
    assert f"not measured: {NO_OTHER}" in text_of(alone.show_file(path))


def test_what_is_wrong_is_a_message_in_its_place(assets, page, tmp_path):
    bad = tmp_path / "<b>.mp4"
    bad.write_text("no video")
    html = page.show_file(str(bad))
    assert 'role="alert"' in html and "<b>" not in html
    assert text_of(html) == "||<b>.mp4: cannot be opened as a video (it is a text); name a video file||"
    good = str(assets.clips / "clip2.mp4")
    assert "gone.mp4: cannot be opened" in text_of(page.show_file(good, str(tmp_path / "gone.mp4")))
    assert "contains <video>" in text_of(page.show_file(good, None, "Un <video>"))
    assert "give a shorter prompt" in text_of(page.show_file(good, None, "molto " * 600))
    assert "give a shorter text" in text_of(page.show_file(good, None, "", "molto " * 600))
    assert "Drop a clip first" in text_of(page.show_file(None))
    (tmp_path / "cut.mp4").write_bytes((assets.clips / "clip2.mp4").read_bytes()[:900])
    cut = text_of(page.show_file(str(tmp_path / "cut.mp4")))
    assert cut.startswith("||cut.mp4: ") and "on_bad_sample" not in cut
