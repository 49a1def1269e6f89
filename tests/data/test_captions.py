"""Text that is no caption, placeholders that stand in a wrong place."""

from __future__ import annotations

import pytest

from llava.data.captions import check_text, is_blank, remarks_on, without_placeholders

VIDEO, TWO = {"<video>": 1, "<image>": 0}, {"<video>": 2, "<image>": 0}


def talk(*values: str) -> list[dict[str, str]]:
    """Turns of human and gpt, one after the other."""
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def kinds(turns: list[dict[str, str]], files: dict[str, int] = VIDEO) -> list[str]:
    return [kind for kind, _ in check_text(turns, files, ())]


@pytest.mark.parametrize(
    "text",
    ["", " \n\t", "\u200b\u200b\ufeff", "\u00ad", "\u3164", "\ufe0f", "\u034f \u2060", "\u00a0", "\u200e", "\u2800",
     "\U000e0041", "\x00", "\u115f"],
)  # fmt: skip
def test_what_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text)
    assert kinds(talk("<video>", text))[0] == "empty caption"


@pytest.mark.parametrize("text", ["è", "7", ".", "猫", "\u200bgatto", "👩\u200d🚀", "❤\ufe0f", "می\u200cروم"])
def test_what_shows_something_is_a_caption(text: str) -> None:
    assert not is_blank(text)
    assert kinds(talk("<video>", text)) == []


@pytest.mark.parametrize(
    ("turns", "files"),
    [
        (talk("<video>", "Un gatto."), VIDEO),
        (talk("<video>\nDescrivi.", "Un gatto."), VIDEO),
        (talk("Descrivi <video>", "Un gatto."), VIDEO),
        (talk("<video> Che cosa?", "Un gatto.", "<video>\nE qui?", "Un cane."), TWO),
        (talk("Ciao.", "Ciao!", "<video>", "Un gatto."), VIDEO),
        (talk("Ciao.", "Ciao!", "<video> Un gatto."), VIDEO),
        (talk("", "Un gatto."), {"<video>": 0, "<image>": 0}),
    ],
)
def test_placeholders_in_questions_are_fine(turns: list[dict[str, str]], files: dict[str, int]) -> None:
    assert kinds(turns, files) == []


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"from": "gpt", "value": "Un gatto."}, {"from": "human", "value": "<video>"}], "no word follows"),
        ([{"from": "gpt", "value": "Un gatto."}, {"from": "human", "value": "<video> \u200b"}], "no word follows"),
        (talk("Descrivi.", "La pagina usa il tag <video> di HTML."), "turn 1: <video> in an answer"),
        (talk("Descrivi.", "<video> Un gatto."), "turn 1: <video> in an answer"),
        ([{"from": "user", "value": ""}, {"from": "assistant", "value": "<video> Un gatto."}], "turn 1: <video> in an"),
    ],
)
def test_misplaced_placeholders_are_refused(turns: list[dict[str, str]], message: str) -> None:
    """All of these have as many placeholders as files."""
    found = check_text(turns, VIDEO, ())
    assert [kind for kind, _ in found] == ["misplaced placeholder"] and message in found[0][1]


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\x85", "\x0b"])
def test_control_characters_are_named_with_their_turn(character: str) -> None:
    found = check_text(talk("<video>", f"Un{character}gatto."), VIDEO, ())
    assert found == [("control character", f"turn 1 contains {character!r}")]
    assert kinds(talk("<video>", "Un gatto\te\r\nun cane.")) == []


@pytest.mark.parametrize("text", ["nan", "NaN", " None ", "null\n", "NULL"])
def test_a_missing_value_as_caption_is_remarked_on(text: str) -> None:
    assert kinds(talk("<video>", text)) == []
    ((kind, message),) = remarks_on(talk("<video>", text))
    assert kind == "doubtful caption" and repr(text.strip()) in message


@pytest.mark.parametrize("text", ["Nonna dorme.", "nan nan", "Il valore è null.", "none?"])
def test_other_captions_are_not_remarked_on(text: str) -> None:
    assert remarks_on(talk("nan", text)) == []


def test_without_placeholders() -> None:
    assert without_placeholders("<image><video> Un gatto.") == " Un gatto."


@pytest.mark.parametrize(
    ("turns", "files", "wrong"),
    [
        (talk("<video> Chi?", "Un gatto.", "Dove?"), VIDEO, []),
        (talk("<video>", "Un gatto."), VIDEO, []),
        ([{"from": "system", "value": "Sii breve."}, *talk("<video>", "Un gatto.")], VIDEO, []),
        (talk("Chi?", "Un gatto.", "<video> Dove?"), VIDEO, ["misplaced placeholder"]),
        (talk("Chi?", "Un gatto.", "<video> Dove?", " "), VIDEO, ["empty caption"]),
        (talk("<video>", "", "Dove?", "Qui."), VIDEO, ["empty caption"]),
        (talk("<video>", " "), VIDEO, ["empty caption"]),
        (talk("<video>", "Un gatto.")[::-1], VIDEO, ["order of turns", "misplaced placeholder"]),
        ([*talk("<video>", "Un gatto."), {"from": "gpt", "value": "Dorme."}], VIDEO, ["order of turns"]),
    ],
)
def test_a_chat_learns_answers_alone(turns: list[dict[str, str]], files: dict[str, int], wrong: list[str]) -> None:
    assert [kind for kind, _ in check_text(turns, files, (), is_chat=True)] == wrong
    plainly = [kind for kind in kinds(turns, files) if kind in ("order of turns",)]
    assert plainly == [], "plain LM takes any order"


@pytest.mark.parametrize(
    "other", ["<video_1>", "<Video>", "<vid>", "[video]", "<img>", "{image}", "<|video|>", "<image 2>"]
)
def test_what_looks_like_a_placeholder_is_remarked_on(other):
    ((kind, message),) = remarks_on(talk(f"<video> {other} Che cosa si vede?", "Un gatto."))
    assert kind == "near placeholder" and repr(other) in message
    ((kind, message),) = check_text(talk(f"{other} Che cosa si vede?", "Un gatto."), {"<video>": 1}, ())
    assert kind == "count mismatch" and f"{other!r} is not read as one" in message


@pytest.mark.parametrize(
    "text", ["<video>", "<image>", "un [video] di", "<b>video</b>", "(video)", "[Videomaker]", "<3"]
)
def test_placeholders_and_words_are_not(text):
    found = remarks_on(talk(f"<video> {text}", "Un gatto."))
    assert bool(found) == (text == "un [video] di")
