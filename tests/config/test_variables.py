"""Which variables are taken, refused and left alone."""

from __future__ import annotations

import pytest

from llava.config.known_flags import known_flags
from llava.config.launch import SHELL_VARIABLES, launch_settings
from llava.config.variables import ALIASES, COMMON, NEAR_MISSES, Variables, read_variables, variable


def read(**environ: str) -> Variables:
    return read_variables(environ, known_flags(), launch_settings(), SHELL_VARIABLES)


def test_every_flag_and_setting_has_a_variable():
    for name, flag in (known_flags() | launch_settings()).items():
        if name in ("use_plain_lm", "local_rank"):  # read by the trainer, set by torchrun
            continue
        value = {"bool": "True", "int": "5", "float": "0.5"}.get(flag.kind, "x")
        value = {"save_steps": "7", "eval_steps": "7", "logging_steps": "7"}.get(name, value)
        if flag.problem(value):
            value = "0.5" if flag.problem("0.5") is None else "5"
        found = read(**{variable(name): value})
        assert found.values == {name: value} and len(found.notes) == 1 and not found.problems, name
        assert read(**{f"LLAVA_{name.upper()}": value}).values == {name: value}


def test_old_names():
    found = read(BATCH_SIZE="3", NUM_WORKERS="2", RESUME="True", VISION_MODEL="tower", MODEL_PATH="model")
    assert found.values == dict(zip(ALIASES.values(), ("3", "2", "True", "tower", "model"), strict=True))
    assert "BATCH_SIZE=3 sets --per_device_train_batch_size" in found.notes


def test_names_of_other_programs_are_not_read():
    found = read(VERSION="2.1", DEBUG="1", LOCAL_RANK="0", PATH="/bin", LLAVA_EXTRAS="dev", SEED="")
    assert found.values == {} and found.problems == []
    assert found.notes == [f"{name} is not read, since other programs use it: LLAVA_{name} is ours"
                           for name in ("DEBUG", "VERSION")]  # fmt: skip
    assert read(LLAVA_VERSION="chatml").values == {"version": "chatml"}


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"LR": "1"}, "LR=1: no such variable; did you mean LEARNING_RATE?"),
        ({"EPOCHS": "1"}, "EPOCHS=1: no such variable; did you mean NUM_TRAIN_EPOCHS?"),
        ({"LLAVA_EPOCH": "1"}, "LLAVA_EPOCH=1: no such variable; did you mean NUM_TRAIN_EPOCHS?"),
        ({"DATAPATH": "x"}, "DATAPATH=x: no such variable; did you mean DATA_PATH?"),
        ({"LLAVA_SED": "1"}, "LLAVA_SED=1: no such variable; did you mean LLAVA_SEED"),
        ({"SEED": "one"}, "SEED=one: a whole number is expected"),
        ({"ADAM_BETA2": "2"}, "ADAM_BETA2=2: a number from 0 to below 1 is expected"),
        ({"BATCH_SIZE": "1", "PER_DEVICE_TRAIN_BATCH_SIZE": "2"}, "BATCH_SIZE=1 and PER_DEVICE_TRAIN_BATCH_SIZE=2 say"),
    ],
)
def test_what_is_wrong(environ, problem):
    found = read(**environ)
    assert len(found.problems) == 1 and found.problems[0].startswith(problem)


def test_the_lists_agree():
    names = {variable(name) for name in known_flags() | launch_settings()} | set(ALIASES) | set(SHELL_VARIABLES)
    assert {right for right in NEAR_MISSES.values() if right not in names} == set()
    assert names & set(NEAR_MISSES) == set()
    assert {name for name in COMMON if name.lower() not in known_flags() | launch_settings()} == set()


def test_secrets_are_not_printed():
    assert read(LLAVA_HUB_TOKEN="hf_x").notes == ["LLAVA_HUB_TOKEN=... sets --hub_token"]
