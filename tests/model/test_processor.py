"""`VisionCausalLMProcessor` does what training and captioning do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from llava.data.video import frames_to_pixels, read_frames, read_image
from llava.eval.captioning import Captioner
from llava.model.processor import VisionCausalLMProcessor, video_frames
from tests.conftest import PROCESSOR, SPEC, colour_frames


def test_it_gives_the_model_what_the_captioner_does(saved, assets, monkeypatch):
    processor, captioner = AutoProcessor.from_pretrained(saved), Captioner.from_pretrained(saved, device="cpu")
    assert isinstance(processor, VisionCausalLMProcessor)
    generate, seen = type(captioner.model).generate, {}

    def watched(self, ids, **options):
        seen.update(ids=ids, pixels=options["pixel_values_videos"])
        return generate(self, ids, **options)

    monkeypatch.setattr(type(captioner.model), "generate", watched)
    clip = assets.clips / "clip2.mp4"
    for prompt in ("", "Un gatto"):
        captioner.caption(clip, prompt)
        inputs = processor(videos=clip, text=prompt)
        assert torch.equal(inputs["input_ids"], seen["ids"])
        assert torch.equal(inputs["pixel_values_videos"], seen["pixels"])


def test_a_batch_is_padded_on_the_left_and_takes_images_and_frames(saved, tmp_path):
    processor = AutoProcessor.from_pretrained(saved)
    frames = colour_frames(1, SPEC.num_frames)
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    shown = [Image.fromarray(frame) for frame in frames]
    batch = processor(text=["<image> Un gatto nero", "<video> Un"], images=tmp_path / "a.png", videos=[shown])
    assert batch["input_ids"].shape == batch["attention_mask"].shape and len(batch["input_ids"]) == 2
    assert (batch["attention_mask"].diff(dim=1) >= 0).all(), "padding comes first"
    aspect = SPEC.image_aspect_ratio
    assert torch.equal(batch["pixel_values_videos"][0], frames_to_pixels(frames, PROCESSOR, aspect))
    assert torch.equal(batch["pixel_values"], frames_to_pixels(read_image(tmp_path / "a.png"), PROCESSOR, aspect))
    assert torch.equal(processor(text="<video>", videos=frames)["pixel_values_videos"], batch["pixel_values_videos"])


def test_frames_are_spread_evenly():
    frames = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1).repeat(3, axis=3)
    found = video_frames(frames, SPEC)[:, 0, 0, 0].tolist()
    assert len(found) == SPEC.num_frames and (found[0], found[-1]) == (0, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "<video> <video>", "videos": ["a.mp4"]}, "2 <video> in the text and 1 given"),
        ({"text": ["Un", "gatto"], "images": ["a.png"]}, "0 <image> in the text and 1 given"),
        ({"videos": np.zeros((2, 8, 8, 3), np.float32)}, "uint8 in RGB"),
        ({"videos": [[]]}, "without frames"),
    ],
)
def test_what_does_not_fit_is_named(saved, given, message):
    with pytest.raises(ValueError, match=message):
        AutoProcessor.from_pretrained(saved)(**given)


def test_messages_become_the_format_of_training(saved, assets):
    processor = AutoProcessor.from_pretrained(saved)
    clip = str(assets.clips / "clip0.mp4")
    messages = [{"role": "user", "content": [{"type": "video", "video": clip}, {"type": "text", "text": "Un"}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True)
    plain = processor(text="<video> Un", videos=clip)
    assert torch.equal(inputs["input_ids"], plain["input_ids"])
    pixels = frames_to_pixels(read_frames(clip, SPEC), PROCESSOR, SPEC.image_aspect_ratio)
    assert torch.equal(inputs["pixel_values_videos"][0], pixels)
    text = processor.apply_chat_template(messages)
    assert torch.equal(processor(text=text, videos=clip)["input_ids"], plain["input_ids"])
