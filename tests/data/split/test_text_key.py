"""The key of a text: equal words have the same one, wherever they stand."""

from __future__ import annotations

import hashlib

from llava.data.records import Record
from llava.data.split.text_key import text_key, text_keys
from tests.data.test_captions import talk


def test_keys_are_of_the_words_alone():
    records = [
        Record(name, talk("Chi?", words), (), (), None, {}, name)
        for name, words in (("a", "Sì."), ("b", "Sì."), ("c", "No."))
    ]
    keys = text_keys(records)
    assert keys[0] == keys[1] == text_key(records[0]) != keys[2]
    assert keys[0] == "text:" + hashlib.sha256("Chi?\nSì.".encode()).hexdigest()[:32]


def test_equal_words_with_other_numbers_are_other_texts():
    texts = [
        Record(str(n), talk("Quando?", "<TEMP-OUTPUT>"), (), (), None, {}, "", coordinates=(n,)) for n in (0.1, 0.2)
    ]
    assert len({text_key(text) for text in texts}) == 2
