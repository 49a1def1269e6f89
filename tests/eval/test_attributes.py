from __future__ import annotations

import json

import pytest

from llava.eval.attributes import check_lexicon, load_lexicon, named_values, score_caption, score_captions

LEXICON = {
    "shape": {"cerchio": ["cerchio"], "stella": ["stella"]},
    "colour": {"rosso": ["rosso", "rossa"], "blu": ["blu"]},
    "direction": {"alto": ["alto"], "giù": ["giù"]},
}
STAR = {"shape": "stella", "colour": "rosso", "direction": "alto"}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Una stella rossa sale.", {"rosso"}),
        ("ROSSA, la stella", {"rosso"}),
        ("Una stella arrossata e un blues", set()),
        ("Una stella rossa e un cerchio blu", {"rosso", "blu"}),
        ("", set()),
    ],
)
def test_a_value_is_named_by_a_whole_word(caption, expected):
    assert named_values(caption, LEXICON["colour"]) == expected


@pytest.mark.parametrize("apostrophe", ["'", "\u2019"])
def test_an_elided_article_does_not_hide_a_word(apostrophe):
    assert named_values(f"verso l{apostrophe}alto.", LEXICON["direction"]) == {"alto"}


def test_an_accent_is_one_letter_however_it_is_typed():
    assert named_values("va in giu\u0300", LEXICON["direction"]) == {"giù"}
    assert named_values("va in giu", LEXICON["direction"]) == set()


def test_a_value_is_one_value_however_its_accents_are_typed():
    lexicon = {"direction": {"giu\u0300": ["giù"], "alto": ["alto"]}}
    assert score_caption("va giu\u0300", {"direction": "giù"}, lexicon) == {"direction": True}
    # Folding case takes the last letter apart, and what is left of it would end a word.
    assert named_values("μα\u0390", {"x": ["μαι"]}) == set()


def test_an_attribute_is_right_when_it_alone_is_named():
    assert score_caption("Una stella rossa va verso l'alto.", STAR, LEXICON) == dict.fromkeys(LEXICON, True)
    hedged = score_caption("Una stella o un cerchio rosso va verso l'alto.", STAR, LEXICON)
    assert hedged == {"shape": False, "colour": True, "direction": True}
    assert score_caption("Una stella blu.", STAR, LEXICON) == {"shape": True, "colour": False, "direction": False}


def test_shares_and_the_joint_share():
    captions = ["stella rossa in alto", "stella blu in alto", "cerchio rosso in alto", "stella rossa"]
    scores = score_captions(captions, [STAR] * 4, LEXICON)
    assert scores == {"shape": 0.75, "colour": 0.75, "direction": 0.75, "all": 0.25}


@pytest.mark.parametrize("attributes", [{"shape": "stella", "colour": "rosso"}, STAR | {"colour": "verde"}])
def test_attributes_that_do_not_fit_the_lexicon_are_an_error(attributes):
    with pytest.raises(ValueError, match="do not fit the lexicon"):
        score_caption("stella rossa", attributes, LEXICON)


@pytest.mark.parametrize(("captions", "attributes"), [([], []), (["a"], []), (["a"], [STAR, STAR])])
def test_one_set_of_attributes_a_caption(captions, attributes):
    with pytest.raises(ValueError, match="one each"):
        score_captions(captions, attributes, LEXICON)


def test_load_lexicon_reads_what_was_written(tmp_path):
    path = tmp_path / "attributes.json"
    path.write_text(json.dumps(LEXICON), encoding="utf-8")
    assert load_lexicon(path) == LEXICON


@pytest.mark.parametrize("content", [[], {"shape": ["stella"]}, {"shape": {"stella": "stella"}}, {"a": {"b": [1]}}])
def test_a_file_of_another_shape_is_an_error(tmp_path, content):
    path = tmp_path / "attributes.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="word forms"):
        load_lexicon(path)


@pytest.mark.parametrize(
    ("lexicon", "message"),
    [
        ({}, "no attribute"),
        ({"all": {"a": ["a"]}}, "joint score"),
        ({"colour": {"rosso": []}}, "no word forms"),
        ({"colour": {"rosso": ["rosso"], "rubino": ["Rosso"]}}, "names colour"),
        ({"size": {"alto": ["alto"]}, "direction": {"alto": ["alto"]}}, "names direction 'alto'"),
        ({"colour": {"rosso": ["rosso"], "scuro": ["rosso scuro"]}}, "names colour 'rosso'"),
    ],
)
def test_values_that_cannot_be_told_apart_are_an_error(lexicon, message):
    with pytest.raises(ValueError, match=message):
        check_lexicon(lexicon)
