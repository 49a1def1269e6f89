"""Words of Italian text, exactly, and the pieces that belong to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.eval.caption_scores import tokenise
from llava.eval.italian import MARK, NUMBER, WORD, class_of, form, owners, sums, units, word_forms
from tests.conftest import CAPTIONS


def cut(text: str) -> list[str]:
    return [text[u.start : u.end] for u in units(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L'uomo dorme.", ["L'", "uomo", "dorme", "."]),
        ("C’è un po’ d’acqua", ["C’", "è", "un", "po’", "d’", "acqua"]),
        ("un po'.", ["un", "po'", "."]),
        ("anni ’60 e po' di", ["anni", "’", "60", "e", "po'", "di"]),
        ("un po', e", ["un", "po'", ",", "e"]),
        ("perche' no", ["perche'", "no"]),
        ("disse 'ciao' e po' di", ["disse", "'", "ciao", "'", "e", "po'", "di"]),
        ("'l'uomo nero'.", ["'", "l'", "uomo", "nero", "'."]),
        ("''doppi''", ["''", "doppi", "''"]),
        ("italo-francese - no", ["italo-francese", "-", "no"]),
        ("dopo–prima", ["dopo", "–", "prima"]),
        ("1.000,50 € alle 3:30, 20enne", ["1.000,50", "€", "alle", "3:30", ",", "20enne"]),
        ("il 12/5.", ["il", "12", "/", "5", "."]),
        ("«Ehi!», disse...", ["«", "Ehi", "!»,", "disse", "..."]),
        ("perche\u0301 si\u0300", ["perche\u0301", "si\u0300"]),
        ("3-0 covid-19", ["3-0", "covid-19"]),
        ("snake_case", ["snake", "_", "case"]),
        ("  ", []),
    ],
)
def test_words_are_those_of_the_rule(text, expected):
    assert cut(text) == expected


def test_kinds_and_classes():
    text = "Il gatto di 3 anni: l'AMO più di te."
    kinds = {text[u.start : u.end]: u.kind for u in units(text)}
    assert (kinds["3"], kinds[":"], kinds["gatto"]) == (NUMBER, MARK, WORD)
    assert word_forms(text) == ["il", "gatto", "di", "3", "anni", "l'", "amo", "più", "di", "te"]
    classes = [class_of(form(text[u.start : u.end]), u.kind) for u in units(text) if u.kind != MARK]
    function, content = "function", "content"
    assert classes == [function, content, function, NUMBER, content, function, content, function, function, function]
    assert class_of("gatto", WORD, {"gatto": "noun"}) == "noun" and class_of("di", WORD, {"gatto": "noun"}) == function


def test_one_form_for_every_way_to_type_it():
    assert form("PERCHE\u0301") == form("Perché") == "perché"
    assert form("L\u2019") == form("l\u02bc") == form("L`") == "l'"


@pytest.mark.parametrize("text", [*CAPTIONS, "L'uomo, un po' stanco, disse: 'ciao'.", "Dell’acqua e 'ndrangheta"])
def test_words_are_those_of_the_caption_scores(text):
    assert word_forms(text) == tokenise(text)


@given(st.text(alphabet="aèl'’ .,-1«\u0301 ", max_size=20))
def test_every_character_is_in_one_unit(text):
    places = [i for u in units(text) for i in range(u.start, u.end)]
    assert places == [i for i, c in enumerate(text) if not c.isspace()]


def test_pieces_are_summed_to_words():
    text = "L'uomo dorme."
    # One piece over two words, one of a space alone, one in two halves of a character's bytes.
    pieces = [(0, 4), (4, 6), (6, 7), (7, 10), (7, 10), (10, 13)]
    assert [text[a:b] for a, b in pieces] == ["L'uo", "mo", " ", "dor", "dor", "me."]
    owner, reaches = owners(text, pieces, units(text))
    assert owner.tolist() == [0, 1, 2, 2, 2, 2] and reaches.tolist() == [True, False, False, False, False, True]
    nats, tokens = sums(np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]), owner, 4)
    assert nats.tolist() == [1, 2, 60, 0] and tokens.tolist() == [1, 1, 4, 0]


def test_a_space_belongs_to_the_word_after_it_and_to_the_last_at_the_end():
    text = "a b "
    owner, _ = owners(text, [(0, 1), (1, 3), (3, 4), (0, 0)], units(text))
    assert owner.tolist() == [0, 1, 1, 0]


def test_a_word_with_a_piece_that_was_not_measured_is_not_measured():
    nats, tokens = sums(np.array([math.nan, 1.0, 2.0]), np.array([0, 0, 1]), 2)
    assert math.isnan(nats[0]) and nats[1] == 2 and tokens.tolist() == [2, 1]
