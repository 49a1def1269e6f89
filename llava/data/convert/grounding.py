"""Public forms of annotations of where and when: ST-Align's benchmark, RefCOCO, Charades-STA, HC-STVG, VidSTG.

| form | known by | boxes | times |
| --- | --- | --- | --- |
| ST-Align | `video_path` and `meta` with `spatial_token`, `time_token` | x, y, width, height by frame | frames |
| RefCOCO | two forms (`refcoco.py`) | x, y, width, height | |
| Charades-STA | lines `ID start end##sentence` | | seconds |
| HC-STVG | an object by video, with `bbox` and `st_frame` | x, y, width, height, one a frame | frames from 1 |
| VidSTG | `vid`, `used_segment`, `temporal_gt` | VidOR's `trajectories`, in other files | frames, the end excluded |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from llava.data.convert.columns import language_code
from llava.data.convert.fields import Items, MarkedSource, corners, each, field, json_values, whole
from llava.data.convert.marked import Marked
from llava.data.convert.refcoco import of_mdetr, of_refs, refuse_pickle
from llava.data.convert.rows import UNREADABLE, Fault, decode_lines, open_source
from llava.data.json_records import DatasetError
from llava.errors import UserError, show

_CHARADES = re.compile(r"(\S+)\s+(\d+(?:\.\d*)?)\s+(\d+(?:\.\d*)?)\s*##(.*)")
HEAD = 1 << 20
MARKS = (b'"temporal_gt"', b'"spatial_token"', b'"time_token"', b'"st_frame"', b'"images"', b'"ref_id"', b"##")
"""What stands in the first bytes of one of the forms."""
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


def open_marked(
    source: str | Path, encoding: str = "utf-8", language: str = "", annotations: str | None = None
) -> MarkedSource | None:
    """The annotations of a file; None where it has none of these forms.

    Args:
        language: of HC-STVG's sentences, which has two; a code.
        annotations: the folder of VidOR's files, which have the boxes of VidSTG; or the file with those of
            RefCOCO's refs.

    Raises:
        DatasetError: when it cannot be read, or is a pickle, or VidSTG or RefCOCO lacks its boxes.
    """
    path = Path(source)
    if path.is_dir():
        return None
    with open_source(path) as file:
        head = file.read(HEAD)
    refuse_pickle(path, head)
    if not any(mark in head for mark in MARKS):
        return None
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"{", b"["):
        return _charades(path, encoding)
    rows = json_values(path, encoding)
    if rows is None:
        return None
    if isinstance(rows, dict):
        first = next(iter(rows.values()), None)
        if isinstance(rows.get("images"), list) and isinstance(rows.get("annotations"), list):
            return of_mdetr(rows, str(path))
        if isinstance(first, dict) and {"bbox", "st_frame"} <= first.keys():
            items = each(((f"{path}, {name!r}", (name, value)) for name, value in rows.items()), _hc_stvg(language))
            return MarkedSource("HC-STVG", "videos with bbox and st_frame", ("STVG", "SVG", "ELC", "TVG", "TR"), items)
        return None
    first = rows[0][1] if rows else None
    if not isinstance(first, dict):
        return None
    if {"ref_id", "ann_id"} <= first.keys():
        return of_refs(iter(rows), path, annotations)
    if {"vid", "temporal_gt"} <= first.keys():
        if annotations is None:
            raise DatasetError(
                f"{show(path)}: is VidSTG, whose boxes are in VidOR's files: name their folder with --annotations DIR"
            )
        files = {file.stem: file for file in sorted(Path(annotations).rglob("*.json"))}
        if not files:
            raise DatasetError(f"--annotations {show(annotations)}: holds no .json file of VidOR")
        items = each(iter(rows), _vidstg(files))
        return MarkedSource("VidSTG", "vid and temporal_gt", ("STVG", "SVG", "ELC", "TVG", "TR"), items)
    if "video_path" in first and isinstance(first.get("meta"), dict) and "time_token" in first["meta"]:
        return MarkedSource(
            "ST-Align's benchmark", "video_path and meta.time_token", ("STVG", "SVG", "ELC"),
            each(iter(rows), _st_align), asks="en",
        )  # fmt: skip
    return None


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


def _hc_stvg(language: str) -> Callable[[str, Any], Iterator[Marked]]:
    key = {"": "English", "en": "English", "zh": "Chinese"}.get(language_code(language), "")

    def read(place: str, named: tuple[str, Any]) -> Iterator[Marked]:
        clip, row = named
        if "img_size" in row:
            sides = field(row, "img_size", list)
            if len(sides) != 2 or not all(isinstance(v, int) for v in sides):
                raise UserError(f"img_size: expected [height, width], got {sides!r:.60}")
            height, width = sides
        else:
            width, height = int(field(row, "width")), int(field(row, "height"))
        if "caption" not in row and not key:
            raise UserError(f"English, Chinese: it has no sentence in {language}")
        text = field(row, "caption" if "caption" in row else key, str)
        boxes, start = field(row, "bbox", list), whole(row, "st_frame")
        end = row.get("ed_frame")
        if isinstance(end, int) and end - start + 1 not in (len(boxes), len(boxes) + 1):
            raise UserError(f"bbox: {len(boxes)} boxes for frames {start} to {end}")
        if not boxes or start < 1:
            raise UserError(
                f"st_frame: expected a frame from 1 with boxes from it on, got {start} and {len(boxes)} boxes"
            )
        at = {start - 1 + n: corners(box, f"bbox[{n}]") for n, box in enumerate(boxes)}
        frames, total = (start - 1, start - 2 + len(boxes)), whole(row, "img_num")
        yield Marked(place, clip, text, (width, height), at, frames, num_frames=total)

    return read


def _vidstg(files: Mapping[str, Path]) -> Callable[[str, Any], Iterator[Marked]]:
    def read(place: str, row: Any) -> Iterator[Marked]:
        name = field(row, "vid", str)
        if name not in files:
            raise UserError(f"vid: there is no {name}.json among VidOR's files (--annotations)")
        vidor = json.loads(files[name].read_text(encoding="utf-8"))
        trajectories = field(vidor, "trajectories", list)
        size = int(field(row, "width")), int(field(row, "height"))
        segment, event = (
            (whole(row, f"{key}.begin_fid"), whole(row, f"{key}.end_fid") - 1)
            for key in ("used_segment", "temporal_gt")
        )
        clip, total = vidor.get("video_path") or name, whole(row, "frame_count")
        for key in ("captions", "questions"):
            for query in row.get(key) or []:
                target = field(query, "target_id", int)
                boxes = {}
                for frame in range(event[0], event[1] + 1):
                    found = (
                        [b for b in trajectories[frame] if b.get("tid") == target] if frame < len(trajectories) else []
                    )
                    if len(found) != 1:
                        raise UserError(f"{key}.target_id: {len(found)} boxes of object {target} in frame {frame}")
                    box = found[0].get("bbox")
                    boxes[frame] = [float(field(box, side)) for side in ("xmin", "ymin", "xmax", "ymax")]
                yield Marked(
                    place, clip, field(query, "description", str), size, boxes, event, segment=segment,
                    num_frames=total, is_question=key == "questions",
                )  # fmt: skip

    return read


def _st_align(place: str, row: Any) -> Iterator[Marked]:
    """A record of LLaVA-ST's benchmark: STVG tells no time, SVG both, ELC the start."""
    turns = field(row, "conversations", list)
    texts = [field(turn, "value", str) for turn in turns]
    if len(texts) != 2:
        raise UserError(f"conversations: expected a question and an answer, got {len(texts)} turns")
    size = int(field(row, "meta.width")), int(field(row, "meta.height"))
    split = field(row, "meta.split", list)
    times, places = field(row, "meta.time_token", dict), field(row, "meta.spatial_token", dict)
    start, end = (whole(times, name) for name in ("<s>", "<e>"))
    boxes = {int(f): corners(b, f"meta.spatial_token.<bboxes>.{f}") for f, b in field(places, "<bboxes>", dict).items()}
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
        place, field(row, "video_path", str), event.strip(" ,."), size, boxes, (start, end),
        segment=(split[0], split[1]), task=task, question=f"{question} {ask}",
    )  # fmt: skip
