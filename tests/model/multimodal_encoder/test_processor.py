"""Frames reach a tower as its own image processor would give them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from llava.config.video import ProcessorSpec, VideoSpec
from llava.data.features.extract import cache_settings
from llava.data.video import frames_to_pixels
from llava.model.multimodal_encoder.processor import processor_spec
from tests.model.multimodal_encoder.towers import IMAGENET, PROCESSORS, write_processor


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (2, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(240, 320), (100, 64), (56, 56)])
@pytest.mark.parametrize(
    ("name", "own", "way"), [("clip", CLIPImageProcessorPil, "crop"), ("siglip", SiglipImageProcessorPil, "square")]
)
def test_pixels_equal_those_of_transformers(tmp_path, name, own, way, shape):
    write_processor(tmp_path, PROCESSORS[name])
    frames = noise(*shape)
    processor = own.from_pretrained(tmp_path)
    expected = processor([Image.fromarray(f) for f in frames], return_tensors="pt")["pixel_values"].float()
    pixels = frames_to_pixels(frames, processor_spec(str(tmp_path)), way)
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("values", "side", "edge"),
    [
        (PROCESSORS["dinov2"], 56, 64),
        (PROCESSORS["dinov3"], 56, 56),
        (PROCESSORS["siglip"], 56, 56),
        (PROCESSORS["clip"], 56, 56),
        ({**IMAGENET, "size": {"shortest_edge": 70}, "crop_size": {"height": 56, "width": 56}}, 56, 70),
        ({**IMAGENET, "size": {"height": 70, "width": 70}, "crop_size": 56, "do_center_crop": False}, 70, 70),
        ({**IMAGENET, "size": {"shortest_edge": 64}, "crop_size": None}, 64, 64),
    ],
)
def test_sizes_are_read_as_transformers_reads_them(tmp_path, values, side, edge):
    write_processor(tmp_path, values)
    spec = processor_spec(str(tmp_path))
    assert (spec.image_size, spec.crop_edge) == (side, edge)
    assert list(spec.image_mean) == values["image_mean"] and list(spec.image_std) == values["image_std"]
    assert spec.resample == values.get("resample", 3)
    assert ProcessorSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_what_is_not_done_to_pixels_is_not_done(tmp_path):
    write_processor(tmp_path, {"size": 56, "do_normalize": False, "do_rescale": False})
    spec = processor_spec(str(tmp_path))
    assert (spec.image_mean, spec.image_std, spec.rescale_factor) == ((0, 0, 0), (1, 1, 1), 1)


def test_the_file_of_a_whole_processor_serves_too(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PROCESSORS["siglip"]}))
    assert processor_spec(str(tmp_path)).image_mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"height": 56, "width": 28}}, "no square crop_size or size: .*28"),
        ({"size": None}, "no square crop_size or size: None"),
        ({"size": {"longest_edge": 56}}, "no square"),
        ({"image_mean": None}, "image_mean is None, expected a number for each"),
        ({"image_std": [0.5]}, r"image_std is \[0.5\]"),
    ],
)
def test_a_file_that_does_not_say_is_refused(tmp_path, changes, message):
    write_processor(tmp_path, {**PROCESSORS["siglip"], **changes})
    with pytest.raises(ValueError, match=rf"preprocessor_config.json\): .*{message}"):
        processor_spec(str(tmp_path))


def test_caches_of_earlier_commits_keep_their_names():
    """The edge before a crop names a cache only where frames are cropped, and not where it is the proportion of old."""
    old = {"image_size", "image_mean", "image_std", "resample", "rescale_factor"}
    plain, edged = ProcessorSpec(), ProcessorSpec(resize_edge=224)
    assert plain.to_dict().keys() == old

    def settings(processor, way):
        return cache_settings("t", -2, "patch", VideoSpec(image_aspect_ratio=way), processor)

    for way in ("pad", "square"):
        assert settings(edged, way) == settings(plain, way)
    assert settings(edged, "crop") != settings(plain, "crop")
    assert settings(plain, "crop")["processor"].keys() == old
