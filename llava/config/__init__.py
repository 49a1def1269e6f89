"""Settings: what a video becomes (`video`), the flags of a run (`flags`) and what their numbers may be (`ranges`)."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """What earlier commits had here, which `training_args.bin` of their checkpoints names."""
    for room in ("video", "flags"):
        module = import_module(f"{__name__}.{room}")
        if not name.startswith("_") and hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
