"""Every task as a record: what is told, what is asked for, and the numbers at their places."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from llava.data.coordinates import coordinate_token
from llava.data.grounding.annotation import Annotation, Event
from llava.data.grounding.prompts import AND, PROMPTS
from llava.data.grounding.tasks import TASKS, records_of
from llava.data.grounding.text import parse_box, parse_event, parse_frame_boxes, parse_phrases, parse_span
from llava.data.variables import axis_of, fill, is_asked, read_variables
from llava.errors import UserError

BOXES = {4 / 9: (0.1, 0.2, 0.3, 0.4), 5 / 9: (0.2, 0.2, 0.4, 0.4)}
CLIP = Annotation(
    id="clip", video="clip.mp4", width=160, height=90, num_frames=10, split=(0, 29),
    events=[Event("un gatto dorme.", (4 / 9, 5 / 9), BOXES)],
)  # fmt: skip
IMAGE = Annotation(
    id="image", image="image.png", width=90, height=90,
    events=[Event("un gatto {nero}", None, {0.0: (0.1, 0.2, 0.3, 0.4)}), Event("un cane", None, {0.0: (0, 0, 1, 1)})],
)  # fmt: skip


def made(task: str, seed: int = 0, language: str = "it") -> dict[str, Any]:
    return next(r for a in (CLIP, IMAGE) for r in records_of(a, [task], language, random.Random(seed)))


def spelled(record: dict[str, Any], shows_told: bool = True) -> list[str]:
    """The turns with the numbers that are told as percentages, and those that are asked for as tokens."""
    numbers, wrong = read_variables(record["conversations"], record["variables"])
    assert wrong == []

    def write(name: str, number: float) -> str:
        return coordinate_token(axis_of(name), number) if is_asked(name) else f"({axis_of(name)[0]}{number:.2f})"

    return [turn["value"] for turn in fill(record["conversations"], numbers, write)]


@pytest.mark.parametrize(("task", "question", "answer"), [
    ("REC", "un gatto {nero}", "[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>]"),
    ("REG", "[(W0.10)(H0.20)(W0.30)(H0.40)]", "un gatto {nero}"),
    ("TVG", "un gatto dorme.", "{<TEMP-044><TEMP-055>}"),
    ("TR", "{(T0.44)(T0.56)}", "un gatto dorme."),
    ("STVG", "un gatto dorme.", "{<TEMP-044><TEMP-055>} <TEMP-044>:[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>] "
     "<TEMP-055>:[<WIDTH-020><HEIGHT-020><WIDTH-040><HEIGHT-040>]"),
    ("SVG", "{(T0.44)(T0.56)}", "<TEMP-044>:[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>] "
     "<TEMP-055>:[<WIDTH-020><HEIGHT-020><WIDTH-040><HEIGHT-040>]"),
    ("ELC", "(T0.44) in [(W0.10)(H0.20)(W0.30)(H0.40)]", "<TEMP-055>, un gatto dorme. "
     "<TEMP-044>:[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>] "
     "<TEMP-055>:[<WIDTH-020><HEIGHT-020><WIDTH-040><HEIGHT-040>]"),
    ("DGC", "mmagine", "un gatto {nero} [<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>] e "
     "un cane [<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>]."),
])  # fmt: skip
def test_what_each_task_tells_and_asks_for(task: str, question: str, answer: str) -> None:
    for seed in range(8):
        record = made(task, seed)
        asked, answered = spelled(record)
        kind = "image" if task in ("REC", "REG", "DGC") else "video"
        assert asked.startswith(f"<{kind}>\n") and record[kind] == ("image.png" if kind == "image" else "clip.mp4")
        if task == "ELC":
            question_words = ("(T0.44)", "[(W0.10)(H0.20)(W0.30)(H0.40)]")
            assert all(words in asked for words in question_words)
        else:
            assert question in asked
        assert answered == answer
        assert (
            record["meta"]["task"] == task
            and record["id"] == f"{'clip' if kind == 'video' else 'image'}_{task.lower()}_0"
        )


def test_an_exact_answer_is_the_truth() -> None:
    truth = {task: (made(task)["meta"]["truth"], spelled(made(task))[1]) for task in TASKS}
    close = 0.5 / 99 + 1e-6
    assert parse_box(truth["REC"][1]) == pytest.approx(truth["REC"][0]["box"], abs=close)
    assert parse_span(truth["TVG"][1]) == pytest.approx(truth["TVG"][0]["span"], abs=close)
    assert parse_span(truth["STVG"][1]) == pytest.approx(truth["STVG"][0]["span"], abs=close)
    for task in ("STVG", "SVG", "ELC"):
        boxes = parse_frame_boxes(truth[task][1])
        assert boxes == {int(i): pytest.approx(b, abs=close) for i, b in truth[task][0]["boxes"].items()}
    end, words, _ = parse_event(truth["ELC"][1])
    assert end == pytest.approx(truth["ELC"][0]["span"][1], abs=close) and f"{words}." == truth["ELC"][0]["text"]
    assert truth["REG"][1] == truth["REG"][0]["text"] and truth["TR"][1] == truth["TR"][0]["text"]
    phrases = [(p.removeprefix("e "), b) for p, b in parse_phrases(truth["DGC"][1])]
    assert phrases == [(p, pytest.approx(b, abs=close)) for p, b in truth["DGC"][0]["phrases"]]


def test_every_wording_can_be_chosen_and_names_what_it_needs() -> None:
    assert set(PROMPTS) == set(AND) == {"it", "en"}
    needs = {"REC": ["event"], "REG": ["box"], "TVG": ["event"], "TR": ["span"], "STVG": ["event"],
             "SVG": ["event", "span"], "ELC": ["start", "box"], "DGC": []}  # fmt: skip
    for language, by_task in PROMPTS.items():
        assert set(by_task) == set(TASKS)
        for task, wordings in by_task.items():
            assert len(set(wordings)) == len(wordings) >= 3
            for wording in wordings:
                names = [part.partition("}")[0] for part in wording.split("{")[1:]]
                assert sorted(names) == sorted(needs[task]), wording
            asked = {made(task, seed, language)["conversations"][0]["value"] for seed in range(40)}
            assert len(asked) == len(wordings)
    with_numpy = records_of(CLIP, ["TVG"], "en", np.random.default_rng(0))
    assert with_numpy == records_of(CLIP, ["TVG"], "en", np.random.default_rng(0))


def test_a_task_is_made_of_what_has_all_that_it_needs() -> None:
    rng = random.Random(0)
    untimed = Annotation(id="c", video="c.mp4", width=9, height=9, events=[Event("x"), Event("y", (0, 1))])
    assert [r["id"] for r in records_of(untimed, TASKS, "it", rng)] == ["c_tvg_0", "c_tr_0"]
    assert [r["meta"]["task"] for r in records_of(IMAGE, TASKS, "it", rng)] == ["REC", "REC", "REG", "REG", "DGC"]
    assert made("TVG")["meta"]["split"] == [0, 29] and "split" not in made("REC")["meta"]
    with pytest.raises(UserError, match="no task is called 'OCR'; known are REC"):
        records_of(CLIP, ["OCR"], "it", rng)
    with pytest.raises(UserError, match="no questions in 'fr'; known are it, en"):
        records_of(CLIP, ["TVG"], "fr", rng)
