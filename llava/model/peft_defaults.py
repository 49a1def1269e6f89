"""What PEFT does with a model of ours when nobody says which layers: those that it has for the language model's type.

PEFT looks them up by a config's `model_type`, and a suffix such as `q_proj` would find layers of the tower too; its
`all-linear` takes every linear layer but the head. So its tables get our types, and its list leaves the tower out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import wraps
from typing import Any

TOWER = "vision_tower."
PARTS = (TOWER, "mm_projector.", "vision_resampler.")
"""Beginnings of the names of modules that are no part of the language model."""
TABLES = re.compile(r"TRANSFORMERS_MODELS_TO_\w+_MODULES_MAPPING")


def teach_peft(model_type: str, language_type: str) -> None:
    """Tells PEFT, where it is imported, about the class `model_type`, which has a language model of `language_type`.

    Called when PEFT asks a config what it is, which is before it looks for layers: imported here, PEFT would slow down
    every start. A later call changes nothing.
    """
    if "peft.utils.constants" not in sys.modules:
        return
    constants, tuners = sys.modules["peft.utils.constants"], sys.modules.get("peft.tuners.tuners_utils")
    for name, table in vars(constants).items():
        if TABLES.fullmatch(name) and language_type in table:
            table.setdefault(model_type, of_the_language_model(table[language_type]))
    listed = getattr(tuners, "_maybe_include_all_linear_layers", None)
    if listed is not None and not hasattr(listed, "leaves_towers"):
        tuners._maybe_include_all_linear_layers = _without_towers(listed)  # type: ignore[union-attr]


def of_the_language_model(modules: str | Iterable[str]) -> str:
    """PEFT's default layers of a language model, as ends of names or a pattern, as a pattern that the full name of such
    a layer matches and one of the vision modules does not.
    """
    pattern = modules if isinstance(modules, str) else "|".join(map(re.escape, modules))
    vision = "|".join(map(re.escape, PARTS))
    before = "" if isinstance(modules, str) else r"(?:.*\.)?"
    return rf"(?!{vision}){before}(?:{pattern})"


def _without_towers(listed: Any) -> Any:
    """PEFT's replacement of `all-linear` by names, without those of a tower of ours."""

    @wraps(listed)
    def named(peft_config: Any, model: Any) -> Any:
        before = getattr(peft_config, "target_modules", None)
        found = listed(peft_config, model)
        if isinstance(before, str) and not isinstance(found.target_modules, str) and hasattr(model, "vision_tower"):
            found.target_modules = {name for name in found.target_modules if not name.startswith(TOWER)}
        return found

    named.leaves_towers = True  # type: ignore[attr-defined]
    return named
