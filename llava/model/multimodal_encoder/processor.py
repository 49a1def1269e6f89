"""The pixel values that a tower expects, from the file of its own image processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.image_processing_utils import BaseImageProcessor

from llava.config.video import ProcessorSpec
from llava.errors import UserError
from llava.foreign import check_sizes

BICUBIC = 3


def processor_spec(name_or_path: str) -> ProcessorSpec:
    """The pixel values that the image processor of a folder or hub name asks for.

    Raises:
        ValueError: naming what the file lacks, or a size that is not square.
        OSError: from transformers, when there is no `preprocessor_config.json`.
    """
    values, _ = BaseImageProcessor.get_image_processor_dict(name_or_path)
    where = f"{name_or_path} (preprocessor_config.json)"
    crops = bool(values.get("crop_size")) and values.get("do_center_crop") is not False
    size = values.get("crop_size") if crops else values.get("size")
    side = _square(size)
    if side is None:
        raise UserError(f"{where}: no square crop_size or size: {size}")
    check_sizes({"image_size": side}, where)
    mean, std = (_channels(values, name, where) for name in ("image_mean", "image_std"))
    if values.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    rescale = values.get("rescale_factor") or 1 / 255
    edge = (_square(values.get("size")) if crops else None) or side
    check_sizes({"image_size": edge}, where)
    spec = ProcessorSpec(
        image_size=side,
        image_mean=mean,
        image_std=std,
        resample=BICUBIC if values.get("resample") is None else int(values["resample"]),
        rescale_factor=1.0 if values.get("do_rescale") is False else float(rescale),
    )
    return spec if edge == spec.crop_edge else ProcessorSpec(**{**spec.to_dict(), "resize_edge": edge})


def _square(size: Any) -> int | None:
    """The side of a square: a number, the same height and width, or a shortest edge; None for anything else."""
    if isinstance(size, Mapping):
        sides = {size.get("height"), size.get("width")} - {None} or {size.get("shortest_edge")}
        size = sides.pop() if len(sides) == 1 else None
    return int(size) if isinstance(size, (int, float)) and not isinstance(size, bool) else None


def _channels(values: Mapping[str, Any], name: str, where: str) -> tuple[float, float, float]:
    numbers = values.get(name)
    if isinstance(numbers, (list, tuple)) and len(numbers) == 3:
        return float(numbers[0]), float(numbers[1]), float(numbers[2])
    if values.get("do_normalize") is False:
        return 0.0, 0.0, 0.0
    raise UserError(f"{where}: {name} is {numbers}, expected a number for each of red, green and blue")
