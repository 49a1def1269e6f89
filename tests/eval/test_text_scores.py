"""Nats of texts: by hand on a tiny model, in windows, in batches of any size."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tokenizers import normalizers

from llava.errors import UserError
from llava.eval.text_scores import TextScorer, Window, batches, load_without_tower, plain_format, windows
from llava.train.text_format import make_format
from tests.conftest import CAPTIONS


def scorer(model, tokenizer, start="eos", **options):
    form = make_format("plain", tokenizer, model, text_start=start)
    return TextScorer(tokenizer, model, form, **options)


def plain(model, tokenizer, text: str, start: bool = True) -> list[float]:
    """Nats of the tokens of a text and its end, in a row of its own."""
    end = tokenizer.eos_token_id
    ids = [*([end] if start else []), *tokenizer(text, add_special_tokens=False)["input_ids"], end]
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-float(logs[i - 1, ids[i]]) for i in range(1, len(ids))]


def test_tokens_of_a_text_by_hand(build, tokenizer):
    model = build(vision=False)
    found = scorer(model, tokenizer, batch_size=4).score(CAPTIONS)
    for text, one in zip(CAPTIONS, found, strict=True):
        assert [*one.nats, one.end] == pytest.approx(plain(model, tokenizer, text), abs=1e-4)
        assert {i for a, b in one.offsets for i in range(a, b)} == set(range(len(text))) and len(one.offsets) == len(
            one.nats
        )
        assert one.measured == (pytest.approx(one.nats.sum()), len(one.nats)) and one.windows == 1


def test_without_a_start_the_first_token_is_not_measured(build, tokenizer):
    model = build(vision=False)
    (one,) = scorer(model, tokenizer, "none").score(CAPTIONS[:1])
    assert math.isnan(one.nats[0])
    expected = plain(model, tokenizer, CAPTIONS[0], start=False)
    assert [*one.nats[1:], one.end] == pytest.approx(expected, abs=1e-4)
    assert one.measured == (pytest.approx(sum(expected[:-1]), abs=1e-3), len(one.nats) - 1)


def test_results_do_not_depend_on_the_batch(build, tokenizer):
    model = build(vision=False)
    texts = [*CAPTIONS, CAPTIONS[0], "Sì.", " ".join(CAPTIONS)]
    alone, together = (scorer(model, tokenizer, batch_size=n).score(texts) for n in (1, 8))
    for one, other in zip(alone, together, strict=True):
        assert [*one.nats, one.end] == pytest.approx([*other.nats, other.end], abs=1e-5)
    assert alone[0] is alone[len(CAPTIONS)], "a text that stands there twice is measured once, and ties are exact"


def test_texts_of_the_same_tokens_tie_to_the_last_bit(build, tokenizer):
    """A tokenizer that does not tell two sentences apart has no preference, whatever rows of a batch they are."""
    blunt = copy.deepcopy(tokenizer)
    blunt.backend_tokenizer.normalizer = normalizers.Lowercase()
    measured = scorer(build(vision=False), blunt, batch_size=3)
    rows = []
    nats = measured._nats
    measured._nats = lambda ids, *more: (rows.extend(ids), nats(ids, *more))[1]
    one, other, third = measured.score(["Il cane corre.", "Sì.", "il CANE corre."])
    assert len(rows) == 2 and (one.nats == third.nats).all() and len(other.nats) != len(one.nats)


def test_every_position_is_measured_once_with_half_a_context_before_it():
    assert windows(5, 8) == [Window(0, 5, 0)] and windows(8, 8) == [Window(0, 8, 0)]
    assert windows(9, 8) == [Window(0, 8, 0), Window(1, 9, 8)]
    assert windows(17, 8) == [Window(0, 8, 0), Window(4, 12, 8), Window(8, 16, 12), Window(9, 17, 16)]
    for context in (8, 9):
        for length in range(1, 60):
            found = windows(length, context)
            assert [i for w in found for i in range(w.scored, w.stop)] == list(range(length))
            assert all(w.stop - w.start == min(length, context) for w in found)
            assert all(w.scored - w.start >= context // 2 for w in found[1:])


def test_a_text_longer_than_the_context_is_read_in_windows(build, tokenizer):
    model = build(vision=False)
    text = " ".join(CAPTIONS)
    (one,) = scorer(model, tokenizer, context=16).score([text])
    end = tokenizer.eos_token_id
    ids = [end, *tokenizer(text, add_special_tokens=False)["input_ids"], end]
    with torch.no_grad():
        second = model(input_ids=torch.tensor([ids[8:24]])).logits[0].log_softmax(-1)
    assert one.windows == len(windows(len(ids), 16)) > 2
    assert one.nats[:15] == pytest.approx(plain(model, tokenizer, text)[:15], abs=1e-4)
    assert one.nats[15:23] == pytest.approx([-float(second[i - 9, ids[i]]) for i in range(16, 24)], abs=1e-4)
    with pytest.raises(UserError, match="--context 9999: the model has 512 positions"):
        scorer(model, tokenizer, context=9999)


def test_batches_have_few_positions_and_all_sequences():
    lengths = [5, 1, 9, 5, 2]
    assert list(batches(lengths, 2, 100)) == [[1, 4], [0, 3], [2]]
    assert list(batches(lengths, 9, 10)) == [[1, 4], [0, 3], [2]]
    assert list(batches([50], 9, 10)) == [[0]], "one that is too long goes alone"


@pytest.mark.parametrize(
    ("text", "said"),
    [("un <video>", "'<video>'"), ("<vid_end>", "'<vid_end>'"), ("a<|endoftext|>", "endoftext"), (" ", "no text")],
)
def test_a_text_that_is_none_is_refused(build, tokenizer, text, said):
    model = build(vision=False)
    with pytest.raises(UserError, match=rf"f\.txt:3: .*{said}"):
        scorer(model, tokenizer).score(["Sì.", text], ["f.txt:2", "f.txt:3"])


def test_unknown_tokens_are_counted(build, tokenizer, monkeypatch):
    made = scorer(build(vision=False), tokenizer)
    last = tokenizer("gatto", add_special_tokens=False)["input_ids"][-1]
    monkeypatch.setattr(type(tokenizer), "unk_token_id", last, raising=False)
    one, other = made.score(["un gatto, un gatto", "Sì."])
    assert (one.unknown, other.unknown) == (2, 0)


def test_broken_weights_are_no_score(build, tokenizer):
    model = build(vision=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(np.nan)
    with pytest.raises(UserError, match=r"f\.txt:1: the model gives a loss of nan"):
        scorer(model, tokenizer).score(["Sì."], ["f.txt:1"])


def test_a_checkpoint_with_vision_opens_without_its_tower(build, tokenizer, saved, monkeypatch):
    monkeypatch.setattr("llava.model.vlm.VisionCausalLM.attach_vision_tower", None)
    found, model = load_without_tower(saved, "cpu")
    assert model.vision_tower is None and next(model.parameters()).dtype == torch.float32
    assert plain_format(model, found, saved).text_start == "none"
    model.config.text_format = {"version": "v1", "template": None}
    with pytest.raises(UserError, match="chat format vicuna"):
        plain_format(model, found, saved)
