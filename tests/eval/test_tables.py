"""Tables of others: separators, quotes, a header that lacks a name."""

from __future__ import annotations

import pytest

from llava.data.json_records import DatasetError
from llava.eval.tables import UNNAMED, read_table


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "word\tvalue\r\nl'uomo\t1,5\r\n\r\ndue\t\r\n"),
        ("a.csv", '\ufeffword,value\n"l\'uomo","1,5"\ndue,\n'),
        ("b.csv", "word;value\nl'uomo;1,5\ndue;\n"),
        ("a.jsonl", '{"word": "l\'uomo", "value": "1,5"}\n\n{"word": "due", "value": null}\n'),
        ("c.jsonl", '{"word": "l\'uomo", "value": "1,5"}\r\n{"word": "due", "value": ""}\r\n'),
        ("b.jsonl", '{"word": "l\'uomo", "value": "1,5"}\n{"word": "due"}\n'),
    ],
)
def test_one_table_in_every_form(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode())
    table = read_table(path)
    assert table.columns == ("word", "value")
    assert table.rows == [{"word": "l'uomo", "value": "1,5"}, {"word": "due", "value": ""}]
    assert table.places[0].endswith((":2", ":1")) and table.places[0].startswith(str(path))


def test_a_header_may_lack_the_name_of_the_first_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("b,c\n0,x,y\n1,z,w\n")
    assert read_table(path).columns == (UNNAMED, "b", "c") and read_table(path).rows[1][UNNAMED] == "1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n1,2,3\n", r":3: 3 cells, and 2 columns: a, b"),
        ('a,b\n"Ciao" disse,2\n', r":2: .*double quotes"),
        ("a,a\n1,2\n", "column a stands there twice"),
        ('{"a": 1}\n[1]\n', ":2: is no object"),
        ('{"a": 1}\n{a\n', ":2: is no JSON"),
        (" \n", "is empty"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, said):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DatasetError, match=said):
        read_table(path)


def test_a_line_of_json_ends_at_its_end(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": "uno\u2028due"}\n', encoding="utf-8")
    assert read_table(tmp_path / "t.jsonl").rows == [{"a": "uno\u2028due"}]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.tsv: No such file"):
        read_table(tmp_path / "none.tsv")
    (tmp_path / "latin.tsv").write_bytes("però\n".encode("latin-1"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_table(tmp_path / "latin.tsv")


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\n1\t2\n")
    with pytest.raises(DatasetError, match=r"--column: .*t\.tsv has no column c; it has a, b"):
        read_table(path).need(["a", "c"], "--column")
