"""Words of tokens and what the video did for each."""

from __future__ import annotations

import pytest

from llava.serve.word_gains import END, Word, word_gains, words_of
from tests.conftest import make_tokenizer

PIECES = {0: "<end>", 1: " Un", 2: " gat", 3: "to", 4: ".", 5: " ", 6: "\u00a0"}


def decode(ids: list[int]) -> str:
    return "".join(PIECES[i] for i in ids)


def test_a_word_begins_with_white_space_and_the_end_is_its_own():
    assert words_of([1, 2, 3, 4, 0], decode, {0}) == [("Un", [0]), ("gatto.", [1, 2, 3]), (END, [4])]
    # A space of its own belongs to what follows it, and after an end a text begins anew.
    assert words_of([3, 5, 3, 0, 3, 0], decode, {0}) == [
        ("to", [0]), ("to", [1, 2]), (END, [3]), ("to", [4]), (END, [5]),
    ]  # fmt: skip
    assert words_of([0], decode, {0}) == [(END, [0])]
    assert words_of([], decode, {0}) == []


@pytest.mark.parametrize("text", ["Un caffè è “là”, 🐈 città.", "🐈🐈", "a  b\n c", "l'uomo \u4e2d\u6587"])
def test_characters_of_several_tokens_stay_whole(text):
    tokenizer = make_tokenizer()
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    words = words_of(ids, lambda some: tokenizer.decode(some, clean_up_tokenization_spaces=False), {ids[-1]})
    assert [word for word, _ in words] == [*text.split(), END]
    assert [place for _, places in words for place in places] == list(range(len(ids)))


def test_half_a_character_at_the_end_is_shown_as_what_it_is():
    tokenizer = make_tokenizer()
    ids = tokenizer("a 🐈")["input_ids"][:-1]
    words = words_of(ids, tokenizer.decode, {tokenizer.eos_token_id})
    assert [word for word, _ in words] == ["a", "\ufffd"]
    assert [place for _, places in words for place in places] == list(range(len(ids)))


def test_gains_are_sums_over_the_tokens_of_a_word():
    words = word_gains([("Un", [0]), ("gatto", [1, 2])], [1.0, 0.5, 0.25], [1.0, 3.0, 0.125])
    assert words == [Word("Un", 1.0, 1.0), Word("gatto", 0.75, 3.125)]
    assert [word.gain for word in words] == [0.0, 2.375]
