"""Surprisal of words: sums of their pieces, what is kept apart, the command."""

from __future__ import annotations

import csv
import json
import math

import pytest

from llava.data.json_records import DatasetError
from llava.errors import UserError
from llava.eval.data import record_files, trained_on
from llava.eval.surprisal import BlindTest, SurprisalFlags, Text, main, read_texts, rows_of, summarise
from llava.eval.text_scores import TextNats
from llava.eval.word_tables import Classes, Norm
from tests.conftest import CAPTIONS, record
from tests.eval.test_pairs import by_hand, written


@pytest.fixture
def run(build, tokenizer, tmp_path):
    return written(build(vision=False), tokenizer, tmp_path / "run")


def rows_in(run, name="blind_words"):
    with open(run / "tests" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_a_text_by_hand():
    text = Text("t", "1", "c", "L'uomo dorme.", "t.txt:1")
    nats = TextNats([1.0, 2.0, 4.0, 8.0], 16.0, [(0, 1), (1, 4), (4, 6), (6, 13)])
    words, marks, reaching, absorbed = rows_of(text, nats, Classes({"dorme": "verb"}), [Norm("visual", {"uomo": 3.0})])
    names = ("word", "class", "tokens", "nats", "length", "visual", "position")
    assert [tuple(map(r.get, names)) for r in words] == [
        ("l'", "function", 2, 3.0, 2, None, 0), ("uomo", "content", 1, 4.0, 4, 3.0, 1),
        ("dorme", "verb", 1, 8.0, 5, None, 2),
    ]  # fmt: skip
    assert [(r["word"], r["class"], r["tokens"], r["position"], r["nats"]) for r in marks] == [("", "end", 1, 4, 16.0)]
    assert (reaching, absorbed) == (2, 1), "the last piece reaches into the full stop, which has none of its own"


def test_a_summary_by_hand():
    def row(item, word, nats, visual=None, kind="content"):
        return {"test": "t", "item": item, "cluster": item, "word": word, "class": kind, "nats": nats, "visual": visual}

    words = [row("1", "a", math.nan, kind="function"), row("1", "cane", 1.0, 1.0), row("1", "gatto", 2.0, 2.0),
             row("2", "gatto", 4.0, 2.0), row("2", "casa", 5.0, 3.0), row("2", "idea", 8.0)]  # fmt: skip
    found = summarise(words, [row("2", "", 0.5, kind="end")], ["visual"])
    assert (found["texts"], found["words"], found["unmeasured"], found["nats_per_word"][0]) == (2, 5, 1, 4.0)
    assert found["classes"] == {"content": {"number": 5, "nats": 4.0}} and found["apart"]["end"]["nats"] == 0.5
    low = pytest.approx(7 / 3)
    assert found["norms"]["visual"] == {"words": 4, "forms": 3, "spearman": pytest.approx(1), "low": low, "high": 5.0}
    assert found["unigram"] is None
    often = [{**r, "frequency": f} for r, f in zip(words, (1e5, 1e5, 0.0, 0.0, 1e4, 0.0), strict=True)]
    floor = summarise(often, [], [], floor=True)["unigram"]
    assert floor == {"words": 2, "model": 3.0, "unigram": pytest.approx((math.log(10) + math.log(100)) / 2)}
    with pytest.raises(DatasetError, match="no word could be measured"):
        summarise(words[:1], [], [])


def test_the_command_on_captions_and_a_text(assets, run, tmp_path, capsys):
    (tmp_path / "prose.txt").write_text("L'uomo dorme.\n\n" + " ".join(CAPTIONS) + "\n")
    (tmp_path / "norms.tsv").write_text("ITALIAN\tVISUAL\ngatto\t4.5\ncane\t4\nbarca\t3\n")
    argv = [str(run), "--data_path", str(assets.video_json), "--video_folder", str(assets.clips), "--text",
            str(tmp_path / "prose.txt"), "--norms", str(tmp_path / "norms.tsv"), "--column", "VISUAL",
            "--frequency", str(assets.text_json)]  # fmt: skip
    assert main(argv) == 0
    rows, marks = rows_in(run), rows_in(run, "blind_marks")
    header = ["test", "item", "cluster", "position", "word", "class", "tokens", "nats", "frequency", "length", "VISUAL"]
    assert list(rows[0]) == header
    for i, caption in enumerate(CAPTIONS):
        own = [r for r in rows + marks if r["item"] == f"v{i}" and r["class"] != "end"]
        nats, tokens = by_hand(run, caption)
        assert sum(float(r["nats"]) for r in own) == pytest.approx(nats, abs=1e-4), "no video, by the same ids"
        assert sum(int(r["tokens"]) for r in own) == tokens
        assert len({r["cluster"] for r in own}) == 1 and len(own[0]["cluster"]) == 16
    first = rows[0]
    assert (first["test"], first["word"], first["class"], first["length"]) == ("captions", "un", "function", "2")
    assert float(first["frequency"]) == pytest.approx(2e6 / 37) and first["VISUAL"] == "" and rows[1]["VISUAL"] == "4.5"
    assert [r["word"] for r in rows if (r["test"], r["item"]) == ("prose", "1")] == ["l'", "uomo", "dorme"]
    assert sum(r["class"] == "end" for r in marks) == 8 and {r["test"] for r in marks} == {"captions", "prose"}
    facts = json.loads((run / "tests" / "blind_words.json").read_text())
    found = facts["summary"]["tests"]["captions"]
    assert found["norms"]["VISUAL"]["words"] == 3 and found["words"] == sum(r["test"] == "captions" for r in rows)
    assert found["nats_per_word"][0] == pytest.approx(
        sum(float(r["nats"]) for r in rows if r["test"] == "captions") / found["words"]
    )
    assert len(facts["files"]) == 2
    printed = capsys.readouterr().out
    assert "captions: " in printed and "VISUAL: 3 of" in printed and "(6 clusters), no video" in printed
    assert "of 37 words that occur in training: " in printed and "TRAINED" not in printed
    (run / "llava_run.json").write_text(json.dumps({"flags": {"data_path": str(assets.video_json)}}))
    assert main([*argv, "--batch_size", "1"]) == 0
    assert "video.json is what the run TRAINED on" in capsys.readouterr().out
    for one, other in zip(rows, rows_in(run), strict=True):
        assert float(one["nats"]) == pytest.approx(float(other["nats"]), abs=1e-5) and one["word"] == other["word"]


def test_a_model_with_vision_is_asked_without_it(assets, build, tokenizer, tmp_path):
    run = written(build(), tokenizer, tmp_path / "run")
    main([str(run), "--data_path", str(assets.video_json), "--frequency", str(assets.text_json)])
    nats, _ = by_hand(run, CAPTIONS[0])
    rows = [r for name in ("blind_words", "blind_marks") for r in rows_in(run, name)]
    assert sum(float(r["nats"]) for r in rows if r["item"] == "v0" and r["class"] != "end") == pytest.approx(
        nats, abs=1e-4
    )


def test_without_a_text_start_first_words_are_empty_and_counted(assets, build, tokenizer, tmp_path, capsys):
    run = written(build(vision=False), tokenizer, tmp_path / "run", "none")
    main([str(run), "--data_path", str(assets.text_json)])
    rows = rows_in(run)
    assert all((r["nats"] == "") == (r["position"] == "0") for r in rows) and {r["frequency"] for r in rows} == {""}
    printed = capsys.readouterr().out
    assert "6 words NOT MEASURED" in printed and "frequency is NOT MEASURED" in printed
    assert rows[0]["cluster"] == rows[0]["item"], "what shows nothing is a cluster of its own"


def test_clips_that_are_not_there_are_told_apart_by_their_paths(run, tmp_path, capsys):
    data = tmp_path / "h.json"
    data.write_text(json.dumps([record("a", "Un gatto.", "x.mp4"), record("b", "Un cane.", "x.mp4")]))
    main([str(run), "--data_path", str(data), "--frequency", str(data)])
    assert {r["cluster"] for r in rows_in(run)} == {"x.mp4"}
    assert "1 files of" in capsys.readouterr().out


def test_what_is_no_text_is_refused(run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Sì.\nUn <vid_patch> qui.\n")
    with pytest.raises(UserError, match=r"a\.txt:2: the text contains '<vid_patch>'"):
        main([str(run), "--text", str(tmp_path / "a.txt")])
    (tmp_path / "odd.txt").write_text("Uno\u2028due.\r\n\r\nTre.\n", newline="")
    assert [(t.item, t.text) for t in read_texts(str(tmp_path / "odd.txt"))] == [("1", "Uno\u2028due."), ("3", "Tre.")]
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DatasetError, match=r"empty\.txt: holds no text"):
        read_texts(str(tmp_path / "empty.txt"))
    for argv, said in (
        ([str(run)], "--data_path or --text is needed"),
        ([str(run), "--text", "a.txt", "b/a.txt"], "two tests would be called a"),
        ([str(run), "--text", "a.txt", "--column", "length"], "--column length: the results have a column"),
    ):
        with pytest.raises(SystemExit):
            main(argv)
        assert said in capsys.readouterr().err


def test_a_mixture_is_the_files_that_it_names(assets, run, tmp_path):
    """A member that changes changes what was measured; and a model that trained on a mixture trained on its members."""
    captions = tmp_path / "captions.json"
    captions.write_text(assets.text_json.read_text())
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"datasets:\n  - json_path: {captions}\n")
    assert record_files(str(mixture)) == [str(mixture), str(captions)]
    settings = [BlindTest(SurprisalFlags(data_path=str(mixture)), str(run)).files]
    captions.write_text(captions.read_text() + " ")
    settings.append(BlindTest(SurprisalFlags(data_path=str(mixture)), str(run)).files)
    assert settings[0][0] == settings[1][0] and settings[0][1] != settings[1][1]
    (run / "llava_run.json").write_text(json.dumps({"flags": {"data_path": str(mixture)}}))
    assert trained_on(run, str(captions)) and not trained_on(run, str(assets.text_json))
