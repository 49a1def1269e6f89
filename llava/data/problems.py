"""What is wrong with records: each problem with its place and kind, and all of them as one text with remedies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.data.captions import CONTROL, DOUBTFUL, EMPTY, MISPLACED, NEAR_MISS, ORDER
from llava.data.json_records import CONVERT
from llava.data.keys import UNREAD
from llava.data.paths import OUTSIDE
from llava.data.variables import COORDINATES
from llava.errors import counted, show

REMEDIES = {
    "not JSON": "mend or delete the line",
    "malformed": 'a record is {"id": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}; '
    f"{CONVERT}",
    "no id": "give every record an id of its own, or take the key out: it is then called by its file and place",
    "duplicate id": "give every record an id of its own",
    "count mismatch": f"write {DEFAULT_VIDEO_TOKEN} or {DEFAULT_IMAGE_TOKEN} once for each file that the record names",
    "reserved token": "take the token out of the text; the program itself writes visual tokens and the end of text",
    EMPTY: "write a caption into a gpt turn, or delete the record",
    MISPLACED: "placeholders stand in human turns, each before the words about it; a tag that is meant as a word is "
    "written in another way",
    ORDER: "a chat format (--version) takes a system turn, if any, and then human and gpt in turns, the question empty "
    "where there is none; --version plain takes any order",
    CONTROL: "take it out of the text; it is left of another encoding or of a binary file",
    DOUBTFUL: "delete the record if that stands for a caption that is missing",
    NEAR_MISS: f"write {DEFAULT_VIDEO_TOKEN} or {DEFAULT_IMAGE_TOKEN} where one is meant, exactly so",
    UNREAD: 'write the file under "video" or "image" and its placeholder into the text, or delete the key',
    "repeated key": "keep one of them: which one counts is for the reader of the JSON to choose",
    "bad split": "meta.split counts frames, [first, last] from 0, both included; multiply seconds by the frame rate",
    COORDINATES: "`variables` hold a number from 0 to 1 for each coordinate placeholder of the text, in reading order "
    "(docs/data.md); they and coordinate tokens need --mm_coordinates True",
    OUTSIDE: "write it relative to --video_folder / --image_folder, or allow every path with --allow_absolute_paths",
    "missing file": "put the file there, or correct the path or --video_folder / --image_folder",
}
"""What to do about a kind of problem, where its message does not say so itself."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one record; `source` says where the record stands."""

    source: str
    record_id: str
    kind: str
    message: str

    def __post_init__(self) -> None:
        """Messages hold names and text of others; they stay one line that can be written anywhere."""
        object.__setattr__(self, "message", show(self.message))


def format_problems(problems: Sequence[Problem], limit: int | None = 20, noun: str = "problem") -> str:
    """A text that groups the problems by kind, with counts and remedies, and shows about `limit` of them (or all)."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    sources = len({p.source for p in problems})
    lines = [f"{counted(len(problems), noun)} in {counted(sources, 'record')}"]
    share = len(problems) if limit is None else limit // max(len(kinds), 1)
    for kind, group in kinds.items():
        remedy = f" ({REMEDIES[kind]})" if kind in REMEDIES else ""
        lines.append(f"  {kind}: {len(group)}{remedy}")
        lines += [
            f"    {show(p.source)}{f' id {p.record_id!r}' if p.record_id else ''}: {p.message}" for p in group[:share]
        ]
        if len(group) > share > 0:
            lines.append(f"    ... and {len(group) - share} more")
    return "\n".join(lines)
