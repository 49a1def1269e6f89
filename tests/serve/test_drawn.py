"""Answers drawn on frames: what is read of them, the CLI's file, the page."""

from __future__ import annotations

import numpy as np
import pytest

from llava.eval.captioning import Caption, Captioner
from llava.report.boxes import SAID
from llava.serve.cli import main
from llava.serve.drawn import drawn_html, marks_of
from llava.serve.looking import OWN, Look
from llava.serve.result import look_html

BOX = "[<WIDTH-010><HEIGHT-020><WIDTH-050><HEIGHT-080>]"
FRAMES = np.zeros((4, 16, 16, 3), np.uint8)


def test_what_a_text_says():
    one = marks_of(f"un gatto {BOX} e un cane {BOX}")
    assert len(one.every[SAID]) == 2 and not one.frames[SAID] and not one.spans
    many = marks_of(f"{{<TEMP-000><TEMP-033>}} <TEMP-000>:{BOX} <TEMP-033>:{BOX}")
    assert list(many.frames[SAID]) == [0, 33] and not many.every[SAID] and many.spans[SAID] == (0, pytest.approx(1 / 3))
    assert marks_of("un gatto <TEMP-099>").is_empty


def test_boxes_of_frames_are_on_their_frames_and_others_on_all():
    assert drawn_html(FRAMES, f"<TEMP-033>:{BOX}").count("<rect") == 1
    assert drawn_html(FRAMES, BOX).count("<rect") == 4
    line = drawn_html(FRAMES, "{<TEMP-000><TEMP-050>}")
    assert line.count("<rect") == 1 and 'class="timeline"' in line
    assert drawn_html(FRAMES, "un gatto") == ""


def test_the_command_writes_a_page(assets, run, tmp_path, monkeypatch, capsys):
    texts = iter([f"<b> {BOX}", "un gatto"])
    monkeypatch.setattr(Captioner, "caption_pixels", lambda *args, **kwargs: Caption(next(texts), True, 9))
    clips = [str(assets.clips / f"clip{i}.mp4") for i in (0, 1)]
    page = tmp_path / "drawn.html"
    assert main(["--model-path", str(run), "--device", "cpu", "--video", *clips, "--show", str(page)]) == 0
    shown = page.read_text()
    assert shown.count("<rect") == 2 == shown.count("<h2>") and shown.count("<image ") == 4
    assert "&lt;b&gt; [&lt;WIDTH-010" in shown and "no box and no span that can be read" in shown
    assert "clip0.mp4\t<b>" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--model-path", str(run), "--video", *clips, "--show", str(tmp_path / "no" / "x.html")])
    assert "--show" in capsys.readouterr().err


def test_the_page_draws_the_same():
    seen = Look(FRAMES, Caption(BOX, True, 4), None, Caption("", True, 1), {OWN: []})
    assert drawn_html(FRAMES, BOX) in look_html(seen, "a.mp4")
    plain = Look(FRAMES, Caption("un gatto", True, 4), None, Caption("", True, 1), {OWN: []})
    assert "Where and when" not in look_html(plain, "a.mp4")
