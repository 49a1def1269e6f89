"""Norms, classes and frequencies of words."""

from __future__ import annotations

import json

import pytest

from llava.data.json_records import DatasetError
from llava.errors import UserError
from llava.eval.word_tables import frequencies, read_classes, read_frequencies, read_norms, training_frequencies
from tests.conftest import REAL_CLIPS, record

ITALIAN = REAL_CLIPS.parent / "italian"


def table(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_norms_by_form_and_by_lemma(tmp_path):
    norms = table(
        tmp_path,
        "n.tsv",
        "ID\tITALIAN\tVISUAL\tNOTE\n1\tGatto\t4,5\tx\n2\tporta\t2\ty\n3\tporta\t4\ty\n4\tidea\tNA\tz\n",
    )
    other = table(tmp_path, "m.csv", "parola,aoa\ngatto,3.5\n")
    classes = read_classes(
        table(tmp_path, "c.tsv", "form\tclass\tlemma\ngatti\tnoun\tgatto\nGatto\tnoun\t\ngatto\tverb\t\n")
    )
    visual, aoa = read_norms([norms, other], ["VISUAL", "aoa"])
    assert (visual.name, dict(visual.values), visual.repeated) == ("VISUAL", {"gatto": 4.5, "porta": 3.0}, 1)
    assert visual.of("gatti", classes.lemmas) == 4.5 and visual.of("gatti", {}) is None and aoa.of("gatto", {}) == 3.5
    assert classes.classes == {"gatti": "noun", "gatto": "noun"} and classes.lemmas == {"gatti": "gatto"}
    assert read_norms([], []) == []
    assert read_norms([norms], ["VISUAL"], "ID")[0].values["1"] == 4.5
    for given, said in (
        (([norms, other], ["LOUD"]), r"--column LOUD: no table has it .*VISUAL"),
        (([norms, norms], ["VISUAL"]), "2 tables have it"),
        (([norms], ["NOTE"]), r"n\.tsv:2: NOTE is 'x', which is no number"),
        (([norms], []), "--norms and --column go together"),
        (([norms], ["VISUAL"], "WORD"), "--word_column: .*has no column WORD"),
    ):
        with pytest.raises(UserError, match=said):
            read_norms(*given)
    with pytest.raises(DatasetError, match="--classes: .* has no column class"):
        read_classes(other)


@pytest.mark.parametrize(
    "cells", [("3,5", "2.5"), ("1,234", "12"), ("4,125", "3,000"), ("1.234,5", "2"), ("1,2,3", "4")]
)
def test_commas_that_may_be_decimal_or_between_thousands_are_refused(tmp_path, cells):
    path = table(tmp_path, "n.tsv", "word\tx\nuno\tNA\n" + "".join(f"w{i}\t{c}\n" for i, c in enumerate(cells)))
    with pytest.raises(DatasetError, match=r"n\.tsv:\d: x is '[\d.,]+',"):
        read_norms([path], ["x"])


def test_decimal_commas_are_read(tmp_path):
    path = table(tmp_path, "n.tsv", "\ufeffword\tx\nuno\t4,125\ndue\t3,5\ntre\t-0,250\nquattro\t6\n")
    assert read_norms([path], ["x"])[0].values == {"uno": 4.125, "due": 3.5, "tre": -0.25, "quattro": 6.0}


def test_frequencies_count_forms_in_a_million_words():
    found = frequencies(["L'uomo e l'albero.", "E poi?"])
    counts = {"l'": 2, "uomo": 1, "e": 2, "albero": 1, "poi": 1}
    assert found.values == pytest.approx({word: n * 1e6 / 7 for word, n in counts.items()})
    assert found.of("mai", {"mai": "uomo"}) == 0, "a word that does not occur has none, whatever its lemma has"
    with pytest.raises(DatasetError, match="no word"):
        frequencies(["..."])


def test_frequencies_of_a_table_and_of_the_runs_records(tmp_path):
    words = read_frequencies(table(tmp_path, "f.tsv", "word\tcount\nGatto\t7\n"))
    assert (words.name, words.of("gatto", {}), words.of("cane", {})) == ("frequency", 7, 0)
    with pytest.raises(DatasetError, match="no column frequency or count"):
        read_frequencies(table(tmp_path, "g.tsv", "word\tvalue\nGatto\t7\n"))
    data = table(tmp_path, "train.json", json.dumps([record("a", "Un gatto.", "x.mp4"), record("b", "Un cane.")]))
    assert read_frequencies(data).of("un", {}) == pytest.approx(5e5)
    run = tmp_path / "run" / "checkpoint-1"
    run.mkdir(parents=True)
    found, said = training_frequencies(run)
    assert found is None and "NOT MEASURED" in said and "--frequency" in said
    (run.parent / "llava_run.json").write_text(json.dumps({"flags": {"data_path": data}}))
    found, said = training_frequencies(run)
    assert found.of("cane", {}) == pytest.approx(2.5e5) and said.endswith("train.json")
    table(run.parent, "held_out.json", json.dumps([record("b", "Un cane.")]))
    assert training_frequencies(run)[0].of("cane", {}) == 0, "what the run held out by itself was not trained on"
    (run / "llava_run.json").write_text(json.dumps({"flags": {"data_path": data}}))
    assert training_frequencies(run)[0].of("cane", {}) == 0, "a checkpoint has a record, and the run what it held out"
    (run / "llava_run.json").unlink()
    (run.parent / "llava_run.json").write_text(json.dumps({"flags": {"data_path": "gone.json"}}))
    assert training_frequencies(run)[0] is None


def test_real_norms():
    if not ITALIAN.is_dir():
        pytest.skip(f"no Italian research data at {ITALIAN}")
    paths = [str(ITALIAN / n) for n in ("norms_sensorimotor_repetto_2023.tsv", "norms_aoa_montefinese_2019.tsv")]
    visual, aoa = read_norms(paths, ["ITALIAN_VISUAL_MEAN", "ITALIAN_AOA_MEAN"])
    assert visual.values["mucca"] == 4 and aoa.values["ponte"] == 5
    assert 430 < len(visual.values) <= 442 and 1000 < len(aoa.values) <= 1025
