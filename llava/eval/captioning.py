"""Captions for clips: from Python, and scored against references with `python -m llava.eval.captioning`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from llava.config.commands import check_output, parse
from llava.config.groups import EvaluationFlags, ManyDataFlags
from llava.config.ranges import AMOUNT, COUNT, Range
from llava.constants import COORDINATE_PLACEHOLDERS, DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN, PLACEHOLDERS, RUN_RECORD
from llava.data.chat_formats import PLAIN, reserved
from llava.data.convert.clips import is_image_name
from llava.data.coordinates import NO_COORDINATE, CoordinateTokens
from llava.data.features.extract import FeatureCache, open_cache
from llava.data.prompt import Spans, Turns, pad_token_id, reserved_tokens
from llava.data.records import Record
from llava.data.text_format import recorded_format
from llava.data.variables import coordinate_word
from llava.data.video import frames_to_pixels, read_frames, read_image
from llava.errors import UserError, run_command, show
from llava.eval.attributes import load_lexicon
from llava.eval.caption_scores import INSTALL, METRICS, choose_metrics
from llava.eval.controls import other_samples
from llava.eval.coordinate_choice import MEDIAN, chooser
from llava.eval.data import device_of, read_for_evaluation, share_label, trained_share
from llava.eval.references import answer_of, clip_of, is_captioned_clip, longest_reference, prompt_of, reference_of
from llava.eval.result_files import step_of
from llava.eval.retrieval import MOST_CLIPS, AnswerLosses, choose_clips, format_retrieval, retrieval_scores
from llava.eval.score_table import ScoreTable
from llava.model.builder import load_pretrained_model
from llava.model.capabilities import max_positions
from llava.model.vlm import VisionCausalLM
from llava.progress import progress

MARGIN_TOKENS = 32
"""How much longer than the longest reference a caption may become, unless a flag says otherwise."""


TEXTS = ("caption", "reference")


class Caption(NamedTuple):
    """A written text; `ended` is False when it was cut at `max_new_tokens` or at the model's last position.

    `tokens` were generated for it, its end included.
    """

    text: str
    ended: bool
    tokens: int


class Captioner:
    """Writes captions for videos and images with a trained model, in the format that it was trained with.

    Args:
        tokenizer, model: from `llava.model.builder.load_pretrained_model`.
        coordinate_choice: which coordinate a model with coordinates writes, of `llava.eval.coordinate_choice.CHOICES`.

    Raises:
        ValueError: when the tokenizer's chat template is not the one of training.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, model: VisionCausalLM, coordinate_choice: str = MEDIAN
    ) -> None:
        self.tokenizer, self.model, self.spec = tokenizer, model, model.video_spec
        self.text_format = recorded_format(model.config, tokenizer)
        self.spans = Spans.of(tokenizer, self.spec)
        has_coordinates = getattr(model.config, "mm_coordinates", False)
        self.coordinates = CoordinateTokens.of(tokenizer) if has_coordinates else None
        self.coordinate_choice = coordinate_choice

    @classmethod
    def from_pretrained(
        cls, model_path: str | Path, device: str | torch.device | None = None, vision_tower: str | None = None
    ) -> Captioner:
        """Loads a finished run or a checkpoint; `vision_tower` says where its tower lies, if that has changed.

        Raises:
            FileNotFoundError, ValueError: from `load_pretrained_model`; ValueError for a text-only model.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(*load_pretrained_model(model_path, device, vision_tower))

    def __call__(self, videos: Sequence[str | Path], prompt: str = "", **generation: Any) -> list[str]:
        """One caption for each file; greedy unless `generation` (transformers' generate arguments) says otherwise.

        Raises:
            VideoError: naming a file that cannot be read.
            ValueError: for a prompt that `check_prompt` refuses.
        """
        return [self.caption(path, prompt, **generation).text for path in videos]

    def caption(self, path: str | Path, prompt: str = "", **generation: Any) -> Caption:
        """The caption of one file, and whether it came to its end; raises as above."""
        check_prompt(prompt, self.tokenizer, self.text_format.version)
        return self.caption_pixels(self.read_pixels(path), prompt, is_image=is_image_name(path), **generation)

    def read_pixels(self, path: str | Path, split: tuple[int, int] | None = None) -> torch.Tensor:
        """What the tower is given of a file or its segment: the chosen frames, (T, 3, S, S), of an image the one;
        raises VideoError."""
        frames = read_image(path) if is_image_name(path) else read_frames(path, self.spec, split)
        return frames_to_pixels(frames, self.model.processor_spec, self.spec.image_aspect_ratio)

    def caption_pixels(
        self, pixels: torch.Tensor, prompt: str = "", is_image: bool = False, **generation: Any
    ) -> Caption:
        """The caption of frames (T, 3, S, S), or of an image, whose T is 1; the prompt is not looked at."""
        token = DEFAULT_IMAGE_TOKEN if is_image else DEFAULT_VIDEO_TOKEN
        question = [{"from": "human", "value": f"{token} {prompt}".strip()}]
        vision = {"pixel_values": pixels} if is_image else {"pixel_values_videos": pixels[None]}
        return self.answer([question], generation, **vision)[0]

    def answer(
        self,
        conversations: Sequence[Turns],
        generation: Mapping[str, Any] | None = None,
        numbers: Sequence[Sequence[float]] | None = None,
        **vision: torch.Tensor,
    ) -> list[Caption]:
        """What the model says after each conversation; `numbers`, `vision` and what is raised as in `generate`."""
        prompts = [self.spans.expand(self.text_format.prompt(c)) for c in conversations]
        ids = None if self.coordinates is None else self.coordinates.ids
        options = {"logits_processor": chooser(self.coordinate_choice, ids)} if ids else {}
        return generate(
            self.model, self.tokenizer, prompts, options | dict(generation or {}), self.text_format.end_ids, numbers,
            **vision,
        )  # fmt: skip


def check_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase, version: str = PLAIN) -> None:
    """Refuses a prompt that is not words alone.

    Raises:
        ValueError: naming the placeholders, visual tokens and special tokens in it, and coordinates for a model that
            has none.
    """
    refused = dict.fromkeys((*PLACEHOLDERS, *COORDINATE_PLACEHOLDERS, *reserved_tokens(tokenizer), *reserved(version)))
    found = [token for token in refused if token in prompt]
    numbers = set(found).intersection(COORDINATE_PLACEHOLDERS)
    if found:
        raise UserError(
            f"the prompt {prompt!r:.80} contains {', '.join(found)}; give words alone: the video is put before them"
            f"{', and a number is written as one of <TEMP-000> to <TEMP-099> and so on' if numbers else ''}"
        )
    if (word := coordinate_word(prompt)) and COORDINATE_PLACEHOLDERS[0] not in tokenizer.get_added_vocab():
        raise UserError(
            f"the prompt {prompt!r:.80} contains {word}, which is a word of models trained with --mm_coordinates True "
            "alone; this one would read its letters"
        )


@torch.no_grad()
def generate(
    model: VisionCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    generation: Mapping[str, Any] | None = None,
    end_ids: Sequence[int] = (),
    numbers: Sequence[Sequence[float]] | None = None,
    **vision: torch.Tensor,
) -> list[Caption]:
    """Continues expanded prompts, padded on the left; `vision` holds `forward`'s vision tensors.

    A prompt is a text, or its ids. A caption ends at any of `end_ids`, at EOS without them. At most 64 new
    tokens unless `generation` says otherwise, and no more than the model has positions for.

    Args:
        numbers: of each prompt those at its coordinate placeholders, from 0 to 1 in reading order; more may follow.

    Raises:
        ValueError: for a prompt that leaves no position free, for generation options that do not go together, and for
            a placeholder without a number.
    """
    ids = [tokenizer(p, add_special_tokens=False)["input_ids"] if isinstance(p, str) else list(p) for p in prompts]
    ends = list(end_ids) or [tokenizer.eos_token_id]
    longest = max(map(len, ids))
    pad = pad_token_id(tokenizer)
    input_ids = torch.tensor([[pad] * (longest - len(i)) + i for i in ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in ids], device=model.device)
    room = max_positions(model) - longest
    if room < 1:
        raise UserError(
            f"video and prompt take {longest} positions and the model has {longest + room}: give a shorter prompt"
        )
    if numbers is not None:
        vision = vision | {"coordinates": _placed(CoordinateTokens.of(tokenizer), ids, numbers)}
    options = {"do_sample": False, "max_new_tokens": 64, **(generation or {})}
    options["max_new_tokens"] = min(options["max_new_tokens"], room)
    output = model.generate(
        input_ids,
        attention_mask=mask,
        eos_token_id=ends,
        pad_token_id=pad,
        **{k: v.to(model.device) for k, v in vision.items()},
        **options,
    )
    new = output[:, longest:]
    is_end = torch.isin(new, torch.tensor(ends, device=new.device)).int()
    # What follows the first end is padding.
    counts = (is_end.cumsum(dim=1) - is_end == 0).sum(dim=1).tolist()
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [
        Caption(text.strip(), bool(end), count)
        for text, end, count in zip(texts, is_end.any(dim=1).tolist(), counts, strict=True)
    ]


def _placed(
    tokens: CoordinateTokens, prompts: Sequence[Sequence[int]], numbers: Sequence[Sequence[float]]
) -> torch.Tensor:
    """(B, L) float32: the numbers of prompts at their placeholders, padded on the left as the prompts are."""
    placed = torch.full((len(prompts), max(map(len, prompts))), NO_COORDINATE)
    for row, (ids, values) in enumerate(zip(prompts, numbers, strict=True)):
        placed[row, placed.shape[1] - len(ids) :] = tokens.numbers(torch.tensor(ids, dtype=torch.long), values)
    return placed


def caption_records(
    captioner: Captioner,
    records: Sequence[Record],
    cache: FeatureCache,
    batch_size: int,
    control: str = "true",
    max_new_tokens: int = 64,
) -> list[Caption]:
    """A caption for each record, from its own video (`true`) or another record's (`other`); features from the cache.

    Raises:
        ValueError: for the control, when the records show a single video.
    """
    sources = _others(records) if control == "other" else list(range(len(records)))
    captions: list[Caption] = []
    for start in progress(range(0, len(records), batch_size), desc=f"captions, {control} video", unit="batch"):
        chunk = range(start, min(start + batch_size, len(records)))
        asked = [records[i].conversations[: answer_of(records[i])] for i in chunk]
        shown = [records[sources[i]] for i in chunk]
        features = torch.stack([cache.read(r.videos[0], r.split) for r in shown])
        options = {"max_new_tokens": max_new_tokens}
        captions += captioner.answer(asked, options, video_features=features)
    return captions


def _others(records: Sequence[Record]) -> list[int]:
    """For each record one of another clip; raises ValueError for a single clip."""
    others = [i for i in other_samples([clip_of(r) for r in records], [0] * len(records)) if i is not None]
    if len(others) < len(records):
        raise UserError("the control with another clip's video needs at least two different videos")
    return others


@dataclass
class CaptioningFlags:
    """The command's own flags."""

    ranges = {"batch_size": COUNT, "limit": COUNT, "max_new_tokens": COUNT, "examples": AMOUNT,
              "retrieval": Range(2, MOST_CLIPS, whole=True)}  # fmt: skip

    on_bad_sample: str = field(
        default="stop",
        metadata={"help": "stop, or skip: leave bad records out, counted and listed.", "choices": ("stop", "skip")},
    )
    attributes: str | None = field(
        default=None, metadata={"help": "Lexicon of attributes, to score meta.attributes of the records."}
    )
    control: bool = field(default=False, metadata={"help": "Also caption each record with another clip's video."})
    metrics: list[str] = field(
        default_factory=list,
        metadata={"help": f"Scores of free text: {', '.join(METRICS)}; by default all that can be computed here."},
    )
    retrieval: int | None = field(
        default=None,
        metadata={"help": f"Also rank the captions of so many clips (2 to {MOST_CLIPS}) after each of their videos."},
    )
    batch_size: int = field(default=64, metadata={"help": "Captions that go through the model together."})
    limit: int | None = field(default=None, metadata={"help": "Caption only the first so many records of each file."})
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": f"Longest caption in tokens; by default the longest reference and {MARGIN_TOKENS} more."},
    )
    examples: int = field(default=4, metadata={"help": "Captions to print from the last file."})
    output: Path | None = field(default=None, metadata={"help": "JSON file for all captions and scores."})

    def __post_init__(self) -> None:
        check_output("--output", self.output)
        choose_metrics(self.metrics)
        if self.attributes is not None and not Path(self.attributes).is_file():
            raise UserError(f"--attributes {self.attributes}: no such file")


def main(argv: Sequence[str] | None = None) -> int:
    """Captions every record of one or more files and prints their scores; with `--output` writes all as JSON."""
    trained, data, flags = parse(
        main.__doc__, EvaluationFlags, ManyDataFlags, CaptioningFlags, argv=argv,
        prog="python -m llava.eval.captioning",
    )  # fmt: skip
    captioner = Captioner.from_pretrained(trained.model_path, device_of(trained.device), trained.vision_tower)
    model = captioner.model
    cache = open_cache(trained.feature_cache, model)
    lexicon = load_lexicon(flags.attributes) if flags.attributes else None
    stems = [Path(path).stem for path in data.data_path]
    table = ScoreTable(choose_metrics(flags.metrics), lexicon)
    retrieval: dict[str, Any] = {}
    written: dict[str, Any] = {}
    for path in data.data_path:
        records = read_for_evaluation(
            path, captioner.tokenizer, model, cache, data.video_folder, data.image_folder, trained.num_workers,
            flags.limit, flags.on_bad_sample, data.allow_absolute_paths, data.seed,
        )  # fmt: skip
        captioned = [r for r in records if is_captioned_clip(r)]
        if len(captioned) < len(records):
            print(
                f"{show(path)}: {len(captioned)} of {len(records)} records have one video, an answer in words "
                "after it and nothing else to see"
            )
        if not captioned:
            print(f"{show(path)}: NOT SCORED, since captioning takes records with one video")
            continue
        name = Path(path).stem if stems.count(Path(path).stem) == 1 else path
        share = trained_share(trained.model_path, path, captioned)
        if math.isnan(share):
            print(
                f"{show(path)}: NOT KNOWN whether the model was trained on these clips, since no {RUN_RECORD} in "
                f"{show(trained.model_path)} says so"
            )
        else:
            name += share_label(share)
        limit = flags.max_new_tokens or longest_reference(captioned, captioner.tokenizer) + MARGIN_TOKENS
        losses = AnswerLosses(captioner, captioned, cache, flags.batch_size)
        surprise = losses.own()
        entries = [{"id": r.id, "video": r.videos[0], "split": r.split, "prompt": prompt_of(r)} for r in captioned]
        controls, several = ["true"], len({clip_of(r) for r in captioned}) > 1
        if flags.control and several:
            controls.append("other")
        elif flags.control:
            print(f"{show(path)}: NO CONTROL with another clip's video, since there is a single clip")
        for control in controls:
            captions = caption_records(captioner, captioned, cache, flags.batch_size, control, limit)
            cut = sum(not c.ended for c in captions)
            if cut:
                print(
                    f"{show(path)}, {control} video: {cut} of {len(captions)} captions were CUT before their end: at "
                    f"{limit} new tokens (--max_new_tokens), or at the model's last position"
                )
            texts = [c.text for c in captions]
            table.add(f"{name}, {control} video", texts, captioned)
            if several and not flags.control:
                table.add(f"{name}, other caption", [texts[i] for i in _others(captioned)], captioned)
            written[f"{name}, {control} video"] = [
                {**entry, "caption": text, "reference": reference_of(r)}
                for entry, text, r in zip(entries, texts, captioned, strict=True)
            ]
        for entry, nats in zip(written[f"{name}, true video"], surprise, strict=True):
            entry["nats_per_token"] = nats
        if flags.retrieval:
            chosen = choose_clips(captioned, flags.retrieval, data.seed)
            if len(chosen) > 1:
                retrieval[name] = retrieval_scores(losses.all_pairs(chosen))
            else:
                print(f"{show(path)}: NO RETRIEVAL, which needs two clips whose captions differ")
    if not table.rows:
        print("nothing to score, and no file is written")
        return 0
    print(show(f"\n{table}\n", keep="\n"))
    for name, scores in retrieval.items():
        print(show(format_retrieval(name, scores)) + "\n")
    if lexicon is None and not flags.metrics and table.metrics != list(METRICS):
        print(f"{', '.join(METRICS[1:])}: NOT MEASURED, since sacrebleu is not installed: {INSTALL}\n")
    last = next(reversed([name for name in written if name.endswith("true video")]))
    for example in written[last][:: max(1, len(written[last]) // max(flags.examples, 1))][: flags.examples]:
        name, wrote, reference = (show(t) for t in (Path(example["video"]).name, *map(example.get, TEXTS)))
        print(f"{name}\n  wrote:     {wrote}\n  reference: {reference}")
    if flags.output:
        scores = table.as_json() | ({"retrieval": retrieval} if retrieval else {})
        # The report shows them for the model of this step alone.
        whole = {"step": step_of(trained.model_path), **scores, "captions": written}
        text = json.dumps(whole, indent=1, ensure_ascii=False)
        # A name that is not UTF-8 is kept by JSON's own escape.
        flags.output.write_text(text, encoding="utf-8", errors="backslashreplace")
    return 0


if __name__ == "__main__":
    run_command(main)
