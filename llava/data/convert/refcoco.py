"""RefCOCO, RefCOCO+ and RefCOCOg: phrases of objects in COCO's images, with their boxes.

| files | known by | phrases | boxes |
| --- | --- | --- | --- |
| MDETR's, one for each split | `images` with `caption` | of the image, one each | of its annotation |
| its own (`refs(unc).p` as JSON, and `instances.json`) | `ref_id` | `sentences` of a ref | of the annotation `ann_id` |

Boxes are x, y, width, height in pixels.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava.data.convert.fields import MarkedSource, corners, each, field, json_values
from llava.data.convert.marked import Marked
from llava.data.json_records import DatasetError
from llava.errors import UserError, show

PICKLED = (".p", ".pkl", ".pickle")
_PICKLE = re.compile(rb"\x80|\([ld]p\d+\r?\n")
"""How a pickle begins; those of Python 2, as RefCOCO's are, with letters."""
INSTANCES = "instances.json"
TASKS = ("REC", "REG")


def refuse_pickle(path: Path, head: bytes) -> None:
    """Refuses a file that begins with `head` where it is a pickle.

    Raises:
        DatasetError: with what turns `refs(unc).p` into JSON.
    """
    if path.suffix in PICKLED and _PICKLE.match(head):
        turn = 'import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], "rb")), open(sys.argv[2], "w"))'
        files = f"{shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.json')))}"
        raise DatasetError(
            f"{show(path)}: is a pickle, as RefCOCO's refs(unc).p, and reading one may run any program. If you trust "
            "where it comes from, make JSON of it, which is read with the instances.json beside it:\n"
            f"  python -c '{turn}' {files}\n"
            "The same phrases are in MDETR's finetune_refcoco_train.json and its like"
        )


def of_mdetr(content: Mapping[str, Any], where: str) -> MarkedSource | None:
    """MDETR's files: a caption with each image, and the box with the annotation of its `image_id` (of its own `id`, in
    LLaVA-ST's copy).
    """
    first = next((image for image in content["images"] if isinstance(image, dict)), {})
    boxed = next((a for a in content["annotations"] if isinstance(a, dict)), {})
    if "bbox" in boxed and "caption" not in first and not any(isinstance(value, str) for value in boxed.values()):
        raise DatasetError(
            f"{show(where)}: holds boxes without phrases, as RefCOCO's {INSTANCES}: give its refs, as JSON, as"
            " the source"
        )
    if "caption" not in first or "bbox" not in boxed:
        return None
    key = "image_id" if "image_id" in boxed else "id"
    by_image: dict[Any, list[Any]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation.get(key) if isinstance(annotation, dict) else None, []).append(annotation)

    def read(place: str, image: Any) -> Iterator[Marked]:
        number = field(image, "id", (int, float, str))
        size = int(field(image, "width")), int(field(image, "height"))
        found = by_image.get(number, [])
        if len(found) != 1:
            raise UserError(f"annotations.{key}: {len(found)} annotations of image {number!r}, and one was expected")
        box = corners(found[0].get("bbox"), "annotations.bbox")
        name, caption = field(image, "file_name", str), field(image, "caption", str)
        yield Marked(place, name, caption, size, {0: box}, is_image=True)

    rows = ((f"{where}, images[{place}]", image) for place, image in enumerate(content["images"]))
    return MarkedSource("RefCOCO", "images with captions, annotations with bbox", TASKS, each(rows, read), True)


def of_refs(rows: Iterator[tuple[str, Any]], where: Path, annotations: str | None) -> MarkedSource:
    """RefCOCO's own files: each sentence of a ref is a phrase of the annotation `ann_id`, which has the box; each ref
    has its `split`.

    Args:
        rows: (place, ref): `ref_id`, `ann_id`, `image_id`, `split` and `sentences` (each `sent` or `raw`).
        where: the file of refs.
        annotations: `instances.json`, or a folder with it; None for the one beside the refs.

    Raises:
        DatasetError: when there are no instances.
    """
    given = Path(annotations) if annotations is not None else where.parent
    path = given / INSTANCES if given.is_dir() else given
    if not path.is_file():
        raise DatasetError(
            f"{show(where)}: holds RefCOCO's refs, whose boxes are in {INSTANCES}: there is no {show(path)}; name it "
            "with --annotations FILE"
        )
    content = json_values(path, "utf-8")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise DatasetError(
            f"{show(path)}: is no {INSTANCES} of RefCOCO: expected an object with images and annotations"
        )
    boxed, images = (
        {value.get("id"): value for value in content[key] if isinstance(value, dict)}
        for key in ("annotations", "images")
    )

    def sentences() -> Iterator[tuple[str, tuple[Any, Any]]]:
        for place, ref in rows:
            found = ref.get("sentences") if isinstance(ref, dict) else None
            if isinstance(found, list) and found:
                yield from ((f"{place}.sentences[{n}]", (ref, sentence)) for n, sentence in enumerate(found))
            else:
                yield place, (ref, None)

    def read(place: str, phrase: tuple[Any, Any]) -> Iterator[Marked]:
        ref, sentence = phrase
        if sentence is None:
            raise UserError("sentences: expected a list of objects with sent or raw")
        number, image_id = field(ref, "ann_id"), field(ref, "image_id")
        if number not in boxed:
            raise UserError(f"ann_id: there is no annotation {number} in {path.name}")
        annotation = boxed[number]
        if annotation.get("image_id") != image_id:
            raise UserError(
                f"image_id: {image_id}, and annotation {number} in {path.name} is of image {annotation.get('image_id')}"
            )
        if image_id not in images:
            raise UserError(f"image_id: there is no image {image_id} in {path.name}")
        image = images[image_id]
        size = int(field(image, "width")), int(field(image, "height"))
        box, name = corners(annotation.get("bbox"), "annotations.bbox"), field(image, "file_name", str)
        text = field(sentence, "sent" if "sent" in sentence else "raw", str)
        yield Marked(place, name, text, size, {0: box}, is_image=True, split=field(ref, "split", str))

    why = f"refs with ref_id, boxes of {show(path)}"
    return MarkedSource("RefCOCO's own files", why, TASKS, each(sentences(), read), True)
