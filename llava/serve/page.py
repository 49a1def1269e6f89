"""What the page answers, apart from what draws it: HTML for a clip, or a message of what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

from llava.errors import show
from llava.eval.captioning import Captioner
from llava.serve.examples import Example
from llava.serve.looking import look
from llava.serve.result import look_html, message_html

NO_OTHER = "give another clip to compare with"


class Page:
    """What the page answers, apart from Gradio: HTML for a clip, or a message of what is wrong with it.

    Args:
        examples: the clips that can be chosen, and stand in for the other clip.
    """

    def __init__(self, captioner: Captioner, examples: Sequence[Example], max_new_tokens: int = 64) -> None:
        self.captioner, self.examples, self.max_new_tokens = captioner, list(examples), max_new_tokens

    def show_file(
        self, path: str | None, other: str | None = None, prompt: str | None = "", given: str | None = ""
    ) -> str:
        """A clip that was dropped; the other one is `other`, or else the first example."""
        if not path:
            return message_html("Drop a clip first, or choose an example.")
        return self._show(Example(path), Example(other) if other else self._other(None), prompt, given)

    def show_example(
        self, index: int, other: str | None = None, prompt: str | None = "", given: str | None = ""
    ) -> str:
        """An example; the other clip is `other`, or else the next example."""
        return self._show(self.examples[index], Example(other) if other else self._other(index), prompt, given)

    def _other(self, index: int | None) -> Example | None:
        if index is None:
            return self.examples[0] if self.examples else None
        return self.examples[(index + 1) % len(self.examples)] if len(self.examples) > 1 else None

    def _show(self, clip: Example, other: Example | None, prompt: str | None, given: str | None) -> str:
        try:
            pixels = self.captioner.read_pixels(clip.path, clip.split)
            beside = self.captioner.read_pixels(other.path, other.split) if other else None
            seen = look(
                self.captioner,
                pixels,
                beside,
                (prompt or "").strip(),
                (given or "").strip(),
                clip.caption,
                self.max_new_tokens,
            )
        except (ValueError, OSError) as error:  # VideoError among them: it names the file, and says what to do.
            return message_html(self._by_name(str(error), clip, other))
        return look_html(seen, clip.name, other.name if other else "", NO_OTHER, clip.note)

    @staticmethod
    def _by_name(message: str, *clips: Example | None) -> str:
        """A message without the folders that uploads lie in, and without flags of training."""
        for clip in filter(None, clips):
            message = message.replace(show(clip.path), show(clip.name))
        return message.replace(", or leave it out with --on_bad_sample skip", "")
