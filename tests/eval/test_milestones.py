"""The command on a run that kept its models: what is measured, kept, shared, and written."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import pytest

from llava.errors import UserError
from llava.eval import surprisal
from llava.eval.milestone_tests import kept_models, share_of
from llava.eval.milestones import main
from tests.conftest import CAPTIONS, record
from tests.train.runs import train

PAIRS = [("Un gatto nero dorme.", "Un gatto dorme nero."), ("Il cane corre.", "Il corre cane.")]


@pytest.fixture(scope="module")
def trained(assets, tmp_path_factory) -> Path:
    """A folder with a run of 24 steps that kept four models, held-out captions, pairs and norms."""
    folder = tmp_path_factory.mktemp("milestones")
    (folder / "held.json").write_text(json.dumps([record(f"h{i}", text) for i, text in enumerate(CAPTIONS)]))
    (folder / "pairs.jsonl").write_text(
        "\n".join(json.dumps({"sentence_good": good, "sentence_bad": bad}) for good, bad in PAIRS)
    )
    (folder / "norms.tsv").write_text(
        "word\tAOA\n" + "".join(f"{w}\t{i}\n" for i, w in enumerate(("gatto", "cane", "barca", "libro", "lago"), 2))
    )
    train(assets, folder / "run", 1, save_words="1,2,30,100,200", max_steps=24, learning_rate=5e-3, preflight="off",
          eval_data_path=folder / "held.json", controls=False)  # fmt: skip
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy")) / "run"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_models_of_a_run_become_one_table_a_figure_and_ages(run, capsys):
    folder = run.parent
    argv = [str(run), "--pairs", str(folder / "pairs.jsonl"), "--data_path", str(folder / "held.json"), "--target", "9",
            "1", "--norms", str(folder / "norms.tsv"), "--column", "AOA", "--least_occurrences", "1"]  # fmt: skip
    assert main([*argv, "--status"]) == 0
    assert capsys.readouterr().out.count("not yet: blind_words, pairs_pairs") == 5
    assert main(argv) == 0
    printed = capsys.readouterr().out
    table = rows(run / "milestones" / "milestones.csv")
    assert [r["milestone"] for r in table] == ["chck_2", "chck_30", "chck_100", "chck_200", "end"]
    words = [int(r["words"]) for r in table]
    assert words == sorted(words) and words[-1] == 4 * 37 * 2 and table[-1]["step"] == "24"
    for row in table:
        model = run if row["milestone"] == "end" else run / row["milestone"]
        facts = json.loads((model / "tests" / "blind_words.json").read_text())
        assert facts["step"] == int(row["step"])
        assert float(row["captions"]) == pytest.approx(facts["summary"]["tests"]["captions"]["nats_per_word"][0])
        assert float(row["pairs_pairs"]) in (0, 0.5, 1)
    assert "chck_1 and chck_2 are the same model" in printed and "captions: 1 nats a word is NOT REACHED" in printed
    ages = {r["word"]: r for r in rows(run / "milestones" / "words.csv")}
    assert len(ages) == len({r["word"] for r in rows(run / "tests" / "blind_words.csv")})
    gatto = ages["gatto"]
    assert float(gatto["AOA"]) == 2 and float(gatto["chance"]) == pytest.approx(
        float(gatto["tokens"]) * math.log(json.loads((run / "config.json").read_text())["vocab_size"])
    )
    curve = [float(gatto[r["milestone"]]) for r in table]
    half = (float(gatto["chance"]) + min(curve)) / 2
    assert float(gatto["first_words"]) == words[next(i for i, nats in enumerate(curve) if nats <= half)]
    text = (run / "milestones" / "milestones.md").read_text()
    assert text in printed and "| captions | AOA | first milestone | 5 |" in text
    assert (run / "milestones" / "milestones.svg").read_text().count("<g transform") == 3


def test_what_is_measured_is_kept_and_what_has_changed_is_measured_again(run, capsys):
    folder = run.parent
    (folder / "prose.txt").write_text("Il gatto dorme.\nUn cane corre.\n")
    argv = [str(run), "--data_path", str(folder / "held.json"), "--text", str(folder / "prose.txt"), "--share", "2/5"]

    def lacking(*more: str) -> list[str]:
        capsys.readouterr()
        main([*argv, *more, "--status"])
        return [line.split()[1] for line in capsys.readouterr().out.splitlines() if "not yet" in line]

    main(argv)
    assert lacking() == ["chck_2", "chck_100", "chck_200", "end"]
    model, other = run / "chck_30" / "model.safetensors", run / "chck_100" / "model.safetensors"
    weights = model.read_bytes()
    os.utime(model)
    assert "chck_30" not in lacking(), "the same model"
    # Copied from a machine where the run went on, with its old times.
    shutil.copy(other, model)
    os.utime(model, ns=(10**18, 10**18))
    assert "chck_30" in lacking()
    model.write_bytes(weights)
    assert "chck_30" not in lacking()
    # Clusters are contents where clips can be read, and paths elsewhere.
    assert "chck_30" in lacking("--video_folder", str(folder))
    (folder / "prose.txt").rename(folder / "tales.txt")
    assert "chck_30" in lacking("--text", str(folder / "tales.txt")), "a test is called as its file is"
    (folder / "prose.txt").write_text("Il gatto dorme.\nUn cane nero corre.\n")
    assert "chck_30" in lacking()


def test_shares_measure_each_model_once_and_the_last_writes_the_table(run, capsys, monkeypatch):
    measured = []
    measure = surprisal.measure
    monkeypatch.setattr(surprisal, "measure", lambda r, t: (measured.append(Path(r.model_path).name), measure(r, t)))
    main([str(run), "--share", "2/2"])
    assert measured == ["chck_30", "chck_200"]
    assert "written by the same command once all are measured" in capsys.readouterr().out
    assert not (run / "milestones").exists()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    main([str(run)])
    assert measured == ["chck_30", "chck_200", "chck_2", "chck_100", "run"], "the run's own held-out captions"
    assert "different words are too rare" in capsys.readouterr().out and (run / "milestones" / "words.csv").is_file()
    # Results of more than is asked for are kept, of other settings not.
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    main([str(run), "--limit", "3", "--status"])
    assert capsys.readouterr().out.count("not yet") == 5


def test_shares_are_of_an_array_or_as_they_are_written():
    assert (share_of(None, {}), share_of("2/8", {"SLURM_ARRAY_TASK_ID": "5"})) == ((0, 1), (1, 8))
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_STEP": "2"}
    assert [share_of(None, array | {"SLURM_ARRAY_TASK_ID": i}) for i in "135"] == [(0, 3), (1, 3), (2, 3)]
    for wrong in ("0/2", "3/2", "1", "a/b", "1/2/3"):
        with pytest.raises(UserError, match="--share"):
            share_of(wrong, {})


def test_what_is_no_run_with_milestones_is_named(run, tmp_path, capsys):
    with pytest.raises(UserError, match="has no milestone"):
        main([str(tmp_path)])
    (run / "milestone.json").unlink()
    kept, remarks = kept_models(run)
    assert [k.name for k in kept][-1] == "chck_200" and "the last model is left out" in remarks[-1]
    (run / "chck_30" / "milestone.json").write_text("{}")
    with pytest.raises(UserError, match=r"chck_30.milestone\.json: does not say words"):
        main([str(run)])
    with pytest.raises(SystemExit):
        main([str(run), "--share", "9/2"])
    assert "--share 9/2: write K/N" in capsys.readouterr().err


def test_models_that_were_measured_on_other_words_are_no_curve(run, capsys):
    main([str(run), "--data_path", str(run.parent / "held.json")])
    path = run / "chck_100" / "tests" / "blind_words.csv"
    other = path.read_text().replace("gatto", "ratto").encode()
    path.write_bytes(other)
    main([str(run), "--data_path", str(run.parent / "held.json")])
    assert path.read_bytes() != other, "a table that was edited is measured again"
    path.write_bytes(other)
    facts = json.loads(path.with_suffix(".json").read_text()) | {"csv_sha256": hashlib.sha256(other).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"chck_100.*other words or tokens than chck_2"):
        main([str(run), "--data_path", str(run.parent / "held.json")])
