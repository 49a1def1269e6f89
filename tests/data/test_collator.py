"""Batches: padding, masks and counts."""

from __future__ import annotations

import pytest
import torch

from llava.constants import FILLER_ID, IGNORE_INDEX
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.errors import UserError

EOS = 0


def sample(name: str, ids: list[int], labels: list[int] | None = None, **vision) -> dict:
    ids = torch.tensor(ids)
    return {"sample_id": name, "input_ids": ids, "labels": torch.tensor(labels) if labels else ids.clone(), **vision}


def test_a_real_eos_is_attended_to_when_pad_is_eos():
    batch = DataCollatorForSupervisedDataset(EOS)([sample("a", [5, 6, EOS]), sample("b", [5, EOS])])
    assert batch["input_ids"].tolist() == [[5, 6, EOS], [5, EOS, EOS]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 6, EOS], [IGNORE_INDEX, EOS, IGNORE_INDEX]]


def test_vision_is_concatenated_in_order_and_counted():
    first, second = torch.zeros(2, 3, 4), torch.ones(1, 3, 4)
    batch = DataCollatorForSupervisedDataset(EOS)(
        [
            sample("a", [5, 6, EOS], video_features=first),
            sample("b", [7, 6, EOS]),
            sample("c", [5, 6, EOS], video_features=second, image_features=torch.ones(2, 5)),
        ]
    )
    assert batch["num_videos"].tolist() == [2, 0, 1]
    assert batch["num_images"].tolist() == [0, 0, 2]
    assert torch.equal(batch["video_features"], torch.cat([first, second]))
    assert batch["sample_ids"] == ["a", "b", "c"]
    assert "pixel_values_videos" not in batch


def test_a_sample_without_targets_is_named():
    with pytest.raises(ValueError, match="'empty'"):
        DataCollatorForSupervisedDataset(EOS)([sample("empty", [5, 6], [IGNORE_INDEX] * 2)])


def test_samples_that_supervise_no_word_are_named():
    """The label of position 0 is no target, and a filler need not have one."""
    learns = sample("learns", [5, 6, EOS])
    empty = [sample(name, [5, 6, EOS], [first, IGNORE_INDEX, IGNORE_INDEX]) for name, first in (("a", 5), ("b", -100))]
    filler = sample(FILLER_ID, [EOS], [IGNORE_INDEX])
    collate = DataCollatorForSupervisedDataset(EOS)
    assert collate([learns, filler])["sample_ids"] == ["learns", FILLER_ID]
    with pytest.raises(UserError, match=r"no supervised token in sample\(s\) 'a', 'b': "):
        collate([learns, empty[0], filler, empty[1]])


def test_numbers_are_padded_beside_their_ids_and_a_filler_has_none():
    numbers = torch.tensor([-1.0, 0.123])
    filler = sample(FILLER_ID, [EOS], [IGNORE_INDEX])
    batch = DataCollatorForSupervisedDataset(EOS)(
        [
            sample("a", [5, 6], coordinates=numbers),
            sample("b", [5, 6, 7], coordinates=torch.tensor([0.5, -1, 1])),
            filler,
        ]
    )
    expected = torch.tensor([[-1, 0.123, -1], [0.5, -1, 1], [-1, -1, -1]])
    assert torch.equal(batch["coordinates"], expected) and batch["coordinates"].dtype == torch.float32
    assert "coordinates" not in DataCollatorForSupervisedDataset(EOS)([sample("a", [5, 6])])
