"""What a run's record keeps of its supervised words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from llava.data.coordinates import register
from llava.data.records import Record
from llava.data.target_words import count_targets, describe_targets, entropy, repeated_texts
from tests.conftest import EOS, make_tokenizer


def record_of(text: str, clip: str | None = None) -> Record:
    turns = [{"from": "human", "value": "<video>" if clip else ""}, {"from": "gpt", "value": text}]
    return Record(text, turns, (clip,) if clip else (), (), None, {}, "data.json[0]")


def test_the_entropy_is_that_of_the_frequencies():
    assert entropy([1, 1, 1, 1]) == pytest.approx(math.log(4))
    assert entropy({5: 3, 6: 1}) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert entropy([7]) == entropy([]) == 0.0


def test_targets_words_and_unknown_tokens_of_captions_and_text(tokenizer, build):
    build()
    records = [record_of("Una palla rossa.", "a.mp4"), record_of("Una palla qwxyz.", "b.mp4"), record_of("Un cane.")]
    found = describe_targets(records, tokenizer)
    counts = count_targets(records, tokenizer)
    assert found["captions"]["words"] == 6 and found["text"]["words"] == 2
    for kind, some in (("captions", records[:2]), ("text", records[2:])):
        ends = counts[kind].targets[tokenizer.convert_tokens_to_ids(EOS)]
        assert ends == len(some), "the end of each text is a target and no word"
        written = len(
            tokenizer(" ".join(r.conversations[1]["value"] for r in some), add_special_tokens=False).input_ids
        )
        assert found[kind]["tokens_per_word"] == pytest.approx(written / found[kind]["words"])
        assert found[kind]["tokens"] == counts[kind].targets.total()
        assert found[kind]["entropy"] == pytest.approx(entropy(counts[kind].targets))
    assert describe_targets([], tokenizer) == {}


def test_the_share_of_unknown_tokens_is_known_only_where_there_is_such_a_token():
    tokenizer = make_tokenizer()
    records = [record_of("Una palla."), record_of("Un cane.")]
    assert describe_targets(records, tokenizer)["text"]["unknown"] is None, "unk is eos, or there is none"
    tokenizer.unk_token = tokenizer.convert_ids_to_tokens(tokenizer("palla").input_ids[0])
    assert describe_targets(records, tokenizer)["text"]["unknown"] == sum(
        tokenizer(r.conversations[1]["value"]).input_ids[1:].count(tokenizer.unk_token_id) for r in records
    )


def test_texts_that_training_has_too_are_counted_whatever_their_clips():
    training = [record_of("Una palla  rossa.", "a.mp4"), record_of("Un cane.", "b.mp4")]
    assert (
        repeated_texts(
            [record_of("Una palla rossa.", "z.mp4"), record_of("Un gatto."), record_of("Un cane.")], training
        )
        == 2
    )


def test_numbers_are_targets_as_their_coordinates(tokenizer, build):
    build()
    register(tokenizer)
    texts = [replace(record_of("A <TEMP-OUTPUT>"), coordinates=(value,)) for value in (0.1, 0.5, 0.5)]
    counted = count_targets(texts, tokenizer)["text"].targets
    names = {token: tokenizer.convert_ids_to_tokens(token) for token in counted}
    assert {name: counted[token] for token, name in names.items() if "TEMP" in name} == {
        "<TEMP-010>": 1,
        "<TEMP-049>": 2,
    }
    assert repeated_texts(texts[:1], texts[1:]) == 0 and repeated_texts(texts[1:2], texts[2:]) == 1
