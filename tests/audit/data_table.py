"""Faults in data: where each must be caught, and in which words."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import Any

from tests.audit import data_faults as data
from tests.audit.running import Fault
from tests.conftest import CAPTIONS


def evaluated_on_copies(scene: SimpleNamespace) -> dict[str, Any]:
    """The evaluation clips are byte copies of training clips, under other names."""
    records = json.loads(scene.assets.video_json.read_text())[:2]
    clips = scene.folder / "clips"
    for i, r in enumerate(records):
        shutil.copy(clips / r["video"], clips / f"held{i}.mp4")
        r |= {"id": f"held{i}", "video": f"held{i}.mp4"}
    (scene.folder / "held.json").write_text(json.dumps(records))
    return {"eval_data_path": scene.folder / "held.json"}


DATA = [
    Fault(
        "clips under a key that is not read",
        "data",
        "refused",
        r"video_path",
        data=data.one(lambda r: r.update(video_path=r.pop("video"))),
        quick=True,
    ),
    Fault(
        "the caption stands before its video",
        "data",
        "refused",
        r"no word follows the last placeholder",
        data=data.one(
            lambda r: r.update(
                conversations=[{"from": "gpt", "value": CAPTIONS[0]}, {"from": "human", "value": "<video>"}]
            )
        ),
        quick=True,
    ),
    Fault(
        "a placeholder in an answer",
        "data",
        "refused",
        r"(?i)answer",
        data=data.one(
            lambda r: r.update(
                conversations=[
                    {"from": "human", "value": "Descrivi."},
                    {"from": "gpt", "value": "Il tag <video> di HTML."},
                ]
            )
        ),
    ),
    Fault("no placeholder", "data", "refused", r"(?i)<video>", data=data.prompt("Descrivi.")),
    Fault("two placeholders, one clip", "data", "refused", r"(?i)<video>", data=data.prompt("<video> <video>")),
    Fault(
        "a caption of invisible characters",
        "data",
        "refused",
        r"(?i)empty caption",
        data=data.one(lambda r: r["conversations"][1].update(value="\u200b\ufeff")),
        quick=True,
    ),
    Fault(
        "a visual token in a caption",
        "data",
        "refused",
        r"(?i)reserved",
        data=data.one(lambda r: r["conversations"][1].update(value="Un <vid_patch> gatto.")),
    ),
    Fault(
        "a coordinate in a run without coordinates",
        "data",
        "refused",
        r"<TEMP-OUTPUT> in the text stands for a number",
        data=data.one(lambda r: r["conversations"][1].update(value="Un gatto a <TEMP-OUTPUT>.")),
    ),
    Fault(
        "numbers in a run without coordinates",
        "data",
        "refused",
        r"variables hold numbers",
        data=data.one(lambda r: r.update(variables={"temporal_output_locations": [0.5]})),
    ),
    Fault(
        "captions that are the word nan",
        "data",
        "warned",
        r"(?i)nan",
        data=data.one(lambda r: r["conversations"][1].update(value="nan")),
    ),
    Fault("two records of one id", "data", "refused", r"(?i)duplicate id", data=data.one(lambda r: r.update(id="v1"))),
    Fault("a clip that is not there", "data", "refused", r"(?i)missing file", data=data.named("gone.mp4")),
    Fault("a path with a space at its end", "data", "refused", r"clip0\.mp4", data=data.named("clip0.mp4 ")),
    Fault("a clip outside its folder", "data", "refused", r"(?i)outside", data=data.named("../clip0.mp4")),
    Fault("a clip cut short", "data", "refused", r"(?i)cut short|cannot be opened", data=data.cut_clip, quick=True),
    Fault("a text file named as a clip", "data", "refused", r"clip0\.mp4", data=data.text_file),
    Fault("a playlist named as a clip", "data", "refused", r"list\.m3u8", data=data.playlist),
    Fault("PostScript named as a picture", "data", "refused", r"p\.jpg", data=data.postscript),
    Fault("an image above 89 megapixels", "data", "refused", r"(?i)big\.png.*pixel", data=data.invisible_image),
    Fault(
        "a segment that is reversed",
        "data",
        "refused",
        r"(?i)split|segment",
        data=data.one(lambda r: r.update(meta={"split": [5, 2]})),
    ),
    Fault(
        "segments written in seconds",
        "data",
        "warned",
        r"motion in clips: .*one frame is chosen",
        data=data.splits_in_seconds,
        quick=True,
    ),
    Fault("still clips", "data", "warned", r"motion in clips: .*a picture that stands", data=data.still_clips),
    Fault("black clips", "data", "warned", r"motion in clips: .*one colour", data=data.black_clips),
    Fault("one content under all names", "data", "warned", r"(?i)same|identical|equal", data=data.copies_of_one_clip),
    Fault(
        "mojibake",
        "data",
        "warned",
        r"(?i)Ã|mojibake",
        data=data.answers(lambda text, i: f"PerchÃ© {text} CittÃ ."),
        quick=True,
    ),
    Fault(
        "the answer stands in the prompt",
        "data",
        "warned",
        r"(?i)prompt",
        data=lambda records, folder: [
            {
                **r,
                "conversations": [
                    {"from": "human", "value": f"<video> {r['conversations'][1]['value']}"},
                    r["conversations"][1],
                ],
            }
            for r in records
        ],
    ),
    Fault("one caption for all", "data", "refused", r"captions", data=data.one_caption),
    Fault(
        "evaluation on byte copies of training clips",
        "data",
        "warned",
        r"(?i)held-out",
        data=lambda records, folder: records,
        prepare=evaluated_on_copies,
    ),
    Fault(
        "all captions with the wrong clips, no evaluation set",
        "data",
        "end",
        r"(?i)not all was measured.*cannot tell right pairs",
        data=data.many(8, lambda i: (i + 3) % 8),
        flags={"run_report": True},
    ),
    Fault(
        "captions that are addresses",
        "data",
        "warned",
        r"form of captions: .*an address",
        data=data.answers(lambda text, i: f"https://example.org/clip{i}.txt"),
        quick=True,
    ),
    Fault(
        "captions that are JSON",
        "data",
        "warned",
        r"form of captions: .*JSON",
        data=data.answers(lambda text, i: json.dumps({"caption": text})),
    ),
    Fault(
        "all captions begin alike",
        "data",
        "warned",
        r"form of captions: .*begin with 'Caption:'",
        data=data.all_begin_alike,
    ),
    Fault(
        "what looks like a placeholder",
        "data",
        "warned",
        r"near placeholder.*'<video_1>'",
        data=data.prompt("<video> <video_1> Descrivi."),
        quick=True,
    ),
    Fault(
        "another spelling of the placeholder",
        "data",
        "refused",
        r"'<Video>' is not read as one",
        data=data.prompt("<Video> Descrivi."),
    ),
    Fault(
        "a segment that ends beyond its clip",
        "data",
        "warned",
        r"segments: .*'v0' \[0, 99\] of .*clip0\.mp4",
        data=data.one(lambda r: r.update(meta={"split": [0, 99]})),
        quick=True,
    ),
    Fault(
        "one short segment for all of longer clips",
        "data",
        "warned",
        r"segments: all 24 records have the segment \[0, 1\]",
        data=data.one_short_segment,
    ),
]
