"""What the page shows of a clip, as HTML: frames, captions, words coloured by what the video did for them. Pure."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from llava.errors import show
from llava.eval.captioning import Caption
from llava.report.boxes import CSS as BOXES_CSS
from llava.serve.drawn import LEGEND, drawn_html
from llava.serve.looking import OWN, Look
from llava.serve.word_gains import Word

FULL = 3.0
"""Nats at which a colour is full: the word is 20 times as likely, or as unlikely."""
HELPED, HURT = (86, 156, 230), (240, 150, 60)
"""Blue and orange, which colour-blind readers tell apart; words stay black on both."""
CAUTION = (
    f"<p>The words of &ldquo;{OWN}&rdquo; are the model&rsquo;s own choice with the clip in view, so that most of "
    "them gain; a gain does not say that a word is right. A black clip is one more clip to the model, and not the "
    "absence of one.</p>"
)


def colour_of(gain: float) -> str:
    """White for 0, towards blue where the video helped and orange where it hurt, full from `FULL` nats on."""
    share = min(abs(gain) / FULL, 1.0) if math.isfinite(gain) else 0.0
    full = HELPED if gain > 0 else HURT
    return "#" + "".join(f"{round(255 + (part - 255) * share):02x}" for part in full)


def words_html(words: Sequence[Word]) -> str:
    """Each word on its colour, the numbers shown when it is hovered over."""
    spans = [
        f'<span style="background:{colour_of(w.gain)}" title="{numbers(w)}">{escape(show(w.text))}</span>'
        for w in words
    ]
    return f'<p class="words">{" ".join(spans)}</p>'


def numbers(word: Word) -> str:
    """The true numbers of a word."""
    return f"{_nats(word.gain)} nats: loss {word.with_clip:.3f} with the clip, {word.with_black:.3f} with a black one"


def _nats(gain: float) -> str:
    """With its sign, and no -0.000."""
    return f"{round(gain, 3) + 0.0:+.3f}"


def legend_html() -> str:
    """What the colours mean."""
    stops = (
        (-FULL, f"&minus;{FULL:g} or less: the black clip made it likelier"),
        (-FULL / 3, f"&minus;{FULL / 3:g}"),
        (0.0, "0: no difference"),
        (FULL / 3, f"+{FULL / 3:g}"),
        (FULL, f"+{FULL:g} nats or more: the clip made it {math.exp(FULL):.0f} times likelier"),
    )
    marks = [f'<span><i style="background:{colour_of(gain)}"></i>{text}</span>' for gain, text in stops]
    return f'<p class="legend">{"".join(marks)}</p>'


def table_html(words: Sequence[Word]) -> str:
    """The numbers of all words, for those who cannot hover."""
    rows = "".join(
        f"<tr><td>{escape(show(w.text))}</td><td>{w.with_clip:.3f}</td><td>{w.with_black:.3f}</td>"
        f"<td>{_nats(w.gain)}</td></tr>"
        for w in words
    )
    return (
        "<details><summary>The numbers</summary><table><tr><th>word</th><th>loss with the clip</th>"
        f"<th>with a black one</th><th>gain</th></tr>{rows}</table></details>"
    )


def total_html(words: Sequence[Word]) -> str:
    """What the video did for a whole text."""
    with_clip, with_black = sum(w.with_clip for w in words), sum(w.with_black for w in words)
    gain = _nats(with_black - with_clip)
    return f"<p>In all {gain} nats: loss {with_clip:.3f} with the clip, {with_black:.3f} with a black one.</p>"


def caption_html(title: str, caption: Caption | None, missing: str = "") -> str:
    """A row of captions; where there is none, why."""
    if caption is None:
        text = f"<em>not measured: {escape(show(missing))}</em>"
    else:
        text = escape(show(caption.text)) or "<em>(nothing: the model ends at once)</em>"
        text += "" if caption.ended else f" <em>(cut after {caption.tokens} tokens)</em>"
    return f"<dt>{escape(show(title))}</dt><dd>{text}</dd>"


def frames_html(frames: np.ndarray) -> str:
    """Frames (T, S, S, 3) uint8 as pictures in the page, without loss."""
    images = []
    for number, frame in enumerate(frames, 1):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        images.append(f'<img alt="frame {number}" src="data:image/png;base64,{data}">')
    count, side = frames.shape[:2]
    return (
        f'<div class="frames">{"".join(images)}</div>'
        f"<p>{count} frames of {side} &times; {side} pixels: all that the model sees of the clip.</p>"
    )


def look_html(seen: Look, clip: str, other: str = "", missing_other: str = "", note: str = "") -> str:
    """All that is shown of a clip.

    Args:
        clip, other: names of the clips.
        missing_other: why there is no other.
        note: what is to be known of the clip.
    """
    captions = [
        caption_html(f"This clip ({clip})", seen.caption),
        caption_html(f"Another clip ({other})" if seen.other else "Another clip", seen.other, missing_other),
        caption_html("A black clip", seen.black),
    ]
    same = ""
    if seen.caption.text == seen.black.text:
        same = "<p><strong>The black clip gives the same caption: this one owes nothing to the video.</strong></p>"
    parts = [
        f"<h3>{escape(show(title))}</h3>{words_html(words)}{total_html(words)}{table_html(words)}"
        for title, words in seen.texts.items()
    ]
    about = f'<p class="note">{escape(show(note))}</p>' if note else ""
    drawn = drawn_html(seen.frames, seen.caption.text)
    where = f"<h2>Where and when</h2>{drawn}<p>{LEGEND}</p>" if drawn else ""
    return (
        f'<section class="look">{frames_html(seen.frames)}{about}{where}<dl>{"".join(captions)}</dl>{same}'
        f"<h2>How much the video helped each word</h2>{legend_html()}{''.join(parts)}{CAUTION}</section>"
    )


def message_html(message: str) -> str:
    """A message in the place of a result."""
    return f'<section class="look"><p class="wrong" role="alert">{escape(show(message))}</p></section>'


def hint_html(hint: str) -> str:
    """What stands in the place of a result before there is one."""
    return f'<section class="look"><p class="note">{escape(hint)}</p></section>'


CSS = (
    BOXES_CSS
    + """
#examples, #examples .grid-wrap { min-height: 0; height: auto; max-height: none; padding: 0; }
#examples .grid-container { grid-template-columns: repeat(auto-fill, minmax(72px, 1fr)); }
.look { line-height: 1.5; overflow-wrap: anywhere; }
.look .frames { display: flex; flex-wrap: wrap; gap: 6px; }
.look .frames img { width: 168px; max-width: calc(50% - 3px); height: auto; border-radius: 4px; margin: 0; }
.look dl { margin: 12px 0; }
.look dt { font-size: .85em; opacity: .75; margin-top: 8px; }
.look dd { margin: 0; font-size: 1.1em; }
.look h2 { font-size: 1.15em; margin: 20px 0 4px; }
.look h3 { font-size: 1em; margin: 14px 0 4px; }
.look .words { line-height: 2.1; font-size: 1.1em; }
.look .words span { color: #111; padding: 3px 6px; border-radius: 4px; border: 1px solid #bbb; cursor: help;
  display: inline-block; line-height: 1.3; }
.look .legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .85em; }
.look .legend i { display: inline-block; width: 14px; height: 14px; border: 1px solid #bbb; border-radius: 3px;
  margin-right: 5px; vertical-align: -2px; }
.look table { border-collapse: collapse; font-size: .9em; width: auto; }
.look th, .look td { text-align: right; padding: 1px 6px; font-weight: normal; border: 1px solid #8886; }
.look td { white-space: nowrap; overflow-wrap: normal; }
.look th { opacity: .75; } .look th:first-child, .look td:first-child { text-align: left; }
.look .wrong { border-left: 4px solid #c62828; padding: 8px 12px; }
.look .note { font-size: .9em; opacity: .8; }
"""
)
