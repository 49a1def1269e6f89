"""Weights of parts from a file of their own, by LLaVA's flags: `--pretrain_mm_mlp_adapter` for the projector, or both,
and `--mm_perceiver_pretrained` for the resampler alone; and by `--mm_coordinates_pretrained` tables of coordinates.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llava.errors import UserError
from llava.model.coordinates import TABLES
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.multimodal_resampler.llava_st import from_llava_st

PARTS = {"mm_projector": "projector", "vision_resampler": "resampler"}
ADAPTER, RESAMPLER = "--pretrain_mm_mlp_adapter", "--mm_perceiver_pretrained"
COORDINATES = "--mm_coordinates_pretrained"
TABLE = re.compile(rf"(?:^|\.)({'|'.join(TABLES)})(?:\.weight)?$")
"""A table of coordinates: a parameter here, and the weight of an Embedding or a Linear without bias in LLaVA-ST."""
MOST_PROBLEMS = 12


def file_problems(files: Mapping[str, str | None], vision: bool) -> list[str]:
    """What is wrong with files of weights before they are opened.

    Args:
        files: by the flag that names each.
        vision: whether the model gets a vision tower.
    """
    given = {flag: path for flag, path in files.items() if path}
    problems = [f"{flag} {path}: no such file" for flag, path in given.items() if not Path(path).is_file()]
    if not vision:
        problems += [f"{flag} has weights of vision modules, but there is no --vision_tower" for flag in given]
    return problems


def load_adapter(model: LlavaMetaForCausalLM, path: str) -> str:
    """Copies the weights of a file into the projector of `model` and, where the file has any, into its resampler.

    Names may have anything in front of `mm_projector.` or `vision_resampler.`, as LLaVA's and checkpoints have; other
    weights of the file are left alone. Returns a line that says what was loaded.

    Raises:
        ValueError: naming the file and every weight that is missing, superfluous, of another shape or not finite.
    """
    weights = read_weights(path, ADAPTER)
    problems, found = [], {}
    for part in PARTS:
        own = getattr(model, part).state_dict()
        found[part] = {n.partition(f"{part}.")[2]: value for n, value in weights.items() if f"{part}." in n}
        if found[part] or (part == "mm_projector" and own):
            problems += differences(part, found[part], own)
    if not any(found.values()):
        problems = [f"no weight of mm_projector or vision_resampler, only {', '.join(list(weights)[:3]) or 'nothing'}"]
    if problems:
        raise UserError(
            f"{ADAPTER} {path} does not fit this model: {_listed(problems)}. It must come "
            "from a model with the same tower width, model width, --mm_projector_type, --mm_resampler_type, "
            "--num_frames and --mm_perceiver_* (LLaVA's own mlp projectors have no LayerNorm in front)"
        )
    for part, values in found.items():
        if values:
            getattr(model, part).load_state_dict(values)
    said = [
        f"{len(found[part])} weights of the {name}" if found[part] else f"none of the {name}, which starts fresh"
        for part, name in PARTS.items()
    ]
    return f"loaded from {path}: {', '.join(said)}"


def load_resampler(model: LlavaMetaForCausalLM, path: str) -> str:
    """Copies the weights of a file into the resampler of `model`, and returns a line that says so.

    Names are those here, with `vision_resampler.` and anything in front of it or without, or LLaVA-ST's
    (`token_packer.devide_attention...`); other weights of the file are left alone.

    Raises:
        ValueError: naming the file and every weight that is missing, superfluous, of another shape or not finite.
    """
    weights, own = read_weights(path, RESAMPLER), model.vision_resampler.state_dict()
    part = "vision_resampler"
    named = {n.partition(f"{part}.")[2]: value for n, value in weights.items() if f"{part}." in n}
    found = from_llava_st(weights) or named or weights
    problems = differences(part, found, own)
    if problems:
        raise UserError(
            f"{RESAMPLER} {path} does not fit this model: {_listed(problems)}. It must come from a resampler of the "
            "same model width, --mm_resampler_type and --mm_perceiver_* (LLaVA-ST's fast_slow_resampler is stp here, "
            "with --mm_perceiver_width 1024 --mm_perceiver_heads 8 as published)"
        )
    model.vision_resampler.load_state_dict(found)
    return f"loaded from {path}: {len(found)} weights of the resampler"


def coordinate_tables(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tables of coordinates (100, D) among weights, by their names here, which are LLaVA-ST's; names may have
    anything in front.

    Raises:
        ValueError: for two weights of one table that differ.
    """
    found: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if match := TABLE.search(name):
            if match[1] in found and not torch.equal(found[match[1]], value):
                raise UserError(f"{name} and another weight are two of one table, and differ: which one is meant?")
            found[match[1]] = value
    return found


def load_coordinates(model: LlavaMetaForCausalLM, path: str) -> str:
    """Copies the six tables of a file into the coordinates of `model`, and returns a line that says so.

    Names are those here or LLaVA-ST's, with anything in front; other weights of the file are left alone.

    Raises:
        ValueError: naming the file and every table that is missing, of another shape or not finite.
    """
    assert model.coordinates is not None
    found = coordinate_tables(read_weights(path, COORDINATES))
    if problems := differences("coordinates", found, model.coordinates.state_dict()):
        raise UserError(
            f"{COORDINATES} {path} does not fit this model: {_listed(problems)}. It must come from a model of the same "
            "width that was trained with coordinates"
        )
    model.coordinates.load_state_dict(found)
    return f"loaded from {path}: {len(found)} tables of coordinates"


def read_weights(path: str, flag: str = ADAPTER) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` or of a pickle, which is read without running code.

    Args:
        flag: that names the file, for the messages.

    Raises:
        ValueError: when the file is neither, or holds something else.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # torch advises to run what the file holds.
            reason = "torch reads nothing in it, or more than weights; name a .safetensors, or a .bin of weights"
        raise UserError(f"{flag} {path}: no file of weights alone ({reason:.200})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{flag} {path}: expected names and tensors, as torch.save(state_dict) has")
    return weights


def _listed(problems: list[str]) -> str:
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return f"{'; '.join(problems[:MOST_PROBLEMS])}{more}"


def differences(part: str, found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """Every way in which the weights `found` for a part are not those that it has."""
    differences = [f"{part}.{name} is missing" for name in own if name not in found]
    differences += [f"{part}.{name} is not one of the model's" for name in found if name not in own]
    for name in own:
        if name in found and found[name].shape != own[name].shape:
            shapes = f"{tuple(found[name].shape)}, expected {tuple(own[name].shape)}"
            differences.append(f"{part}.{name} has shape {shapes}")
        elif name in found and not torch.isfinite(found[name]).all():
            differences.append(f"{part}.{name} has values that are not finite")
    return differences
