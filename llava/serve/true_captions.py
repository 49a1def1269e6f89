"""The true captions of clips that were named by path: which records they are, and how near the model came to them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.data.records import Record, load_records
from llava.errors import UserError, show
from llava.eval.caption_scores import CIDER, INSTALL, METRICS, choose_metrics
from llava.eval.controls import other_samples
from llava.eval.references import is_captioned_clip, reference_of
from llava.eval.score_table import ScoreTable


def read_true_captions(
    path: str, clips: Sequence[str], video_folder: str | None = None
) -> tuple[dict[str, list[Record]], list[str]]:
    """The records of each clip that has some, in reading order, and what is to be said of the others.

    A record belongs to the clip whose path ends with the record's (`a/clips/0.mp4` with `clips/0.mp4`), or that is its
    file in `video_folder`.

    Args:
        path: LLaVA JSON or JSONL, several files or a mixture.

    Raises:
        ValueError: when the file cannot be read or has records that are wrong, when a record may belong to several
            clips, and when no clip has a record.
    """
    records, problems = load_records(path, video_folder=video_folder, allow_absolute_paths=True)
    if problems:
        first = problems[0]
        raise UserError(
            f"--references {show(path)}: {len(problems)} problems, the first of them {show(first.source)}, "
            f"{first.kind}: {first.message}; python -m llava.data.check lists all"
        )
    usable = [r for r in records if is_captioned_clip(r)]
    whole = [r for r in usable if r.split is None]
    found = match(clips, whole, video_folder is not None)
    if not found:
        named = f", the first of {show(whole[0].videos[0])}" if whole else ""
        raise UserError(
            f"--references {show(path)}: {len(whole)} captions of whole clips{named}, and none of a clip that is "
            f"captioned, the first of them {show(clips[0])}; say with --video_folder where the files of the records lie"
        )
    remarks = []
    if len(whole) < len(usable):
        remarks.append(
            f"{show(path)}: {len(usable) - len(whole)} captions of a segment (meta.split) are left out, since clips "
            "are captioned whole"
        )
    if len(found) < len(clips):
        remarks.append(f"{show(path)}: no true caption of {len(clips) - len(found)} of {len(clips)} clips")
    return found, remarks


def match(clips: Sequence[str], records: Sequence[Record], full: bool = False) -> dict[str, list[Record]]:
    """The records of each clip, by how their paths end, or by their full paths. Pure but for the working directory.

    Raises:
        ValueError: when a record may belong to several clips.
    """
    by_name: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for clip in clips:
        parts = _parts(os.path.abspath(clip))
        by_name.setdefault(parts[-1], []).append((parts, clip))
    found: dict[str, list[Record]] = {}
    for record in records:
        path = record.videos[0]
        wanted = _parts(os.path.abspath(path) if full else os.path.normpath(path))
        those = [clip for parts, clip in by_name.get(wanted[-1], ()) if parts[-len(wanted) :] == wanted]
        if len(those) > 1:
            raise UserError(
                f"{show(record.source)}: {show(path)} may be {show(those[0])} and {show(those[1])}; say with "
                "--video_folder where the files of the records lie"
            )
        if those:
            found.setdefault(those[0], []).append(record)
    # In the order of the clips.
    return {clip: found[clip] for clip in clips if clip in found}


def _parts(path: str) -> tuple[str, ...]:
    return Path(unicodedata.normalize("NFC", path)).parts


def score_lines(captions: Mapping[str, str], records: Mapping[str, Sequence[Record]], label: str = "") -> str:
    """Scores of captions by clip against their records, beside those of the caption for another clip, as a text.

    Args:
        records: of the same clips.
        label: what is said of the clips, by `llava.eval.data.share_label`.
    """
    metrics = choose_metrics()
    table = ScoreTable(metrics)
    clips = list(captions)
    pairs = [(clip, record) for clip in clips for record in records[clip]]
    table.add("its own caption", [captions[clip] for clip, _ in pairs], [r for _, r in pairs])
    notes = []
    if len(clips) > 1:
        others = other_samples(clips, [0] * len(clips))
        wrong = {clip: captions[clips[i]] for clip, i in zip(clips, others, strict=True) if i is not None}
        table.add("another clip's caption", [wrong[clip] for clip, _ in pairs], [r for _, r in pairs])
    else:
        notes.append(f"a single clip: NO {CIDER}, and no score of another clip's caption")
    if metrics != list(METRICS):
        notes.append(f"{', '.join(METRICS[1:])}: NOT MEASURED, since sacrebleu is not installed: {INSTALL}")
    title = f"scores on {len(clips)} clips{label} with {len(pairs)} true captions, with 95 % intervals over clips"
    return "\n".join([title, str(table), *notes])


def beside(records: Sequence[Record]) -> str:
    """The true captions of a clip on a line: the first, and how many more there are."""
    texts = list(dict.fromkeys(map(reference_of, records)))
    return show(texts[0]) + (f" (and {len(texts) - 1} more)" if len(texts) > 1 else "") if texts else ""
