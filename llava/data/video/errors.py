"""What is said of a video or image that cannot be read."""

from __future__ import annotations

from llava.errors import UserError, show

REENCODE = (
    "re-encode it (ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4), or leave it out with --on_bad_sample skip"
)
FETCH_AGAIN = "copy or download it again, or leave it out with --on_bad_sample skip"


class VideoError(UserError):
    """A video or image that cannot be read; the message names the file and the remedy.

    `kind` is "unreadable" or "no video stream".
    """

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind

    def __str__(self) -> str:
        return show(self.args[0])


def cause(error: Exception) -> str:
    """What an error says, in one line, without its path and without decord's time stamp and stack trace."""
    text = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), "no message")
    return f"{type(error).__name__}: {text.split(': ', 1)[-1] if text.startswith('[') else text}"
