"""The two files of a test."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import pytest

from llava.eval.result_files import Results, changed_since, csv_text, file_name, kept_results, stamps


def test_a_table_is_rfc_4180_with_numbers_as_they_are():
    text = csv_text(["a", "b", "c"], [{"a": 'l\'uomo, "x"\n', "b": 0.1 + 0.2, "c": 3}, {"a": "è", "b": math.nan}])
    assert text == 'a,b,c\r\n"l\'uomo, ""x""\n",0.30000000000000004,3\r\nè,,\r\n'
    assert list(csv.reader(text.splitlines(keepends=True)))[1] == ['l\'uomo, "x"\n', "0.30000000000000004", "3"]


def test_beside_the_table_stands_what_was_measured(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"global_step": 7}')
    data = tmp_path / "a.txt"
    data.write_text("x")
    path = Results(tmp_path, tmp_path).write(
        "t", ["a"], [{"a": 1}], stamps([data]), {"n": math.nan, "l": (1, math.nan)}
    )
    facts = json.loads(path.with_suffix(".json").read_text())
    assert path.read_bytes() == b"a\r\n1\r\n" and sorted(p.name for p in tmp_path.glob("t.*")) == ["t.csv", "t.json"]
    assert (facts["step"], facts["rows"], facts["summary"]) == (7, 1, {"n": None, "l": [1, None]})
    assert facts["files"][0]["sha256"].startswith("2d711642b726b044") and "torch" in facts["versions"]
    (tmp_path / "trainer_state.json").unlink()
    path = Results(tmp_path, tmp_path).write("t", ["a"], [], [], {})
    assert json.loads(path.with_suffix(".json").read_text())["step"] is None


@pytest.fixture
def kept(tmp_path) -> Path:
    """A model with results of a file and a table."""
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 40_000)
    (tmp_path / "config.json").write_text("{}")
    for name in ("a.txt", "norms.tsv"):
        (tmp_path / name).write_text("x")
    files, tables = stamps([tmp_path / "a.txt"]), stamps([tmp_path / "norms.tsv", None])
    Results(tmp_path, tmp_path).write("t", ["nats"], [{"nats": 3.25}], files, {}, tables=tables)
    return tmp_path


def old(path: Path) -> None:
    """As a copy from another machine that keeps the times."""
    os.utime(path, (1, 1))


def test_results_of_another_model_are_none_however_old_its_files(kept):
    assert kept_results(kept, "t", kept)["rows"] == 1 and changed_since(kept_results(kept, "t", kept)) == []
    weights = kept / "model.safetensors"
    os.utime(weights)
    assert kept_results(kept, "t", kept), "the same model, copied, is the same"
    trained = bytearray(weights.read_bytes())
    for i in range(0, len(trained), 1000):
        trained[i] ^= 1
    weights.write_bytes(trained)
    old(weights)
    assert kept_results(kept, "t", kept) is None


@pytest.mark.parametrize("broken", [b"nats\r\n3.2", b"", b"nats\r\n3.35\r\n"])
def test_a_table_that_was_cut_or_edited_is_none(kept, broken):
    (kept / "t.csv").write_bytes(broken)
    assert kept_results(kept, "t", kept) is None
    (kept / "t.csv").unlink()
    assert kept_results(kept, "t", kept) is None


def test_what_results_were_made_from_may_have_changed_since(kept):
    (kept / "norms.tsv").write_text("y")
    old(kept / "norms.tsv")
    (kept / "a.txt").unlink()
    assert changed_since(kept_results(kept, "t", kept)) == [str(kept / "a.txt"), str(kept / "norms.tsv")]
    assert changed_since({"files": ["named.txt"]}) == ["named.txt"], "as an earlier commit wrote them"


def test_names_of_tests():
    assert file_name("a/b c.it.jsonl") == "b_c.it" and file_name("x:y.tsv") == "x_y"
