"""What is supervised reads as the record does, whatever its white space, a cut and the tokenizer's own changes."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from llava.data.prompt import preprocess_plain_lm
from llava.data.records import Record, by_modality, text_alone
from llava.data.words import reads_as
from llava.train.preflight.words import check_words, remembered_tokens, words_alone
from tests.conftest import record


def dataset_of(texts, tokenizer, max_length=100, change=lambda ids: ids):
    records = []
    for i, text in enumerate(texts):
        row = record(f"t{i}", text)
        made = Record(row["id"], row["conversations"], (), (), split=None, meta={}, source=f"x.json[{i}]")
        records.append(made)

    def tokens(index):
        sample = preprocess_plain_lm([records[index].conversations], tokenizer)
        return change(sample["input_ids"][0])[:max_length], change(sample["labels"][0])[:max_length]

    return SimpleNamespace(
        records=records, record=records.__getitem__, forms=lambda: by_modality(records), tokens=tokens,
        max_length=max_length,
    )  # fmt: skip


def test_white_space_accents_and_cuts_are_no_other_words(tokenizer):
    assert reads_as("Un gat\ufffd", "Un gatto", cut=True) and not reads_as("Un gat", "Un gatto", cut=False)
    texts = ["Un  gatto\nnero.", "Perche\u0301 no?", "Città è già qui."]
    (found,) = check_words(dataset_of(texts, tokenizer), tokenizer)
    assert found.status == "ok", found
    assert check_words(dataset_of(texts, tokenizer, max_length=4), tokenizer)[0].status == "ok"


def test_words_that_are_lost_are_named(tokenizer):
    (found,) = check_words(dataset_of(["Un gatto."], tokenizer, change=lambda ids: ids[2:]), tokenizer)
    assert found.status == "FAIL" and "'t0'" in found.finding and "instead of 'Un gatto.'" in found.finding


def test_a_record_is_tokenised_once():
    calls = []

    class Data:
        def tokens(self, index):
            return self.whole_tokens(rows[index])

        def whole_tokens(self, row):
            calls.append(row.id)
            return torch.tensor([1]), torch.tensor([1])

    rows = dataset_of(["Un gatto.", "Un cane."], None).records
    dataset = Data()
    with remembered_tokens(dataset):
        assert dataset.tokens(1) is dataset.tokens(1)
        assert dataset.whole_tokens(rows[1]) is dataset.tokens(1)
        dataset.whole_tokens(text_alone(rows[1]))
    assert calls == ["t1", "t1"] and not vars(dataset)


def test_words_alone_keep_their_labels_and_numbers():
    ids, visual = torch.tensor([7, 90, 91, 91, 92, 4, 5, 2]), [90, 91, 92]
    labels = ids.masked_fill(torch.isin(ids, torch.tensor([7, *visual])), -100)
    sample = {
        "input_ids": ids, "labels": labels, "sample_id": "v0", "coordinates": torch.arange(8.0), "video_features": [0],
    }  # fmt: skip
    alone = words_alone(sample, visual)
    assert alone.keys() == {"input_ids", "labels", "sample_id", "coordinates"}
    assert [alone[key].tolist() for key in ("input_ids", "labels", "coordinates")] == [
        [7, 4, 5, 2], [-100, 4, 5, 2], [0.0, 5.0, 6.0, 7.0],
    ]  # fmt: skip
