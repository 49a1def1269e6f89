"""Turns of chat templates become LLaVA's, or are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.data.records import load_records
from llava.data.turns import read_turns

VIDEO, TEXT = {"type": "video"}, {"type": "text", "text": "Che cosa fa?"}
ANSWER = {"role": "assistant", "content": "Dorme."}


def values(*turns: Any, key: str = "conversations") -> list[tuple[str, str]]:
    read, wrong = read_turns({key: list(turns)})
    assert wrong == []
    return [(turn["from"], turn["value"]) for turn in read]


def test_roles_become_from() -> None:
    asked = {"role": "user", "content": "<video>\nChe cosa fa?"}
    expected = [("system", "Sii breve."), ("human", "<video>\nChe cosa fa?"), ("gpt", "Dorme.")]
    for key in ("conversations", "messages"):
        assert values({"role": "system", "content": "Sii breve."}, asked, ANSWER, key=key) == expected
    assert values({"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}) == [("human", "a"), ("gpt", "b")]


def test_turns_of_llava_stay_as_they_are() -> None:
    turns = [{"from": "user", "value": "<video>", "weight": 1}, {"from": "assistant", "value": "Un gatto."}]
    assert read_turns({"conversations": turns}) == (turns, [])


def test_parts_become_text_with_placeholders() -> None:
    asked = {"role": "user", "content": [VIDEO, TEXT, {"type": "image", "text": None}]}
    assert values(asked, {"role": "assistant", "content": [{"type": "text", "text": "Dorme."}]}) == [
        ("human", "<video>Che cosa fa?<image>"), ("gpt", "Dorme.")
    ]  # fmt: skip


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "tool", "content": "x"}, "turn 0: role must be user, assistant or system, got 'tool'"),
        ({"role": ["user"], "content": "x"}, "turn 0: role must be"),
        ({"content": "x"}, "turn 0: role must be user, assistant or system, got None"),
        (user(None), "turn 0: content must be a text, or a list of parts, got None"),
        (user("x", tool_calls=[1]), "turn 0: key 'tool_calls' is not read"),
        (user("x", value="y"), "turn 0: from and value beside role or content"),
        ({"from": "human", "value": "x", "role": "user"}, "turn 0: from and value beside role or content"),
        (user(["x"]), "turn 0: part 0: expected"),
        (user([VIDEO, {"type": "audio"}]), "turn 0: part 1: expected"),
        (user([{"type": ["video"]}]), "turn 0: part 0: expected"),
        (user([{"type": "text", "text": 3}]), "turn 0: part 0: expected"),
        (user([{"type": "video", "video": "a.mp4"}]), 'turn 0: part 0: key \'video\' is not read; write a file under '
         'the record\'s "video"'),
        (user([TEXT, TEXT]), "turn 0: part 1: two texts next to each other"),
    ],
)  # fmt: skip
def test_what_is_no_turn_is_named(turn: Any, message: str) -> None:
    _, wrong = read_turns({"conversations": [turn, ANSWER]})
    assert len(wrong) == 1 and wrong[0].startswith(message)


def test_turns_under_two_keys_are_refused() -> None:
    assert "keep one" in read_turns({"conversations": [ANSWER], "messages": [ANSWER]})[1][0]


def test_both_forms_are_the_same_record(tmp_path: Path) -> None:
    """To the white space around the placeholder; a video that no part shows is a problem as ever."""
    asked = {"from": "human", "value": "<video>\nChe cosa fa?"}
    llava = {"id": "a", "video": "a.mp4", "conversations": [asked, {"from": "gpt", "value": "Dorme."}]}
    chat = llava | {"conversations": [user([VIDEO, TEXT]), ANSWER]}
    blind = llava | {"conversations": [user([TEXT]), ANSWER]}
    found = []
    for raw in (llava, chat, blind):
        path = tmp_path / "data.json"
        path.write_text(json.dumps([raw]))
        found.append(load_records(path))
    assert found[0] == found[1] and found[0][1] == []
    assert [p.kind for p in found[2][1]] == ["count mismatch"]
