"""Annotations of known data sets to rows: MSR-VTT, COCO, captions by clip, the lines of MSVD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llava.data.convert.columns import Asked, Columns, choose_columns
from llava.data.convert.rows import NO_CLIP, UNREADABLE, Fault, Read, Row
from llava.data.convert.tables import captions_in, rows_of
from llava.data.json_records import DatasetError
from llava.errors import show


def read_msr_vtt(content: Mapping[str, Any], asked: Asked, where: str) -> tuple[Columns, Iterator[Read]]:
    """`videos` (video_id, split) and `sentences` (video_id, caption). Their times are of the videos that the clips were
    cut from, and are not read.

    Raises:
        DatasetError: when the sentences lack clips or captions, or a video is in two splits.
    """
    sentences = content["sentences"]
    names = list(sentences[0]) if sentences and isinstance(sentences[0], dict) else []
    columns = choose_columns(names, asked, f"{where}, sentences")
    splits: dict[str, str] = {}
    for video in content["videos"]:
        if isinstance(video, dict):
            clip, split = str(video.get("video_id")), str(video.get("split") or "")
            if splits.setdefault(clip, split) != split:
                raise DatasetError(
                    f"{where}: video {show(clip)!r} is in {show(splits[clip])!r} and {show(split)!r}: leave it in one"
                )

    def rows() -> Iterator[Read]:
        for i, sentence in enumerate(sentences):
            place = f"{where}, sentences[{i}]"
            if not isinstance(sentence, dict):
                yield Fault(place, UNREADABLE, f"an object was expected, got {type(sentence).__name__}")
            elif str(sentence.get(columns.clip)) not in splits:
                yield Fault(place, NO_CLIP, f"{sentence.get(columns.clip)!r:.80} is not among the videos")
            else:
                yield from rows_of(sentence, columns, place, splits[str(sentence[columns.clip])])

    return columns, rows()


def read_coco(content: Mapping[str, Any], asked: Asked, where: str) -> tuple[Columns, Iterator[Read]]:
    """`images` (id, file_name) and `annotations` (image_id, caption).

    Raises:
        DatasetError: when they lack these.
    """
    files = {
        i["id"]: str(i["file_name"])
        for i in content["images"]
        if isinstance(i, dict) and {"id", "file_name"} <= i.keys()
    }
    first = next((a for a in content["annotations"] if isinstance(a, dict)), {})
    columns = choose_columns(list(first), asked, f"{where}, annotations")

    def rows() -> Iterator[Read]:
        for i, annotation in enumerate(content["annotations"]):
            place = f"{where}, annotations[{i}]"
            known = files.get(annotation.get("image_id")) if isinstance(annotation, dict) else None
            if known is None:
                yield Fault(place, NO_CLIP, "its image_id is not among the images")
                continue
            yield from rows_of({**annotation, columns.clip: known}, columns, place)

    return columns, rows()


def read_by_clip(content: Mapping[str, Any], where: str) -> Iterator[Read]:
    """An object whose keys are clips: `{"video0": ["Un gatto dorme.", ...], ...}`."""
    for clip, captions in content.items():
        for caption in captions_in(captions):
            yield Row(f"{where}, {clip!r}", clip, caption)


def read_lines(lines: Iterable[str], where: str) -> Iterator[Read]:
    """MSVD's text: a clip and a caption a line, with white space between them; lines that begin with # are remarks."""
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            clip, _, caption = line.strip().replace("\t", " ").partition(" ")
            yield Row(f"{where}:{number}", clip, caption.strip())


def msvd_columns(names: list[str]) -> bool:
    """Whether a table is MSVD's: clips are called `VideoID_Start_End`."""
    return {"VideoID", "Start", "End", "Description"} <= set(names)


def refuse_records(where: str) -> DatasetError:
    """What is said of a file that needs no conversion."""
    return DatasetError(
        f"{where}: holds records that the trainer reads already (conversations): nothing to convert; give it as "
        "--data_path, and see python -m llava.data.check"
    )
