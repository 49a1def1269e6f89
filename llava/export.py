"""A run as a folder to share: `python -m llava.export DIR OUT`, or its language model alone with `--text-only`.

DIR is a finished run or a checkpoint. OUT is made. It holds all that transformers needs to open it where this package
is not installed: weights, the vision tower among them unless `--tower reference` leaves it out, tokenizer, processor,
code and, where DIR has one, the model card. With `--text-only` it is a plain model of transformers, which any of its
tools opens, with the same logits to the bit. What is in OUT is loaded again and compared before the command ends well.
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from llava.config.commands import check_new_folder, parse
from llava.constants import COORDINATE_PLACEHOLDERS
from llava.errors import UserError, run_command
from llava.model.builder import open_checkpoint
from llava.model.capabilities import max_positions
from llava.model.language_model.causal_lm import language_type
from llava.model.llava_arch import TOWER_STORAGE
from llava.model.lora import settings_of
from llava.model.permissions import follow_umask
from llava.model.vlm import VisionCausalLM
from llava.report.card import CARD, language_model_card

WORDS = 64
COORDINATE_STEP = 15
"""Of the coordinate tokens that a result is compared by, from one to the next."""
TIED = (
    "Its coordinate tokens mean nothing: they are read and written by tables of their own, and its head is tied to its "
    "embeddings, where one row cannot hold both; they are never generated"
)
PARTS = ("mm_projector.", "vision_resampler.", "vision_tower.", "coordinates.")
"""Beginnings of the names of weights that a plain language model has no place for."""
HUB_CLIENTS = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")
"""Packages whose errors say that an upload failed, and not that this program is wrong."""
ROUNDING = 1e-5
"""Difference, relative to the largest logit, of two matrix products of other sizes."""


@dataclass
class ExportFlags:
    """What is exported, and where to."""

    source: Path = field(metadata={"positional": True, "metavar": "DIR", "help": "A finished run or a checkpoint."})
    target: Path = field(metadata={"positional": True, "metavar": "OUT", "help": "The folder to make."})
    text_only: bool = field(default=False, metadata={"help": "The language model alone, as one of transformers."})
    tower: str = field(
        default="checkpoint",
        metadata={
            "help": "checkpoint puts the vision tower into OUT, reference leaves it where it is.",
            "choices": TOWER_STORAGE,
        },
    )
    vision_tower: str | None = field(default=None, metadata={"help": "Where the tower lies, if that has changed."})
    push: str | None = field(default=None, metadata={"help": "A repository of the Hugging Face hub to upload OUT to."})


def export(
    source: Path, target: Path, text_only: bool = False, tower: str = "checkpoint", vision_tower: str | None = None
) -> str:
    """Makes `target`; returns a sentence that says what it holds.

    Raises:
        FileNotFoundError: when `source` is not a checkpoint, or its tower cannot be found.
        FileExistsError: when there is something at `target`.
        ValueError: for a model that cannot be exported so, or when `target` gives other logits.
    """
    check_new_folder(target, "OUT")
    model_class, tokenizer = open_checkpoint(source, "DIR")
    model = model_class.from_pretrained(
        source, dtype=torch.float32, vision_tower=vision_tower, load_vision_tower=not text_only
    ).eval()
    if settings_of(model) is not None:
        raise UserError(
            f"{source}: has LoRA adapters, which only peft can open: merge them first with "
            f"python -m llava.commands.merge_lora {shlex.quote(str(source))} MERGED"
        )
    ids = torch.arange(WORDS).unsqueeze(0) % len(tokenizer)
    note = ""
    if text_only:
        folds = model.coordinates is not None and not is_tied(model)
        write_text_only(model, target)
        again: PreTrainedModel = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        held = f"a plain {type(again).__name__}"
        if folds:
            ids = torch.cat([ids, model.coordinates.token_ids[None, ::COORDINATE_STEP]], dim=1)
        elif model.coordinates is not None:
            note = f". {TIED}"
    else:
        if model.config.mm_hidden_size is not None:
            model.config.mm_vision_tower_storage = tower
        model.save_pretrained(target)
        again = type(model).from_pretrained(target, dtype=torch.float32).eval()
        vision = model.config.mm_hidden_size is not None
        held = f"a {type(model).__name__}" + (f" with its tower {'in it' if tower == 'checkpoint' else 'by reference'}"
                                             if vision else "")  # fmt: skip
    tokenizer.save_pretrained(target)
    if (source / CARD).is_file():
        card = (source / CARD).read_text(encoding="utf-8", errors="backslashreplace")
        (target / CARD).write_text(language_model_card(card) if text_only else card, encoding="utf-8")
    follow_umask(target)
    if not same_logits(again, model, ids[:, : max_positions(model)]):
        raise UserError(f"{target}: gives other logits than {source}: do not use it, and report this as a fault")
    return f"{target}: {held}; its logits are those of {source}, bit for bit{note}"


@torch.no_grad()
def same_logits(again: PreTrainedModel, model: VisionCausalLM, ids: torch.Tensor) -> bool:
    """Whether two models give the same logits for ids (1, L), bit for bit.

    A plain model computes those of coordinates in one product with all others, and has none where its head is tied.
    """
    found, expected = again(input_ids=ids).logits, model(input_ids=ids).logits
    if model.coordinates is None or isinstance(again, VisionCausalLM):
        return torch.equal(found, expected)
    words = torch.ones(expected.shape[-1], dtype=torch.bool)
    words[model.coordinates.token_ids] = False
    difference = float((found - expected).abs().max())
    close = is_tied(model) or difference <= ROUNDING * float(expected.abs().max())
    return close and torch.equal(found[..., words], expected[..., words])


def is_tied(model: PreTrainedModel) -> bool:
    """Whether words are read from the weights that they are written with."""
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def fold_coordinates(model: VisionCausalLM, plain: PreTrainedModel) -> None:
    """Writes the tables of coordinates into the embeddings and the head of a plain model, whose two they are.

    Raises:
        ValueError: for embeddings that change what they look up by more than a scale.
    """
    assert model.coordinates is not None
    ids, tables = model.coordinates.token_ids, model.coordinates().detach().flatten(1, 2)
    table, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    with torch.no_grad():
        table.weight[ids] = tables[0]
        scale = (table(ids) / tables[0]).nanmedian()
        table.weight[ids] = tables[0] / scale
        if not torch.allclose(table(ids), tables[0], rtol=1e-6):
            raise UserError(f"the embeddings of {type(plain).__name__} do more than look up: --text-only cannot keep "
                            "its coordinates: leave it out")  # fmt: skip
        head.weight[ids] = tables[1]
        if head.bias is not None:
            head.bias[ids] = 0.0


def write_text_only(model: VisionCausalLM, target: Path) -> None:
    """Writes the language model of a model as transformers' own class for it, its coordinates among its words where
    they have rows of their own for reading and for writing.
    """
    config_class = CONFIG_MAPPING[language_type(model.config.model_type)]
    mine = set(config_class().to_dict())
    values = {name: value for name, value in model.config.to_dict().items() if name in mine and name != "model_type"}
    config = config_class(**values)
    config.architectures = None
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    words = {name: value for name, value in model.state_dict().items() if not name.startswith(PARTS)}
    plain.load_state_dict(words)
    # Visual tokens are places for features, which `generate` of the model never writes either.
    generation = copy.deepcopy(model.generation_config)
    never = {*(generation.suppress_tokens or ()), *(model.config.visual_token_ids or {}).values()}
    if model.coordinates is not None and is_tied(model):
        never |= set(model.coordinates.ids.values())
    elif model.coordinates is not None:
        fold_coordinates(model, plain)
        never |= {model.coordinates.ids[name] for name in COORDINATE_PLACEHOLDERS}
    generation.suppress_tokens = sorted(never) or None
    generation.max_new_tokens = None  # Evaluators give max_length, which transformers' own classes would then not heed.
    plain.generation_config = generation
    plain.save_pretrained(target)


def push(folder: Path, repository: str) -> str:
    """Uploads a folder to the Hugging Face hub; returns its address.

    Raises:
        ValueError: where the hub cannot be reached or refuses it, with the command that uploads the folder later.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repository))
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(HUB_CLIENTS):
            raise
        raise UserError(
            f"{folder} is whole, and was not uploaded to {repository} ({first_line(error)}): look at the network, the "
            f"name and your login (hf auth login), then give hf upload {shlex.quote(repository)} "
            f"{shlex.quote(str(folder))}"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says first, or what it is."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    (flags,) = parse(__doc__, ExportFlags, argv=argv, prog="python -m llava.export")
    print(export(flags.source, flags.target, flags.text_only, flags.tower, flags.vision_tower))
    if flags.push:
        print(push(flags.target, flags.push))
    return 0


if __name__ == "__main__":
    run_command(main)
