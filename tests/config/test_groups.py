"""Groups of flags that commands share are those of training, word for word."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

import pytest
import transformers

from llava.config.flags import DataArguments, ModelArguments
from llava.config.groups import CLIP_TIMEOUT, DEFAULT_SEED, FolderFlags, FrameFlags, cpus
from llava.config.video import VideoSpec

TRAINING: dict[str, Field] = {f.name: f for kind in (ModelArguments, DataArguments) for f in fields(kind)}


@pytest.mark.parametrize("field", [*fields(FolderFlags), *fields(FrameFlags)], ids=lambda field: field.name)
def test_a_shared_flag_is_that_of_training(field: Field) -> None:
    def facts(f: Field) -> tuple[Any, ...]:
        # transformers' parser writes the resolved type into a field that it has read.
        return f.default, str(f.metadata["help"]), str(getattr(f.type, "__name__", f.type)).removesuffix(" | None")

    assert facts(field) == facts(TRAINING[field.name])


def test_shared_defaults_are_those_of_training() -> None:
    assert TRAINING["clip_timeout"].default == CLIP_TIMEOUT
    assert {f.name: f.default for f in fields(transformers.TrainingArguments)}["seed"] == DEFAULT_SEED
    assert FrameFlags().video_spec() == VideoSpec()
    assert cpus() >= 1


def test_frames_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        FrameFlags(num_frames=0).video_spec()
