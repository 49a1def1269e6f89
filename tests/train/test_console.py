"""What a run says: its plan, its logs, its end."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest

from llava.data.coordinates import register
from llava.data.records import Record
from llava.eval.captioning import check_prompt
from llava.train import console
from llava.train.console import LogLines, closing, duration, example_question, log_line, plan, planned_steps
from tests.conftest import make_tokenizer
from tests.train.runs import train


def test_a_log_is_one_line_in_words():
    logs = {"loss": "0.2861", "grad_norm/projector": 2.0, "samples_per_second": 124.2, "learning_rate": 1e-3}
    line = log_line(500, 2800, logs, 0.3012, 220.4, "clips")
    assert line == "step 500/2,800  loss 0.2861  held-out 0.3012  124 clips/s  3:40 left"
    assert log_line(4, 4, {"eval_loss": 1.0, "eval_gain_video": 0.5}, 1.0, None, "clips") == (
        "step 4/4  held-out 1  gain of the video +0.5 nats a caption"
    )
    assert (duration(59.6), duration(3823)) == ("1:00", "1:03:43")


def test_logs_that_are_far_apart_have_a_line_between(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: now.seconds)
    lines = LogLines("samples")
    state = SimpleNamespace(global_step=0, max_steps=10, log_history=[], is_world_process_zero=True)
    lines.on_train_begin(None, state, None)
    for state.global_step, now.seconds in ((1, 20.0), (2, 40.0)):
        lines.on_step_end(None, state, None)
    lines.on_log(None, state, None, logs={"train_runtime": 3.0})
    assert caplog.messages == ["step 2/10  2:40 left"]


@pytest.mark.parametrize(("max_steps", "expected"), [(7, 7), (-1, 6)])
def test_steps(max_steps, expected):
    args = SimpleNamespace(
        max_steps=max_steps, train_batch_size=2, gradient_accumulation_steps=2, world_size=1, num_train_epochs=2.0
    )
    assert planned_steps(args, 10) == expected


def test_the_plan_counts_epochs_as_the_end_does(tmp_path):
    args = SimpleNamespace(
        max_steps=20, train_batch_size=16, gradient_accumulation_steps=1, world_size=1, output_dir=tmp_path,
        preflight="off", save_strategy="no", save_steps=None, run_report=False,
    )  # fmt: skip
    records = [SimpleNamespace(videos=(), images=())] * 12
    text = plan(SimpleNamespace(training=args), records, None, False)
    assert "20 steps of 16 samples, 20 times over the data" in text


def test_the_plan_says_shares_of_all_steps_as_steps():
    args = SimpleNamespace(
        max_steps=2800, train_batch_size=2, gradient_accumulation_steps=1, world_size=1, output_dir="o",
        preflight="off", save_strategy="steps", save_steps=500, eval_strategy="steps", eval_steps=0.1,
        controls=False, run_report=False,
    )  # fmt: skip
    text = plan(SimpleNamespace(training=args), [], [], features=False)
    assert "a checkpoint every 500 steps" in text and "0 records at the end, every 280 steps" in text


def test_the_end_says_what_came_of_it_and_what_was_not_measured(tmp_path):
    state = SimpleNamespace(global_step=4, epoch=1.0, log_history=[{"loss": 3.0, "step": 2}, {"loss": 3.5, "step": 4}])
    text = closing(tmp_path / "a b", state, 131.0, sees=True)
    assert f"--model-path '{tmp_path}/a b' --video" in text and f"llava.export '{tmp_path}/a b' OUT" in text
    text = closing(tmp_path, state, 131.0, True, ("a b/clip.mp4", "Dov'è?"))
    assert "--video 'a b/clip.mp4' --prompt 'Dov'" in text
    text = closing(tmp_path, state, 131.0, sees=True)
    assert "time           2:11, 4 steps, 1 times over the data" in text
    assert "loss           3.5 at the end; best 3 at step 2" in text
    assert "held-out loss  not measured: nothing was held out" in text
    assert "sight          not measured" in text and "alarms         none" in text and "report" not in text
    state.log_history += [{"eval_loss": float("nan"), "step": 2}]
    state.log_history += [{"eval_loss": 2.5, "eval_gain_video": 0.25, "step": 4}]
    (tmp_path / "alarms.jsonl").write_text("{}\n{}\n")
    (tmp_path / "report.html").touch()
    text = closing(tmp_path, state, 131.0, sees=False)
    assert "held-out loss  2.5 at the end; best 2.5 at step 4" in text and "alarms         2, in" in text
    assert "sight" not in text and f"{tmp_path}/report.html" in text and "llava.export" in text
    sight = "sight          a caption costs +0.25"
    assert f"{sight} nats more with another clip's video (held-out clips)" in closing(tmp_path, state, 1.0, sees=True)
    for clips, few in ((5, ", too few to tell"), (6, "")):
        line = {"clips": clips, "gains": {"video": {"per_caption": [0.25, 0.125, 0.5]}}}
        (tmp_path / "controls.jsonl").write_text(f"{{}}\n{json.dumps(line)}\n")
        wanted = f"{sight} [+0.125, +0.5] nats more with another clip's video ({clips} held-out clips{few})"
        assert wanted in closing(tmp_path, state, 1.0, sees=True)
    (tmp_path / "controls.jsonl").write_text(json.dumps(line | {"clips": 4}) + "\n")
    state.log_history[-1] = {"train_gain_video": 0.25, "step": 4}
    wanted = "(4 training clips, which shows less, too few to tell)"
    assert wanted in closing(tmp_path, state, 1.0, sees=True)


def test_the_question_that_is_repeated_is_one_that_the_cli_takes():
    def asks(question, answer="Un gatto.", **files):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        meta, numbers = {"width": 64, "height": 64}, files.pop("numbers", ())
        shown = {"videos": (), "images": ()} | files
        return Record("r", turns, shown["videos"], shown["images"], None, meta, "r[0]", coordinates=numbers)

    def found(*records):
        return example_question(SimpleNamespace(records=records, numbers=lambda record: record.coordinates))

    told = asks("<video>\nChe cosa succede in {<TEMP-INPUT><TEMP-INPUT>}?", videos=("c.mp4",), numbers=(0.2, 0.5, 0.7))
    assert found(told) == ("c.mp4", "Che cosa succede in {<TEMP-020><TEMP-049>}?")
    caption, two = asks("<video>", videos=("a.mp4",)), asks("<video><video> Chi?", videos=("a.mp4", "b.mp4"))
    picture = asks("<image> Chi?", images=("a.png",))
    assert found(caption, two) is None and found(caption, two, picture) == ("a.png", "Chi?")
    for _, prompt in (found(told), found(picture)):
        check_prompt(prompt, register_all(make_tokenizer()))


def register_all(tokenizer):
    register(tokenizer)
    return tokenizer


def test_a_run_says_plan_lines_and_end_and_no_library_says_anything(assets, tmp_path, capfd, caplog):
    caplog.set_level(logging.INFO)
    train(assets, tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=1, preflight="off",
          eval_data_path=assets.video_json, run_report=True, disable_tqdm=None)  # fmt: skip
    said = "\n".join(caplog.messages)
    for part in ("1. data ", "features ", "training       2 steps of 2 samples", "a checkpoint every 1 steps",
                 "step 1/2  loss ", " clips/s", "finished\n", "sight ", "next "):  # fmt: skip
        assert part in said, part
    out, err = capfd.readouterr()
    assert "{'" not in out + err and "it/s" not in out + err and "%|" not in out + err and "***" not in out
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert any("grad_norm" in entry for entry in history), "the numbers are kept"
