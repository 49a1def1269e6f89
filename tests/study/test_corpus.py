"""The text corpus of a study: made once, or taken as it was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.data import corpus
from llava.errors import UserError
from llava.study.corpus import CORPUS_FILE, corpus_of


def command(words, what):
    assert words[1:3] == ["-m", "llava.data.corpus"] and what == "the text corpus"
    assert corpus.main(list(words)[3:]) == 0


def never(words, what):
    raise AssertionError(words)


def test_plain_text_becomes_records_once_and_what_is_made_is_taken(tmp_path):
    (tmp_path / "a.txt").write_text("Uno due tre.\n\nQuattro cinque.\n")
    made = corpus_of([str(tmp_path / "a.txt")], "4", tmp_path / "study", command)
    assert made == [str(tmp_path / "study" / CORPUS_FILE)]
    texts = [json.loads(line)["conversations"][1]["value"] for line in Path(made[0]).read_text().splitlines()]
    assert sum(len(text.split()) for text in texts) == 4
    assert corpus_of([str(tmp_path / "a.txt")], "4", tmp_path / "study", never) == made
    assert corpus_of(made, "all", tmp_path / "other", never) == made, "with its source and licence beside it"
    (tmp_path / "moved.txt").write_bytes((tmp_path / "a.txt").read_bytes())
    assert corpus_of([str(tmp_path / "moved.txt")], "4", tmp_path / "study", never) == made
    for file, words in (("a.txt", "5"), ("b.txt", "4")):
        (tmp_path / "b.txt").write_text("Sei sette otto nove dieci.\n")
        with pytest.raises(UserError, match=f"was made of other text .4 words of .*a.txt; asked for are {words} words"):
            corpus_of([str(tmp_path / file)], words, tmp_path / "study", never)


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(UserError, match="--text_corpus none.txt: no such file"):
        corpus_of(["none.txt"], "all", tmp_path, never)
    with pytest.raises(UserError, match="--words 10M: no --text_corpus has as many words as it has"):
        corpus_of([], "10M", tmp_path, never)
