"""The choice between formats, and what a checkpoint keeps of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from llava.constants import DEFAULT_VID_START_TOKEN, IGNORE_INDEX, VISUAL_TOKENS
from llava.data.chat import Chat
from llava.data.prompt import expand_turns, preprocess_plain_lm, video_span
from llava.data.text_format import PlainLM, preprocess, record_format, recorded_format, text_format
from llava.train.train import preprocess as public
from tests.conftest import SPEC, make_tokenizer
from tests.data.test_captions import talk
from tests.data.test_chat import QWEN, tokenizer_for, word_tokenizer


def test_llavas_name_for_the_choice_takes_expanded_placeholders():
    assert public is preprocess
    tokenizer = tokenizer_for("chatml")
    conversation = talk(f"{video_span(SPEC)} Chi?", "Un gatto.")
    sample = public([conversation, talk("Dove?", "Qui.")], tokenizer, has_image=False, version="qwen_2")
    labels = [row[row != IGNORE_INDEX].tolist() for row in sample["labels"]]
    assert [tokenizer.convert_ids_to_tokens(row) for row in labels] == [
        ["Un", " gatto", ".", "<|im_end|>"], ["Qui", ".", "<|im_end|>"],
    ]  # fmt: skip
    assert set(sample) == {"input_ids", "labels"} and sample["input_ids"][0].dtype == torch.long
    plain = public([conversation], tokenizer, True)
    expected = preprocess_plain_lm([conversation], tokenizer, True)
    assert all(torch.equal(plain[key][0], expected[key][0]) for key in expected)
    with pytest.raises(ValueError, match="there is no such format"):
        public([conversation], tokenizer, True, version="v0")


def test_plain_lm_is_the_same_compact_and_expanded(tokenizer, build):
    """The data worker's result is that of the expanded text, token for token."""
    from tests.data.test_forms import CONVERSATIONS, dataset_of, visual_record

    build(vision=False)
    for conversation in CONVERSATIONS.values():
        expanded = preprocess_plain_lm([expand_turns(conversation, SPEC)], tokenizer, True)
        ids, labels = dataset_of(tokenizer, visual_record(conversation)).tokens(0)
        assert torch.equal(ids, expanded["input_ids"][0]) and torch.equal(labels, expanded["labels"][0])
    start = tokenizer.convert_tokens_to_ids(DEFAULT_VID_START_TOKEN)
    format = PlainLM(tokenizer)
    assert format.prompt(talk("<video>", "Un"))[0] == start
    assert next(format.encode([talk("<video>", "Un")]))[1][0] == IGNORE_INDEX
    assert format.end_ids == (tokenizer.eos_token_id,) and format.words(talk("A", "B")) == "A B"


def test_no_sample_is_made_of_a_long_text_or_of_the_vocabulary(tokenizer, build, monkeypatch):
    from tests.data.test_forms import dataset_of, visual_record

    build(vision=False)
    dataset = dataset_of(tokenizer, visual_record(talk("<video> Chi?", "Un gatto.")))
    expected = dataset.tokens(0)[0].tolist()
    longest = []
    call = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, text, **kw: (longest.append(len(text)), call(self, text, **kw))[1]
    )
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: pytest.fail("get_vocab in a sample"))
    assert dataset.tokens(0)[0].tolist() == expected
    assert longest == [len("<vid_start> Chi? Un gatto.")]
    assert dataset.spans is dataset.spans


@pytest.mark.parametrize("version", ["plain", "chatml", "tokenizer"])
def test_a_checkpoint_keeps_its_format_and_template(version, tmp_path):
    tokenizer = word_tokenizer("<|im_start|>", "<|im_end|>", texts="think </ >")
    tokenizer.chat_template = QWEN + "{# strftime_now('%Y') #}\n\n"
    format, config = text_format(version, tokenizer), SimpleNamespace()
    record_format(format, config, tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    again = recorded_format(config, loaded)
    assert (again.version, again.template) == (format.version, format.template)
    assert type(again) is (PlainLM if version == "plain" else Chat)
    assert next(again.encode([talk("Chi?", "Qui.")])) == next(format.encode([talk("Chi?", "Qui.")]))
    if version != "plain":
        assert loaded.chat_template == format.template == config.text_format["template"]
        loaded.chat_template = QWEN
        with pytest.raises(ValueError, match="is not the one that the model was trained with"):
            recorded_format(config, loaded)


def test_a_checkpoint_of_earlier_commits_is_plain(tokenizer):
    assert recorded_format(SimpleNamespace(), tokenizer).version == "plain"


def test_markers_of_a_tokenizer_without_visual_tokens_are_no_masks():
    tokenizer = make_tokenizer()
    ids, labels = next(PlainLM(tokenizer).encode([talk("", "Un gatto.")]))
    assert ids == labels
    tokenizer.add_tokens(list(VISUAL_TOKENS), special_tokens=True)
    assert next(PlainLM(tokenizer).encode([talk("", "Un gatto.")])) == (ids, labels)
