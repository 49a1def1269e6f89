"""Names of formats, their tokens, and templates that are pinned."""

from __future__ import annotations

from datetime import datetime

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer

from llava.data.chat_formats import (
    FORMATS,
    TOKENIZER,
    add_tokens,
    has_prefix_space,
    pin_template,
    reserved,
    resolve,
    template_of,
    without_prefix_space,
)
from llava.data.prompt import reserved_tokens
from tests.conftest import make_tokenizer


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("plain", "plain"), ("chatml", "chatml"), ("qwen_1_5", "chatml"), ("qwen_2", "chatml"),
        ("llama_3", "llama_3"), ("llava_llama_3", "llama_3"), ("llama_2", "llama_2"), ("llava_llama_2", "llama_2"),
        ("llama_v2", "llama_2"), ("mistral_instruct", "mistral_instruct"), ("gemma_instruct", "gemma_instruct"),
        ("vicuna_v1", "vicuna_v1"), ("v1", "vicuna_v1"), ("lines", "lines"), ("tokenizer", "tokenizer"),
    ],
)  # fmt: skip
def test_formats_have_llavas_names(name, format):
    assert resolve(name) == format


@pytest.mark.parametrize("name", ["v0", "llama", "", "ChatML"])
def test_an_unknown_format_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(
        ValueError, match=r"use one of plain, chatml \(qwen_1_5, qwen_2\), llama_3 .*v1\), lines, tokenizer"
    ):
        resolve(name)


@pytest.mark.parametrize("version", [v for v in FORMATS if v != TOKENIZER])
def test_every_template_is_shipped_and_marks_the_answers(version):
    assert "generation %}" in template_of(version) and "strftime" not in template_of(version)


def test_a_texts_own_markup_is_reserved():
    tokenizer = make_tokenizer()
    add_tokens("chatml", tokenizer)
    assert "<|im_end|>" in reserved_tokens(tokenizer) and "<|im_end|>" in reserved("chatml")
    assert "[INST]" in reserved("llama_2") and reserved("plain") == ()


def render(template: str) -> str:
    return make_tokenizer().apply_chat_template(
        [{"role": "user", "content": "Chi?"}], chat_template=template, tokenize=False
    )


@pytest.mark.parametrize(
    "template",
    [
        "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}{%- else %}{%- set day = '' %}"
        "{%- endif %}{{- day + messages[0].content }}",
        '{%- macro head() %}{{ strftime_now("%d %b %Y") }}{% endmacro %}{{ head() }}{{ messages[0].content }}',
    ],
)
def test_a_dated_template_keeps_the_date_that_it_was_pinned_on(template):
    assert render(template) != "03 Feb 2001Chi?"
    pinned = pin_template(template, datetime(2001, 2, 3))
    assert render(pinned) == "03 Feb 2001Chi?"
    assert pin_template(pinned, datetime(2002, 2, 3)) == pinned
    assert pin_template("{{ messages }}") == "{{ messages }}"


def test_a_date_in_a_form_that_cannot_be_pinned_is_an_error():
    template = "{%- set form = '%Y' %}{{ strftime_now(form) }}"
    with pytest.raises(Exception, match="not written out"):
        render(pin_template(template))


@pytest.mark.parametrize("kind", ["fast", "sequence", "GPT2Tokenizer"])
def test_the_space_before_a_text_is_gone_and_stays_gone_in_the_folder(kind, tmp_path):
    tokenizer = make_tokenizer()
    if kind == "sequence":
        parts = [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    if kind == "GPT2Tokenizer":
        tokenizer.save_pretrained(tmp_path / "first")
        tokenizer = GPT2Tokenizer.from_pretrained(tmp_path / "first", add_prefix_space=True)
    assert has_prefix_space(tokenizer)
    chat = without_prefix_space(tokenizer)
    assert has_prefix_space(tokenizer) and not has_prefix_space(chat) and without_prefix_space(chat) is chat
    chat.save_pretrained(tmp_path / "chat")
    again = AutoTokenizer.from_pretrained(tmp_path / "chat")
    assert not has_prefix_space(again)
    assert again.decode(again("Chi?", add_special_tokens=False)["input_ids"]) == "Chi?"
