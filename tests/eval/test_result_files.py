"""The two files of a test."""

from __future__ import annotations

import csv
import json
import math

from llava.eval.result_files import Results, csv_text, file_name


def test_a_table_is_rfc_4180_with_numbers_as_they_are():
    text = csv_text(["a", "b", "c"], [{"a": 'l\'uomo, "x"\n', "b": 0.1 + 0.2, "c": 3}, {"a": "è", "b": math.nan}])
    assert text == 'a,b,c\r\n"l\'uomo, ""x""\n",0.30000000000000004,3\r\nè,,\r\n'
    assert list(csv.reader(text.splitlines(keepends=True)))[1] == ['l\'uomo, "x"\n', "0.30000000000000004", "3"]


def test_beside_the_table_stands_what_was_measured(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"global_step": 7}')
    data = tmp_path / "a.txt"
    data.write_text("x")
    path = Results(tmp_path, tmp_path).write("t", ["a"], [{"a": 1}], [data], {"n": math.nan, "l": (1, math.nan)})
    facts = json.loads(path.with_suffix(".json").read_text())
    assert path.read_bytes() == b"a\r\n1\r\n" and sorted(p.name for p in tmp_path.glob("t.*")) == ["t.csv", "t.json"]
    assert (facts["step"], facts["rows"], facts["summary"]) == (7, 1, {"n": None, "l": [1, None]})
    assert facts["files"][0]["sha256"].startswith("2d711642b726b044") and "torch" in facts["versions"]
    (tmp_path / "trainer_state.json").unlink()
    path = Results(tmp_path, tmp_path).write("t", ["a"], [], [], {})
    assert json.loads(path.with_suffix(".json").read_text())["step"] is None


def test_names_of_tests():
    assert file_name("a/b c.it.jsonl") == "b_c.it" and file_name("x:y.tsv") == "x_y"
