"""Where and when on the page: scores beside their floors, pictures as the tower sees them, files that are malformed."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from llava.data.records import Record
from llava.errors import UserError
from llava.eval.captioning import Caption
from llava.eval.grounding_answers import Truth, read_answer
from llava.eval.grounding_scores import frame_grid
from llava.eval.grounding_table import Asked, examples_of, scores_of
from llava.eval.result_files import clean
from llava.report.page import main, write_report
from tests.conftest import PROCESSOR, SPEC, colour_frames, write_clip
from tests.report.made import EVIL, control_line, log_entries, record, write_run

GRID = frame_grid(SPEC.num_frames)
BOX = (0.1, 0.2, 0.5, 0.8)
SAID = {
    "REC": "[<WIDTH-010><HEIGHT-020><WIDTH-050><HEIGHT-080>]",
    "TVG": f"{EVIL} {{<TEMP-000><TEMP-050>}}",
    "STVG": "{<TEMP-000><TEMP-099>} <TEMP-000>:[<WIDTH-010><HEIGHT-020><WIDTH-050><HEIGHT-080>]",
}


def results(folder, gone=False):
    """What `llava.eval.grounding` leaves."""
    asked = []
    for task, text in SAID.items():
        truth = Truth(
            task, box=BOX if task == "REC" else None, span=(0.0, 0.5), boxes={0: BOX} if task == "STVG" else {}
        )
        for name in "ab":
            file = f"{name}.png" if task == "REC" else f"{name}.mp4"
            shown = (
                {"images": (str(folder / file),), "videos": ()} if task == "REC" else {"images": (), "videos": (file,)}
            )
            made = Record(f"{task} {name}", [], **shown, split=None, meta={}, source="")
            answer = read_answer(text, truth)
            asked.append(
                Asked(made, truth, name, Caption(text, True, 4), answer, Caption("", True, 1), read_answer("", truth))
            )
    summary = {"tasks": scores_of(asked, GRID, []), "examples": examples_of(asked, GRID, lambda r: f"Dove? {EVIL}")}
    settings = {
        "coordinate_choice": "median", "num_beams": 1, "trained_on": True, "video_spec": SPEC.to_dict(),
        "mm_processor": PROCESSOR.to_dict(),
    }  # fmt: skip
    return {"summary": clean(summary), "settings": settings, "files": [{"path": "val.json", "sha256": "0"}], "step": 7}


def written(folder, **flags):
    write_clip(folder / "a.mp4", colour_frames(0))
    Image.new("RGB", (80, 40), "red").save(folder / "a.png")
    line = control_line(12, (4.0, 2.0, 6.0)) | {
        "coordinates": {"captions": 3, "tokens": 12, "losses": {"true": 1.5, "other": 2.75}, "gain": [1.25, 0.5, 2.0]}
    }
    run = write_run(
        folder / "run", llava_run=record(video_folder=str(folder), mm_coordinates=True, **flags),
        trainer_state={"log_history": log_entries()}, controls=[line],
    )  # fmt: skip
    (run / "tests").mkdir()
    return run


def test_answers_are_drawn_and_scores_stand_beside_their_floors(tmp_path):
    run = written(tmp_path)
    (run / "tests" / "grounding.json").write_text(json.dumps(results(tmp_path)))
    page = write_report([run]).read_text()
    assert 'href="#grounding"' in page and "<h3>STVG</h3>" in page and "best constant answer" in page
    assert "The run was trained on these records." in page and "val.json, step 7" in page
    assert EVIL not in page and "Dove? &lt;script&gt;" in page
    section = page.split('id="grounding"')[1].split('id="curves"')[0]
    assert section.count("<image ") == 1 + 2 * SPEC.num_frames, "b is not there, and the page says so"
    assert section.count("frames not available") == 3 and "b.png" in section
    assert section.count('class="true" x="10.0"') == 2 and section.count('class="said" x="10.1"') == 2
    assert section.count('class="timeline"') == 2
    assert "12 coordinates in 3 captions: loss 1.500 nats each, 2.750 with another clip" in page


def test_what_was_not_measured_is_said_where_there_are_coordinates(tmp_path):
    run = written(tmp_path)
    page = write_report([run]).read_text()
    assert "No <code>grounding.json</code>: python -m llava.eval.grounding RUN" in page
    other = write_run(tmp_path / "other", llava_run=record())
    assert "grounding" not in write_report([other]).read_text().replace("llava.eval.grounding", "")


@pytest.mark.parametrize("wrong", [{"tasks": {"REC": {}}}, {"tasks": []}, {"tasks": {}, "examples": [1]}, None])
def test_malformed_results_are_named(tmp_path, wrong):
    run = written(tmp_path)
    (run / "tests" / "grounding.json").write_text(json.dumps({"summary": wrong}))
    with pytest.raises(UserError, match="grounding.json"):
        write_report([run])


def test_an_example_that_cannot_be_drawn_does_not_end_the_page(tmp_path, capsys):
    run = written(tmp_path)
    found = results(tmp_path)
    for example in found["summary"]["examples"]:
        example["said"] = {"box": ["x", 1, 2, 3]}
    del found["settings"]["mm_processor"]
    (run / "tests" / "grounding.json").write_text(json.dumps(found))
    assert main([str(run)]) == 0
    assert (run / "report.html").read_text().count("frames not available") == 6
