"""`VisionCausalLMProcessor` does what training and captioning do."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from llava.constants import VISUAL_TOKENS
from llava.data.chat_formats import add_tokens, template_of
from llava.data.coordinates import register
from llava.data.video import frames_to_pixels, read_frames, read_image
from llava.eval.captioning import Captioner
from llava.model.builder import add_coordinate_tokens
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


WHEN = {"temporal_input_locations": [0.2, 0.5]}
ASKED = "<video> Che succede in {<TEMP-INPUT><TEMP-INPUT>}?"
WHERE = {"spatial_width_input_locations": [0.1, 0.4], "spatial_height_input_locations": [0.2, 0.9]}
BOX = "[<WIDTH-INPUT><HEIGHT-INPUT><WIDTH-INPUT><HEIGHT-INPUT>]"


@pytest.fixture
def placed(build, tokenizer, tmp_path):
    """A model with coordinates, and the folder in which it lies with its tokenizer."""
    model = build()
    add_coordinate_tokens(tokenizer, model)
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    return model, tmp_path / "run"


def told(batch, row=0):
    """The numbers of a row, rounded, in reading order."""
    return [round(n, 4) for n in batch["coordinates"][row].tolist() if n >= 0]


def test_numbers_stand_at_their_placeholders_and_reach_the_model(placed):
    model, folder = placed
    processor, frames = AutoProcessor.from_pretrained(folder), colour_frames(1, SPEC.num_frames)
    inputs = processor(text=ASKED, videos=frames, variables=WHEN)
    places = inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<TEMP-INPUT>")
    assert torch.equal(inputs["coordinates"] >= 0, places) and told(inputs) == [0.2, 0.5]
    assert inputs["coordinates"].dtype == torch.float32 and bool((inputs["coordinates"][~places] == -1).all())
    later = processor(text=ASKED, videos=frames, variables={"temporal_input_locations": (0.2, 0.9)})
    first, second = (model(**batch).logits[:, -1] for batch in (inputs, later))
    assert not torch.equal(first, second)
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1
    assert "coordinates" not in processor(text="<video> Un", videos=frames)
    content = [{"type": "video", "video": frames}, {"type": "text", "text": ASKED.removeprefix("<video> ")}]
    for given in ({"variables": WHEN}, {"processor_kwargs": {"variables": WHEN}}):
        said = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, **given)
        assert all(torch.equal(said[name], inputs[name]) for name in inputs)


def test_numbers_of_a_batch_are_padded_and_cut_with_its_ids(placed):
    processor = AutoProcessor.from_pretrained(placed[1])
    texts = [ASKED.removeprefix("<video> "), "Un gatto nero dorme e poi corre in {<TEMP-INPUT><TEMP-INPUT>}", "Un"]
    later = {"temporal_input_locations": [0.0, 1.0]}
    batch = processor(text=texts, variables=[WHEN, later, None])
    assert [told(batch, row) for row in range(3)] == [[0.2, 0.5], [0.0, 1.0], []]
    assert batch["coordinates"].shape == batch["input_ids"].shape
    where = (batch["coordinates"][1] >= 0).nonzero().flatten() - (batch["attention_mask"][1] == 0).sum()
    cut = processor(text=texts[1], variables=later, truncation=True, max_length=int(where[1]), return_tensors=None)
    assert cut["coordinates"] == [[-1.0] * int(where[0]) + [0.0]]


def test_boxes_are_moved_as_the_pixels_are(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(list(VISUAL_TOKENS), special_tokens=True)
    register(tokenizer)

    def process(aspect, images, text=f"<image> Chi sta in {BOX}?", variables=WHERE):
        spec = replace(SPEC, image_aspect_ratio=aspect).to_dict()
        processor = VisionCausalLMProcessor(tokenizer, spec, PROCESSOR.to_dict())
        return told(processor(text=text, images=images, variables=variables))

    wide, narrow = np.zeros((50, 100, 3), np.uint8), np.zeros((100, 50, 3), np.uint8)
    assert process("square", wide) == [0.1, 0.2, 0.4, 0.9]
    assert process("pad", wide) == [0.1, 0.35, 0.4, 0.7], "half of the square is black, above and below"
    assert process("pad", narrow) == [0.3, 0.2, 0.45, 0.9]
    assert process("pad", None, text=f"Chi sta in {BOX}?") == [0.1, 0.2, 0.4, 0.9], "nothing is shown"
    assert process("pad", [wide, narrow], "<image> <image> {<TEMP-INPUT><TEMP-INPUT>}", WHEN) == [0.2, 0.5]
    with pytest.raises(ValueError, match="text 0: its pictures are of 100 x 50 and of 50 x 100 pixels"):
        process("pad", [wide, narrow], text=f"<image> <image> {BOX}")
    left = {**WHERE, "spatial_width_input_locations": [0.0, 0.1]}
    with pytest.raises(ValueError, match=r"text 0: its box \[0.0, 0.2, 0.1, 0.9\] is cropped away"):
        process("crop", wide, variables=left)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (None, r"text 0: 2 <TEMP-INPUT> in the text, but 0 numbers \(few\) under temporal_input_locations"),
        ({"temporal_input_locations": [0.2]}, r"but 1 numbers \(few\)"),
        ({"temporal_input_locations": [0.2, 0.3, 0.4]}, r"but 3 numbers \(many\)"),
        ({"temporal_input_locations": [0.2, 1.5]}, r"temporal_input_locations\[1\] is 1.5, which is not from 0 to 1"),
        ({"temporal_input_locations": [0.2, float("nan")]}, "must be a number from 0 to 1, got nan"),
        ({"temporal_input_locations": [0.2, float("inf")]}, "is inf, which is not from 0 to 1"),
        ({"temporal_input_locations": [0.5, 0.2]}, "a span .* ends before it begins"),
        ({"temporal_input_locations": np.array([0.2, 0.5])}, "must be a list of numbers"),
        ({"times": [0.2, 0.5]}, "variables has a key 'times'"),
        ([WHEN, WHEN], "expected a list of 1 objects, one for each text, got 2"),
        ("0.2", "expected a list of 1 objects, one for each text, got a str"),
    ],
)
def test_wrong_numbers_are_named(placed, variables, message):
    with pytest.raises(ValueError, match=message):
        AutoProcessor.from_pretrained(placed[1])(text=ASKED.removeprefix("<video> "), variables=variables)


def test_numbers_have_their_place(placed):
    processor = AutoProcessor.from_pretrained(placed[1])
    messages = [{"role": "user", "content": ASKED.removeprefix("<video> ")}]
    with pytest.raises(ValueError, match="variables go with tokenize=True"):
        processor.apply_chat_template(messages, variables=WHEN)
    messages[0]["content"] = "Quando? {<TEMP-OUTPUT><TEMP-OUTPUT>}"
    with pytest.raises(ValueError, match="<TEMP-OUTPUT> in a question: what is told is INPUT"):
        processor.apply_chat_template(messages, tokenize=True, variables={"temporal_output_locations": [0.2, 0.5]})


def test_a_model_without_coordinates_takes_no_numbers(saved):
    processor = AutoProcessor.from_pretrained(saved)
    with pytest.raises(ValueError, match="variables: this model was trained without coordinates"):
        processor(text="Un gatto", variables=WHEN)
    with pytest.raises(ValueError, match="<TEMP-INPUT> in the text: this model was trained without coordinates"):
        processor(text="Un gatto in <TEMP-INPUT>")
