"""A small source of every public form of where and when, hand-made, and what is wrong named by its field."""

from __future__ import annotations

import copy
import json
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.data.convert.__main__ import main
from llava.data.records import load_records
from llava.data.variables import fill
from tests.conftest import colour_frames, write_clip

Convert = Callable[..., list[dict]]
FRAMES = 9
"""Of each clip, at 4 a second: the last is shown at 2 s."""


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "0001").mkdir()
    write_clip(folder / "AO8RW.mp4", colour_frames(0, FRAMES))
    for name in ("1_a.mp4", "0001/77.mp4", "st.mp4"):
        (folder / name).write_bytes((folder / "AO8RW.mp4").read_bytes())
    Image.fromarray(np.zeros((50, 100, 3), np.uint8)).save(folder / "coco_1.jpg")
    return folder


@pytest.fixture
def convert(tmp_path: Path, media: Path) -> Convert:
    """Converts a value and gives the records, which training reads without a problem."""

    def run(source: Any, *flags: str, is_image: bool = False) -> list[dict]:
        path = tmp_path / "source.json"
        path.write_text(source if isinstance(source, str) else json.dumps(source))
        kind = "image" if is_image else "video"
        output = tmp_path / "out.json"
        frames = ["--num_frames", "5"]
        argv = [str(path), "--output", str(output), f"--{kind}_folder", str(media), "--overwrite", *frames, *flags]
        assert main(argv) == 0
        assert load_records(output, media, media)[1] == []
        return json.loads(output.read_text(encoding="utf-8"))

    return run


def spelled(record: dict, tmp_path: Path) -> list[str]:
    """The turns with their numbers to two places: `<W.50>` asked for, `(W.50)` told."""
    path = tmp_path / "one.json"
    path.write_text(json.dumps([record]))
    (read,), problems = load_records(path)
    assert problems == []

    def write(name: str, number: float) -> str:
        text = f"{name[1]}{number:.2f}".replace("0.", ".", 1)
        return f"<{text}>" if "OUTPUT" in name else f"({text})"

    return [turn["value"] for turn in fill(read.conversations, read.coordinates, write)]


def by_task(records: list[dict]) -> dict[str, dict]:
    return {r["meta"]["task"]: r for r in records}


REFCOCO = {
    "images": [
        {"id": 5, "file_name": "coco_1.jpg", "width": 100, "height": 50, "caption": "the cat", "original_id": 1},
        {"id": 6, "file_name": "coco_1.jpg", "width": 100, "height": 50, "caption": "the dog", "original_id": 1},
    ],
    "annotations": [
        {"id": 1, "image_id": 6, "bbox": [50, 25, 50, 25]}, {"id": 2, "image_id": 5, "bbox": [10, 5, 20, 10]},
    ],
}  # fmt: skip


def test_refcoco(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = convert(REFCOCO, is_image=True)
    assert [r["id"] for r in records] == [
        "coco_1.jpg_rec_0",
        "coco_1.jpg_reg_0",
        "coco_1.jpg_rec_1",
        "coco_1.jpg_reg_1",
    ]
    question, answer = spelled(records[0], tmp_path)
    assert '"the cat"' in question and answer == "[<W.10><H.10><W.30><H.30>]"
    assert spelled(records[2], tmp_path)[1] == "[<W.50><H.50><W1.00><H1.00>]"
    question, answer = spelled(records[1], tmp_path)
    assert "[(W.10)(H.10)(W.30)(H.30)]" in question and answer == "the cat"
    assert records[0]["meta"]["width"] == 100 and records[0]["meta"]["truth"]["box"] == [0.1, 0.1, 0.3, 0.3]
    out = capsys.readouterr().out
    assert "RefCOCO (images with captions, annotations with bbox)" in out and "--mm_coordinates True" in out
    assert (
        "questions: in Italian (--questions it), whatever language the source is in; --questions en for English" in out
    )
    convert(REFCOCO, "--questions", "en", is_image=True)
    assert "questions: in English (--questions en), whatever language" in capsys.readouterr().out
    own = copy.deepcopy(REFCOCO)
    own["annotations"] = [{"id": 6, "bbox": [50, 25, 50, 25]}, {"id": 5, "bbox": [10, 5, 20, 10]}]
    assert convert(own, "--tasks", "rec", is_image=True)[0]["meta"]["truth"]["box"] == [0.1, 0.1, 0.3, 0.3]


def instances(**changes: Any) -> dict[str, Any]:
    """RefCOCO's boxes as COCO has them, all images of the data set being the one that is there but the last."""
    content = {
        "images": [
            {"id": 581857, "file_name": "coco_1.jpg", "width": 100, "height": 50},
            {"id": 7, "file_name": "gone.jpg", "width": 100, "height": 50},
        ],
        "annotations": [
            {"id": 1719310, "image_id": 581857, "bbox": [10, 5, 20, 10], "category_id": 1},
            {"id": 2, "image_id": 581857, "bbox": [50.0, 25.0, 50.0, 25.0], "category_id": 1},
            {"id": 3, "image_id": 7, "bbox": [0, 0, 5, 5], "category_id": 1},
        ],
    }
    return {**content, **changes}


def ref(ann_id: int, split: str, *phrases: str, image_id: int = 581857) -> dict[str, Any]:
    sentences = [
        {"sent_id": n, "sent": text, "raw": text.upper(), "tokens": text.split()} for n, text in enumerate(phrases)
    ]
    return {"ref_id": ann_id, "ann_id": ann_id, "image_id": image_id, "split": split, "sentences": sentences,
            "file_name": f"coco_1_{ann_id}.jpg", "category_id": 1}  # fmt: skip


REFS = [ref(1719310, "train", "the cat", "left cat"), ref(2, "testA", "the dog"), ref(3, "val", "a bird", image_id=7)]


def test_refcoco_as_it_is_distributed(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "instances.json").write_text(json.dumps(instances()))
    source = tmp_path / "refs(unc).json"
    source.write_text(json.dumps(REFS))
    argv = [str(source), "--output", str(tmp_path / "ref.json"), "--image_folder", str(tmp_path / "images")]
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((50, 100, 3), np.uint8)).save(tmp_path / "images" / "coco_1.jpg")
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "RefCOCO's own files (refs with ref_id, boxes of " in out and "instances.json" in out
    train, test = (json.loads((tmp_path / f"ref_{name}.json").read_text()) for name in ("train", "testA"))
    assert [r["meta"]["task"] for r in train] == ["REC", "REG"] * 2 and len(test) == 2
    assert [r["meta"]["event"] for r in train] == ["the cat", "the cat", "left cat", "left cat"]
    assert {r["image"] for r in train + test} == {"coco_1.jpg"}
    assert spelled(train[0], tmp_path)[1] == "[<W.10><H.10><W.30><H.30>]"
    assert spelled(test[0], tmp_path)[1] == "[<W.50><H.50><W1.00><H1.00>]"
    assert not (tmp_path / "ref_val.json").exists()
    assert (tmp_path / "ref.missing.txt").read_text() == "gone.jpg\tno such file\t1 caption\n"
    # From JSON lines, with the boxes elsewhere; sentences as people wrote them where nobody has cleaned them.
    (tmp_path / "instances.json").rename(tmp_path / "boxes.json")
    raw = ref(2, "val", "the dog")
    del raw["sentences"][0]["sent"]
    source.write_text("\n".join(json.dumps(row) for row in (REFS[0], raw)))
    assert main([*argv, "--overwrite", "--annotations", str(tmp_path / "boxes.json")]) == 0
    assert json.loads((tmp_path / "ref_val.json").read_text())[0]["meta"]["event"] == "THE DOG"


@pytest.mark.parametrize(("row", "boxes", "said"), [
    (ref(9, "val", "a"), {}, "].sentences[0]: wrong annotation: ann_id: there is no annotation 9 in instances.json"),
    (ref(3, "val", "a"), {}, "image_id: 581857, and annotation 3 in instances.json is of image 7"),
    (ref(2, "val", "a"), {"images": []}, "image_id: there is no image 581857 in instances.json"),
    (ref(2, "val"), {}, "[0]: wrong annotation: sentences: expected a list of objects with sent or raw"),
    (ref(2, "", "a"), {}, "split: expected a text, got ''"),
    ({**ref(2, "val"), "sentences": [{"sent": ""}]}, {}, "sent: expected a text, got ''"),
    (ref(2, "val", "a"), {"annotations": [{"id": 2, "image_id": 581857, "bbox": [90, 5, 95, 10]}]}, "is no box within"),
])  # fmt: skip
def test_a_wrong_ref_is_named(
    convert: Convert, tmp_path: Path, row: dict[str, Any], boxes: dict[str, Any], said: str
) -> None:
    (tmp_path / "instances.json").write_text(json.dumps(instances(**boxes)))
    with pytest.raises(SystemExit):
        convert([row], is_image=True)
    assert said in (tmp_path / "out.left_out.txt").read_text()


def test_refs_without_their_boxes_and_pickles_are_refused_with_the_remedy(
    convert: Convert, tmp_path: Path, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(source: Any) -> str:
        with pytest.raises(SystemExit):
            convert(source, is_image=True)
        return capsys.readouterr().err

    said = refused(REFS)
    assert f"there is no {tmp_path / 'instances.json'}" in said and "--annotations FILE" in said
    assert "holds boxes without phrases, as RefCOCO's instances.json" in refused(instances())
    named = instances(annotations=[{"id": 1, "image_id": 581857, "bbox": [1, 1, 5, 5], "phrase": "the cat"}])
    (record,) = convert(named, "--caption_column", "phrase", is_image=True)
    assert record["conversations"][-1]["value"] == "the cat", "captions of images, which happen to have boxes"
    (tmp_path / "instances.json").write_text("[]")
    assert "expected an object with images and annotations" in refused(REFS)
    (tmp_path / "instances.json").write_text(json.dumps(instances()))
    pickled = tmp_path / "refs(unc).p"
    for protocol in (0, 2):  # RefCOCO's own are of Python 2, whose pickles are text.
        pickled.write_bytes(pickle.dumps(REFS, protocol=protocol))
        flags = ["--image_folder", str(media), "--overwrite"]
        with pytest.raises(SystemExit):
            main([str(pickled), "--output", str(tmp_path / "p.json"), *flags])
        said = capsys.readouterr().err
        assert "is a pickle, as RefCOCO's refs(unc).p, and reading one may run any program" in said
        command = next(line.strip() for line in said.splitlines() if "pickle.load" in line)
        subprocess.run(shlex.split(command.replace("python ", f"{sys.executable} ", 1)), check=True)
        assert json.loads(pickled.with_suffix(".json").read_text()) == REFS
        assert main([str(pickled.with_suffix(".json")), "--output", str(tmp_path / "p.json"), *flags]) == 0
        pickled.with_suffix(".json").unlink()


def test_an_image_that_is_turned_after_it_was_annotated_is_left_out(
    convert: Convert, tmp_path: Path, media: Path
) -> None:
    picture = Image.fromarray(np.zeros((50, 100, 3), np.uint8))
    exif = picture.getexif()
    exif[0x112] = 6
    picture.save(media / "turned.jpg", exif=exif)
    source = changed(REFCOCO, "images.0.file_name", "turned.jpg")
    assert {r["image"] for r in convert(source, is_image=True)} == {"coco_1.jpg"}
    said = "the source says 100 x 50 pixels, and the file is shown in 50 x 100: it is turned by its EXIF data"
    assert said in (tmp_path / "out.left_out.txt").read_text()


def test_charades_sta(convert: Convert, tmp_path: Path) -> None:
    records = convert("AO8RW 0.5 1.0##a person sits.\nAO8RW 1.5 2.4##a person stands.\n", "--questions", "en")
    found = by_task(records)
    assert spelled(records[0], tmp_path)[1] == "{<T.25><T.50>}" and "width" not in records[0]["meta"]
    # Beyond the last frame by less than a second and a half: it ends with the clip.
    assert found["TVG"]["meta"]["truth"]["span"] == [0.75, 1.0]
    assert (
        spelled(found["TR"], tmp_path)[1] == "a person stands."
        and "{(T.75)(T1.00)}" in spelled(found["TR"], tmp_path)[0]
    )
    assert {r["video"] for r in records} == {"AO8RW.mp4"}
    lines = ["a person sits.", "a <video> sits.", "a <|endoftext|> sits.", "a \x00 sits.", ""]
    more = "AO8RW 1.5.2 2.0##odd number\n" + "".join(f"AO8RW 0.5 1.0##{text}\n" for text in lines)
    assert len(convert("AO8RW 0.5 1.0##a person sits.\n" + more, "--tasks", "tvg")) == 2
    listed = (tmp_path / "out.left_out.txt").read_text()
    for line, said in ((2, "unreadable row"), (4, "count mismatch"), (5, "reserved token"), (6, ""), (7, "unreadable")):
        assert f"source.json:{line}: {said}" in listed, line


HC_STVG = {"1_a.mp4": {
    "bbox": [[10, 10, 20, 30], [20, 10, 20, 30], [30, 10, 20, 30], [40, 10, 20, 30]], "st_frame": 4, "ed_frame": 7,
    "st_time": 0.75, "ed_time": 1.75, "img_num": FRAMES, "img_size": [50, 100], "English": "A man turns.",
    "Chinese": "\u7537\u4eba",
}}  # fmt: skip


def test_hc_stvg(convert: Convert, tmp_path: Path) -> None:
    found = by_task(convert(HC_STVG))
    assert set(found) == {"STVG", "SVG", "ELC", "TVG", "TR"}
    # Frames 3 to 6 of 0 to 8; five are seen: 0, 2, 4, 6, 8, so that boxes stand at 4 (half) and 6 (three quarters).
    boxes = "<T.50>:[<W.20><H.20><W.40><H.80>] <T.75>:[<W.40><H.20><W.60><H.80>]"
    span = "{<T.38><T.75>}"
    assert spelled(found["STVG"], tmp_path)[1] == f"{span} {boxes}"
    assert spelled(found["SVG"], tmp_path)[1] == boxes
    question, answer = spelled(found["ELC"], tmp_path)
    assert "(T.38)" in question and "[(W.10)(H.20)(W.30)(H.80)]" in question, "the box at the start, seen or not"
    assert answer == f"<T.75>, A man turns. {boxes}"
    assert found["STVG"]["meta"]["truth"]["boxes"] == {"49": [0.2, 0.2, 0.4, 0.8], "74": [0.4, 0.2, 0.6, 0.8]}
    assert spelled(by_task(convert(HC_STVG, "--language", "zh"))["TR"], tmp_path)[1] == "\u7537\u4eba"
    first = {**HC_STVG["1_a.mp4"], "caption": "A man.", "width": 100, "height": 50}
    one = {k: v for k, v in first.items() if k not in ("img_size", "English", "Chinese")}
    assert spelled(by_task(convert({"1_a.mp4": one}))["TR"], tmp_path)[1] == "A man."


def vidor(boxes: dict[int, list[int]], total: int = FRAMES) -> dict[str, Any]:
    corners = {f: dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)) for f, box in boxes.items()}
    frames = [
        [{"tid": 1, "bbox": corners[f]}, {"tid": 0, "bbox": corners[f]}] if f in boxes else [] for f in range(total)
    ]
    return {"video_id": "77", "video_path": "0001/77.mp4", "trajectories": frames}


VIDSTG = [{
    "vid": "77", "frame_count": FRAMES, "fps": 4, "width": 100, "height": 50,
    "used_segment": {"begin_fid": 2, "end_fid": 7}, "temporal_gt": {"begin_fid": 3, "end_fid": 5},
    "captions": [{"description": "a man runs", "type": "person", "target_id": 1}],
    "questions": [{"description": "who runs?", "type": "person", "target_id": 1}],
}]  # fmt: skip


def test_vidstg(convert: Convert, tmp_path: Path) -> None:
    folder = tmp_path / "vidor" / "0001"
    folder.mkdir(parents=True)
    (folder / "77.json").write_text(json.dumps(vidor({3: [10, 10, 30, 40], 4: [20, 10, 40, 40]})))
    records = convert(VIDSTG, "--annotations", str(tmp_path / "vidor"))
    captions = by_task([r for r in records if r["meta"]["event"] == "a man runs"])
    # The segment is frames 2 to 6, the event 3 and 4, the end being excluded in both.
    assert captions["STVG"]["meta"]["split"] == [2, 6] and captions["STVG"]["video"] == "0001/77.mp4"
    boxes = "<T.25>:[<W.10><H.20><W.30><H.80>] <T.50>:[<W.20><H.20><W.40><H.80>]"
    assert spelled(captions["STVG"], tmp_path)[1] == "{<T.25><T.50>} " + boxes
    asked = [r["meta"]["task"] for r in records if r["meta"]["event"] == "who runs?"]
    assert sorted(asked) == ["STVG", "SVG", "TVG"], "a question is never an answer"
    assert len({r["id"] for r in records}) == len(records)
    # Twice as many frames a second: they would be others, and the times of others.
    with pytest.raises(SystemExit):
        convert(changed(VIDSTG, "0.frame_count", 18), "--annotations", str(tmp_path / "vidor"))
    said = "its file has 9 frames, and the source is about one of 18 frames: of another rate, or cut"
    assert said in (tmp_path / "out.left_out.txt").read_text()


def st_align(question: str, answer: str = "<s> <e> <bboxes>", **tokens: Any) -> dict[str, Any]:
    boxes = {"4": [20, 10, 20, 30], "6": [40, 10, 20, 30], "3": [10, 10, 20, 30]}
    meta = {"width": 100, "height": 50, "split": [0, 8], "time_token": {"<s>": 3, "<e>": 6},
            "spatial_token": {"<bboxes>": boxes, **tokens}}  # fmt: skip
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"video_path": "st.mp4", "meta": meta, "conversations": turns}


ST_ALIGN = [
    st_align("<video>\nWhen does the man turn?"),
    st_align("From <s> to <e>, where is the man who turns?", "<bboxes>"),
    st_align("Starts in <s>, <bbox>. When does it end?", "Ends in <e>, a man turns. Object bounding box: <bboxes>",
             **{"<bbox>": [10, 10, 20, 30]}),
]  # fmt: skip


def test_st_align(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = by_task(convert(ST_ALIGN))
    boxes = "<T.50>:[<W.20><H.20><W.40><H.80>] <T.75>:[<W.40><H.20><W.60><H.80>]"
    question, answer = spelled(found["STVG"], tmp_path)
    assert question == (
        "<video> When does the man turn? Please firstly give the timestamps, and then give the spatial bounding box "
        "corresponding to each timestamp in the time period."
    )
    assert answer == "{<T.38><T.75>} " + boxes
    question, answer = spelled(found["SVG"], tmp_path)
    assert question.startswith("<video> During {(T.38)(T.75)}, where is the man who turns? Please give the spatial")
    assert answer == boxes and found["SVG"]["meta"]["event"] == "where is the man who turns?"
    question, answer = spelled(found["ELC"], tmp_path)
    assert question.startswith("<video> Starts in (T.38), [(W.10)(H.20)(W.30)(H.80)]. When does it end? Please")
    assert answer == f"<T.75>, a man turns. {boxes}" and found["ELC"]["meta"]["split"] == [0, 8]
    assert "questions: the source's own, in English; --questions has no effect" in capsys.readouterr().out
    lines = "\n".join(json.dumps(row) for row in ST_ALIGN)
    assert [r["id"] for r in convert(lines)] == [r["id"] for r in convert(ST_ALIGN)]


def changed(value: Any, path: str, new: Any) -> Any:
    """A copy in which what stands under `a.b.0` is another, or gone where that is `...`."""
    whole = copy.deepcopy(value)
    *above, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    place = whole
    for key in above:
        place = place[key]
    if new is ...:
        del place[last]
    else:
        place[last] = new
    return whole


ONE_HC = {"1_a": HC_STVG["1_a.mp4"]}
ONE_REF = {"images": REFCOCO["images"][:1], "annotations": REFCOCO["annotations"][1:]}


@pytest.mark.parametrize(("value", "path", "new", "said"), [
    (ONE_REF, "images.0.width", ..., "width: expected a number, got None"),
    (ONE_REF, "images.0.height", 0, "bbox of frame 0: 10, 5 to 30, 15 is no box within 100 x 0 pixels"),
    (ONE_REF, "annotations.0.bbox", [10, 5, 20], r"annotations.bbox: expected [x, y, width, height]"),
    (ONE_REF, "annotations.0.bbox", [10, 5, 0, 10], "annotations.bbox: [10, 5, 0, 10] has no area; it is read as"),
    (ONE_REF, "annotations.0.bbox", [90, 5, 95, 10], "bbox of frame 0: 90, 5 to 185, 15 is no box within 100 x 50"),
    (ONE_REF, "annotations.0.image_id", 9, "annotations.image_id: 0 annotations of image 5, and one was expected"),
    (ONE_HC, "1_a.English", ..., "English: expected a text, got None"),
    (ONE_HC, "1_a.img_size", [50], "img_size: expected [height, width], got [50]"),
    (ONE_HC, "1_a.ed_frame", 30, "bbox: 4 boxes for frames 4 to 30"),
    (ONE_HC, "1_a.img_num", 5, "frames 3 to 6 of the event are not within 0 to 4 of the clip"),
    (ONE_HC, "1_a.st_frame", 0, "bbox: 4 boxes for frames 0 to 7"),
    (ST_ALIGN[:1], "0.meta.spatial_token.<bboxes>", {"x": [1, 1, 2, 2]}, "is of another form (ValueError: invalid"),
    (ST_ALIGN[:1], "0.meta.time_token.<s>", float("inf"), "is of another form (OverflowError: "),
    (ST_ALIGN[:1], "0.meta.split", [0], "meta.split: expected [first, last] in frames, got [0]"),
    (ST_ALIGN[:1], "0.meta.height", "50", "meta.height: expected a number, got '50'"),
    (ST_ALIGN[:1], "0.meta.time_token", {"<e>": 6}, "<s>: expected a number, got None"),
    (ST_ALIGN[:1], "0.meta.spatial_token", {}, "<bboxes>: expected an object, got None"),
    (ST_ALIGN[:1], "0.conversations.0.value", "Until <e>?", "the question tells the end and not the start"),
    (ST_ALIGN[:1], "0.conversations.0.value", "Where is <box1>?", "conversations: <box1> is told where a STVG record"),
    (ST_ALIGN[:1], "0.meta.split", [5, 8], "frames 3 to 6 of the event are not within 5 to 8"),
    (ST_ALIGN[:1], "0.meta.split", [0, 9], "its file has 9 frames, and the source is about one with frames 0 to 9"),
    (ST_ALIGN[:1], "0.meta.split", [-2, 8], "the source is about one with frames -2 to 8"),
    (ST_ALIGN[:1], "0.meta.time_token.<s>", 3.5, "<s>: expected a whole number of frames, got 3.5"),
    (ST_ALIGN[:1], "0.meta.time_token.<e>", 5, "a box of frame 6, which is not of the event in frames 3 to 5"),
])  # fmt: skip
def test_what_is_wrong_is_named_by_its_field(
    convert: Convert, tmp_path: Path, value: Any, path: str, new: Any, said: str
) -> None:
    with pytest.raises(SystemExit):
        convert(changed(value, path, new), is_image=value is ONE_REF)
    assert said in (tmp_path / "out.left_out.txt").read_text()


def test_what_else_is_refused(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*argv: Any, **options: Any) -> str:
        with pytest.raises(SystemExit):
            convert(*argv, **options)
        return capsys.readouterr().err

    assert "whose boxes are in VidOR's files: name their folder with --annotations DIR" in refused(VIDSTG)
    assert "holds no .json file of VidOR" in refused(VIDSTG, "--annotations", str(tmp_path / "none"))
    assert "--tasks TVG: this form serves REC, REG" in refused(REFCOCO, "--tasks", "REC,TVG", is_image=True)
    assert "--text_only: where and when" in refused(HC_STVG, "--text_only")
    assert "no record was written" in refused("AO8RW 3.0 9.0##a person sits.\n")
    assert (
        "start and end are 3 and 9 s, of a clip whose last frame is at 2 s"
        in (tmp_path / "out.left_out.txt").read_text()
    )
    refused("AO8RW 0.5 1.0##\nAO8RW 0.5\n")
    refused({"other": HC_STVG["1_a.mp4"]})
    assert (tmp_path / "out.missing.txt").read_text() == "other\tno such file\t1 caption\n"
