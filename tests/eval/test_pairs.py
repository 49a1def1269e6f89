"""Minimal pairs: lm-eval's numbers, ties, conditions with videos, the command."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava.data.json_records import DatasetError
from llava.errors import UserError
from llava.eval.pair_files import Pair
from llava.eval.pairs import COLUMNS, accuracies, main
from llava.eval.pairs import rows_of as rows_of_scores
from llava.train.text_format import make_format
from tests.conftest import CAPTIONS

PAIRS = [
    ("Un gatto nero dorme sul divano.", "Un gatto nera dorme sul divano.", "agreement"),
    ("La bambina legge un libro azzurro.", "Il bambina legge un libro azzurro.", "agreement"),
    ("Sì.", "Sì.", "tie"),
    ("Il cane corre.", "Il cane corrono nel prato.", "verb"),
]


@pytest.fixture
def run(build, tokenizer, tmp_path):
    """A checkpoint with vision and a text start, with its tower in a folder of its own."""
    return written(build(), tokenizer, tmp_path / "run")


def written(model, tokenizer, folder, start="eos"):
    make_format("plain", tokenizer, model, text_start=start)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def file_of(folder, pairs=PAIRS, **columns):
    path = folder / "mine.jsonl"
    lines = [{"sentence_good": g, "sentence_bad": b, "UID": kind} for g, b, kind in pairs]
    path.write_text("".join(json.dumps({**line, **{k: v[i] for k, v in columns.items()}}) + "\n"
                            for i, line in enumerate(lines)))  # fmt: skip
    return str(path)


def rows_of(run, name="pairs_mine"):
    with open(run / "tests" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def by_hand(folder, sentence: str, start: bool = True) -> tuple[float, int]:
    """Nats of a sentence without its end, and their number, by transformers' own classes."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(sentence, add_special_tokens=False)
    row = torch.tensor([[tokenizer.eos_token_id, *ids] if start else ids])
    with torch.no_grad():
        logs = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, :-1].log_softmax(-1)
    return -float(logs.gather(1, row[0, 1:, None]).sum()), row.shape[1] - 1


@pytest.mark.parametrize("start", ["eos", "none"])
def test_scores_are_those_of_a_plain_computation(build, tokenizer, tmp_path, capsys, start):
    run = written(build(vision=False), tokenizer, tmp_path / "run", start)
    assert main([str(run), file_of(tmp_path), "--batch_size", "3"]) == 0
    rows = rows_of(run)
    assert list(rows[0]) == list(COLUMNS) and [r["phenomenon"] for r in rows] == [k for *_, k in PAIRS]
    for (good, bad, _), row in zip(PAIRS, rows, strict=True):
        for side, sentence in (("good", good), ("bad", bad)):
            nats, tokens = by_hand(run, sentence, start == "eos")
            assert float(row[f"{side}_nats"]) == pytest.approx(nats, abs=1e-4)
            assert int(row[f"{side}_tokens"]) == tokens and row["condition"] == "none"
    assert rows[2]["good_nats"] == rows[2]["bad_nats"]
    printed = capsys.readouterr().out
    assert "4 pairs, 3 phenomena, 4 clusters" in printed and "1 pairs have two equal sentences" in printed
    assert ("first tokens are not measured; 0 of 4 pairs differ in them" in printed) == (start == "none")
    facts = json.loads((run / "tests" / "pairs_mine.json").read_text())
    found = facts["summary"]["accuracy"]["none"]
    right = [float(r["good_nats"]) < float(r["bad_nats"]) for r in rows]
    assert found["tie"]["sum"][0] == 0.5 and found["tie"]["ties"] == 1
    assert found["all"]["sum"][0] == pytest.approx((sum(right) + 0.5) / 4) and found["agreement"]["pairs"] == 2
    assert facts["settings"]["text_start"] == start


def test_scores_are_those_of_lm_eval(build, tokenizer, tmp_path):
    if find_spec("lm_eval") is None or find_spec("accelerate") is None:
        pytest.skip('lm-eval is not installed: pip install "lm_eval[hf]"')
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    run = written(build(vision=False), tokenizer, tmp_path / "run")
    main([str(run), file_of(tmp_path)])
    scorer = HFLM(pretrained=str(run), trust_remote_code=True, device="cpu", batch_size=2)
    asked = [Instance("loglikelihood", {}, ("", s), i) for i, s in enumerate(s for g, b, _ in PAIRS for s in (g, b))]
    found = [-value for value, _ in scorer.loglikelihood(asked, disable_tqdm=True)]
    ours = [float(row[f"{side}_nats"]) for row in rows_of(run) for side in ("good", "bad")]
    assert ours == pytest.approx(found, abs=1e-4)


def test_a_sentence_of_which_nothing_is_measured_is_refused():
    pair = Pair("1", "1", "x", "Sì", "No no", "a.csv:2")
    with pytest.raises(UserError, match=r"a\.csv:2: a sentence is a single token"):
        rows_of_scores([pair], ["1"], [((0.0, 0), (2.0, 1))], "none")


def test_shares_by_phenomenon_by_hand():
    values = [("a", 1.0, 2.0, 1, 4), ("a", 3.0, 2.0, 2, 1), ("b", 2.0, 2.0, 2, 2)]
    rows = [dict(zip(COLUMNS, (str(i), str(i), kind, good, bad, gt, bt, "none"), strict=True))
            for i, (kind, good, bad, gt, bt) in enumerate(values)]  # fmt: skip
    found = accuracies(rows)
    assert {k: (v["pairs"], v["sum"][0], v["mean"][0], v["ties"]) for k, v in found.items()} == {
        "a": (2, 0.5, 0.5, 0), "b": (1, 0.5, 0.5, 1), "all": (3, 0.5, 0.5, 1),
    }  # fmt: skip
    assert (accuracies(rows[1:2])["all"]["sum"][0], accuracies(rows[1:2])["all"]["mean"][0]) == (0, 1)
    assert list(accuracies(rows[:2])) == ["all"], "a single phenomenon is all"


def test_with_a_video_before_the_pair(assets, run, tmp_path, capsys):
    pairs = [(CAPTIONS[i], CAPTIONS[i + 1], "order") for i in range(4)]
    clips = ["clip0.mp4", "clip1.mp4", "clip1.mp4", "copy.mp4"]
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, source in zip(clips, ("clip0", "clip1", "clip1", "clip0"), strict=True):
        (folder / name).write_bytes((assets.clips / f"{source}.mp4").read_bytes())
    argv = [str(run), file_of(tmp_path, pairs, video=clips), "--video_folder", str(folder), "--feature_cache",
            str(tmp_path / "cache"), "--num_workers", "0"]  # fmt: skip
    assert main(argv) == 0
    rows = {(r["condition"], r["item"]): r for r in rows_of(run)}
    nats = {key: (float(r["good_nats"]), float(r["bad_nats"])) for key, r in rows.items()}
    assert len(rows) == 12 and {r["good_tokens"] for r in rows_of(run) if r["item"] == "1"} == {
        rows["none", "1"]["good_tokens"]
    }
    assert all(abs(nats["own", i][0] - nats["none", i][0]) > 1e-3 for i in "1234"), "the video is seen"
    assert all(abs(nats["own", i][0] - nats["other", i][0]) > 1e-4 for i in "1234"), "and is another's"
    # CAPTIONS[1] is the bad sentence of the first pair and the good one of the second: the clips are exchanged.
    assert nats["own", "1"][1] == pytest.approx(nats["other", "2"][0], abs=1e-5)
    assert [rows["own", i]["cluster"] for i in "14"] == [rows["none", "1"]["cluster"]] * 2, "a copy is the same clip"
    assert len({r["cluster"] for r in rows.values()}) == 2
    printed = capsys.readouterr().out
    assert "own    all" in printed and "other  all" in printed and "none   all" in printed
    assert main([*argv, "--batch_size", "1", "--conditions", "own", "other"]) == 0
    for row in rows_of(run):
        assert float(row["good_nats"]) == pytest.approx(nats[row["condition"], row["item"]][0], abs=1e-5)


def test_segments_of_a_clip_are_seen_apart_and_are_one_cluster(assets, run, tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    line = {"good": CAPTIONS[0], "bad": CAPTIONS[1], "video": "clip0.mp4"}
    lines = [{**line, "split": [0, 3]}, {**line, "split": [4, 7]}, {**line, "video": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    main([str(run), str(path), "--video_folder", str(assets.clips), "--feature_cache", str(tmp_path / "cache"),
          "--num_workers", "0", "--conditions", "own", "own", "none"])  # fmt: skip
    first, second, *blind = rows_of(run)
    assert abs(float(first["good_nats"]) - float(second["good_nats"])) > 1e-5
    assert first["cluster"] == second["cluster"] and [r["condition"] for r in blind] == ["none"] * 3
    assert "1 pairs have no video: measured without one alone" in capsys.readouterr().out


def test_without_a_text_start_first_tokens_are_left_out_after_a_video_too(assets, build, tokenizer, tmp_path):
    run = written(build(), tokenizer, tmp_path / "run", "none")
    path = file_of(tmp_path, [(CAPTIONS[0], CAPTIONS[1], "x")], video=["clip0.mp4"])
    main([str(run), path, "--video_folder", str(assets.clips), "--feature_cache", str(tmp_path / "cache"),
          "--num_workers", "0", "--conditions", "none", "own"])  # fmt: skip
    (blind, seen), tokens = rows_of(run), tokenizer(CAPTIONS[0], add_special_tokens=False)["input_ids"]
    assert int(blind["good_tokens"]) == int(seen["good_tokens"]) == len(tokens) - 1


def test_nothing_is_made_where_there_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json; RUN is the folder"):
        main([str(tmp_path / "typo"), file_of(tmp_path)])
    assert not (tmp_path / "typo").exists()


def test_a_video_gives_what_training_computes(assets, run, tmp_path):
    """The nats of a sentence after its video, from the loss of evaluation on the record as it stands in a file."""
    from llava.eval.sighted import main as sighted

    records = [{"id": "a", "video": "clip0.mp4", "conversations": [
        {"from": "human", "value": "<video>"}, {"from": "gpt", "value": CAPTIONS[0]}]}]  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(records))
    flags = ["--video_folder", str(assets.clips), "--feature_cache", str(tmp_path / "cache"), "--num_workers", "0"]
    sighted([str(run), "--data_path", str(tmp_path / "r.json"), *flags])
    main([str(run), file_of(tmp_path, [(CAPTIONS[0], "Un gatto.", "x")], video=["clip0.mp4"]), *flags,
          "--conditions", "own"])  # fmt: skip
    (pair,), (caption,) = rows_of(run), rows_of(run, "sighted_captions")
    assert int(caption["tokens"]) == int(pair["good_tokens"]) + 1, "the end is a target of the caption"
    assert 0 < float(caption["nats"]) - float(pair["good_nats"]) < 20


def test_what_cannot_be_shown_is_refused(assets, run, build, tokenizer, tmp_path, capsys):
    flags = ["--feature_cache", str(tmp_path / "cache"), "--num_workers", "0"]
    folder = ["--video_folder", str(assets.clips)]
    one = file_of(tmp_path, PAIRS[:2], video=["clip0.mp4", "clip0.mp4"])
    with pytest.raises(UserError, match="needs two different clips"):
        main([str(run), one, *flags, *folder])
    gone = file_of(tmp_path, PAIRS[:1], video=["gone.mp4"])
    with pytest.raises(DatasetError, match=r"gone\.mp4"):
        main([str(run), gone, *flags, *folder])
    outside = file_of(tmp_path, PAIRS[:1], video=["../gone.mp4"])
    with pytest.raises(DatasetError, match=r"mine\.jsonl:1: '\.\./gone\.mp4' leaves its folder"):
        main([str(run), outside, *flags, *folder])
    said = file_of(tmp_path, [("Un <image>.", "Due.", "x")], video=["clip0.mp4"])
    with pytest.raises(UserError, match=r"mine\.jsonl:1: the text contains '<image>'"):
        main([str(run), said, *flags, *folder, "--conditions", "own"])
    one = file_of(tmp_path, PAIRS[:2], video=["clip0.mp4", "clip0.mp4"])
    text = written(build(vision=False), tokenizer, tmp_path / "text")
    with pytest.raises(UserError, match="text alone and sees nothing"):
        main([str(text), one, *flags, *folder])
    assert main([str(run), file_of(tmp_path, PAIRS), *flags, "--conditions", "none", "own"]) == 0
    assert "no pair has a video: NOT MEASURED with own video" in capsys.readouterr().out
    for argv, said in (
        ([str(run), one, *folder], "--feature_cache is needed"),
        ([str(run), one, "--conditions", "mine"], "--conditions mine: use none, own, other"),
        ([str(run), one, one], "two files are called mine"),
        ([str(run)], "FILE is needed"),
    ):
        with pytest.raises(SystemExit):
            main(argv)
        assert said in capsys.readouterr().err
