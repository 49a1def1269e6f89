"""The trainer's command line: everything wrong at once, help in groups."""

from __future__ import annotations

import re

import pytest

from llava.config.trainer_parser import GROUPS, REST, TrainerParser
from llava.errors import UserError
from llava.train.run_flags import parse_arguments


@pytest.fixture(scope="module")
def parser() -> TrainerParser:
    return TrainerParser()


def test_an_unknown_flag_is_named_beside_those_that_are_missing():
    with pytest.raises(UserError) as error:
        parse_arguments(["--learing_rate", "1", "--use_cpu"])
    said = str(error.value).splitlines()
    assert said[1].startswith("  - --learing_rate: there is no such flag; did you mean --learning_rate")
    assert [line.split()[1] for line in said[2:]] == ["--model_name_or_path", "--data_path"]


def test_a_value_that_cannot_be_read_is_named_beside_an_unknown_flag(parser):
    with pytest.raises(UserError) as error:
        parser.read(["--learning_rate", "fast", "--max_step", "3"])
    assert str(error.value).splitlines()[1:] == [
        "  - --learning_rate: invalid float value: 'fast'",
        "  - --max_step: there is no such flag; did you mean --max_steps or --save_steps?",
    ]


def test_help_is_in_groups_and_leaves_nothing_out(parser):
    text = parser.format_help()
    titles = re.findall(r"^([\w' -]+):$", text, re.MULTILINE)
    assert titles[:5] == ["options", "model", "data", "the run", "batches"] and titles[-2:] == [REST, "LLaVA-ST"]
    shown = set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
    hidden = {"experiment_faults", "experiment_faults_confirmed"}
    actions = {a.dest for g in parser._action_groups for a in g._group_actions if a.help != "==SUPPRESS=="}
    assert actions - shown <= {"help", "local_rank"} | hidden and {"learning_rate", "save_steps", "hub_token"} <= shown
    places = [name for names in GROUPS.values() for name in names.split()]
    assert len(places) == len(set(places))
