"""Placeholders, registration, masking and truncation, to the token."""

from __future__ import annotations

import pytest
import torch

from llava.config.video import VideoSpec
from llava.constants import IGNORE_INDEX, VISUAL_TOKENS
from llava.data.prompt import (
    Spans,
    count_supervised,
    expand_placeholders,
    image_span,
    join_turns,
    lay_out,
    mask_visual,
    plain_text,
    plain_turns,
    tokenized,
    truncate,
    video_span,
    visual_token_ids,
)
from llava.model.builder import add_visual_tokens, load_language_model
from tests.data.test_captions import talk


def test_a_default_video_is_360_tokens_in_the_contract_order(tokenizer, build):
    build(vision=False)
    span = video_span(VideoSpec())
    assert span == (
        "<vid_start>" + "<vid_patch>" * 34 + "<vid_end>" + "<slow_vid_start>" + "<vid_patch>" * 322 + "<slow_vid_end>"
    )
    assert len(tokenizer(span)["input_ids"]) == 360
    assert len(tokenizer(image_span(VideoSpec()))["input_ids"]) == 81


def test_several_placeholders_expand_in_place():
    spec = VideoSpec(num_frames=2, fast_latents=1, slow_latents=1)
    text = expand_placeholders("prima <video> poi <video>", spec)
    assert text == f"prima {video_span(spec)} poi {video_span(spec)}"


@pytest.mark.parametrize("latents", [(1, 1), (9, 81), (3, 7), (2, 5)])
@pytest.mark.parametrize("frames", [2, 3, 8])
def test_span_lengths_follow_the_spec(tokenizer, build, frames, latents):
    build(vision=False)
    spec = VideoSpec(num_frames=frames, fast_latents=latents[0], slow_latents=max(latents[1], 2))
    assert len(tokenizer(video_span(spec))["input_ids"]) == spec.rows == frames * (latents[0] + max(latents[1], 2))


def test_an_unregistered_token_is_an_error_and_never_eos(tokenizer):
    with pytest.raises(ValueError, match="<vid_patch>"):
        visual_token_ids(tokenizer)


def test_registered_ids_are_eight_and_never_unk_eos_or_pad(tokenizer, build):
    build(vision=False)
    ids = visual_token_ids(tokenizer)
    assert list(ids) == list(VISUAL_TOKENS)
    assert len(set(ids.values())) == 8
    assert tokenizer.eos_token_id not in ids.values()


def test_registration_keeps_the_vocabulary_tied_and_trainable(assets, tokenizer):
    model = load_language_model(str(assets.gpt2))
    before = model.transformer.wte.num_embeddings
    add_visual_tokens(tokenizer, model)
    assert model.transformer.wte.num_embeddings == before + 8
    assert model.lm_head.weight is model.transformer.wte.weight
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == []


def test_registration_is_done_once(tokenizer, build):
    model = build(vision=False)
    before = model.transformer.wte.weight.clone()
    assert add_visual_tokens(tokenizer, model) == model.config.visual_token_ids
    assert torch.equal(model.transformer.wte.weight, before)


def test_join_turns_leaves_out_empty_turns():
    turns = [{"value": ""}, {"value": " Un gatto. "}, {"value": "Dorme."}]
    assert join_turns(turns) == "Un gatto. Dorme."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<video>", "<video>"), ("<video>\nUn gatto.", "<video> Un gatto."), ("<video>Un", "<video> Un"),
        (" Guarda \n<video>\n bene", "Guarda<video> bene"), ("<image> <video>\n<video> Un", "<image><video><video> Un"),
        ("Un gatto.\n Dorme. ", "Un gatto.\n Dorme. "), ("Guarda <video> ", "Guarda<video>"),
    ],
)  # fmt: skip
def test_white_space_around_placeholders_is_layout(text, expected):
    assert lay_out(text) == expected == lay_out(expected)


def test_a_placeholder_that_opens_a_later_turn_ends_the_one_before():
    turns = [{"from": "a", "value": v} for v in ("<video>\nA?", "B. ", "<video>\nC?", "", "<video>", "D.")]
    assert [t["value"] for t in plain_turns(turns)] == ["<video> A?", "B.<video>", "C?<video>", "", "", "D."]
    assert [t["value"] for t in turns][:3] == ["<video>\nA?", "B. ", "<video>\nC?"]
    assert join_turns(plain_turns(turns)) == "<video> A? B.<video> C?<video> D."


@pytest.mark.parametrize("first", ["", " ", "<video>", "<video>\nChi? ", "a <image> b", "< x"])
@pytest.mark.parametrize(
    "second", ["", "Un gatto. ", "<video>", "<image> \n<video> Un gatto.", "a < b", "Qui <video> "]
)
def test_the_text_of_turns_is_that_of_turns_that_are_laid_out_one_by_one(first, second):
    for turns in (talk(first, second), talk(first, second, first, "Sì."), talk(first), talk(second, first, second)):
        assert plain_text(turns) == join_turns(plain_turns(turns))


def test_a_sample_does_not_copy_the_vocabulary(tokenizer, build, monkeypatch):
    """24 ms of CPU a sample with 30,000 entries."""
    from llava.data.prompt import plain_lm_sample

    build(vision=False)
    text = [{"value": f"{video_span(VideoSpec())} Un gatto."}]
    expected = plain_lm_sample(text, tokenizer)[1].tolist()
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: pytest.fail("get_vocab in a sample"))
    assert plain_lm_sample(text, tokenizer, True)[1].tolist() == expected


def test_mask_visual_masks_exactly_the_given_ids():
    ids = torch.tensor([7, 8, 8, 9, 1, 2, 0])
    assert mask_visual(ids, [7, 8, 9]).tolist() == [IGNORE_INDEX] * 4 + [1, 2, 0]
    assert mask_visual(ids, []).tolist() == ids.tolist()


def test_count_supervised_counts_targets():
    assert count_supervised(torch.tensor([5, 6, IGNORE_INDEX, 7])) == 2


def test_truncation_cuts_text_and_keeps_eos():
    ids = torch.tensor([90, 90, 1, 2, 3, 4, 0])
    labels = mask_visual(ids, [90])
    cut_ids, cut_labels = truncate(ids, labels, 5)
    assert cut_ids.tolist() == [90, 90, 1, 2, 0]
    assert cut_labels.tolist() == [IGNORE_INDEX, IGNORE_INDEX, 1, 2, 0]


@pytest.mark.parametrize("ids", [[1, 90, 90, 90, 2, 0], [90, 90, 90, 90, 1, 2, 0], [1, 2, 90, 3, 0]])
def test_truncation_never_cuts_a_visual_span(ids):
    ids = torch.tensor(ids)
    with pytest.raises(ValueError, match="model_max_length 4"):
        truncate(ids, mask_visual(ids, [90]), 4)


def test_a_tokenizer_without_eos_is_refused(build):
    from tests.conftest import make_tokenizer

    tokenizer = make_tokenizer(pad=None)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="eos_token"):
        add_visual_tokens(tokenizer, build(vision=False))


def test_texts_together_have_the_ids_that_the_tokenizer_gives_each(tokenizer, build, monkeypatch):
    build(vision=False)
    texts = ["Un gatto nero.", "", "<vid_start> perché <|endoftext|> no", "  due  spazi ", "猫 e 🐈"]
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    # What a call before asked for is not asked for here.
    tokenizer(texts, padding="max_length", truncation=True, max_length=3)
    assert list(tokenized(tokenizer, texts)) == wanted

    class Shouting(type(tokenizer)):
        def __call__(self, text, **options):
            return {"input_ids": [[7] * len(part) for part in text]}

    monkeypatch.setattr(tokenizer, "__class__", Shouting)
    assert list(tokenized(tokenizer, texts)) == [[7] * len(text) for text in texts], "its own way of calling counts"


@pytest.mark.parametrize("label", ["masked", "its own", "another"])
def test_spans_take_the_place_of_their_markers(label):
    spans = Spans({8: torch.tensor([8, 1, 2]), 9: torch.tensor([9, 3])})
    ids = torch.tensor([8, 5, 9, 8, 6])
    marked = {"masked": [IGNORE_INDEX] * 3, "its own": [8, 9, 8], "another": [6, 6, 6]}[label]
    labels = torch.tensor([marked[0], 5, *marked[1:], 6])
    no = IGNORE_INDEX
    video, image = {"masked": ([no] * 3, [no] * 2), "its own": ([8, 1, 2], [9, 3]), "another": ([no, no, 6], [no, 6])}[
        label
    ]
    for _ in range(2):
        found_ids, found = spans.insert(ids, labels)
        assert found_ids.tolist() == [8, 1, 2, 5, 9, 3, 8, 1, 2, 6]
        assert found.tolist() == [*video, 5, *image, *video, 6]
        found_ids[:] = found[:] = 0  # Spans are used again: nothing of them is handed out.
    text = torch.tensor([5, 6])
    assert spans.insert(text, text)[0] is text
