"""Prepared ids and labels are those that each record's text gives, in every format, or they are not used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from llava.config.video import VideoSpec
from llava.constants import VISUAL_TOKENS as VISUAL
from llava.data.chat_formats import FORMATS, TOKENIZER, add_tokens
from llava.data.columns import take
from llava.data.dataset import LazySupervisedDataset, measure_lengths
from llava.data.record_table import RecordTable, open_records
from llava.data.target_words import count_targets
from llava.data.text_format import PlainLM, text_format
from llava.data.token_table import TokenTable, open_tokens, tokenizer_state
from llava.train.checkpoint.resume import record_digests
from tests.conftest import SPEC, make_tokenizer
from tests.data.test_captions import talk

LONG = "Un gatto nero dorme sul divano rosso. " * 6
CONVERSATIONS = [
    talk("", "Un gatto."), talk("<video>", "Un gatto."), talk("<image>\n", "  Un cane. "), talk("<video>\nChi?", LONG),
    talk("", LONG), talk("Chi? <video>", "Un gatto.", "E qui?\n<video>", "Un cane."),
    talk("<video><video>Uguali?", "No."),
    talk("Chi?", "Un gatto.", "Dove?", "Qui."), talk("<video>", "Un gatto.", "<video>\nE qui?", "Un cane."),
    talk("", "Sì"), talk("", "a"), talk("<video>", "a"), talk("", ""), talk("<video>", ""),
    talk("<video>", "<vid_end> x."),
    talk("", "un <video>"), talk("Chi?", "<image> Un cane."),
]  # fmt: skip
"""The last five are problems of their records: no text, a reserved token, a placeholder without a file."""
FORMS = ["plain", "plain eos", *(name for name in FORMATS if name not in (TOKENIZER, "plain"))]


@pytest.fixture
def records(tmp_path: Path) -> RecordTable:
    rows = []
    for i, turns in enumerate(CONVERSATIONS):
        text = "".join(turn["value"] for turn in turns)
        files = {kind: [f"{kind}{n}.x" for n in range(text.count(f"<{kind}>"))] for kind in ("video", "image")}
        if i > len(CONVERSATIONS) - 3:
            files = {}
        meta = {"meta": {"split": [0, i % 3]}} if i % 3 and "video" in files else {}
        rows.append(
            {"id": f"r{i}", "conversations": turns, **meta, **{kind: found for kind, found in files.items() if found}}
        )
    (tmp_path / "data.json").write_text(json.dumps(rows))
    table = open_records(tmp_path / "cache", tmp_path / "data.json")[0]
    assert isinstance(table, RecordTable)
    return table


def form_of(name: str):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISUAL)})
    if name.startswith("plain"):
        return tokenizer, PlainLM(tokenizer, text_start="eos" if name.endswith("eos") else "none")
    add_tokens(name, tokenizer)
    return tokenizer, text_format(name, tokenizer)


def served(dataset: LazySupervisedDataset, index: int):
    """Ids and labels of a sample, or the error that making it gives."""
    try:
        return [row.tolist() for row in dataset.tokens(index)]
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("as_text", [False, True], ids=["as it is", "text alone"])
@pytest.mark.parametrize("name", FORMS)
def test_prepared_samples_are_those_of_the_text(records, tmp_path, name, as_text):
    tokenizer, form = form_of(name)
    records = records.as_text() if as_text else records
    prepared = open_tokens(tmp_path / "cache", records, tokenizer, form)
    assert prepared is not None
    assert prepared.digests(records.rows).tolist() == record_digests(records).tolist()
    held = prepared.holds(records.rows)
    assert held[:9].sum() >= 5 and not (name.startswith("plain") and held[-5:-3].any())
    some = np.random.default_rng(1).permutation(len(records))
    for view in (records, take(records, some)):
        for limit in (512, SPEC.rows + 12, 9):
            plain, fast = (
                LazySupervisedDataset(view, tokenizer, form.preprocess, limit, SPEC, text_format=form, prepared=table)
                for table in (None, prepared)
            )
            for index in range(len(view)):
                assert served(fast, index) == served(plain, index), view[index]
            assert fast.differs_from_prepared() is None
        good = [i for i in range(len(view)) if view[i].id in {f"r{n}" for n in range(10)} and held[int(view.rows[i])]]
        chosen = take(view, np.array(good))
        for limit in (512, SPEC.rows + 12, 9):
            lengths = [measure_lengths(chosen, tokenizer, SPEC, form, limit, table) for table in (None, prepared)]
            assert list(lengths[0][0]) == list(lengths[1][0]) and lengths[0][1] == lengths[1][1]


def test_a_preprocess_that_was_changed_is_what_serves(records, tmp_path, monkeypatch):
    tokenizer, form = form_of("plain")
    prepared = open_tokens(tmp_path / "cache", records, tokenizer, form)

    def shifted(*args, **kwargs):
        sample = form.preprocess(*args, **kwargs)
        return {"input_ids": sample["input_ids"], "labels": [row.roll(1) for row in sample["labels"]]}

    def dataset(preprocess):
        good = take(records, np.arange(9))
        return LazySupervisedDataset(good, tokenizer, preprocess, 512, SPEC, text_format=form, prepared=prepared)

    plain = LazySupervisedDataset(records, tokenizer, shifted, 512, SPEC, text_format=form)
    assert torch.equal(dataset(shifted).tokens(0)[1], plain.tokens(0)[1])
    monkeypatch.setattr(PlainLM, "preprocess", lambda self, *args, **kwargs: shifted(*args, **kwargs))
    monkeypatch.setattr("tests.data.test_token_table.PlainLM.turns", lambda self, turns: [*turns, *turns])
    assert dataset(form.preprocess).prepared is not None


def test_a_table_that_does_not_fit_the_text_is_found(records, tmp_path, monkeypatch):
    tokenizer, form = form_of("plain")
    prepared = open_tokens(tmp_path / "cache", records, tokenizer, form)
    good = take(records, np.arange(9))
    dataset = LazySupervisedDataset(good, tokenizer, form.preprocess, 512, SPEC, text_format=form, prepared=prepared)
    assert dataset.differs_from_prepared() is None
    monkeypatch.setattr("llava.data.prompt.mask_visual", lambda ids, visual: ids.clone())
    assert dataset.differs_from_prepared() == "r1", "its visual tokens are targets of the text, and not in the table"


def test_another_tokenizer_format_or_record_has_other_tokens(records, tmp_path):
    tokenizer, form = form_of("plain")
    root = tmp_path / "cache"

    def key(records=records, tokenizer=tokenizer, form=form) -> str:
        table = open_tokens(root, records, tokenizer, form)
        assert isinstance(table, TokenTable)
        return table.arrays.key

    first = key()
    assert key() == first
    tokenizer("un", padding="max_length", max_length=9, truncation=True)
    assert key() == first, "what a call sets is no part of a tokenizer"
    others = {key(records.as_text()), key(form=PlainLM(tokenizer, text_start="eos"))}
    tokenizer.add_tokens(["divano"])
    others.add(key())
    assert len(others - {first}) == 3
    tokenizer.backend_tokenizer.normalizer = None
    assert tokenizer_state(tokenizer) is not None


def test_rows_of_a_video_are_no_part_of_it(records, tmp_path):
    tokenizer, form = form_of("plain")
    prepared = open_tokens(tmp_path / "cache", records, tokenizer, form)
    for spec in (SPEC, VideoSpec(num_frames=4, fast_latents=9, slow_latents=81)):
        dataset = LazySupervisedDataset(
            take(records, np.arange(9)), tokenizer, form.preprocess, 999, spec, text_format=form, prepared=prepared
        )
        assert len(dataset.tokens(1)[0]) == prepared.lengths(records.rows)[1] - 1 + spec.rows


@pytest.mark.parametrize("as_text", [False, True], ids=["as it is", "text alone"])
@pytest.mark.parametrize("name", FORMS)
def test_targets_counted_in_prepared_ids_are_those_of_the_text(records, tmp_path, name, as_text, monkeypatch):
    tokenizer, form = form_of(name)
    records = records.as_text() if as_text else records
    prepared = open_tokens(tmp_path / "cache", records, tokenizer, form)
    assert prepared is not None
    held = records.take(np.flatnonzero(prepared.holds(records.rows)))
    for some, limit in ((held, 100), (held.take(np.arange(len(held))[::-1]), 100), (held, 4)):
        plain = count_targets(some, tokenizer, limit, form)
        assert len(plain) == 2 - as_text and all(count.words > 3 for count in plain.values())
        with monkeypatch.context() as patched:
            patched.setattr(type(form), "encode", None)  # Nothing is tokenised.
            fast = count_targets(some, tokenizer, limit, form, prepared=prepared)
        assert fast == plain and list(fast) == list(plain)


def test_where_some_ids_are_not_held_targets_are_counted_in_the_text(records, tmp_path):
    tokenizer, form = form_of("plain")
    prepared = open_tokens(tmp_path / "cache", records, tokenizer, form)
    assert prepared is not None and not prepared.holds(records.rows).all()
    counted = count_targets(records, tokenizer, 100, form, prepared=prepared)
    assert counted == count_targets(records, tokenizer, 100, form)
