"""A run that holds clips out by itself: what it says, evaluates and records, and how it goes on."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from llava.data.records import load_records
from llava.train.checkpoint.files import write_manifest
from llava.train.run_data import write_held_out
from llava.train.run_flags import parse_arguments
from llava.train.setup import prepare
from llava.train.train import main
from llava.train.trainer import LlavaTrainer
from tests.conftest import CAPTIONS, colour_frames, record, write_clip
from tests.train.runs import flags, losses, train

OPTIONS = {"preflight": "off", "save_strategy": "steps", "save_steps": 4, "max_steps": 8, "val_fraction": None}


@pytest.fixture
def data(tmp_path):
    """Twenty-four captions of twelve clips that have no files; experiment 1 reads none."""
    path = tmp_path / "clips.json"
    rows = [record(f"r{i}", f"{CAPTIONS[i % 6][:-1]} numero {i}.", f"c{i // 2}.mp4") for i in range(24)]
    path.write_text(json.dumps(rows))
    return path


def recorded(folder):
    return json.loads((folder / "llava_run.json").read_text())


def test_a_run_holds_clips_out_evaluates_on_them_and_goes_on_the_same(assets, tmp_path, data, caplog, monkeypatch):
    caplog.set_level("INFO")
    options = OPTIONS | {"data_path": data, "text_only": True}
    evaluate, at = LlavaTrainer.evaluate, []
    with monkeypatch.context() as patch:
        patch.setattr(LlavaTrainer, "evaluate", lambda self, *args, **kwargs: (
            at.append(self.state.global_step) or evaluate(self, *args, **kwargs)
        ))  # fmt: skip
        whole = train(assets, tmp_path / "whole", 1, **options)
    assert at == [*range(1, 9)], "that of the last step is that of the end"
    found = json.loads((tmp_path / "whole" / "eval_results.json").read_text())
    assert caplog.text.count("held out for evaluation: 1 of 12 clips, 2 of 24 captions") == 1
    record, state = recorded(tmp_path / "whole"), json.loads((tmp_path / "whole" / "trainer_state.json").read_text())
    assert [e["step"] for e in state["log_history"] if "eval_loss" in e] == [*range(1, 9)]
    assert found["eval_loss"] == [e["eval_loss"] for e in state["log_history"] if "eval_loss" in e][-1]
    assert (record["data"]["train"]["records"], record["data"]["eval"]["records"]) == (22, 2)
    assert record["split"].items() >= {"fraction": 0.02, "held_out": 1, "total": 12, "captions": 2}.items()
    assert (record["flags"]["eval_strategy"], record["flags"]["eval_steps"]) == ("steps", 0.1)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "cut" / "checkpoint-4")
    assert train(assets, tmp_path / "cut", 1, **options, resume_from_checkpoint=True) == whole
    assert recorded(tmp_path / "cut")["split"] == record["split"]

    # Another fraction, or data of which others would be held out, is another run.
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "other" / "checkpoint-4")
    other = options | {"resume_from_checkpoint": True}
    with pytest.raises(ValueError, match=r"--val_fraction: was 0.02, is 0.3"):
        main(flags(assets, tmp_path / "other", 1, **other | {"val_fraction": 0.3}))
    rows = json.loads(data.read_text())
    for row in rows:
        row["video"] = f"new/{row['video']}"
    data.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"split in another way: it held out 1 of 12 clips .*--confirm_changes True"):
        main(flags(assets, tmp_path / "other", 1, **other))


def test_a_checkpoint_that_records_no_split_keeps_all_its_clips(assets, tmp_path, data, caplog):
    """Those of earlier commits have neither the flag nor the split."""
    caplog.set_level("INFO")
    options = OPTIONS | {"data_path": data, "text_only": True}
    whole = train(assets, tmp_path / "run", 1, **options | {"val_fraction": 0})
    assert "nothing is held out (--val_fraction 0); sight and loss are measured on training clips only" in caplog.text
    assert recorded(tmp_path / "run")["data"]["eval"] is None
    shutil.copytree(tmp_path / "run" / "checkpoint-4", tmp_path / "old" / "checkpoint-4")
    path = tmp_path / "old" / "checkpoint-4" / "llava_run.json"
    old = json.loads(path.read_text())
    del old["split"], old["flags"]["val_fraction"]
    path.write_text(json.dumps(old))
    write_manifest(path.parent)
    assert train(assets, tmp_path / "old", 1, **options, resume_from_checkpoint=True) == whole
    assert "recorded no split, so all its clips stay in training" in caplog.text
    assert recorded(tmp_path / "old")["split"] is None, "and so does the run that goes on with this one"


def test_no_evaluation_when_none_is_asked_for_and_no_strategy_without_clips(assets, tmp_path, data):
    options = {"data_path": data, "text_only": True, "preflight": "off", "val_fraction": None}
    for words, steps in (({"eval_strategy": "no"}, None), ({"eval_steps": 3}, 3), ({}, 0.1)):
        args = prepare(parse_arguments(flags(assets, tmp_path / "run", 1, **options, **words))).trainer.args
        assert args.eval_strategy == ("no" if steps is None else "steps") and args.eval_steps == steps
    with pytest.raises(ValueError, match="needs --eval_data_path, or a --val_fraction above 0"):
        parse_arguments(flags(assets, tmp_path / "run", 1, **options | {"val_fraction": 0, "eval_strategy": "epoch"}))
    few = parse_arguments(flags(assets, tmp_path / "run", 1, val_fraction=None, eval_strategy="epoch"))
    with pytest.raises(ValueError, match="needs --eval_data_path, since nothing is held out"):
        prepare(few)


def test_controls_run_on_the_clips_that_are_held_out_and_copies_stay_together(assets, tmp_path):
    """Twenty clips, the second ten copies of the first: two are held out, and neither has a copy in training."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(10):
        write_clip(clips / f"c{i}.mp4", colour_frames(i))
        shutil.copy(clips / f"c{i}.mp4", clips / f"c{i + 10}.mp4")
    rows = [record(f"r{i}", f"{CAPTIONS[i % 6][:-1]} numero {i}.", f"c{i}.mp4") for i in range(20)]
    rows += [record(f"s{i}", f"Ancora il numero {i}.", f"c{i}.mp4") for i in range(20)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    options = {"data_path": tmp_path / "data.json", "video_folder": clips, "val_fraction": 0.25, "preflight": "off"}
    train(assets, tmp_path / "run", max_steps=2, **options)
    run = recorded(tmp_path / "run")
    assert run["split"]["copies"] == "content" and run["split"]["held_out"] == 4
    held = json.loads((tmp_path / "run" / "held_out.json").read_text())
    assert len(held) == 8 and {row["id"] for row in held} <= {row["id"] for row in rows}
    assert {row["video"] for row in held} <= {row["video"] for row in rows}, "below the folder of clips"
    controls = [json.loads(line) for line in (tmp_path / "run" / "controls.jsonl").read_text().splitlines()]
    assert {line["measured_on"] for line in controls} == {"evaluation clips"} and np.isfinite(
        losses(tmp_path / "run")
    ).all()
    settings = parse_arguments(flags(assets, tmp_path / "text", 1, text_only=True, **options))
    assert prepare(settings).trainer.run_record["split"]["digest"] == run["split"]["digest"], "experiment 1's, too"


def test_records_that_are_held_out_keep_their_numbers(assets, tmp_path):
    row = record("r", "<TEMP-OUTPUT> [<WIDTH-OUTPUT>", "clip0.mp4")
    row["variables"] = {"temporal_output_locations": [0.25], "spatial_width_output_locations": [0.5]}
    (tmp_path / "data.json").write_text(json.dumps([row]))
    before, problems = load_records(tmp_path / "data.json", video_folder=assets.clips)
    settings = SimpleNamespace(
        data=SimpleNamespace(video_folder=str(assets.clips), image_folder=None),
        training=SimpleNamespace(output_dir=str(tmp_path / "run")),
    )
    write_held_out(before, settings)
    after, more = load_records(tmp_path / "run" / "held_out.json", video_folder=assets.clips)
    assert problems == more == [] and after[0].coordinates == before[0].coordinates == (0.25, 0.5)
