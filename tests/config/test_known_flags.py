"""Flags read from source are those of the trainer's parser."""

from __future__ import annotations

import argparse

import pytest

from llava.config.known_flags import BOOL, FLOAT, INT, LIST, TEXT, argument_problems, given, known_flags, read_class
from llava.config.trainer_parser import TrainerParser


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return TrainerParser()


def test_they_are_the_parsers_with_its_kinds_and_defaults(parser):
    negations = (argparse._StoreFalseAction, argparse._HelpAction)
    actions = {a.dest: a for a in parser._actions if not isinstance(a, negations)}
    known = known_flags()
    assert set(known) == set(actions)
    for name, flag in known.items():
        kind = "bool" if "bool" in getattr(actions[name].type, "__name__", "") else None
        kind = kind or {int: INT, float: FLOAT}.get(actions[name].type, TEXT)
        assert (flag.kind if flag.kind != LIST else TEXT) == kind, name
        assert (flag.kind == LIST) == (actions[name].nargs == "+"), name
        if flag.group in ("Model", "Data", "Training") and flag.kind != LIST:
            assert flag.default == actions[name].default, name
    assert known["experiment_faults"].help is None, "hidden from --help, as there"


def test_read_class():
    source = '''
@dataclass
class A:
    """Doc."""
    _private: str = "x"
    plain: int = 3
    late: Optional[float] = field(default=None, metadata={"help": "Two " "parts."})
    many: list[str] | None = field(default_factory=list)
    both: str | bool = field(default="no")
    ours: dict = field(default=None, init=False)
'''
    late, many, both = read_class(source, "A", "g")[1:]
    assert (late.name, late.kind, late.default, late.help, late.group) == ("late", FLOAT, None, "Two parts.", "g")
    assert (many.kind, both.kind, both.default) == (LIST, BOOL, "no")


def test_given():
    argv = ["--a", "1", "--a", "2", "--b-c=3", "--d", "--no_e", "--f", "x", "y", "--g", "-1"]
    assert given(argv) == {"a": "2", "b_c": "3", "d": True, "no_e": True, "f": ["x", "y"], "g": "-1"}


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ("--learing_rate 1", "--learing_rate: there is no such flag; did you mean --learning_rate"),
        ("--learning_rate fast", "--learning_rate fast: a number is expected"),
        ("--max_steps 2.5", "--max_steps 2.5: a whole number is expected"),
        ("--max_steps 0", "--max_steps 0: a whole number from 1, or more"),
        ("--bf16 maybe", "--bf16 maybe: True or False is expected"),
        ("--seed", "--seed: a whole number is expected after it"),
        ("--output_dir a b", "--output_dir a b: one value is expected"),
    ],
)
def test_wrong_words(argv, problem):
    found = argument_problems(argv.split(), known_flags())
    assert len(found) == 1 and found[0].startswith(problem.replace(" from 1, or more", "")), found


@pytest.mark.parametrize(
    "argv",
    ["--bf16 --seed 3", "--no_packing", "--learning-rate 1e-3", "--label_names a b", "--max_steps -1", "--stage 1",
     "--lr_scheduler_kwargs {}", "--fp16 True --deepspeed x.json"],
)  # fmt: skip
def test_right_words(argv):
    assert argument_problems(argv.split(), known_flags()) == []


def test_values_of_yaml():
    known = known_flags()
    assert known["bf16"].kind == BOOL and known["bf16"].problem(True) is None and known["bf16"].problem(2) is not None
    assert known["learning_rate"].problem("2e-3") is None and known["learning_rate"].problem(True) is not None
    assert known["fsdp_config"].problem({"a": 1}) is None and known["learning_rate"].problem({}) is not None
    assert known["resume_from_checkpoint"].problem(True) is None and known["output_dir"].problem(["a"]) is not None
    assert known["data_path"].problem("a.json") is None
