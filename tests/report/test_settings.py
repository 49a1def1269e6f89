"""Flags that are not their default, settings that differ, and the command that repeats a run."""

from __future__ import annotations

import json
import shlex

from llava.report.settings import command_of, show, split_flags
from llava.train.run_flags import make_run_record, parse_arguments
from tests.report.made import record, run_of
from tests.train.runs import flags


def test_flags_are_compared_with_their_defaults():
    flags = {"report_to": ["tensorboard"], "vision_tower": None, "debug": [], "mm_projector_lr": 0.0, "gone_flag": 3}
    changed, others = split_flags({**flags, "data_path": "a.json", "optim": "adamw_torch_fused", "num_frames": 8})
    assert changed == {"mm_projector_lr": (0.0, None), "gone_flag": (3, "none"), "data_path": ("a.json", "none"),
                       "num_frames": (8, 4)}  # fmt: skip
    assert set(others) == {"report_to", "vision_tower", "debug", "optim"}


def test_the_command_repeats_the_run(assets, tmp_path):
    folder = tmp_path / "a run's folder"
    given = flags(assets, folder, mm_projector_lr=2e-3, bf16=False, adam_beta2=0.98, optim_target_modules="a b")
    first = json.loads(json.dumps(make_run_record(parse_arguments(given))))
    script, *words = shlex.split(" ".join(command_of(run_of(record=first))))[1:]
    again = json.loads(json.dumps(make_run_record(parse_arguments(words))))
    assert script == "llava/train/train.py"
    # What only decides how much is printed is set by the level of the log.
    assert again["flags"] | {"disable_tqdm": True} == first["flags"]
    assert "--seed" not in words, "a default"


def test_the_command_names_processes_and_leaves_out_what_is_no_flag():
    known = record(gone_flag=3, hub_token="<HUB_TOKEN>", learning_rate=1e-3) | {"batch": {"processes": 4}}
    assert command_of(run_of(record=known)) == [
        "torchrun", "--nproc_per_node", "4", "llava/train/train.py", "--learning_rate", "0.001"
    ]  # fmt: skip
    assert command_of(run_of(record={})) == []


def test_settings_read_as_on_the_command_line():
    assert [show(value) for value in (None, True, [1, 2], "a b")] == ["none", "true", "[1, 2]", "a b"]
    assert show({"av": "18.1.0", "pillow": "13.0.0"}) == "av 18.1.0, pillow 13.0.0"
    assert show({"min_lr": 0.1}) == '{"min_lr": 0.1}'
