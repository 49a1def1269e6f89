"""The token in front of a text, to the token: where it stands, that it is no target, who else puts it there."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from llava.constants import IGNORE_INDEX
from llava.data.dataset import LazySupervisedDataset, measure_lengths
from llava.data.forms import differing_forms, targets_digest, text_targets
from llava.data.packing import TrainingCollator
from llava.data.prompt import Spans, expand_turns, preprocess_plain_lm
from llava.data.records import text_alone
from llava.data.target_words import count_targets
from llava.data.text_format import PlainLM, format_of, text_format
from llava.data.text_start import EOS, NONE, choose_start, give_start, recorded_text
from llava.train.preflight.data import check_labels, owners_of, sample_text
from tests.conftest import SPEC, make_tokenizer
from tests.data.test_captions import talk
from tests.data.test_forms import CONVERSATIONS, visual_record

VIDEO = "<video>"
CASES = {
    "text alone": (talk("", "Un gatto."), ["|", " Un gatto.", "."]),
    "two turns": (talk("Chi?", "Un gatto."), ["|", " Chi? Un gatto.", "."]),
    "video first": (talk("<video>", "Un gatto."), [VIDEO, "|", " Un gatto.", "."]),
    "video first, then a question": (talk("<video>\nChi?", "Un."), [VIDEO, "|", " Chi? Un.", "."]),
    "text before the video": (talk("Chi? <video>", "Un gatto."), ["|", " Chi?", VIDEO, " Un gatto.", "."]),
    "several videos": (talk("<video> <video>\nUguali?", "No."), [VIDEO, VIDEO, "|", " Uguali? No.", "."]),
    "a later video": (
        talk("<video>", "Un gatto.", "<video>\nE qui?", "Un cane."),
        [VIDEO, "|", " Un gatto.", VIDEO, " E qui? Un cane.", "."],
    ),
}  # fmt: skip
"""Conversations, and their samples: `|` is EOS in front, `.` at the end EOS as a target."""


@pytest.fixture
def known(tokenizer, build):
    build(vision=False)  # Registers the visual tokens.
    return tokenizer


def dataset_of(tokenizer, conversation, start: str = EOS, limit: int = 512) -> LazySupervisedDataset:
    form = PlainLM(tokenizer, text_start=start)
    return LazySupervisedDataset(
        [visual_record(conversation)], tokenizer, form.preprocess, limit, SPEC, text_format=form
    )


def spelled(tokenizer, parts: list[str]) -> tuple[list[int], list[int]]:
    """Ids and labels of the parts of a case, each tokenised by itself."""
    ids, labels = [], []
    for place, part in enumerate(parts):
        if part == "|" or place == len(parts) - 1:
            own, seen = [tokenizer.eos_token_id], part != "|"
        elif part == VIDEO:
            own, seen = Spans.of(tokenizer, SPEC).expand(tokenizer.convert_tokens_to_ids(["<vid_start>"])), False
        else:
            own, seen = tokenizer(part, add_special_tokens=False)["input_ids"], True
        ids += own
        labels += own if seen else [IGNORE_INDEX] * len(own)
    return ids, labels


@pytest.mark.parametrize("name", CASES)
def test_samples_to_the_token(known, name):
    conversation, parts = CASES[name]
    ids, labels = dataset_of(known, conversation).tokens(0)
    assert (ids.tolist(), labels.tolist()) == spelled(known, parts)
    without = dataset_of(known, conversation, NONE).tokens(0)
    assert tuple(row.tolist() for row in without) == spelled(known, [part for part in parts if part != "|"])
    expanded = preprocess_plain_lm([expand_turns(conversation, SPEC)], known)
    assert torch.equal(without[0], expanded["input_ids"][0]), "`preprocess_plain_lm` itself puts nothing there"
    started = PlainLM(known, text_start=EOS).preprocess([expand_turns(conversation, SPEC)], known)
    assert torch.equal(started["input_ids"][0], ids) and torch.equal(started["labels"][0], labels)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_eos_is_a_target_as_an_end_alone_and_nothing_else_changes(known, name):
    dataset, plain = (dataset_of(known, CONVERSATIONS[name], start) for start in (EOS, NONE))
    (ids, labels), (old, old_labels) = dataset.tokens(0), plain.tokens(0)
    eos, start = known.eos_token_id, int((ids == known.eos_token_id).nonzero()[0])
    assert (labels == eos).nonzero().flatten().tolist() == [len(labels) - 1]
    assert (ids == eos).nonzero().flatten().tolist() == [start, len(ids) - 1]
    assert int(labels[start]) == IGNORE_INDEX and int(labels[start + 1]) == int(ids[start + 1]) != IGNORE_INDEX
    assert [torch.cat([row[:start], row[start + 1 :]]).tolist() for row in (ids, labels)] == [
        old.tolist(), old_labels.tolist()
    ]  # fmt: skip
    visual = [i for i, token in known.added_tokens_decoder.items() if token.content != known.eos_token]
    assert text_targets(ids, labels, visual) == text_targets(old, old_labels, visual)
    # Both experiments predict the first word too.
    record = dataset.records[0]
    assert differing_forms([record], dataset.whole_tokens, known, visual) == []
    alone = dataset.whole_tokens(text_alone(record))
    assert int((alone[1][1:] != IGNORE_INDEX).sum()) == int((labels[1:] != IGNORE_INDEX).sum())


def test_prompts_are_the_beginnings_of_samples(known):
    form, spans = PlainLM(known, text_start=EOS), Spans.of(known, SPEC)
    for conversation, _ in CASES.values():
        for turns in (1, 3):
            if turns < len(conversation):
                asked = spans.expand(form.prompt(conversation[:turns]))
                assert dataset_of(known, conversation).tokens(0)[0].tolist()[: len(asked)] == asked
    assert form.prompt(talk("")) == [known.eos_token_id]
    assert known.convert_ids_to_tokens(form.prompt(talk("<video>"))) == ["<vid_start>", known.eos_token]


def test_samples_of_a_packed_row_begin_each_with_their_own(known):
    form = PlainLM(known, text_start=EOS)
    records = [
        text_alone(visual_record(talk("", caption))) for caption in ("Un gatto.", "Un.", "Un cane corre.", "No.")
    ]
    dataset = LazySupervisedDataset(records, known, form.preprocess, 64, None, text_format=form)
    samples = [{**dataset[i], "sample_id": str(i)} for i in range(4)]
    batch = TrainingCollator(known.pad_token_id)(samples)
    assert len(batch["input_ids"]) < 4, "nothing is packed"
    for place, name in enumerate(batch["sample_ids"]):
        own = batch["segment_ids"] == place
        assert batch["input_ids"][own].tolist() == samples[int(name)]["input_ids"].tolist()
        assert batch["input_ids"][own][0] == known.eos_token_id and batch["position_ids"][own][0] == 0
        assert batch["labels"][own].tolist() == [IGNORE_INDEX, *batch["input_ids"][own][1:].tolist()]


def test_lengths_and_cuts_count_it(known):
    records = [visual_record(conversation) for conversation, _ in CASES.values()]
    form = PlainLM(known, text_start=EOS)
    lengths, _ = measure_lengths(records, known, SPEC, form, 512)
    assert lengths == [len(dataset_of(known, c).tokens(0)[0]) for c, _ in CASES.values()]
    video = talk("<video>", "Un gatto nero.")
    ids, labels = dataset_of(known, video, limit=SPEC.rows + 3).tokens(0)
    assert [ids[SPEC.rows], ids[-1], labels[-1]] == [known.eos_token_id] * 3 and len(ids) == SPEC.rows + 3
    with pytest.raises(ValueError, match=f"positions, {SPEC.rows} of them visual, do not fit"):
        dataset_of(known, video, limit=SPEC.rows + 2).tokens(0)
    alone = dataset_of(known, talk("", "Un gatto nero."), limit=3).tokens(0)
    assert alone[1].tolist() == [IGNORE_INDEX, *alone[0][1:].tolist()] and alone[0][2] == known.eos_token_id


def test_what_is_counted_of_targets(known):
    records = [visual_record(talk("<video>", "Un gatto."))]
    alone = [text_alone(r) for r in records]
    started, plain = (PlainLM(known, text_start=start) for start in (EOS, NONE))
    assert count_targets(records, known, text_format=started) == count_targets(records, known, text_format=plain)
    words, before = (count_targets(alone, known, text_format=form)["text"].targets for form in (started, plain))
    first = known("Un", add_special_tokens=False)["input_ids"][0]
    assert words - before == {first: 1}
    assert targets_digest(records, started) == targets_digest(records, plain)


@pytest.mark.parametrize("start", [EOS, NONE])
def test_pre_flight_sees_one_that_is_missing_too_many_or_a_target(known, start):
    from llava.data.collator import DataCollatorForSupervisedDataset

    conversation = talk("<video>", "Un gatto nero.")
    visual = [i for i, token in known.added_tokens_decoder.items() if token.content != known.eos_token]
    eos, place = known.eos_token_id, SPEC.rows
    other = dataset_of(known, conversation, NONE if start == EOS else EOS).tokens(0)

    def status(ids, labels) -> str:
        dataset = dataset_of(known, conversation, start)
        dataset.tokens = lambda index: (ids, labels)
        (found,) = check_labels(dataset, DataCollatorForSupervisedDataset(known.pad_token_id), known, visual)
        return f"{found.status} {found.finding}"

    ids, labels = dataset_of(known, conversation, start).tokens(0)
    assert status(ids, labels).startswith("ok")
    assert f"FAIL --text_start {start}: EOS must stand" in status(*other)
    if start == EOS:
        late = ids.clone()
        late[place], late[place + 1] = ids[place + 1], eos
        assert "once, before the first word" in status(late, labels)
        target = labels.clone()
        target[place] = eos
        assert "EOS is not supervised exactly once" in status(ids, target)
        twice = [torch.cat([row[: place + 1], row[place:]]) for row in (ids, labels)]
        assert "once, before the first word" in status(*twice)


def test_it_is_grey_in_the_dump_of_samples(known):
    dataset = dataset_of(known, talk("<video>", "Un gatto."))
    visual = [i for i, token in known.added_tokens_decoder.items() if token.content != known.eos_token]
    record = dataset.records[0]
    text = sample_text(record, *dataset.tokens(0), known, visual, owners_of(dataset, record))
    styles = {text.plain[span.start : span.end]: str(span.style) for span in reversed(text.spans)}
    assert styles["<|endoftext|>"] == "bright_black" and "grey: the start of the text" in text.plain
    assert styles[" Un"] == "green"


def test_who_decides():
    for recorded, expected in ((None, EOS), ({}, NONE), ({"start": EOS}, EOS), ({"start": NONE}, NONE)):
        assert choose_start(None, "plain", recorded) == expected
        assert [choose_start(asked, "plain", recorded) for asked in (EOS, NONE)] == [EOS, NONE]
        assert choose_start(None, "chatml", recorded) == NONE
    assert recorded_text({"model_type": "gpt2", "text_format": {"start": EOS}}) is None
    assert recorded_text({"model_type": "llava_gpt2"}) == {}


def test_a_record_without_it_has_none(known):
    assert format_of({"version": "plain", "template": None}, known).text_start == NONE
    assert format_of({"version": "plain", "template": None, "start": EOS}, known).text_start == EOS
    assert text_format("vicuna_v1", known).text_start == NONE


def test_a_saved_tokenizer_begins_texts_as_its_model_was_trained(known, tmp_path):
    bare = known("Un gatto")["input_ids"]
    give_start(known, NONE)
    assert known("Un gatto")["input_ids"] == bare
    give_start(known, EOS)
    known.save_pretrained(tmp_path / "eos")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "eos")
    assert loaded.bos_token_id == loaded.eos_token_id
    found = loaded("Un gatto", return_offsets_mapping=True)
    assert found["input_ids"] == [loaded.eos_token_id, *bare] and found["offset_mapping"][0] == (0, 0)
    assert loaded("Un gatto", add_special_tokens=False)["input_ids"] == bare
    for start, expected in ((EOS, [loaded.eos_token_id, *bare]), (NONE, bare)):
        give_start(loaded, start)
        assert loaded("Un gatto")["input_ids"] == expected


def test_a_beginning_of_text_of_its_own_gives_way(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.add_bos_token = True
    assert tokenizer("Un")["input_ids"][0] == tokenizer.convert_tokens_to_ids("<s>")
    give_start(tokenizer, EOS)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.bos_token == loaded.eos_token
    assert loaded("Un")["input_ids"] == [loaded.eos_token_id, *loaded("Un", add_special_tokens=False)["input_ids"]]
