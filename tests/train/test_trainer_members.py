"""What is overridden of transformers' Trainer is still there, still called, and takes what it took."""

from __future__ import annotations

import inspect
import re
import sys

import pytest
from transformers import Trainer

from llava.train.checkpoint.resumable import ResumableTrainer
from llava.train.trainer import LlavaTrainer
from llava.train.trainer_members import CALLED, OVERRIDDEN, READ

SOURCE = inspect.getsource(sys.modules[Trainer.__module__])


def test_every_override_is_listed() -> None:
    ours = {
        name
        for kind in (ResumableTrainer, LlavaTrainer)
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and hasattr(Trainer, name) and name != "__init__"
    }
    assert ours == set(OVERRIDDEN)


@pytest.mark.parametrize("name", [*OVERRIDDEN, *CALLED])
def test_signatures_are_those_of_the_installed_version(name: str) -> None:
    parameters = [p for p in inspect.signature(getattr(Trainer, name)).parameters if p != "self"]
    assert tuple(parameters) == (OVERRIDDEN | CALLED)[name]


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overrides_are_called(name: str) -> None:
    """`train` is what a run calls itself."""
    assert name == "train" or re.search(rf"self\.{name}\b", SOURCE), f"transformers no longer uses {name}"


@pytest.mark.parametrize("name", READ)
def test_attributes_are_kept(name: str) -> None:
    assert re.search(rf"self\.{name}\b(?::[^=\n]+)? = ", SOURCE), f"transformers no longer sets {name}"


def test_no_other_private_member_is_used() -> None:
    """Every `_name` of Trainer that our classes touch on themselves is in the lists."""
    private = {n for n in dir(Trainer) if n.startswith("_") and not n.startswith("__")} | {
        n for n in re.findall(r"self\.(_\w+)", SOURCE)
    }
    text = inspect.getsource(sys.modules[ResumableTrainer.__module__])
    text += inspect.getsource(sys.modules[LlavaTrainer.__module__])
    used = set(re.findall(r"(?:self|trainer|super\(\))\.(_\w+)", text)) & private
    assert used <= set(OVERRIDDEN) | set(CALLED) | set(READ)
