"""A run with LoRA as a plain checkpoint, which opens without peft: `python -m llava.commands.merge_lora DIR OUT`.

DIR is a finished run, or a checkpoint of one, that was trained with --lora_enable True. OUT is made: the weights with
the adapters added to them, the projector, the resampler, and the tokenizer. What is in OUT is loaded again, and must
give the logits of DIR, before the command ends well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llava.config.commands import check_new_folder, parse
from llava.errors import UserError, run_command
from llava.model.builder import open_checkpoint
from llava.model.capabilities import max_positions
from llava.model.lora import merge_adapters, settings_of

LIMIT = 1e-4
"""Largest difference of logits, relative to the largest, that adding in another order explains in a deep model."""
WORDS = 64


@torch.no_grad()
def merge(source: Path, target: Path) -> tuple[int, float]:
    """Writes the merged model; returns how many layers were merged, and the largest relative difference of logits.

    Raises:
        FileNotFoundError: when `source` is not a checkpoint.
        FileExistsError: when there is something at `target`.
        ValueError: for a model without adapters, or a result that gives other logits.
    """
    model_class, tokenizer = open_checkpoint(source, "DIR")
    check_new_folder(target, "OUT")
    model = model_class.from_pretrained(source, dtype=torch.float32, load_vision_tower=False).eval()
    if settings_of(model) is None:
        raise UserError(f"{source}: has no LoRA adapters (config.json): it opens as it is")
    ids = torch.arange(WORDS).unsqueeze(0) % min(len(tokenizer), model.get_input_embeddings().num_embeddings)
    ids = ids[:, : max_positions(model)]
    before = language_logits(model, ids)
    layers = merge_adapters(model)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    merged = model_class.from_pretrained(target, dtype=torch.float32, load_vision_tower=False).eval()
    difference = float((language_logits(merged, ids) - before).abs().max() / before.abs().max())
    if not difference <= LIMIT:
        raise UserError(
            f"{target}: its logits differ from those of {source} by {difference:.2g} of their size, expected at most "
            f"{LIMIT:g}: do not use it; are the weights of {source} finite?"
        )
    return layers, difference


def language_logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits (1, L, V) of words (1, L), without vision."""
    states = model.states(model.get_input_embeddings()(ids), use_cache=False)
    return model.logits_of(states, states.last_hidden_state)


@dataclass
class MergeFlags:
    """What is merged, and into what."""

    source: Path = field(
        metadata={"positional": True, "metavar": "DIR", "help": "A run, or a checkpoint of one, with LoRA adapters."}
    )
    target: Path = field(metadata={"positional": True, "metavar": "OUT", "help": "The folder to make."})


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    (flags,) = parse(__doc__, MergeFlags, argv=argv, prog="python -m llava.commands.merge_lora")
    layers, difference = merge(flags.source, flags.target)
    print(
        f"{flags.target}: {layers} adapters merged; its logits are those of {flags.source} "
        f"(difference {difference:.1g})"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
