"""Plain text as records: borders of documents are kept, no word is lost, and the words asked for are taken exactly."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.data.corpus import choose_documents, main, pieces, read_documents
from llava.data.records import load_records
from llava.data.sources import count_sources
from tests.train.runs import train

TEXT = "Il gatto dorme. La palla\nrotola via.\n\n \nUn altro giorno piove, e poi smette!\n"


@given(st.lists(st.sampled_from(["a", "b.", "c!”", "d"]), max_size=60), st.integers(1, 9))
def test_pieces_are_the_document_and_short_and_end_after_sentences(words, most):
    found = list(pieces(words, most))
    assert [w for piece in found for w in piece] == words
    assert all(1 <= len(piece) <= most for piece in found)
    for piece in found[:-1]:
        whole = len(piece) == most
        assert piece[-1] in ("b.", "c!”") or whole


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(0, 99), st.data())
def test_as_many_words_as_asked_for_are_drawn(counts, seed, data):
    counts = np.array(counts)
    few = data.draw(st.integers(1, int(counts.sum())))
    many = data.draw(st.integers(few, int(counts.sum())))
    taken, more = choose_documents(counts, few, seed), choose_documents(counts, many, seed)
    assert taken.sum() == few and more.sum() == many
    assert (taken <= more).all() and (more <= counts).all()
    assert ((taken > 0) & (taken < counts)).sum() <= 1, "one document is cut at most"
    assert choose_documents(counts, None, seed) is counts


@pytest.mark.parametrize(
    ("borders", "expected"),
    [
        ("blank", [(1, 7), (5, 7)]),
        ("lines", [(1, 5), (2, 2), (5, 7)]),
        ("file", [(1, 14)]),
    ],
)
def test_documents_of_plain_text(tmp_path, borders, expected):
    (tmp_path / "a.txt").write_text(TEXT)
    assert [(n, len(w)) for n, w in read_documents(tmp_path / "a.txt", borders, "text", "utf-8")] == expected


def write(folder: Path, *flags: str) -> list[dict]:
    output = folder / "corpus.jsonl"
    assert main([*flags, "--output", str(output)]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_files_become_records_that_say_where_they_come_from(tmp_path, assets, capsys):
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write(TEXT)
    (tmp_path / "b.jsonl").write_text(json.dumps({"body": "Tre tigri contro tre tigri."}) + "\n\n")
    named = [str(tmp_path / "a.txt.gz"), str(tmp_path / "b.jsonl"), "--text_key", "body", "--piece_words", "4"]
    rows = write(tmp_path, *named, "--source", "Prova", "--license", "CC0")
    texts = [row["conversations"][1]["value"] for row in rows]
    assert texts == ["Il gatto dorme.", "La palla rotola via.", "Un altro giorno piove,", "e poi smette!",
                     "Tre tigri contro tre", "tigri."]  # fmt: skip
    assert [row["id"] for row in rows] == ["a.txt.gz:1", "a.txt.gz:1:1", "a.txt.gz:5", "a.txt.gz:5:1", "b.jsonl:1",
                                           "b.jsonl:1:1"]  # fmt: skip
    assert "19 of 19 words, 3 documents in 6 records" in capsys.readouterr().out
    records, problems = load_records(str(tmp_path / "corpus.jsonl"), "", "")
    assert not problems
    (count,) = count_sources(records)
    assert (count.words, count.source, count.license) == (19, "Prova", "CC0")
    train(assets, tmp_path / "run", 1, data_path=tmp_path / "corpus.jsonl", max_steps=1, run_report=True)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Prova" in card and "CC0" in card


def test_the_words_that_are_asked_for_are_written(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    rows = write(tmp_path, str(tmp_path / "a.txt"), "--words", "9")
    assert sum(len(row["conversations"][1]["value"].split()) for row in rows) == 9
    about = json.loads((tmp_path / "corpus.jsonl.source.json").read_text())
    assert (about["words"], about["of_words"], about["documents"]) == (9, 14, 2)


@pytest.mark.parametrize(
    ("name", "content", "flags", "message"),
    [
        ("a.txt", TEXT, ["--words", "1k"], "14 words, and --words asks for 1,000"),
        ("a.txt", TEXT, ["--words", "many"], "--words many: no number"),
        ("a.txt", TEXT, ["--documents", "pages"], "--documents pages: use blank, lines or file"),
        ("a.txt", "  \n", [], "0 words"),
        ("a.txt", "Un <video> qui.\n", [], "line 1: holds <video>"),
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}\n', [], r"line 2: no text under 'text' \('body'\): say --text_key"),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', [], "line 2: no JSON"),
    ],
)
def test_what_cannot_be_taken_is_named(tmp_path, capsys, name, content, flags, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit):
        write(tmp_path, str(tmp_path / name), *flags)
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.glob("*corpus.jsonl*"))


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(TEXT)
    rows = write(tmp_path, *(str(tmp_path / folder / "a.txt") for folder in ("x", "y")))
    assert len({row["id"] for row in rows}) == len(rows) == 4


def test_an_output_that_is_there_stays(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    write(tmp_path, str(tmp_path / "a.txt"))
    with pytest.raises(SystemExit):
        write(tmp_path, str(tmp_path / "a.txt"))
    assert "exists already" in capsys.readouterr().err
    write(tmp_path, str(tmp_path / "a.txt"), "--overwrite")
