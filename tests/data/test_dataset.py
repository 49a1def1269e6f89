"""Lengths of records, and which of them cannot be cut to what the model takes."""

from __future__ import annotations

import pytest

from llava.data.dataset import LazySupervisedDataset, measure_lengths
from llava.data.records import Record
from llava.data.text_format import PlainLM, text_format
from tests.conftest import SPEC
from tests.data.test_captions import talk


def record_of(name: str, caption: str, videos: int = 0, images: int = 0) -> Record:
    human = " ".join(["<video>"] * videos + ["<image>"] * images)
    files = [tuple(f"{name}{i}" for i in range(n)) for n in (videos, images)]
    return Record(name, talk(human, caption), *files, None, {}, f"data[{name}]")


@pytest.fixture
def known(tokenizer, build):
    build(vision=False)  # Registers the visual tokens.
    return tokenizer


def test_lengths_are_those_of_the_samples_and_problems_those_they_would_raise(known):
    long = "Un gatto nero. " * 8
    records = [
        record_of("text", "Un gatto."), record_of("long text", long), record_of("video", "Un cane.", 1),
        record_of("image", "Un cane.", 0, 1), record_of("cut", long, 1), record_of("three", "Un gatto.", 3),
    ]  # fmt: skip
    form, limit = PlainLM(known), SPEC.rows + 8
    lengths, problems = measure_lengths(records, known, SPEC, form, limit)
    dataset = LazySupervisedDataset(records, known, form.preprocess, limit, SPEC, text_format=form)
    assert lengths == [len(dataset.whole_tokens(r)[0]) for r in records]
    assert [n > limit for n in lengths] == [False, lengths[1] > limit, False, False, True, True]
    assert [(p.record_id, p.kind) for p in problems] == [("three", "too long")]
    with pytest.raises(ValueError) as error:
        dataset.tokens(5)
    assert problems[0].message == str(error.value)
    assert len(dataset.tokens(4)[0]) == limit


def test_a_format_without_room_for_the_answer_is_a_problem(known):
    form = text_format("vicuna_v1", known)
    record = record_of("r", "Un gatto.", 1)
    (length,), problems = measure_lengths([record], known, SPEC, form, 512)
    assert problems == []
    assert len(measure_lengths([record], known, SPEC, form, length - 1)[1]) <= 1
    (problem,) = measure_lengths([record], known, SPEC, form, SPEC.rows + 3)[1]
    assert problem.source == "data[r]" and "record 'r'" in problem.message


def test_a_text_of_a_model_without_vision_has_its_own_length(known):
    form = PlainLM(known)
    records = [record_of("a", "Un gatto."), record_of("b", "Un gatto nero che dorme.")]
    lengths, problems = measure_lengths(records, known, None, form, 4)
    assert problems == [] and lengths == [len(ids) for ids, _ in form.encode([r.conversations for r in records])]
