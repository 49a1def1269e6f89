"""What a model makes of a clip, beside another clip and a black one.

Letters in shapes: T frames, S side of a frame in pixels, K tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llava.config.video import ProcessorSpec
from llava.constants import DEFAULT_VIDEO_TOKEN, IGNORE_INDEX
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.prompt import pad_token_id
from llava.data.records import Record
from llava.errors import UserError
from llava.eval.captioning import Caption, Captioner, check_prompt
from llava.eval.controls import black_pixels
from llava.eval.loss import token_losses
from llava.model.capabilities import max_positions
from llava.serve.word_gains import Word, word_gains, words_of


@dataclass(frozen=True)
class Look:
    """What is shown of a clip.

    Attributes:
        frames: (T, S, S, 3) uint8, as the tower is given them.
        caption, other, black: of the clip, of another one (None where there was none) and of a black one.
        texts: titles, and the words of each text with what the clip did for them.
    """

    frames: np.ndarray
    caption: Caption
    other: Caption | None
    black: Caption
    texts: dict[str, list[Word]]


OWN, GIVEN, TRUE = "The caption", "Your text", "The true caption"


def look(
    captioner: Captioner,
    pixels: torch.Tensor,
    other: torch.Tensor | None = None,
    prompt: str = "",
    given: str = "",
    true: str = "",
    max_new_tokens: int = 64,
) -> Look:
    """Captions of a clip and its controls, greedily, and the gain of each word.

    Args:
        pixels, other: (T, 3, S, S), of the clip and of another one.
        given, true: texts whose words are looked at beside the caption's.

    Raises:
        ValueError: for a prompt or text that is not words alone, and where it leaves no position free.
    """
    check_prompt(prompt, captioner.tokenizer, captioner.text_format.version)
    check_prompt(given, captioner.tokenizer, captioner.text_format.version)
    black = black_pixels(captioner.model.processor_spec)[None].expand_as(pixels)

    def write(shown: torch.Tensor) -> Caption:
        return captioner.caption_pixels(shown, prompt, max_new_tokens=max_new_tokens)

    caption = write(pixels)
    texts = {OWN: caption.text, GIVEN: given.strip(), TRUE: true}
    words = {
        title: gains(captioner, prompt, text, pixels, black, title != OWN or caption.ended)
        for title, text in texts.items()
        if text or title == OWN
    }
    return Look(
        to_frames(pixels, captioner.model.processor_spec), caption, None if other is None else write(other),
        write(black), words,
    )  # fmt: skip


def gains(
    captioner: Captioner, prompt: str, text: str, clip: torch.Tensor, black: torch.Tensor, ended: bool = True
) -> list[Word]:
    """The supervised words of a text after its video, in the format that the model was trained with: in plain LM the
    prompt's too.

    Args:
        clip, black: (T, 3, S, S).
        ended: whether the end of the text belongs to it.
    """
    ids, (with_clip, with_black) = answer_losses(captioner, prompt, text, [clip, black], ended)
    tokenizer = captioner.tokenizer

    def decode(some: list[int]) -> str:
        return tokenizer.decode(some, clean_up_tokenization_spaces=False)

    return word_gains(words_of(ids, decode, captioner.text_format.end_ids), with_clip, with_black)


def answer_losses(
    captioner: Captioner, prompt: str, text: str, videos: Sequence[torch.Tensor], ended: bool = True
) -> tuple[list[int], list[list[float]]]:
    """The ids (K,) of what is supervised of a text, and the loss of each after each video, in nats.

    Args:
        videos: (T, 3, S, S) each.
        ended: whether the end of the text, which is supervised like a word, is among them.

    Raises:
        ValueError: for a text that does not fit the model's positions, which training would cut.
    """
    model, form = captioner.model, captioner.text_format
    turns = [{"from": "human", "value": f"{DEFAULT_VIDEO_TOKEN} {prompt}".strip()}, {"from": "gpt", "value": text}]
    record = Record("text", turns, ("",), (), None, {}, "the page")
    dataset = LazySupervisedDataset(
        [record], captioner.tokenizer, form.preprocess, max_positions(model), captioner.spec, model.processor_spec,
        text_format=form,
    )  # fmt: skip
    ids, labels = dataset.whole_tokens(record)
    if not ended:
        end = int((labels != IGNORE_INDEX).nonzero()[-1])
        ids, labels = ids[:end], labels[:end]
    if len(ids) > max_positions(model):
        raise UserError(
            f"video and text take {len(ids)} positions and the model has {max_positions(model)}: give a shorter text"
        )
    sample = {"input_ids": ids, "labels": labels, "sample_id": record.id}
    collate = DataCollatorForSupervisedDataset(pad_token_id(captioner.tokenizer))
    batch = collate([sample | {"pixel_values_videos": video[None]} for video in videos])
    losses = token_losses(model, {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in batch.items()})
    # Position 0 is never a target.
    targets = labels[1:] != IGNORE_INDEX
    return labels[1:][targets].tolist(), losses.cpu()[:, targets].tolist()


def to_frames(pixels: torch.Tensor, processor: ProcessorSpec) -> np.ndarray:
    """Pixel values (T, 3, S, S) as frames (T, S, S, 3) uint8: `frames_to_pixels` after its resizing, undone."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    frames = (pixels * std + mean) / processor.rescale_factor
    return frames.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
