"""The tests of a run are made one by one, and each that was made stays when a later one fails."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from llava.errors import UserError
from llava.study import testing


def test_what_was_made_before_a_failure_stays(tmp_path, monkeypatch, capsys):
    asked = []

    def main(words):
        asked.append(words)
        if words[0] == "wrong":
            raise UserError("a pair is wrong")
        (tmp_path / "tests").mkdir(exist_ok=True)
        testing.result_of(tmp_path, "one").write_text("{}")

    monkeypatch.setattr(testing, "import_module", lambda module: SimpleNamespace(main=main))
    (tmp_path / "a.txt").write_text("a")
    wanted = {"one": ["-m", "module", "x", str(tmp_path / "a.txt")], "two": ["-m", "module", "wrong"]}
    with pytest.raises(UserError, match="a pair is wrong"):
        testing.main([str(tmp_path), json.dumps({**wanted, "three": ["-m", "module", "y"]})])
    assert asked == [wanted["one"][2:], ["wrong"]] and "test two" in capsys.readouterr().out
    found = testing.sha256(testing.result_of(tmp_path, "one"))
    assert testing.noted(tmp_path) == {"one": {**testing.made_by(wanted["one"]), "result": found}}
    (tmp_path / "a.txt").write_text("b")
    assert testing.noted(tmp_path)["one"]["files"] != testing.made_by(wanted["one"])["files"]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_note_is_none(text, tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / testing.COMMANDS_FILE).write_text(text)
    assert testing.noted(tmp_path) == {}
