"""Files that are not there, and those that are meant."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from llava.data.lookup import differences, wrong_with_files

COMPOSED = "perché.mp4"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@pytest.mark.parametrize(
    ("there", "asked", "difference"),
    [
        (DECOMPOSED, COMPOSED, "another Unicode form"),
        (COMPOSED, DECOMPOSED, "another Unicode form"),
        ("a.mp4", "a.mp4\n", "white space at an end"),
        ("a.mp4", " a.mp4", "white space at an end"),
        ("a.mp4 ", "a.mp4", "white space at an end"),
        ("Gatto.MP4", "gatto.mp4", "another case"),
        ("clips/a.mp4", "Clips/a.mp4", "another case"),
        ("clips/a.mp4", "clips /a.mp4", "white space at an end"),
        (f"Clips/{DECOMPOSED}", f"clips/{COMPOSED}", "another Unicode form, another case"),
    ],
)
def test_a_file_that_looks_the_same_is_named(tmp_path: Path, there: str, asked: str, difference: str) -> None:
    file = tmp_path / there
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    asked = f"{tmp_path}/{asked}"
    message = wrong_with_files([asked])[asked]
    spell = ascii if "Unicode" in difference else repr
    assert message.startswith(f"no such file; there is {spell(str(file))} ({difference})")
    assert ("\\u0301" in message) == ("Unicode" in difference)


def test_nothing_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "b.mp4").write_bytes(b"x")
    asked = [f"{tmp_path}/{name}" for name in ("a.mp4", "none/a.mp4", "b.mp4/c.mp4")]
    assert wrong_with_files(asked)[asked[0]] == wrong_with_files(asked)[asked[1]] == "no such file"
    assert "there is" not in wrong_with_files(asked)[asked[2]]
    assert wrong_with_files([str(tmp_path / "b.mp4")]) == {}


def test_a_folder_is_listed_once_for_all_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    listed, listdir = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or listdir(folder))
    wrong = wrong_with_files([f"{tmp_path}/{i}.mp4" for i in range(100)] + [f"{tmp_path}/A.mp4"])
    assert len(wrong) == 101 and listed == [str(tmp_path)]
    assert wrong_with_files([f"{tmp_path}/a.mp4"]) == {} and len(listed) == 1


def test_a_name_that_is_not_utf_8_is_named_and_can_be_shown(tmp_path: Path) -> None:
    there = os.fsdecode(os.fsencode(tmp_path) + b"/caff\xe8.mp4")
    with open(there, "wb") as file:
        file.write(b"x")
    asked = there.replace("caff", "Caff")
    wrong = wrong_with_files([there, asked])
    assert wrong[there].startswith("its name is not UTF-8")
    assert "caff\\udce8.mp4' (another case)" in wrong[asked].encode("utf-8").decode()


def test_differences() -> None:
    assert differences("a", "a") == []
    assert differences("a /B", "a/b") == ["another case", "white space at an end"]
