"""A record predicts the same words with its video and without."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from llava.constants import IGNORE_INDEX
from llava.data.dataset import LazySupervisedDataset, measure_lengths
from llava.data.forms import common_targets, differing_forms, text_targets
from llava.data.prompt import preprocess_plain_lm
from llava.data.records import Record, text_alone
from llava.data.text_format import PlainLM
from tests.conftest import SPEC
from tests.data.test_captions import talk

CONVERSATIONS = {
    "LLaVA's line break": talk("<video>\nUn gatto.", "Sì, un gatto."),
    "prompt": talk("<video>\nDescrivi il filmato.", "Un gatto dorme."),
    "prompt before": talk("Descrivi il filmato.\n<video>", "Un gatto dorme."),
    "line breaks in the caption": talk("<video>", "Un gatto.\nDorme.\n\n  Sul divano."),
    "no space": talk("<video>Un gatto", "dorme."),
    "in the middle": talk("Guarda <video> bene: <video>, poi rispondi.", "Un gatto."),
    "two clips": talk("<video> <video>\n\nUguali?", "No."),
    "a later question": talk("<video>\nChe cosa?", "Un gatto.", "<video>\nE qui?", "Un cane."),
    "a later question without words": talk("<video>", "Un gatto.", " <video> ", "Un cane."),
    "inside a word": talk("super<video>mercato", "Un gatto."),
}


def visual_record(conversation: list[dict[str, str]]) -> Record:
    number = sum(turn["value"].count("<video>") for turn in conversation)
    return Record("r", conversation, ("a.mp4",) * number, (), None, {}, "data.json[0]")


def dataset_of(tokenizer: PreTrainedTokenizerFast, *records: Record) -> LazySupervisedDataset:
    return LazySupervisedDataset(records, tokenizer, preprocess_plain_lm, 512, SPEC)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_both_forms_have_the_same_targets(tokenizer, build, name: str) -> None:
    ids = build(vision=False).config.visual_token_ids
    record = visual_record(CONVERSATIONS[name])
    dataset = dataset_of(tokenizer, record)
    visual, text = (text_targets(*dataset.whole_tokens(r), ids.values()) for r in (record, text_alone(record)))
    assert visual == text
    assert differing_forms([record], dataset.whole_tokens, tokenizer, ids.values()) == []
    assert measure_lengths([record], tokenizer, SPEC, PlainLM(tokenizer), 512) == ([len(dataset.tokens(0)[0])], [])
    assert tokenizer.decode(text[:-1]).split() == text_alone_words(record)


def text_alone_words(record: Record) -> list[str]:
    return " ".join(turn["value"].replace("<video>", " ") for turn in record.conversations).split()


def test_line_breaks_of_a_caption_are_learnt(tokenizer, build) -> None:
    build(vision=False)
    record = visual_record(talk("<video>", "Un gatto.\nDorme."))
    ids, _ = dataset_of(tokenizer, record).tokens(0)
    assert "Un gatto.\nDorme." in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("visual", "text", "parted"),
    [
        ([5, 6, 7], [5, 6, 7], None),
        ([4, 6, 7], [5, 6, 7], None),
        ([1, 2, 6, 7], [5, 6, 7], ([1, 2], [5])),
        ([5, 6, 9, 7], [5, 6, 7], ([5, 6, 9], [5, 6])),
    ],
)
def test_the_comparison_begins_after_the_first_token(visual: list[int], text: list[int], parted: tuple | None) -> None:
    assert common_targets(visual, text) == parted


def test_text_targets_are_neither_masked_nor_visual() -> None:
    ids = torch.tensor([90, 1, 2, 0])
    labels = torch.tensor([90, IGNORE_INDEX, 2, 0])
    assert text_targets(ids, labels, [90]) == [2, 0]


def differences_of(tokenizer: PreTrainedTokenizerFast, preprocess, ids) -> list:
    record = visual_record(talk("<video>", "Sìsìsì: un gatto."))
    dataset = LazySupervisedDataset([record], tokenizer, preprocess, 512, SPEC)
    return differing_forms([record], dataset.whole_tokens, tokenizer, ids.values())


def test_another_layout_of_white_space_is_found(tokenizer, build) -> None:
    ids = build(vision=False).config.visual_token_ids

    def with_break(sources, tokenizer, has_image=False):
        turns = [{**t, "value": t["value"].replace(": ", ":\n")} for t in sources[0]] if has_image else sources[0]
        return preprocess_plain_lm([turns], tokenizer, has_image)

    assert differences_of(tokenizer, preprocess_plain_lm, ids) == []
    (found,) = differences_of(tokenizer, with_break, ids)
    assert not found.first_word and "data.json[0] id 'r' predicts" in str(found)


def test_a_first_word_written_otherwise_is_told_apart(tokenizer, build) -> None:
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ids = build(vision=False).config.visual_token_ids
    (found,) = differences_of(tokenizer, preprocess_plain_lm, ids)
    assert found.first_word
