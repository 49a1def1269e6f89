"""The visual arguments of `forward`, as one."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from llava.model import vlm
from llava.model.language_model.llava_gpt2 import LlavaGPT2ForCausalLM
from llava.model.vision_batch import NO_VISION, VisionBatch
from tests.model.test_llava_gpt2 import make_batch, pixels


def test_forward_has_an_argument_for_each_attribute():
    taken = inspect.signature(LlavaGPT2ForCausalLM.forward).parameters
    visual = {name for name in taken if "image" in name or "video" in name or "pixel" in name} | {"sample_ids"}
    assert {field.name for field in fields(VisionBatch)} == visual


def test_visual_arguments_are_taken_out_of_a_call():
    call = {"pixel_values": torch.ones(1, 3, 2, 2), "max_new_tokens": 4, "num_images": None}
    vision = VisionBatch.take(call)
    assert call == {"max_new_tokens": 4}
    assert not vision.is_empty and vision.pixel_values.shape == (1, 3, 2, 2)
    assert NO_VISION.is_empty and VisionBatch(sample_ids=["a"]).is_empty
    with pytest.raises(FrozenInstanceError):
        vision.num_images = torch.ones(1)


def test_images_and_videos_are_counted_apart():
    images, videos = VisionBatch(
        image_features=torch.ones(3, 4, 5), pixel_values_videos=torch.ones(2, 1, 3, 2, 2)
    ).items
    assert [(i.kind, i.total) for i in (images, videos)] == [("image", 3), ("video", 2)]
    assert videos.features is None and images.pixels is None
    assert [i.total for i in NO_VISION.items] == [0, 0]


def test_what_is_not_finite_is_named():
    features = torch.ones(3, 2, 2, 2)
    VisionBatch(video_features=features).check_finite()
    features[1, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"video_features: items \[1\] of 3 hold NaN"):
        VisionBatch(video_features=features).check_finite()


def test_the_method_takes_it_whole_or_by_names(build, tokenizer):
    model = build()
    batch = make_batch(tokenizer, ["<video> Il cane."], pixel_values_videos=pixels())
    ids, visual = batch["input_ids"], {"pixel_values_videos": batch["pixel_values_videos"]}
    prepare = model.prepare_inputs_labels_for_multimodal_video
    whole, labels = prepare(ids, batch["labels"], VisionBatch(**visual))
    assert torch.equal(whole, prepare(ids, **visual)[0]) and labels is batch["labels"]
    with pytest.raises(TypeError, match="pixel_value_videos"):
        prepare(ids, pixel_value_videos=visual["pixel_values_videos"])


def test_an_override_of_the_method_is_called_by_forward(build, tokenizer, monkeypatch):
    model = build()
    batch = make_batch(tokenizer, ["<video> Il cane."], pixel_values_videos=pixels())
    prepare, seen = LlavaGPT2ForCausalLM.prepare_inputs_labels_for_multimodal_video, []

    def counted(self, *args, **kwargs):
        seen.append(1)
        return prepare(self, *args, **kwargs)

    monkeypatch.setattr(LlavaGPT2ForCausalLM, "prepare_inputs_labels_for_multimodal_video", counted)
    model(**batch)
    model.generate(batch["input_ids"][:, :-2], pixel_values_videos=batch["pixel_values_videos"], max_new_tokens=1)
    assert len(seen) == 2, "once for the step, once for the prompt"


def test_the_body_is_asked_once_what_it_takes(build, tokenizer, monkeypatch):
    model = build()
    batch = make_batch(tokenizer, ["<video> Il cane."], pixel_values_videos=pixels())
    model(**batch)
    monkeypatch.setattr(vlm.inspect, "signature", lambda *_: pytest.fail("asked again"))
    model.states(torch.zeros(1, 2, model.config.n_embd))
