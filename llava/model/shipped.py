"""What stands beside the weights of a checkpoint so that transformers opens it anywhere: code, and settings."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from llava.constants import ASIDE

ENTRY = "modeling_llava"
"""The file that `auto_map` names: one for all classes, since transformers makes a package of each."""
PROCESSOR = "VisionCausalLMProcessor"
PROCESSOR_FILE = "processor_config.json"
SETTINGS = ("video_spec", "mm_processor", "text_format")
"""Fields of a model's config that its processor has too."""


def give_code(model: Any) -> None:
    """Writes into a model's config where transformers finds its classes in the files of `write_code`."""
    own = f"{ENTRY}.{type(model).__name__}"
    model.config.auto_map = {
        "AutoConfig": f"{ENTRY}.{type(model.config).__name__}",
        "AutoModelForCausalLM": own,
        "AutoModelForImageTextToText": own,
        "AutoProcessor": f"{ENTRY}.{PROCESSOR}",
    }
    # A model that came with such code would have transformers copy a part of it.
    type(model)._auto_class = type(model.config)._auto_class = None


def write_code(folder: str | Path, model: Any) -> None:
    """Writes the code of a model, and the settings of its processor, beside its weights."""
    if __name__.startswith("llava."):
        files = importlib.import_module(f"{__package__}.remote_code").remote_code(type(model))
    else:  # This is such code.
        files = {path.name: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*llava*.py")}
    settings = {
        # Without `processor_class`, which transformers looks up by its name before it reads config.json.
        "auto_map": {"AutoProcessor": f"{ENTRY}.{PROCESSOR}"},
        **{name: getattr(model.config, name, None) for name in SETTINGS},
    }
    # A model of text alone has one too, since transformers takes the processor before the tokenizer where it can, and
    # it must begin a text as the model was trained.
    files = {**files, PROCESSOR_FILE: json.dumps(settings, indent=2, ensure_ascii=False) + "\n"}
    for name, text in files.items():
        (Path(folder) / name).write_text(text, encoding="utf-8")


def written_place(tower: str | None, folder: str | Path, storage: str) -> str | None:
    """Where a vision tower lies, as a checkpoint in `folder` says it: a hub name as it is, a folder of this machine by
    the way to it from there (`../../tower`), so that both can move together; of one that is in the weights, its name.
    """
    if tower is None or not Path(tower).is_absolute():
        return tower
    if storage == "checkpoint":
        return Path(tower).name
    # A checkpoint is written aside and moved to its place when it is whole.
    final = Path(*(part for part in Path(folder).resolve().parts if not part.startswith(ASIDE)))
    way = os.path.relpath(Path(tower).resolve(), final)
    return way if way.startswith("..") else os.path.join(".", way)


def found_place(tower: str | None, folder: str | Path | None) -> str | None:
    """The tower that a checkpoint in `folder` names by `written_place`, from anywhere."""
    if tower is None or folder is None or not tower.startswith("."):
        return tower
    return os.path.normpath(Path(folder).resolve() / tower)
