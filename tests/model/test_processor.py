"""`VisionCausalLMProcessor` does what training and captioning do."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from llava.constants import VISUAL_TOKENS
from llava.data.chat_formats import add_tokens, template_of
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
        ({"text": []}, "an empty list"),
    ],
)
def test_what_does_not_fit_is_named(saved, given, message):
    with pytest.raises(ValueError, match=message):
        AutoProcessor.from_pretrained(saved)(**given)


def test_texts_are_padded_and_cut_as_transformers_says(saved):
    processor = AutoProcessor.from_pretrained(saved)
    texts = ["Un gatto nero dorme", "Un"]
    plain = processor(text=texts, padding=False, return_tensors=None)
    long, short = plain["input_ids"]
    assert len(long) > len(short) and plain["attention_mask"] == [[1] * len(long), [1] * len(short)]
    fixed = processor(text=texts, padding="max_length", max_length=30, padding_side="right")
    assert fixed["input_ids"].shape == (2, 30) and fixed["attention_mask"].sum(1).tolist() == [len(long), len(short)]
    assert fixed["input_ids"][0, : len(long)].tolist() == long
    cut = processor(text=texts, text_kwargs={"truncation": True, "max_length": 3}, common_kwargs={})
    assert cut["input_ids"][0].tolist() == long[:3]
    numpy = processor(text=texts, return_tensors="np", videos=None)
    assert isinstance(numpy["input_ids"], np.ndarray) and numpy["input_ids"][1, -1] == short[-1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"do_resize": False, "add_special_tokens": True}, TypeError, "does not take add_special_tokens, do_resize"),
        ({"videos_kwargs": {"fps": 2}}, TypeError, r"does not take videos_kwargs\['fps'\]"),
        ({"max_length": 5}, ValueError, "max_length is given: it goes with padding='max_length' or truncation=True"),
        ({"truncation": True}, ValueError, "no max_length is given"),
        ({"padding": "longest_last"}, ValueError, "padding is 'longest_last', expected one of 'longest'"),
        ({"padding": False}, ValueError, "are no tensor: padding=True, or return_tensors=None"),
        ({"truncation": True, "max_length": 8}, ValueError, "text 1: 11 positions, 10 of them visual, do not fit"),
    ],
)
def test_what_would_have_no_effect_is_refused_by_name(saved, options, error, message):
    frames = colour_frames(1, SPEC.num_frames)
    with pytest.raises(error, match=message):
        AutoProcessor.from_pretrained(saved)(text=["Un gatto", "<video> Un"], videos=[frames], **options)


def test_messages_take_the_same_options(saved):
    processor = AutoProcessor.from_pretrained(saved)
    messages = [[{"role": "user", "content": text}] for text in ("Un gatto nero", "Un")]
    ids = processor.apply_chat_template(messages, tokenize=True, return_dict=False, processor_kwargs={"padding": True})
    assert torch.equal(ids, processor(text=["Un gatto nero", "Un"])["input_ids"])
    with pytest.raises(TypeError, match="apply_chat_template does not take tools"):
        processor.apply_chat_template(messages, tools=[])
    with pytest.raises(ValueError, match="ends where the model goes on"):
        processor.apply_chat_template(messages, add_generation_prompt=False)


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


def test_a_line_break_after_a_placeholder_is_layout_in_messages_too(tokenizer):
    """LLaVA writes `<image>\\n`, and training sees one space."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(list(VISUAL_TOKENS), special_tokens=True)
    add_tokens("chatml", tokenizer)
    text_format = {"version": "chatml", "template": template_of("chatml")}
    processor = VisionCausalLMProcessor(tokenizer, SPEC.to_dict(), PROCESSOR.to_dict(), text_format)
    said = [[{"role": "user", "content": content}] for content in ("<image>\nDove?", "<image> Dove?")]
    first, second = processor.apply_chat_template(said)
    assert first == second and "<image> Dove?" in first
    image = np.zeros((8, 8, 3), np.uint8)
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "\nDove?"}]
    ids = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=True)["input_ids"]
    assert torch.equal(ids, processor(text=first, images=image)["input_ids"])
