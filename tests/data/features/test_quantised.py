"""int8 features on the device are, to the bit, what numpy makes of them."""

from __future__ import annotations

import numpy as np
import torch

from llava.data.features.quantised import dequantise, dequantised
from llava.data.features.shards import decode, encode, row_type


def test_to_the_bit_what_the_definition_says():
    generator = np.random.default_rng(0)
    features = (generator.normal(size=(3, 2, 5, 16)) * np.logspace(-6, 4.5, 16)).clip(-65504, 65504).astype(np.float16)
    rows = encode(features, "int8")
    expected = np.stack([np.multiply(row["values"], row["scale"], dtype=np.float32).astype(np.float16) for row in rows])
    values, scales = torch.from_numpy(rows["values"].copy()), torch.from_numpy(rows["scale"].copy())
    assert np.array_equal(dequantise(values, scales).numpy().view("i2"), expected.view("i2"))
    assert np.array_equal(dequantise(values, scales.view(torch.int32)).numpy().view("i2"), expected.view("i2"))
    one = np.frombuffer(rows[1].tobytes(), np.uint8)
    assert row_type("int8", (2, 5, 16)).itemsize == len(one)
    assert np.array_equal(decode(one, "int8", (2, 5, 16)).numpy(), expected[1])


def test_a_batch_without_scales_stays_as_it_is():
    batch = {"video_features": torch.ones(1, 2, 3, 4), "input_ids": torch.ones(1, 5)}
    assert dequantised(batch) == batch and dequantised(batch) is not batch
    int8 = {"video_features": torch.ones(1, 2, 3, 4, dtype=torch.int8), "video_scales": torch.full((1, 4), 0.5)}
    assert torch.equal(dequantised(int8)["video_features"], torch.full((1, 2, 3, 4), 0.5).half())
    assert "video_scales" not in dequantised(int8)
