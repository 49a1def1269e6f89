"""What a data worker hands over arrives as the batch that the collator makes in one process."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from llava.data.features import rows
from llava.data.features.rows import DamagedFeatures, StoredRows
from llava.data.features.store import TOLERANCES, FeatureCache
from llava.data.handover import HandingOver, Parcel
from llava.data.packing import TrainingCollator


class Samples(Dataset):
    """A sample with a video, one with an image, one of text, one with pixels."""

    def __init__(self, root, dtype):
        generator = np.random.default_rng(0)
        cache, path = FeatureCache(root / "cache", {"dtype": dtype}), str(root / "clip.mp4")
        (root / "clip.mp4").write_bytes(b"clip")
        for is_image in (False, True):
            features = generator.normal(size=(1, 1 if is_image else 2, 9, 8)).astype(np.float16)
            cache.write([(cache.key(path, None, is_image), path)], features)
        self.cache, self.path = cache, path

    def __len__(self):
        return 4

    def __getitem__(self, index):
        ids = torch.arange(5, 10 + index)
        sample = {"input_ids": ids, "labels": ids.clone(), "sample_id": str(index)}
        if index == 0:
            sample["video_features"] = [self.cache.stored(self.path, None)] * 2
        if index == 1:
            sample["image_features"] = [self.cache.stored(self.path, None, True)]
        if index == 3:
            sample["pixel_values"] = torch.arange(2 * 3 * 500 * 500.0).view(2, 3, 500, 500)
        return sample


def equal(found, expected):
    assert type(found) is dict and found.keys() == expected.keys()
    for key, value in expected.items():
        same = torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value
        assert same and getattr(found[key], "dtype", None) == getattr(value, "dtype", None), key


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_from_a_worker(tmp_path, dtype):
    samples, collate = Samples(tmp_path, dtype), TrainingCollator(0)
    expected = collate([samples[i] for i in range(4)])
    assert ("video_scales" in expected) == (dtype == "int8")
    (found,) = DataLoader(samples, 4, num_workers=1, collate_fn=HandingOver(collate, pins=False))
    equal(found, expected)
    assert found["pixel_values"].is_shared(), "written by the worker where it is read"
    assert not found["video_features"].is_shared() and not found["input_ids"].is_shared()
    found["labels"][0] = 0
    found["video_features"][0] = 0  # May be written to.


def test_what_is_pinned_is_read_where_it_is_pinned(tmp_path, monkeypatch):
    samples, collate = Samples(tmp_path, "int8"), TrainingCollator(0)
    expected = collate([samples[i] for i in range(4)])
    sent = pickle.loads(pickle.dumps(HandingOver(collate, pins=True)([samples[i] for i in range(4)])))
    assert isinstance(sent, Parcel) and isinstance(sent.batch["video_features"], StoredRows)
    pinned, empty = [], torch.empty

    def made(*shape, pin_memory=False, **kwargs):
        pinned.append(pin_memory)
        return empty(*shape, **kwargs)

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(rows.torch, "empty", made)
    found = sent.pin_memory()
    equal(found, expected)
    assert [p for p in pinned if isinstance(p, bool)] == [True] * 4, "values and scales, of videos and of the image"
    named = {key for key, value in found.items() if any(value is p for p in pinned)}
    assert named == {k for k, v in expected.items() if isinstance(v, torch.Tensor) and "_features" not in k
                     and "_scales" not in k}  # fmt: skip


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_goes_on_the_way_is_named(tmp_path, num_workers):
    samples = Samples(tmp_path, "float16")
    whole = samples[0]["video_features"]
    gone = [row._replace(file=str(tmp_path / "gone.npy")) for row in whole]

    class Gone(Samples):
        def __init__(self):
            pass

        def __getitem__(self, index):
            return {"input_ids": torch.arange(5), "labels": torch.arange(5), "sample_id": "a", "video_features": gone}

    collate = TrainingCollator(0)
    loader = DataLoader(Gone(), 1, num_workers=num_workers,
                        collate_fn=HandingOver(collate, False) if num_workers else collate)  # fmt: skip
    with pytest.raises(DamagedFeatures, match=r"clip\.mp4: its features in .*gone\.npy"):
        next(iter(loader))
