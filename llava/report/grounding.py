"""Where and when in the report: scores beside their floors, and answers drawn on the frames that the model saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llava.config.video import ProcessorSpec, VideoSpec
from llava.data.video import read_frames
from llava.data.video.image import read_image
from llava.data.video.transforms import square_frames
from llava.eval.coordinate_gains import format_coordinates
from llava.eval.grounding_table import TaskTable, table_of
from llava.report.boxes import Marks, chosen, frames_svg
from llava.report.plots import Frames, to_url
from llava.report.read import Run


@dataclass(frozen=True)
class Drawn:
    """An example with its picture, or why there is none."""

    example: Mapping[str, Any]
    picture: Markup
    reason: str


@dataclass(frozen=True)
class Section:
    """The scores of a task and its examples."""

    task: str
    table: TaskTable
    examples: Sequence[Drawn]


def sections_of(found: Mapping[str, Any] | None, frames: Frames | None) -> list[Section]:
    """Of `tests/grounding.json`, a section for each task.

    Args:
        frames: where clips are and how much room there is; None for no pictures.
    """
    if not found:
        return []
    summary, settings = found["summary"], found.get("settings") or {}
    sections = []
    for task, scores in summary["tasks"].items():
        listed = [e for e in summary.get("examples") or [] if e.get("task") == task]
        drawn = [Drawn(example, *_picture(example, settings, frames)) for example in listed]
        sections.append(Section(task, table_of(task, scores), drawn))
    return sections


def grounding_files(run: Run) -> str:
    """What was asked, and with what."""
    found = run.grounding or {}
    files = ", ".join(str(f.get("path") if isinstance(f, Mapping) else f) for f in found.get("files") or [])
    settings = found.get("settings") or {}
    choice, beams = settings.get("coordinate_choice"), settings.get("num_beams")
    return (
        f"Questions of {files or 'files that are not recorded'}, step {found.get('step')}; of an axis the {choice} "
        f"coordinate, {beams} beam{'s' * (beams != 1)}."
    )


def coordinate_lines(found: Mapping[str, Any] | None) -> list[str]:
    """What the controls say of coordinates, in a line; of a malformed record nothing."""
    try:
        return format_coordinates(found)
    except (KeyError, TypeError, ValueError):
        return []


def _picture(example: Mapping[str, Any], settings: Mapping[str, Any], frames: Frames | None) -> tuple[Markup, str]:
    def draw(path: Path) -> list[str]:
        spec = VideoSpec.from_dict(dict(settings["video_spec"]))
        processor = ProcessorSpec.from_dict(dict(settings["mm_processor"]))
        split = example.get("split")
        whole = read_image(path) if example.get("is_image") else read_frames(path, spec, split and tuple(split))
        marks = Marks.of_example(example)
        places = chosen(len(whole), marks)
        squares = square_frames(whole[places], processor, spec.image_aspect_ratio)
        return [frames_svg(dict(zip(places, map(to_url, squares), strict=True)), len(whole), marks)]

    if frames is None:
        return Markup(), ""
    drawn, reason = frames.within(draw, example.get("path"))
    return Markup("".join(drawn)), reason
