"""LLaVA-ST's packer and coordinates, for training here: `python -m llava.commands.convert_weights CHECKPOINT OUT`.

CHECKPOINT is a folder of LLaVA-ST's with .safetensors or .bin files, or one such file. OUT is made: a .safetensors with
the three packers for --mm_perceiver_pretrained and, where CHECKPOINT has them, the six tables of coordinates for
--mm_coordinates_pretrained. The flags that go with it are printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llava.config.commands import check_output, parse
from llava.config.ranges import RANGES
from llava.config.video import VideoSpec
from llava.constants import NUM_COORDINATES
from llava.errors import FileIsThere, MissingFile, UserError, run_command
from llava.model.adapter import COORDINATES, RESAMPLER, TABLE, coordinate_tables, differences, read_weights
from llava.model.coordinates import TABLES
from llava.model.multimodal_resampler.llava_st import from_llava_st
from llava.model.multimodal_resampler.stp import SpatialTemporalPacker

SUFFIXES = (".safetensors", ".bin")
PACKER = "token_packer"


def weight_files(source: Path) -> list[Path]:
    """The files of weights that `source` is, or has: those of the first of `SUFFIXES` that there are.

    Raises:
        FileNotFoundError: when there are none.
    """
    if source.is_file():
        return [source]
    for suffix in SUFFIXES:
        found = sorted(source.glob(f"*{suffix}"))
        if found:
            return found
    raise MissingFile(f"{source}: neither a file of weights nor a folder with any ({' or '.join(SUFFIXES)})")


def _is_taken(name: str) -> bool:
    return PACKER in name or TABLE.search(name) is not None


def taken_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file whose names belong to a packer or are tables; of a .safetensors no others are read.

    Raises:
        ValueError: when the file is neither of `SUFFIXES`, or damaged.
    """
    if path.suffix != SUFFIXES[0]:
        yield from ((name, value) for name, value in read_weights(str(path), "CHECKPOINT").items() if _is_taken(name))
        return
    try:
        with safe_open(path, "pt") as file:
            yield from ((name, file.get_tensor(name)) for name in sorted(file.keys()) if _is_taken(name))
    except SafetensorError as error:
        raise UserError(f"CHECKPOINT {path}: no file of weights ({error})") from error


@dataclass(frozen=True)
class Converted:
    """What a checkpoint of LLaVA-ST gives.

    Attributes:
        packers: weights by their names here.
        tables: of coordinates (100, `width`), by name; none of a checkpoint of stage 1.
        width, inner: of the language model and of the packers' attention.
    """

    packers: dict[str, torch.Tensor]
    tables: dict[str, torch.Tensor]
    width: int
    inner: int


def convert(source: Path, heads: int) -> Converted:
    """The packers' weights in `source` and its tables of coordinates.

    Raises:
        FileNotFoundError: when there are no weights at `source`.
        ValueError: naming every weight that is missing, unknown, of another shape or not finite, and one that is there
            twice with other values.
    """
    given: dict[str, torch.Tensor] = {}
    for path in weight_files(source):
        for name, value in taken_weights(path):
            if name in given and not torch.equal(given[name], value):
                raise UserError(f"{source}: two of its files have {name}, and they differ: name the file that is meant")
            given[name] = value
    found = from_llava_st(given)
    if "base.out.weight" not in found:
        raise UserError(
            f"{source}: no {PACKER}.devide_attention.to_out.weight, which a checkpoint of LLaVA-ST has: this is "
            "another kind of model, or its adapters alone"
        )
    width, inner = found["base.out.weight"].shape
    # Neither grids nor frames have weights.
    smallest = VideoSpec(num_frames=2, fast_latents=1, slow_latents=1)
    module = SpatialTemporalPacker(width, smallest, (1, 1), inner, heads)
    problems = differences("stp", found, module.state_dict())
    if problems:
        raise UserError(f"{source}: not LLaVA-ST's three packers: {'; '.join(problems[:12])}")
    tables = coordinate_tables(given)
    shaped = dict.fromkeys(TABLES, torch.empty(NUM_COORDINATES, width))
    if tables and (problems := differences("coordinates", tables, shaped)):
        raise UserError(f"{source}: not LLaVA-ST's six tables of coordinates: {'; '.join(problems)}")
    packers, tables = ({name: value.contiguous() for name, value in part.items()} for part in (found, tables))
    return Converted(packers, tables, width, inner)


@dataclass
class ConvertFlags:
    """What is converted, and into what."""

    ranges = {"heads": RANGES["mm_perceiver_heads"]}

    source: Path = field(
        metadata={"positional": True, "metavar": "CHECKPOINT", "help": "A folder of LLaVA-ST's, or a file of weights."}
    )
    target: Path = field(metadata={"positional": True, "metavar": "OUT", "help": "The .safetensors to make."})
    heads: int = field(default=8, metadata={"help": "Heads of the packers' attention, which no weight tells."})


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    (flags,) = parse(__doc__, ConvertFlags, argv=argv, prog="python -m llava.commands.convert_weights")
    if flags.target.suffix != SUFFIXES[0]:
        raise UserError(f"OUT {flags.target}: expected a name that ends in {SUFFIXES[0]}")
    if flags.target.exists():
        raise FileIsThere(f"{flags.target}: is there already; OUT is a file that this command makes")
    check_output("OUT", flags.target)
    made = convert(flags.source, flags.heads)
    weights = {f"vision_resampler.{name}": value for name, value in made.packers.items()}
    save_file(weights | {f"coordinates.{name}": value for name, value in made.tables.items()}, flags.target)
    found = f"and {len(made.tables)} tables of coordinates" if made.tables else "and no tables of coordinates"
    said = f"--mm_resampler_type stp --mm_perceiver_width {made.inner} --mm_perceiver_heads {flags.heads}"
    more = f" --mm_coordinates True {COORDINATES} {flags.target}" if made.tables else ""
    print(
        f"{flags.target}: {len(weights)} weights of the three packers, {found}, for a language model of width "
        f"{made.width}:\n{said} {RESAMPLER} {flags.target}{more}"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
