"""Public forms of annotations of where and when: ST-Align's benchmark, RefCOCO, Charades-STA, HC-STVG, VidSTG.

| form | known by | boxes | times |
| --- | --- | --- | --- |
| ST-Align | `video_path` and `meta` with `spatial_token`, `time_token` | x, y, width, height by frame | frames |
| RefCOCO | `images` with `caption`, `annotations` with `bbox` (as MDETR has it) | x, y, width, height | |
| Charades-STA | lines `ID start end##sentence` | | seconds |
| HC-STVG | an object by video, with `bbox` and `st_frame` | x, y, width, height, one a frame | frames from 1 |
| VidSTG | `vid`, `used_segment`, `temporal_gt` | VidOR's `trajectories`, in other files | frames, the end excluded |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llava.data.convert.columns import language_code
from llava.data.convert.marked import WRONG, Marked
from llava.data.convert.rows import UNREADABLE, Fault, decode_lines, open_source, read_text
from llava.data.json_records import DatasetError
from llava.errors import UserError, show

Items = Iterator[Marked | Fault]
_CHARADES = re.compile(r"(\S+)\s+(\d+(?:\.\d*)?)\s+(\d+(?:\.\d*)?)\s*##(.*)")
HEAD = 1 << 20
MARKS = (b'"temporal_gt"', b'"spatial_token"', b'"time_token"', b'"st_frame"', b'"images"', b"##")
"""What stands in the first bytes of one of the forms."""
PICKLE, PICKLED = b"\x80", (".p", ".pkl", ".pickle")
"""How a pickle begins, and its file's name ends."""
FOREIGN = (AttributeError, LookupError, TypeError, ValueError, OverflowError)
"""What reading a row may end in that is of no form at all, or VidOR's file of it."""
STVG_ASK = (
    "Please firstly give the timestamps, and then give the spatial bounding box corresponding to each timestamp in the "
    "time period."
)
SVG_ASK = "Please give the spatial bounding box corresponding to each timestamp in the time period."
ELC_ASK = (
    "Please firstly give the end timestamp, then give the event associated with the object/subject, finally give the "
    "spatial bounding box corresponding to each timestamp in the time period."
)
"""What LLaVA-ST adds to the questions of its benchmark."""


@dataclass(frozen=True)
class MarkedSource:
    """A source of annotations: its form, by what it is known, the tasks that it serves, and what it holds."""

    form: str
    why: str
    tasks: tuple[str, ...]
    items: Items
    is_image: bool = False


def open_marked(
    source: str | Path, encoding: str = "utf-8", language: str = "", annotations: str | None = None
) -> MarkedSource | None:
    """The annotations of a file; None where it has none of these forms.

    Args:
        language: of HC-STVG's sentences, which has two; a code.
        annotations: the folder of VidOR's files, which have the boxes of VidSTG.

    Raises:
        DatasetError: when it cannot be read, or is a pickle, or VidSTG lacks its boxes.
    """
    path = Path(source)
    if path.is_dir():
        return None
    with open_source(path) as file:
        head = file.read(HEAD)
    if head[:1] == PICKLE and path.suffix in PICKLED:
        raise DatasetError(
            f"{show(path)}: is a pickle, as RefCOCO's refs(unc).p: reading one may run any program; the same "
            "expressions are in MDETR's finetune_refcoco_train.json and its like"
        )
    if not any(mark in head for mark in MARKS):
        return None
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"{", b"["):
        return _charades(path, encoding)
    rows = _values(path, encoding)
    if rows is None:
        return None
    if isinstance(rows, dict):
        first = next(iter(rows.values()), None)
        if isinstance(rows.get("images"), list) and isinstance(rows.get("annotations"), list):
            return _refcoco(rows, str(path))
        if isinstance(first, dict) and {"bbox", "st_frame"} <= first.keys():
            items = _each(((f"{path}, {name!r}", (name, value)) for name, value in rows.items()), _hc_stvg(language))
            return MarkedSource("HC-STVG", "videos with bbox and st_frame", ("STVG", "SVG", "ELC", "TVG", "TR"), items)
        return None
    first = rows[0][1] if rows else None
    if not isinstance(first, dict):
        return None
    if {"vid", "temporal_gt"} <= first.keys():
        if annotations is None:
            raise DatasetError(
                f"{show(path)}: is VidSTG, whose boxes are in VidOR's files: name their folder with --annotations DIR"
            )
        files = {file.stem: file for file in sorted(Path(annotations).rglob("*.json"))}
        if not files:
            raise DatasetError(f"--annotations {show(annotations)}: holds no .json file of VidOR")
        items = _each(iter(rows), _vidstg(files))
        return MarkedSource("VidSTG", "vid and temporal_gt", ("STVG", "SVG", "ELC", "TVG", "TR"), items)
    if "video_path" in first and isinstance(first.get("meta"), dict) and "time_token" in first["meta"]:
        return MarkedSource(
            "ST-Align's benchmark", "video_path and meta.time_token", ("STVG", "SVG", "ELC"),
            _each(iter(rows), _st_align),
        )  # fmt: skip
    return None


def _values(path: Path, encoding: str) -> list[tuple[str, Any]] | dict[str, Any] | None:
    """(place, value) of a JSON list or of JSON lines, or the one object; None for what is none of these."""
    text = read_text(path, encoding)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
            return [(f"{path}:{number}", json.loads(line)) for number, line in lines]
        except (ValueError, RecursionError):
            return None
    if isinstance(content, list):
        return [(f"{path}[{place}]", value) for place, value in enumerate(content)]
    return content if isinstance(content, dict) else None


def _each(rows: Iterator[tuple[str, Any]], read: Callable[[str, Any], Iterator[Marked]]) -> Items:
    """What `read` gives of each row; a row that lacks a field or has a wrong one is a fault that names it, and one of
    another form a fault.
    """
    for place, value in rows:
        try:
            yield from list(read(place, value))
        except UserError as error:
            yield Fault(place, WRONG, str(error))
        except FOREIGN as error:
            yield Fault(place, WRONG, f"is of another form ({type(error).__name__}: {error})")


def _field(row: Any, name: str, kind: type | tuple[type, ...] = (int, float)) -> Any:
    """A field of a row, `a.b` within another.

    Raises:
        ValueError: when it is not there or of another kind.
    """
    value = row
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) or value == "":
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names: dict[Any, str] = {str: "a text", dict: "an object", list: "a list"}
        wanted = "a number" if int in kinds else names[kinds[0]]
        raise UserError(f"{name}: expected {wanted}, got {value!r:.60}")
    return value


def _whole(row: Any, name: str) -> int:
    """A field of a row that counts frames.

    Raises:
        ValueError: when it is not there, or no whole number: seconds are counted so.
    """
    value = _field(row, name)
    if value != int(value):
        raise UserError(f"{name}: expected a whole number of frames, got {value!r:.60}")
    return int(value)


def _corners(box: Any, name: str) -> tuple[float, float, float, float]:
    """The corners of a box that is x, y, width, height."""
    numbers = (
        [v for v in box if isinstance(v, (int, float)) and not isinstance(v, bool)] if isinstance(box, list) else []
    )
    if len(numbers) != 4 or len(box) != 4:
        raise UserError(f"{name}: expected [x, y, width, height] in pixels, got {box!r:.60}")
    x, y, width, height = map(float, numbers)
    if width <= 0 or height <= 0:
        raise UserError(f"{name}: {box} has no area; it is read as [x, y, width, height] in pixels")
    return x, y, x + width, y + height


def _charades(path: Path, encoding: str) -> MarkedSource | None:
    with open_source(path) as file:
        sample = [line for line in decode_lines(path, islice(file, 20), encoding) if line.strip()]
    if not sample or not _CHARADES.fullmatch(sample[0].strip()):
        return None

    def items() -> Items:
        with open_source(path) as file:
            for number, line in enumerate(decode_lines(path, file, encoding), 1):
                found = _CHARADES.fullmatch(line.strip())
                place = f"{path}:{number}"
                if found and found[4].strip():
                    yield Marked(place, found[1], found[4], seconds=(float(found[2]), float(found[3])))
                elif line.strip():
                    yield Fault(place, UNREADABLE, f"expected `ID start end##sentence`, got {line.strip()!r:.60}")

    return MarkedSource("Charades-STA", "lines `ID start end##sentence`", ("TVG", "TR"), items())


def _refcoco(content: Mapping[str, Any], where: str) -> MarkedSource | None:
    """MDETR's files: a caption with each image, and the box with the annotation of its `image_id` (of its own `id`, in
    LLaVA-ST's copy).
    """
    first = next((image for image in content["images"] if isinstance(image, dict)), {})
    boxed = next((a for a in content["annotations"] if isinstance(a, dict)), {})
    if "caption" not in first or "bbox" not in boxed:
        return None
    key = "image_id" if "image_id" in boxed else "id"
    by_image: dict[Any, list[Any]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation.get(key) if isinstance(annotation, dict) else None, []).append(annotation)

    def read(place: str, image: Any) -> Iterator[Marked]:
        number = _field(image, "id", (int, float, str))
        size = int(_field(image, "width")), int(_field(image, "height"))
        found = by_image.get(number, [])
        if len(found) != 1:
            raise UserError(f"annotations.{key}: {len(found)} annotations of image {number!r}, and one was expected")
        box = _corners(found[0].get("bbox"), "annotations.bbox")
        name, caption = _field(image, "file_name", str), _field(image, "caption", str)
        yield Marked(place, name, caption, size, {0: box}, is_image=True)

    rows = ((f"{where}, images[{place}]", image) for place, image in enumerate(content["images"]))
    return MarkedSource(
        "RefCOCO", "images with captions, annotations with bbox", ("REC", "REG"), _each(rows, read), True
    )


def _hc_stvg(language: str) -> Callable[[str, Any], Iterator[Marked]]:
    key = {"": "English", "en": "English", "zh": "Chinese"}.get(language_code(language), "")

    def read(place: str, named: tuple[str, Any]) -> Iterator[Marked]:
        clip, row = named
        if "img_size" in row:
            sides = _field(row, "img_size", list)
            if len(sides) != 2 or not all(isinstance(v, int) for v in sides):
                raise UserError(f"img_size: expected [height, width], got {sides!r:.60}")
            height, width = sides
        else:
            width, height = int(_field(row, "width")), int(_field(row, "height"))
        if "caption" not in row and not key:
            raise UserError(f"English, Chinese: it has no sentence in {language}")
        text = _field(row, "caption" if "caption" in row else key, str)
        boxes, start = _field(row, "bbox", list), _whole(row, "st_frame")
        end = row.get("ed_frame")
        if isinstance(end, int) and end - start + 1 not in (len(boxes), len(boxes) + 1):
            raise UserError(f"bbox: {len(boxes)} boxes for frames {start} to {end}")
        if not boxes or start < 1:
            raise UserError(
                f"st_frame: expected a frame from 1 with boxes from it on, got {start} and {len(boxes)} boxes"
            )
        at = {start - 1 + n: _corners(box, f"bbox[{n}]") for n, box in enumerate(boxes)}
        frames, total = (start - 1, start - 2 + len(boxes)), _whole(row, "img_num")
        yield Marked(place, clip, text, (width, height), at, frames, num_frames=total)

    return read


def _vidstg(files: Mapping[str, Path]) -> Callable[[str, Any], Iterator[Marked]]:
    def read(place: str, row: Any) -> Iterator[Marked]:
        name = _field(row, "vid", str)
        if name not in files:
            raise UserError(f"vid: there is no {name}.json among VidOR's files (--annotations)")
        vidor = json.loads(files[name].read_text(encoding="utf-8"))
        trajectories = _field(vidor, "trajectories", list)
        size = int(_field(row, "width")), int(_field(row, "height"))
        segment, event = (
            (_whole(row, f"{key}.begin_fid"), _whole(row, f"{key}.end_fid") - 1)
            for key in ("used_segment", "temporal_gt")
        )
        clip, total = vidor.get("video_path") or name, _whole(row, "frame_count")
        for key in ("captions", "questions"):
            for query in row.get(key) or []:
                target = _field(query, "target_id", int)
                boxes = {}
                for frame in range(event[0], event[1] + 1):
                    found = (
                        [b for b in trajectories[frame] if b.get("tid") == target] if frame < len(trajectories) else []
                    )
                    if len(found) != 1:
                        raise UserError(f"{key}.target_id: {len(found)} boxes of object {target} in frame {frame}")
                    corners = found[0].get("bbox")
                    boxes[frame] = [float(_field(corners, side)) for side in ("xmin", "ymin", "xmax", "ymax")]
                yield Marked(
                    place, clip, _field(query, "description", str), size, boxes, event, segment=segment,
                    num_frames=total, is_question=key == "questions",
                )  # fmt: skip

    return read


def _st_align(place: str, row: Any) -> Iterator[Marked]:
    """A record of LLaVA-ST's benchmark: STVG tells no time, SVG both, ELC the start."""
    turns = _field(row, "conversations", list)
    texts = [_field(turn, "value", str) for turn in turns]
    if len(texts) != 2:
        raise UserError(f"conversations: expected a question and an answer, got {len(texts)} turns")
    size = int(_field(row, "meta.width")), int(_field(row, "meta.height"))
    split = _field(row, "meta.split", list)
    times, places = _field(row, "meta.time_token", dict), _field(row, "meta.spatial_token", dict)
    start, end = (_whole(times, name) for name in ("<s>", "<e>"))
    boxes = {
        int(f): _corners(b, f"meta.spatial_token.<bboxes>.{f}") for f, b in _field(places, "<bboxes>", dict).items()
    }
    question, answer = (text.replace("<video>", "").strip() for text in texts)
    if "{" in question or "}" in question:
        raise UserError("conversations: a brace in the question, which stands for a span")
    told = [name for name in ("<s>", "<e>") if name in question]
    task = {(): "STVG", ("<s>", "<e>"): "SVG", ("<s>",): "ELC"}.get(tuple(told))
    if task is None:
        raise UserError("conversations: the question tells the end and not the start, and is of no task that is known")
    if len(split) != 2 or not all(isinstance(v, int) for v in split):
        raise UserError(f"meta.split: expected [first, last] in frames, got {split!r:.60}")
    event = question
    if task == "SVG":
        question, event = question.replace("From <s> to <e>", "During {span}"), question.replace("From <s> to <e>", "")
    elif task == "ELC":
        event = answer.replace("Ends in <e>, ", "").replace(" Object bounding box: <bboxes>", "")
        question = question.replace("<s>", "{start}")
        for name in places:
            question = question.replace(name, "{box}")
    if left := re.search(r"<[a-z_]+\d*>", question + event):
        raise UserError(f"conversations: {left[0]} is told where a {task} record does not tell it")
    ask = {"STVG": STVG_ASK, "SVG": SVG_ASK, "ELC": ELC_ASK}[task]
    yield Marked(
        place, _field(row, "video_path", str), event.strip(" ,."), size, boxes, (start, end),
        segment=(split[0], split[1]), task=task, question=f"{question} {ask}",
    )  # fmt: skip
