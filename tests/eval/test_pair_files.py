"""Pairs of every kind of file, exactly."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from llava.data.json_records import DatasetError
from llava.errors import UserError
from llava.eval.pair_files import Columns, read_pairs
from tests.conftest import REAL_CLIPS

CLEVER = REAL_CLIPS.parent / "italian" / "clever_semantic_minimal_pairs.csv"
HEADER = "id_number,sentence,item,condition,voice,judgment\n"


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_blimp(tmp_path):
    lines = [
        {"sentence_good": "Il gatto dorme.", "sentence_bad": "La gatto dorme.", "UID": "agreement", "pairID": "0"},
        {"sentence_good": " Io  vado.", "sentence_bad": "Io va.", "UID": "verb", "pairID": "0", "field": "syntax"},
    ]
    path = written(tmp_path, "blimp.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    pairs, remarks = read_pairs(path)
    assert [(p.item, p.cluster, p.phenomenon, p.good, p.bad, p.clip) for p in pairs] == [
        ("agreement 0", "agreement 0", "agreement", "Il gatto dorme.", "La gatto dorme.", None),
        ("verb 0", "verb 0", "verb", "Io vado.", "Io va.", None),
    ]
    assert remarks == ["1 pairs had white space around a sentence or doubled within it, which was taken off"]


@pytest.mark.parametrize("separator", ["\t", ",", "json"])
def test_multiblimp(tmp_path, separator):
    rows = [["sen", "wrong_sen", "phenomenon", "noun"], ["I cani corrono", "I cani corre", "SV-#", "cane"],
            ["Il cane corre", "Il cane corrono", "SV-#", "cane"]]  # fmt: skip
    if separator == "json":
        text = "".join(json.dumps(dict(zip(rows[0], row, strict=True))) + "\n" for row in rows[1:])
    else:
        text = "\n".join(separator.join(row) for row in rows)
    pairs, remarks = read_pairs(written(tmp_path, "m.txt", text), Columns(cluster="noun"))
    assert [(p.cluster, p.phenomenon, p.good, p.bad) for p in pairs] == [
        ("cane", "SV-#", "I cani corrono", "I cani corre"),
        ("cane", "SV-#", "Il cane corre", "Il cane corrono"),
    ]
    assert not remarks and len({p.item for p in pairs}) == 2


def test_columns_by_name_and_a_clip(tmp_path):
    path = written(
        tmp_path, "own.tsv", "n\tok\tko\ttype\tfile\n7\tUn cane.\tUn gatto.\tnoun\ta.mp4\n8\tSì.\tSì.\tx\t\n"
    )
    columns = Columns(good="ok", bad="ko", phenomenon=["type"], item="n", clip="file")
    pairs, remarks = read_pairs(path, columns)
    assert [(p.item, p.phenomenon, p.clip) for p in pairs] == [("7", "noun", "a.mp4"), ("8", "x", None)]
    assert remarks == ["1 pairs have two equal sentences; each counts half"]
    with pytest.raises(DatasetError, match=r"columns: .*own\.tsv has no column nice; it has n, ok, ko, type, file"):
        read_pairs(path, Columns(good="nice", bad="ko"))
    with pytest.raises(DatasetError, match="no column of sentences is known.*--good and --bad"):
        read_pairs(path)


def test_sentences_are_paired_within_their_group(tmp_path):
    rows = ["0,1,Il ladro ha preso la malattia.,a,AI,active,possible",
            "1,2,La malattia ha preso il ladro.,a,AI,active,impossible",
            "2,3,Uno.,b,AA,active,plausible", "3,4,Due.,b,AA,active,implausible",
            "4,5,Tre.,b,AA,active,plausible", "5,6,Quattro.,b,AA,active,implausible",
            "6,7,Rev.,c,AA-rev,active,reversible"]  # fmt: skip
    path = written(tmp_path, "clever.csv", HEADER + "\n".join(rows))
    pairs, remarks = read_pairs(path)
    assert [(p.item, p.cluster, p.phenomenon, p.good, p.bad) for p in pairs] == [
        ("a AI active", "a", "AI active", "Il ladro ha preso la malattia.", "La malattia ha preso il ladro."),
        ("b AA active #1", "b", "AA active", "Uno.", "Due."),
        ("b AA active #2", "b", "AA active", "Tre.", "Quattro."),
    ]
    assert remarks == ["1 sentences are judged 'reversible', neither good nor bad, and are in no pair"]
    path = written(tmp_path, "odd.csv", HEADER + "\n".join(rows[:3]))
    with pytest.raises(DatasetError, match=r"odd\.csv:4: the group b AA active has 1 good and 0 bad sentences"):
        read_pairs(path)


def test_groups_by_name(tmp_path):
    path = written(tmp_path, "g.tsv", "s\tok\tg\nUno.\tyes\t1\nDue.\tno\t1\n")
    columns = Columns(sentence="s", judgment="ok", good_values=["yes"], bad_values=["no"], group=["g"])
    (pair,), remarks = read_pairs(path, columns)
    assert (pair.item, pair.good, pair.bad, pair.phenomenon, remarks) == ("1", "Uno.", "Due.", "", [])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"good": "a"}, "--good and --bad go together"),
        ({"good": "a", "bad": "b", "sentence": "s"}, "a pair a row"),
        ({"sentence": "s"}, "--sentence, --judgment and --group go together"),
        ({"good_values": ["x"], "bad_values": ["x"]}, "both have x"),
    ],
)
def test_columns_that_do_not_go_together(given, said):
    with pytest.raises(UserError, match=said):
        Columns(**given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("good,bad\nUno.,\n", r"p\.csv:2: a sentence is empty"),
        ("good,bad\n", "holds no pair"),
        ("item,good,bad\nx,Uno.,Due.\nx,Tre.,Quattro.\n", "the item x stands there twice"),
    ],
)
def test_pairs_that_are_none(tmp_path, text, said):
    path = written(tmp_path, "p.csv", text)
    with pytest.raises(DatasetError, match=said):
        read_pairs(path, Columns(item="item") if "item" in text else None)


def test_clever_as_it_is():
    if not CLEVER.is_file():
        pytest.skip(f"no Italian research data at {CLEVER.parent}")
    pairs, remarks = read_pairs(str(CLEVER))
    assert len(pairs) == 604 and Counter(p.phenomenon for p in pairs) == {
        "AI active": 136, "AI passive": 136, "AA active": 175, "AA passive": 157,
    }  # fmt: skip
    assert (pairs[1].good, pairs[1].bad) == (
        "La malattia è stata presa dal ladro.", "Il ladro è stato preso dalla malattia.",
    )  # fmt: skip
    assert len({p.cluster for p in pairs}) == 311
    assert "564 sentences are judged 'reversible'" in remarks[0] and "31 pairs had white space" in remarks[1]
