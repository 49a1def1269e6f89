"""One word exchanged: whole words, case, captions that another one says, the demo's own table."""

from __future__ import annotations

import importlib
import json
import random
from itertools import product
from pathlib import Path

import pytest

from llava.data.json_records import DatasetError
from llava.data.records import load_records
from llava.eval.italian import word_forms
from llava.eval.pair_files import read_pairs
from llava.eval.visual_pairs import Exchange, exchanged, main, read_exchanges, visual_pairs
from tests.conftest import record

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TABLE = [("noun", "cane", "gatto"), ("noun", "cane", "topo"), ("colour", "palla rossa", "palla verde"),
         ("direction", "verso l'alto", "verso il basso")]  # fmt: skip
EXCHANGES = [Exchange(*row) for row in TABLE]


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("Un cane, un canestro.", 0, "Un gatto, un canestro."),
        ("Cane nero.", 0, "Gatto nero."),
        ("UN CANE NERO", 0, "UN GATTO NERO"),
        ("Un cane e un cane.", 0, None),
        ("Un gatto.", 0, None),
        ("Palla rossa ferma.", 2, "Palla verde ferma."),
        ("Una palla, rossa.", 2, None),
        ("Una palla\u00a0 rossa.", 2, "Una palla verde."),
        ("Sale verso l’alto.", 3, "Sale verso il basso."),
    ],
)
def test_whole_words_once_in_their_case(text, row, expected):
    assert exchanged(text, EXCHANGES[row]) == expected


def records_of(folder, *rows):
    path = folder / "r.json"
    path.write_text(json.dumps([record(*row) for row in rows]))
    records, problems = load_records(path, video_folder="clips")
    assert not problems
    return records


def test_no_wrong_sentence_is_another_caption_of_the_clip(tmp_path):
    records = records_of(
        tmp_path, ("a", "Un cane corre.", "0.mp4"), ("b", "un GATTO corre", "0.mp4"), ("c", "Un cane corre.", "1.mp4"),
        ("d", "Un topo.", "1.mp4"), ("e", "Un cane.", "2.mp4", "Che cosa vedi?"), ("f", "Un cane dorme."),
        ("g", "Un gatto dorme."),
    )  # fmt: skip
    pairs, left_out = visual_pairs(records, EXCHANGES, per_kind=0)
    assert [(p.record.id, p.wrong) for p in pairs] == [
        ("a", "Un topo corre."), ("c", "Un gatto corre."), ("c", "Un topo corre."), ("f", "Un gatto dorme."),
        ("f", "Un topo dorme."),
    ]  # fmt: skip
    assert left_out == {
        "exchanges that another caption of the clip has": 1,
        "captions without a word of the table": 3,
        "records that show more than a video, or say something before their caption": 1,
    }
    drawn = [(p.record.id, p.wrong) for p in visual_pairs(records, EXCHANGES)[0]]
    assert [i for i, _ in drawn] == ["a", "c", "f"] and set(drawn) <= {(p.record.id, p.wrong) for p in pairs}
    assert drawn == [(p.record.id, p.wrong) for p in visual_pairs(records, EXCHANGES)[0]]
    several = [tuple(p.wrong for p in visual_pairs(records, EXCHANGES, seed=s)[0]) for s in range(8)]
    assert len(set(several)) > 1


def test_the_command_writes_what_pairs_reads(tmp_path, capsys):
    records_of(tmp_path, ("a", "Un cane e una palla rossa.", "0.mp4"), ("b", "Niente.", "1.mp4"))
    records = json.loads((tmp_path / "r.json").read_text())
    records[0]["meta"] = {"split": [2, 5]}
    (tmp_path / "r.json").write_text(json.dumps(records))
    (tmp_path / "x.tsv").write_text("\n".join("\t".join(row) for row in [("kind", "word", "other"), *TABLE]))
    argv = ["--data_path", str(tmp_path / "r.json"), "--video_folder", "clips", "--exchanges", str(tmp_path / "x.tsv"),
            "--output", str(tmp_path / "p.jsonl")]  # fmt: skip
    assert main([*argv, "--per_kind", "0"]) == 0
    assert "3 pairs: 2 noun, 1 colour" in capsys.readouterr().out
    pairs, _ = read_pairs(str(tmp_path / "p.jsonl"))
    assert [(p.item, p.phenomenon, p.bad, p.clip, p.split) for p in pairs] == [
        ("a noun", "noun", "Un gatto e una palla rossa.", "0.mp4", (2, 5)),
        ("a noun 1", "noun", "Un topo e una palla rossa.", "0.mp4", (2, 5)),
        ("a colour", "colour", "Un cane e una palla verde.", "0.mp4", (2, 5)),
    ]
    (tmp_path / "x.tsv").write_text("kind\tword\tother\nnoun\tcavallo\tmulo\n")
    with pytest.raises(DatasetError, match="no caption has a word of --exchanges"):
        main(argv)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind\tword\na\tb\n", "--exchanges: .*has no column other"),
        ("kind\tword\tother\nnoun\t\tb\n", r"x\.tsv:2: kind, word or other is empty"),
        ("kind\tword\tother\nnoun\tCane\tcane\n", r"x\.tsv:2: 'Cane' would become itself"),
    ],
)
def test_tables_that_are_none(tmp_path, text, said):
    (tmp_path / "x.tsv").write_text(text)
    with pytest.raises(DatasetError, match=said):
        read_exchanges(str(tmp_path / "x.tsv"))


def test_the_demos_exchanges_give_captions_of_other_scenes(monkeypatch):
    """Every wrong caption is one that the grammar makes for a scene that differs in the one attribute, and each
    attribute of a scene can be exchanged in every phrasing."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    demo_captions = importlib.import_module("demo_captions")
    names = list(demo_captions.ATTRIBUTES)
    scenes = {
        demo_captions.render_caption(dict(zip(names, values, strict=True)), phrasing): (values, phrasing)
        for values in product(*demo_captions.ATTRIBUTES.values())
        for phrasing in range(len(demo_captions.PHRASINGS))
    }
    exchanges = [Exchange(*row) for row in demo_captions.exchanges()]
    attribute = {
        "noun": "shape",
        "colour": "colour",
        "size": "size",
        "direction": "direction",
        "background": "background",
    }
    for caption in random.Random(0).sample(sorted(scenes), 60):
        values, phrasing = scenes[caption]
        kinds = {}
        words = set(word_forms(caption))
        for exchange in (e for e in exchanges if words.issuperset(e.forms)):
            wrong = exchanged(caption, exchange)
            if wrong is not None:
                others, same = scenes[wrong]
                differing = [n for n, a, b in zip(names, values, others, strict=True) if a != b]
                assert (differing, same) == ([attribute[exchange.kind]], phrasing), (caption, wrong)
                kinds.setdefault(exchange.kind, set()).add(wrong)
        assert {k: len(v) for k, v in kinds.items()} == {
            "noun": 1,
            "colour": 7,
            "size": 1,
            "direction": 3,
            "background": 1,
        }
