"""Makes a fresh GPT-2 or other language model with a BPE tokenizer trained on captions, and, when asked, a DINOv2.

    llava-make-model --data_path train.json --output_dir models/gpt2-it
    llava-make-model --make_vision_tower models/dinov2-demo --vision_hidden_size 192 --image_size 126

The model is a plain causal language model of transformers (`--model_type`, GPT-2 by default) with tied embeddings; the
visual tokens are registered later, by training. The same settings and captions give the same tokenizer (byte-level),
and the same seed the same weights. Each folder holds a `make_model.json` with the settings that it was made with;
`--exist_ok` reuses a folder whose settings are equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llava.commands.config_overrides import override_problems, refused_overrides
from llava.config.commands import parse, refuse
from llava.config.groups import DEFAULT_SEED
from llava.config.overrides import read_overrides
from llava.config.ranges import COUNT, SEED, Range
from llava.config.video import ProcessorSpec
from llava.data.captions import without_placeholders
from llava.data.prompt import join_turns, reserved_tokens
from llava.data.records import apply_policy, load_records
from llava.data.variables import without_coordinates
from llava.errors import UserError, run_command
from llava.foreign import check_sizes
from llava.model.language_model.causal_lm import plain_config_class
from llava.model.permissions import follow_umask

PROG = "llava-make-model"
EOS, PAD = "<|endoftext|>", "<pad>"
PATCH_SIZE = 14


def read_captions(paths: Sequence[str | Path], on_bad_sample: str = "stop", seed: int = DEFAULT_SEED) -> list[str]:
    """The text of every record of LLaVA JSON or JSONL files, or mixtures: all turns, without placeholders.

    Args:
        seed: of what a mixture takes at random.

    Raises:
        DatasetError: as `apply_policy`, for bad records, and for files that cannot be read.
    """
    captions = []
    for path in paths:
        # No file is opened here, so that none can lie in a wrong place.
        reserved = (*reserved_tokens(None), PAD)
        records, problems = load_records(path, reserved=reserved, allow_absolute_paths=True, seed=seed)
        for record in apply_policy(records, problems, on_bad_sample):
            text = without_placeholders(join_turns(record.conversations), " ")
            text = without_coordinates(text)  # They are tokens of their own, whatever the vocabulary.
            captions.append(" ".join(text.split()))
    return captions


def train_tokenizer(
    captions: Sequence[str], vocab_size: int, model_max_length: int, min_frequency: int = 2
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with at most `vocab_size` entries, `<|endoftext|>` and a `<pad>` of its own.

    A space is put before the text, so that a caption has the same tokens at the start of a sequence as after a video;
    decoding brings that space back at the front. Text is composed first (NFC): an accent typed in two ways is one.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(captions, trainer, length=len(captions))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws random numbers on the CPU from `seed` alone, and leaves the generators outside as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def gpt2_settings(
    n_layer: int, n_embd: int, n_head: int, n_positions: int = 1024, dropout: float = 0.0
) -> dict[str, Any]:
    """What makes a GPT-2's config one of ours, apart from its vocabulary."""
    return {
        "n_layer": n_layer,
        "n_embd": n_embd,
        "n_head": n_head,
        "n_positions": n_positions,
        # The same function as GPT-2's gelu_new, as one kernel instead of eight.
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
    }


def make_language_network(tokenizer: PreTrainedTokenizerFast, args: LanguageFlags) -> PreTrainedModel:
    """A fresh GPT-2, or another architecture of the same width, depth, heads and positions, with an MLP of four widths.

    Raises:
        SystemExit: for a type that has no plain causal language model.
    """
    if args.model_type == "gpt2":
        return make_gpt2(tokenizer, args)
    try:
        config_class = plain_config_class(args.model_type)
    except ValueError as error:
        raise SystemExit(f"--model_type: {error}") from error
    names = config_class.attribute_map
    wanted = {
        "hidden_size": args.n_embd,
        "num_hidden_layers": args.n_layer,
        "num_attention_heads": args.n_head,
        "num_key_value_heads": args.n_head,
        "head_dim": args.n_embd // args.n_head,
        "max_position_embeddings": args.n_positions,
        **dict.fromkeys(("intermediate_size", "ffn_dim"), 4 * args.n_embd),
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    known = {f.name for f in fields(config_class)}
    wanted |= dict.fromkeys((name for name in known if name.endswith(("dropout", "pdrop"))), args.dropout)
    wanted = {names.get(k, k): v for k, v in wanted.items() if k in known | set(names)}
    with refused_overrides(args.overrides, args.model_type):
        config = config_class(**wanted | {names.get(k, k): v for k, v in args.overrides.items()})
    check_sizes(config.to_dict(), str(args.output_dir))
    with seeded(args.seed), refused_overrides(args.overrides, args.model_type):
        return AutoModelForCausalLM.from_config(config)


def make_gpt2(tokenizer: PreTrainedTokenizerFast, args: LanguageFlags) -> GPT2LMHeadModel:
    settings = gpt2_settings(args.n_layer, args.n_embd, args.n_head, args.n_positions, args.dropout) | args.overrides
    check_sizes(settings | {"vocab_size": len(tokenizer)}, str(args.output_dir))
    with refused_overrides(args.overrides, args.model_type):
        config = GPT2Config(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **{"tie_word_embeddings": True} | settings,
        )
    with seeded(args.seed), refused_overrides(args.overrides, args.model_type):
        return GPT2LMHeadModel(config)


def make_dinov2(args: TowerFlags) -> Dinov2Model:
    settings = {
        "hidden_size": args.vision_hidden_size,
        "num_hidden_layers": args.vision_layers,
        "num_attention_heads": args.vision_heads,
        "image_size": args.image_size,
        "patch_size": PATCH_SIZE,
    }
    check_sizes(settings, str(args.make_vision_tower))
    config = Dinov2Config(**settings)
    with seeded(args.vision_seed):
        return Dinov2Model(config)


def processor_values(image_size: int) -> dict[str, Any]:
    """The image processor file of DINOv2 checkpoints, for frames of `image_size` pixels.

    Written as a file and not by a processor object: the class of this name needs torchvision in some versions of
    transformers, and loading falls back to another one.
    """
    spec = ProcessorSpec(image_size=image_size)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": spec.resample,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": spec.rescale_factor,
        "do_normalize": True,
        "image_mean": list(spec.image_mean),
        "image_std": list(spec.image_std),
    }


def check_reusable(folder: Path, settings: dict[str, Any], exist_ok: bool) -> None:
    """Refuses a folder that is in use, unless `exist_ok` and it was made with equal settings.

    Raises:
        SystemExit: saying what stands there and what to do.
    """
    path = folder / "make_model.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if found is None:
        raise SystemExit(f"{folder} exists and was not made by this command: choose another folder")
    if found != settings:
        other = [
            f"{k} {found.get(k)!r}, asked for {settings.get(k)!r}"
            for k in settings | found if found.get(k) != settings.get(k)
        ]  # fmt: skip
        raise SystemExit(
            f"{folder} was made with other settings ({'; '.join(other)}): choose another folder or delete it"
        )
    if not exist_ok:
        raise SystemExit(f"{folder} exists, made with these settings: --exist_ok reuses it")


def make_folder(folder: Path, settings: dict[str, Any], exist_ok: bool, fill: Callable[[Path], None]) -> bool:
    """Fills `folder`, which appears whole or not at all; returns False when it is reused, see `check_reusable`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        check_reusable(folder, settings, exist_ok)
        return False
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise SystemExit(f"{folder}: cannot be made ({error.strerror}): choose another folder") from error
    try:
        fill(temporary)
        follow_umask(temporary)
        (temporary / "make_model.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder)
    except OSError:
        # Another job may have made the same folder meanwhile.
        if not (folder / "make_model.json").is_file():
            raise
        check_reusable(folder, settings, exist_ok)
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


@dataclass
class LanguageFlags:
    """The language model; the defaults are GPT-2 small."""

    _argument_group_name = "language model (defaults: GPT-2 small)"
    ranges = {
        # Bytes, and two special tokens.
        "vocab_size": Range(len(pre_tokenizers.ByteLevel.alphabet()) + 2, whole=True),
        **dict.fromkeys(("min_frequency", "n_layer", "n_embd", "n_head", "n_positions"), COUNT),
        "dropout": Range(0, 1, below=True),
    }

    data_path: list[str] | None = field(
        default=None, metadata={"help": "LLaVA JSON or JSONL files with the captions, or mixtures."}
    )
    output_dir: Path | None = field(default=None, metadata={"help": "Folder for tokenizer and language model."})
    on_bad_sample: str = field(
        default="stop", metadata={"help": "stop, or skip: leave bad records out.", "choices": ("stop", "skip")}
    )
    vocab_size: int = field(default=30000, metadata={"help": "Entries of the tokenizer at most."})
    min_frequency: int = field(default=2, metadata={"help": "How often a pair must occur to be merged."})
    n_layer: int = field(default=12, metadata={"help": "Layers."})
    n_embd: int = field(default=768, metadata={"help": "Width."})
    n_head: int = field(default=12, metadata={"help": "Attention heads."})
    n_positions: int = field(default=1024, metadata={"help": "Longest sequence."})
    model_type: str = field(default="gpt2", metadata={"help": "Architecture: gpt2, llama, qwen3, gemma3_text, ..."})
    config_overrides: str | None = field(default=None, metadata={"help": "Other settings of its config, as JSON."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout of all kinds."})
    seed: int = field(default=0, metadata={"help": "Of the weights, and of what a mixture takes at random."})
    exist_ok: bool = field(default=False, metadata={"help": "Reuse folders that were made with equal settings."})
    overrides: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.overrides = read_overrides(self.config_overrides, "--config_overrides")
        problems = override_problems(self.overrides, self.model_type) if self.overrides else []
        if problems:
            raise UserError("\n  - ".join(problems))
        if bool(self.output_dir) != bool(self.data_path):
            raise UserError("--output_dir and --data_path go together")
        if self.n_embd % self.n_head:
            raise UserError(f"--n_embd {self.n_embd} must be a multiple of --n_head {self.n_head}")


@dataclass
class TowerFlags:
    """A vision tower with random weights."""

    _argument_group_name = "vision tower (random weights: for the demo and for tests)"
    ranges = {**dict.fromkeys(("vision_hidden_size", "vision_layers", "vision_heads"), COUNT), "vision_seed": SEED}

    make_vision_tower: Path | None = field(default=None, metadata={"help": "Folder for a random DINOv2."})
    vision_hidden_size: int = field(default=192, metadata={"help": "Width."})
    vision_layers: int = field(default=1, metadata={"help": "Layers."})
    vision_heads: int = field(default=3, metadata={"help": "Attention heads."})
    vision_seed: int = field(default=0, metadata={"help": "Of its weights."})
    image_size: int = field(default=126, metadata={"help": f"Pixels, of patches of {PATCH_SIZE}."})

    def __post_init__(self) -> None:
        if self.vision_hidden_size % self.vision_heads:
            raise UserError(
                f"--vision_hidden_size {self.vision_hidden_size} must be a multiple of --vision_heads "
                f"{self.vision_heads}"
            )
        if self.image_size < 1 or self.image_size % PATCH_SIZE:
            raise UserError(f"--image_size must be a multiple of {PATCH_SIZE}, got {self.image_size}")


def make_language_model(args: LanguageFlags) -> str:
    """Makes or reuses the GPT-2 folder; returns what to print."""
    captions = read_captions(args.data_path, args.on_bad_sample, args.seed)
    names = ("vocab_size", "min_frequency", "n_layer", "n_embd", "n_head", "n_positions", "dropout", "seed")
    settings = {name: getattr(args, name) for name in names}
    if args.model_type != "gpt2":  # Folders of GPT-2 that were made before there were others stay reusable.
        settings["model_type"] = args.model_type
    if args.overrides:
        settings["config_overrides"] = args.overrides
    settings["captions_sha256"] = hashlib.sha256("\n".join(captions).encode()).hexdigest()

    def fill(folder: Path) -> None:
        tokenizer = train_tokenizer(captions, args.vocab_size, args.n_positions, args.min_frequency)
        tokenizer.save_pretrained(folder)
        make_language_network(tokenizer, args).save_pretrained(folder)

    made = make_folder(args.output_dir, settings, args.exist_ok, fill)
    entries = json.loads((args.output_dir / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    size = f"{args.n_layer} layers x {args.n_embd}, {entries:,} tokens, {args.n_positions} positions"
    short = f"\n  {len(captions):,} captions have pairs for no more than {entries:,} of {args.vocab_size:,} entries"
    name = "GPT-2" if args.model_type == "gpt2" else args.model_type
    return _line(name, args.output_dir, made, size) + (short if entries < args.vocab_size else "")


def make_vision_tower(args: TowerFlags, exist_ok: bool) -> str:
    """Makes or reuses the DINOv2 folder; returns what to print."""
    names = ("vision_hidden_size", "vision_layers", "vision_heads", "image_size", "vision_seed")

    def fill(folder: Path) -> None:
        make_dinov2(args).save_pretrained(folder)
        processor = json.dumps(processor_values(args.image_size), indent=1)
        (folder / "preprocessor_config.json").write_text(processor + "\n", encoding="utf-8")

    settings = {name: getattr(args, name) for name in names}
    made = make_folder(args.make_vision_tower, settings, exist_ok, fill)
    size = f"{args.vision_layers} layers x {args.vision_hidden_size}, {args.image_size} px, random"
    return _line("DINOv2", args.make_vision_tower, made, size)


def _line(name: str, folder: Path, made: bool, size: str) -> str:
    # Every tensor is a parameter: GPT-2's tied head is stored once, as the input embedding.
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        parameters = sum(torch.Size(file.get_slice(key).get_shape()).numel() for key in file.keys())  # noqa: SIM118
    return f"{name:7} {parameters / 1e6:7.2f} M parameters  {size}  {'made in' if made else 'reused:'} {folder}"


def main(argv: Sequence[str] | None = None) -> int:
    language, tower = parse(__doc__, LanguageFlags, TowerFlags, argv=argv, prog=PROG)
    if not (language.output_dir or tower.make_vision_tower):
        refuse("nothing to make: give --output_dir, --make_vision_tower or both", PROG)
    if language.output_dir:
        print(make_language_model(language))
    if tower.make_vision_tower:
        print(make_vision_tower(tower, language.exist_ok))
    return 0


if __name__ == "__main__":
    run_command(main)
