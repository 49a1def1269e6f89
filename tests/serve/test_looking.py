"""What a model makes of a clip: its losses are those of the controls, and its frames those that it is given."""

from __future__ import annotations

import pytest
import torch

from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.records import load_records
from llava.data.video import frames_to_pixels, read_frames
from llava.eval.captioning import Captioner
from llava.eval.controls import black_pixels, control_losses
from llava.model.capabilities import max_positions
from llava.serve.looking import GIVEN, OWN, TRUE, answer_losses, gains, look, to_frames
from llava.serve.word_gains import END
from tests.conftest import CAPTIONS


@pytest.fixture(scope="module")
def captioner(run):
    return Captioner.from_pretrained(run, "cpu")


@pytest.fixture
def clip(assets, captioner):
    return captioner.read_pixels(assets.clips / "clip0.mp4")


def test_gains_add_up_to_the_loss_of_the_blank_control(assets, captioner, clip):
    records, _ = load_records(assets.video_json, video_folder=assets.clips)
    model, form = captioner.model, captioner.text_format
    dataset = LazySupervisedDataset(
        records, captioner.tokenizer, form.preprocess, max_positions(model), captioner.spec, model.processor_spec,
        text_format=form,
    )  # fmt: skip
    collate = DataCollatorForSupervisedDataset(captioner.tokenizer.eos_token_id)
    nats = control_losses(model, dataset, collate, [(0, 1)], 1).nats
    words = gains(captioner, "", CAPTIONS[0], clip, black_pixels(model.processor_spec).expand_as(clip))
    assert [word.text for word in words] == [*CAPTIONS[0].split(), END]
    assert sum(w.with_clip for w in words) == pytest.approx(nats["true"][0], abs=1e-4)
    assert sum(w.with_black for w in words) == pytest.approx(nats["blank"][0], abs=1e-4)
    assert nats["true"][0] != nats["blank"][0]


def test_a_black_clip_is_seen_as_black_frames(captioner, clip):
    black = black_pixels(captioner.model.processor_spec).expand_as(clip)
    assert not to_frames(black, captioner.model.processor_spec).any()
    caption = captioner.caption_pixels(black, max_new_tokens=4)
    assert look(captioner, black, clip, max_new_tokens=4).caption == caption
    # Of one clip with itself there is no gain.
    assert all(word.gain == 0 for word in look(captioner, black, max_new_tokens=4).texts[OWN])


def test_frames_are_those_that_the_tower_is_given(assets, captioner, clip):
    spec, processor = captioner.spec, captioner.model.processor_spec
    frames = to_frames(clip, processor)
    assert frames.shape == (2, 56, 56, 3)
    again = frames_to_pixels(frames, processor, "square")
    assert torch.allclose(again, clip, atol=1e-5)
    assert (frames != to_frames(captioner.read_pixels(assets.clips / "clip1.mp4"), processor)).any()
    assert torch.equal(
        frames_to_pixels(read_frames(assets.clips / "clip0.mp4", spec), processor, spec.image_aspect_ratio), clip
    )


def test_captions_are_those_of_the_command_line(assets, captioner, clip):
    seen = look(captioner, clip, captioner.read_pixels(assets.clips / "clip1.mp4"), max_new_tokens=5, true=CAPTIONS[0])
    assert seen.caption == captioner.caption(assets.clips / "clip0.mp4", max_new_tokens=5)
    assert seen.other == captioner.caption(assets.clips / "clip1.mp4", max_new_tokens=5)
    assert list(seen.texts) == [OWN, TRUE]
    assert (END in [word.text for word in seen.texts[OWN]]) is seen.caption.ended
    assert look(captioner, clip, max_new_tokens=1).other is None


def test_a_text_of_ones_own_is_looked_at_and_has_to_be_words(captioner, clip):
    seen = look(captioner, clip, given="Una palla rossa", prompt="Si vede", max_new_tokens=1)
    # In plain LM the prompt is supervised too.
    assert [word.text for word in seen.texts[GIVEN]] == ["Si", "vede", "Una", "palla", "rossa", END]
    with pytest.raises(ValueError, match="contains <video>"):
        look(captioner, clip, given="Un <video>")
    with pytest.raises(
        ValueError, match=r"video and text take \d+ positions and the model has 512: give a shorter text"
    ):
        look(captioner, clip, given="molto " * 600, max_new_tokens=1)


def test_an_end_that_was_not_written_is_no_part_of_a_text(captioner, clip):
    whole, _ = answer_losses(captioner, "", "Un gatto.", [clip])
    cut, losses = answer_losses(captioner, "", "Un gatto.", [clip], ended=False)
    assert cut == whole[:-1] and len(losses[0]) == len(cut)
