"""`preprocess_plain_lm`, to the token."""

from __future__ import annotations

import pytest

from llava.config.video import VideoSpec
from llava.constants import IGNORE_INDEX
from llava.data.prompt import count_supervised, expand_placeholders, image_span, video_span
from llava.train.train import preprocess_plain_lm

CAPTION = "Una palla rossa rotola verso destra."


def conversation(human: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]


def test_text_labels_equal_ids_and_end_with_eos(tokenizer):
    result = preprocess_plain_lm([conversation("", CAPTION)], tokenizer)
    expected = [*tokenizer(CAPTION)["input_ids"], tokenizer.eos_token_id]
    assert set(result) == {"input_ids", "labels"}
    assert result["input_ids"][0].tolist() == expected
    assert result["labels"][0].tolist() == expected


def test_turns_are_joined_by_one_space(tokenizer):
    joined = preprocess_plain_lm([conversation("Il cane corre.", CAPTION)], tokenizer)["input_ids"][0]
    assert joined.tolist() == [*tokenizer(f"Il cane corre. {CAPTION}")["input_ids"], tokenizer.eos_token_id]


def test_placeholders_are_masked_and_only_they(tokenizer, build):
    build(vision=False)
    spec = VideoSpec()
    result = preprocess_plain_lm([conversation(video_span(spec), CAPTION)], tokenizer, has_image=True)
    ids, labels = result["input_ids"][0].tolist(), result["labels"][0].tolist()
    caption = tokenizer(CAPTION)["input_ids"]
    assert labels[:360] == [IGNORE_INDEX] * 360
    assert labels[360:] == ids[360:] == [*caption, tokenizer.eos_token_id]
    assert count_supervised(result["labels"][0]) == len(caption) + 1


def test_a_375_token_sample_supervises_15_labels(tokenizer, build):
    build(vision=False)
    words = "gatto " * 40
    while len(tokenizer(words)["input_ids"]) > 14:
        words = words[:-1].strip()
    sample = preprocess_plain_lm([conversation(video_span(VideoSpec()), words)], tokenizer, has_image=True)
    assert len(sample["input_ids"][0]) == 375
    assert count_supervised(sample["labels"][0]) == 15


def test_a_caption_has_the_same_tokens_with_and_without_video(tokenizer, build):
    """So that text-only and video training predict the same things."""
    build(vision=False)
    text = preprocess_plain_lm([conversation("", CAPTION)], tokenizer)["input_ids"][0]
    span = preprocess_plain_lm([conversation(video_span(VideoSpec()), CAPTION)], tokenizer, True)["input_ids"][0]
    assert span[360:].tolist() == text.tolist()


@pytest.mark.parametrize("span", [video_span(VideoSpec()), image_span(VideoSpec())])
def test_an_unregistered_token_is_an_error(tokenizer, span):
    with pytest.raises(ValueError, match="does not know the special tokens"):
        preprocess_plain_lm([conversation(span, CAPTION)], tokenizer, has_image=True)


@pytest.mark.parametrize("human", ["", "<video>", "<image>"])
def test_an_empty_caption_is_an_error(tokenizer, build, human):
    build(vision=False)
    text = expand_placeholders(human, VideoSpec())
    with pytest.raises(ValueError, match="no word to learn"):
        preprocess_plain_lm([conversation(text, "  ")], tokenizer, has_image=bool(human))


def test_a_video_without_its_tokens_is_an_error(tokenizer, build):
    build(vision=False)
    with pytest.raises(ValueError, match="no visual token"):
        preprocess_plain_lm([conversation("", CAPTION)], tokenizer, has_image=True)


def test_several_conversations_stay_apart(tokenizer):
    result = preprocess_plain_lm([conversation("", "Un gatto."), conversation("", CAPTION)], tokenizer)
    assert [i.tolist()[-1] for i in result["input_ids"]] == [tokenizer.eos_token_id] * 2
    assert len(result["labels"]) == 2
