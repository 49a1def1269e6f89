"""`VisionCausalLMProcessor`: text, images and videos to what `forward` and `generate` take, for users of transformers.

    processor = AutoProcessor.from_pretrained(DIR)
    model.generate(**processor(videos="clip.mp4", return_tensors="pt"))

It does what training does: the same frames of a file, the same pixels, the same ids; its settings are the model's own,
which `processor_config.json` repeats.

Letters in shapes: B texts, L positions, V videos, I images, T frames, H and W of a frame, S side that the tower takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from llava.config.video import ProcessorSpec, VideoSpec
from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.data.chat_formats import PLAIN
from llava.data.coordinates import NO_COORDINATE, CoordinateTokens
from llava.data.prompt import MARKERS, Spans, Turns, compact, lay_out, pad_token_id, tokenized, visual_token_ids
from llava.data.text_format import PLAIN_RECORD, TextFormat, format_of
from llava.data.turns import FROM
from llava.data.video.image import on_white, read_image
from llava.data.video.select import spread_evenly
from llava.data.video.transforms import frames_to_pixels
from llava.errors import UserError
from llava.model.padding import Padding
from llava.model.told_numbers import Told, told_numbers


class VisionCausalLMProcessor(ProcessorMixin):
    """A tokenizer with the visual tokens, and what a video becomes.

    Args:
        video_spec, mm_processor, text_format: the model config's fields of these names.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        video_spec: Mapping[str, Any] | None = None,
        mm_processor: Mapping[str, Any] | None = None,
        text_format: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.video_spec, self.mm_processor = dict(video_spec or {}), dict(mm_processor or {})
        self.text_format = dict(text_format or PLAIN_RECORD)
        super().__init__(tokenizer, chat_template=chat_template)
        self.spec = VideoSpec.from_dict(self.video_spec)
        self.pixels = ProcessorSpec.from_dict(self.mm_processor)

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What `processor_config.json` keeps."""
        values = super().to_dict(*args, **kwargs)
        return {name: value for name, value in values.items() if name not in ("spec", "pixels", "tokenizer")}

    @property
    def format(self) -> TextFormat:
        """The format that the model was trained with."""
        return format_of(self.text_format, self.tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "pixel_values_videos", "coordinates"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        *,
        variables: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Ids, mask, pixel values and coordinates of a batch.

        Args:
            images: paths, PIL images or arrays (H, W, 3) uint8; one or a list, in reading order over the texts.
            text: one text or a list, with `<image>` and `<video>` where they stand; texts without any get those given
                put before them, when there are as many as texts.
            videos: paths, arrays (T, H, W, 3) uint8, or lists of PIL images; one or a list. Of a file the frames that
                training takes are read; of frames, `num_frames` evenly spread ones are taken.
            variables: the numbers at coordinate placeholders of a text (`<TEMP-INPUT>`), as a record has them: lists by
                LLaVA-ST's keys, in reading order, from 0 to 1 of the clip and of the frame; of several texts a list of
                these.
            kwargs: `padding`, `padding_side`, `truncation`, `max_length` and `return_tensors`, as in transformers but
                for the defaults: tensors of PyTorch, padded to the longest text, on the left for generation; and
                `return_offsets_mapping`, of texts without placeholders.

        Returns:
            `input_ids` and `attention_mask` (B, L), `pixel_values` (I, 3, S, S), `pixel_values_videos`
            (V, T, 3, S, S), the last two where there are any; `coordinates` float32 (B, L) where the texts have
            numbers, which are moved as the pixels are, and -1 elsewhere; `offset_mapping` (B, L, 2) where it is asked
            for.

        Raises:
            ValueError: when placeholders and files are not the same number, for no text at all, for what is neither
                path nor pixels, where `max_length` would cut a video or image, and from `told_numbers`.
            TypeError: naming other arguments, which would have no effect.
            VideoError: naming a file that cannot be read.
        """
        options = Padding.of(kwargs, type(self).__name__)
        images, videos = _listed(images, 3), _listed(videos, 4)
        given_texts = texts = [text] if isinstance(text, str) else list(text) if text is not None else [""] * max(
            len(videos), len(images), 1)  # fmt: skip
        if not texts:
            raise UserError("text: an empty list; give a text for each sample, or leave it out for files alone")
        for placeholder, given in ((DEFAULT_VIDEO_TOKEN, videos), (DEFAULT_IMAGE_TOKEN, images)):
            found = sum(t.count(placeholder) for t in texts)
            if given and not found and len(given) == len(texts):
                texts = [f"{placeholder} {t}".strip() for t in texts]
            elif found != len(given):
                raise UserError(
                    f"{found} {placeholder} in the text and {len(given)} given: each stands once in a text, in order"
                )
        form = self.format
        told = told_numbers([[{"value": t}] for t in texts], variables, self.tokenizer, has_roles=False)
        if form.version == PLAIN:
            ids = [form.prompt([{"from": "human", "value": t}]) for t in texts]
        else:  # Rendered by `apply_chat_template`, whose white space is the format's.
            ids = list(tokenized(form.tokenizer, [compact(t) for t in texts]))
        offsets = [self._offsets(t) for t in given_texts] if options.return_offsets_mapping else None
        return self._batch(ids, images, videos, options, told, offsets)

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text without placeholders stands in it, (first, last + 1)."""
        if any(placeholder in text for placeholder in MARKERS):
            raise UserError(f"return_offsets_mapping: give the text without placeholders, got {text[:80]!r}")
        form = self.format
        words = text.strip() if form.version == PLAIN else text
        found = form.tokenizer(words, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        before = text.index(words)
        return [(first + before, last + before) for first, last in found]

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """A conversation, or several, in the format that the model was trained with, up to where it goes on.

        Args:
            conversation: turns of `role` and `content`; content is a text or a list of `{"type": "text", "text": ...}`,
                `{"type": "video", "video" | "path" | "url": PATH}` and `{"type": "image", ...}`.
            kwargs: `tokenize` (False), `return_dict` (True), `variables` (with `tokenize=True`) and the others of
                `__call__`, as in transformers, also within `processor_kwargs`; `add_generation_prompt` and
                `continue_final_message` where they say the same.

        Returns:
            The text; with `tokenize=True` what `__call__` returns, or its ids with `return_dict=False`.

        Raises:
            ValueError: for `add_generation_prompt=False` where the last turn is not to be continued, for `variables`
                without `tokenize`, and from `told_numbers`.
            TypeError: naming other arguments, which would have no effect.
        """
        if chat_template is not None:
            return super().apply_chat_template(conversation, chat_template, **kwargs)
        many = bool(conversation) and not isinstance(conversation[0], Mapping)
        parts = [_turns(c) for c in (conversation if many else [conversation])]
        form = self.format
        tokenize, as_dict = kwargs.pop("tokenize", False), kwargs.pop("return_dict", True)
        goes_on = kwargs.pop("continue_final_message", False)
        if not kwargs.pop("add_generation_prompt", True) and not goes_on:
            raise UserError("add_generation_prompt=False: a prompt ends where the model goes on; leave it out")
        inner = dict(kwargs.pop("processor_kwargs", None) or {})
        variables = kwargs.pop("variables", inner.pop("variables", None))
        options = Padding.of({**kwargs, **inner}, f"{type(self).__name__}.apply_chat_template")
        ids = [form.prompt(turns) for turns, _, _ in parts]
        if not tokenize:
            if variables is not None:
                raise UserError("variables go with tokenize=True, or to the processor with the text that this gives")
            texts = [_with_placeholders(self.tokenizer.decode(i, skip_special_tokens=False)) for i in ids]
            return texts if many else texts[0]
        images, videos = ([item for part in parts for item in part[which]] for which in (1, 2))
        told = told_numbers([turns for turns, _, _ in parts], variables, self.tokenizer, has_roles=True)
        batch = self._batch(ids, images, videos, options, told)
        return batch if as_dict else batch["input_ids"]

    def post_process_image_text_to_text(self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any):
        """Texts of generated ids, without the visual tokens."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def _batch(
        self,
        ids: Sequence[Sequence[int]],
        images: Sequence[Any],
        videos: Sequence[Any],
        options: Padding,
        told: Sequence[Told],
        offsets: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> BatchFeature:
        spans = Spans.of(self.tokenizer, self.spec)
        whole = [spans.expand(i) for i in ids]
        rows = options.cut(whole, visual_token_ids(self.tokenizer).values())
        data: dict[str, Any] = options.batch(rows, pad_token_id(self.tokenizer))
        if offsets is not None:
            # What stands in front of the text, a video or a start, stands nowhere in it.
            own = [[(0, 0)] * (len(w) - len(o)) + list(o) for w, o in zip(whole, offsets, strict=True)]
            data["offset_mapping"] = options.filled([o[: len(r)] for o, r in zip(own, rows, strict=True)], (0, 0))
        aspect = self.spec.image_aspect_ratio
        sizes: dict[str, list[tuple[int, int]]] = {DEFAULT_IMAGE_TOKEN: [], DEFAULT_VIDEO_TOKEN: []}

        def pixels(frames: np.ndarray, kind: str) -> torch.Tensor:
            sizes[kind].append((frames.shape[-2], frames.shape[-3]))
            return frames_to_pixels(frames, self.pixels, aspect)

        if images:
            data["pixel_values"] = torch.cat([pixels(image_frame(i), DEFAULT_IMAGE_TOKEN) for i in images])
        if videos:
            shown = [pixels(video_frames(v, self.spec), DEFAULT_VIDEO_TOKEN) for v in videos]
            data["pixel_values_videos"] = torch.stack(shown)
        if any(one.numbers for one in told):
            numbers = [n[: len(r)] for n, r in zip(self._numbers(whole, told, sizes), rows, strict=True)]
            filled = options.filled(numbers, NO_COORDINATE)
            data["coordinates"] = filled if options.return_tensors is None else np.asarray(filled, np.float32)
        return BatchFeature(data, tensor_type=options.return_tensors)

    def _numbers(
        self, rows: Sequence[Sequence[int]], told: Sequence[Told], sizes: Mapping[str, Sequence[tuple[int, int]]]
    ) -> Iterator[list[float]]:
        """Of each row of ids the numbers at its coordinate placeholders, and `NO_COORDINATE` elsewhere.

        Args:
            sizes: (width, height) of the images and of the videos, in reading order over the texts.
        """
        tokens, left = CoordinateTokens.of(self.tokenizer), {kind: iter(its) for kind, its in sizes.items()}
        for place, (row, one) in enumerate(zip(rows, told, strict=True)):
            shown = [size for kind, its in left.items() for size in islice(its, one.text.count(kind))]
            try:
                numbers = one.moved(shown, self.spec.image_aspect_ratio, self.pixels)
            except UserError as error:
                raise UserError(f"text {place}: {error}") from error
            yield tokens.numbers(torch.tensor(row), numbers).tolist()


def image_frame(image: Any) -> np.ndarray:
    """A path, PIL image or array (H, W, 3) uint8 as one frame (1, H, W, 3) uint8.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        pixels = np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB"))
        return (on_white(pixels) if pixels.shape[-1] == 4 else pixels)[None]
    return _uint8(image, 3)[None]


def video_frames(video: Any, spec: VideoSpec) -> np.ndarray:
    """A path, array (T, H, W, 3) uint8 or list of PIL images as `num_frames` frames (T, H, W, 3) uint8.

    Raises:
        ValueError: for anything else, and for a clip without frames.
        VideoError: naming a file that cannot be read.
    """
    if isinstance(video, (str, Path)):
        from llava.data.video.decode import read_frames

        return read_frames(video, spec)
    if isinstance(video, (list, tuple)):
        if not video:
            raise UserError("a video without frames")
        video = np.concatenate([image_frame(frame) for frame in video])
    frames = _uint8(video, 4)
    return frames[spread_evenly(len(frames), spec.num_frames)]


def _uint8(pixels: Any, dimensions: int) -> np.ndarray:
    shape = "(T, H, W, 3)" if dimensions == 4 else "(H, W, 3)"
    array = np.asarray(pixels)
    if array.ndim != dimensions or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise UserError(
            f"expected a path, PIL images or {shape} uint8 in RGB, found {type(pixels).__name__} of shape "
            f"{array.shape} and type {array.dtype}"
        )
    return array


def _listed(items: Any, dimensions: int) -> list[Any]:
    """One thing or several as a list: a path, an image, or an array of `dimensions` is one; of videos, so is a list of
    frames."""
    if items is None:
        return []
    if isinstance(items, (str, Path, Image.Image)):
        return [items]
    if isinstance(items, (np.ndarray, torch.Tensor)):
        return [items] if items.ndim == dimensions else list(items)
    if dimensions == 4 and items and all(isinstance(i, Image.Image) for i in items):
        return [list(items)]
    return list(items)


def _with_placeholders(text: str) -> str:
    for placeholder, marker in MARKERS.items():
        text = text.replace(marker, placeholder)
    return text


def _turns(conversation: Sequence[Mapping[str, Any]]) -> tuple[Turns, list[Any], list[Any]]:
    """Our turns of transformers' messages, laid out as records are, and their images and videos in order."""
    turns, images, videos = [], [], []
    for message in conversation:
        content = message["content"]
        words = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                words.append(part["text"])
                continue
            if part["type"] not in ("image", "video"):
                raise UserError(f"content of type {part['type']!r}: expected text, image or video")
            item = next((part[key] for key in (part["type"], "path", "url") if part.get(key) is not None), None)
            if item is None:
                raise UserError(f"{part}: no {part['type']}; give its path under {part['type']!r}")
            (images if part["type"] == "image" else videos).append(item)
            words.append(DEFAULT_IMAGE_TOKEN if part["type"] == "image" else DEFAULT_VIDEO_TOKEN)
        turns.append({"from": FROM.get(message["role"], message["role"]), "value": lay_out(" ".join(words))})
    return turns, images, videos
