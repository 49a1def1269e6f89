"""Recipes: the flags of a run as a YAML file, `--recipe FILE`.

    recipe: italian.yaml      # another one, beside this file, whose values hold where this one has none
    learning_rate: 2.0e-3     # any flag of the trainer; null takes a value of the other recipe back
    text_only_run:            # flags that differ in a run on text alone
      max_steps: 300
    launch:                   # what train_italian_video.sh needs besides, see LaunchSettings
      n_layer: 4

An argument beats the recipe, and the recipe beats the default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llava.config.known_flags import Known, given, is_on, known_flags, unknown
from llava.config.llava_st import FROZEN, TOWER, TUNED
from llava.errors import MissingFile, UserError

PACKAGED = Path(__file__).parents[1] / "recipes"
"""The recipes that come with the package."""
BASE, TEXT_ONLY_RUN, LAUNCH = "recipe", "text_only_run", "launch"
NOT_HERE = ("recipe", "local_rank")
VISION_FLAGS = frozenset({
    "vision_tower", "vision_precision", "feature_cache", "feature_dtype", "repair_features", "num_frames", "video_fps",
    "frames_upbound", "force_sample", "video_decoder", "clip_timeout", "video_folder",
    "image_folder", "pretrain_mm_mlp_adapter",
})  # fmt: skip
"""Besides all that begin with `mm_`: the flags that a run on text alone does without."""
OF_THE_TEXT = (
    "mm_coordinates", "mm_coordinates_lr", "mm_coordinates_reparameterized", "mm_coordinates_pretrained",
)  # fmt: skip
"""Of those that begin with `mm_`, the ones that it keeps."""
REPLACES = {
    "warmup_ratio": "warmup_steps",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "num_train_epochs": "max_steps",
    "bf16": "fp16",
    "fp16": "bf16",
    "use_plain_lm": "version",
    **dict.fromkeys((*TUNED, *FROZEN, TOWER), "mm_tunable_parts"),
}
"""Flags that say what another one says: given, they take the place of the other's value in a recipe too."""


@dataclass(frozen=True)
class Recipe:
    """The values of a recipe and of the one that it names, by flag.

    Attributes:
        files: this one, and the one that it names.
        launch: settings of the launch script, which the trainer does not read.
        text_only_run: flags of a run on text alone.
    """

    files: tuple[str, ...] = ()
    flags: dict[str, Any] = field(default_factory=dict)
    text_only_run: dict[str, Any] = field(default_factory=dict)
    launch: dict[str, Any] = field(default_factory=dict)

    def of_run(self, text_only: bool) -> dict[str, Any]:
        """The flags of a run on text alone, or on video and text."""
        if not text_only:
            return self.flags
        values = below(self.flags, self.text_only_run) | self.text_only_run
        return {k: v for k, v in values.items() if not is_vision(k)}


def is_vision(name: str) -> bool:
    """Whether a flag is about videos and images alone."""
    return (name.startswith("mm_") and name not in OF_THE_TEXT) or name in VISION_FLAGS


def find_recipe(name: str) -> str:
    """A recipe's path: as it is given, or where the package has it (`italian`, `italian.yaml`, `recipes/italian.yaml`).

    A name that is neither is returned as it is, for `load_recipe` to say so.
    """
    short = name.removeprefix("recipes/")
    if Path(name).is_file() or "/" in short:
        return name
    return next((str(PACKAGED / n) for n in (short, f"{short}.yaml") if (PACKAGED / n).is_file()), name)


def load_recipe(path: str | Path, known: Mapping[str, Known], launch: Mapping[str, Known] | None = None) -> Recipe:
    """Reads a recipe and the one that it names.

    Args:
        known: the flags, and their kinds.
        launch: the settings of the launch script; None leaves them unread.

    Raises:
        ValueError: with all that is wrong in the two files, each with its file and key.
        FileNotFoundError: naming the file, and who names it.
    """
    path = Path(path)
    own = _read(path, None)
    layers = [(path, own)]
    base = own.pop(BASE, None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: {BASE}: the name of one file is expected, not {base!r}")
        lower = path.parent / base
        values = _read(lower, path)
        further = values.pop(BASE, None)
        if lower.resolve() == path.resolve() or (
            isinstance(further, str) and (lower.parent / further).resolve() == path.resolve()
        ):
            raise UserError(f"{path}: {BASE}: {base} leads back to this file: leave the key out in one of them")
        if further is not None:
            raise UserError(
                f"{path}: {BASE}: {base} names a recipe itself ({further}): one level is allowed, so name {further} "
                f"here and write into this file what {base} says"
            )
        layers.insert(0, (lower, values))
    problems = [p for file, values in layers for p in _problems(file, values, known, launch)]
    if problems:
        raise UserError("wrong recipe:\n" + "\n".join(f"  - {p}" for p in problems))

    def merged(section: str | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _, values in layers:
            part = values.get(section) or {} if section else values
            part = {k: v for k, v in part.items() if section or k not in (TEXT_ONLY_RUN, LAUNCH)}
            found = below(found, part) | part
        return {k: v for k, v in found.items() if v is not None}

    files = tuple(str(file) for file, _ in reversed(layers))
    return Recipe(files, merged(None), merged(TEXT_ONLY_RUN), merged(LAUNCH))


def _read(path: Path, named_in: Path | None) -> dict[str, Any]:
    where = f"{named_in}: {BASE}: " if named_in else "--recipe "
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("[!.]*.yaml")) or ["none"]
        known = ", ".join(sorted(p.stem for p in PACKAGED.glob("*.yaml")))
        raise MissingFile(
            f"{where}{path}: no such file; recipes beside it: {', '.join(beside)}; those that come along: {known}"
        )
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: lines of the form `flag: value` are expected, not {type(values).__name__}")
    twice = _twice(node)
    if twice:
        raise UserError(f"{path}: {twice}: stands twice")
    return values


def _twice(node: Any) -> str | None:
    """A key that a mapping, or one inside it, has twice, of which YAML would take the last without a word."""
    if not isinstance(node, yaml.MappingNode):
        return None
    keys = [key.value for key, _ in node.value]
    found = next((k for k in keys if keys.count(k) > 1), None)
    return found or next((k for _, v in node.value if (k := _twice(v))), None)


def _problems(
    file: Path, values: Mapping[str, Any], known: Mapping[str, Known], launch: Mapping[str, Known] | None
) -> list[str]:
    problems = []
    sections = {"": (values, known), TEXT_ONLY_RUN: (values.get(TEXT_ONLY_RUN), known)}
    sections[LAUNCH] = (values.get(LAUNCH), launch if launch is not None else {})
    for section, (part, names) in sections.items():
        where = f"{file}: {section + '.' if section else ''}"
        if part is None or (section == LAUNCH and launch is None):
            continue
        if not isinstance(part, Mapping):
            problems.append(f"{file}: {section}: lines of the form `name: value` are expected, not {part!r}")
            continue
        for name, value in part.items():
            if not section and name in (TEXT_ONLY_RUN, LAUNCH):
                continue
            if name in NOT_HERE or name not in names:
                kind = "setting of the launch script" if section == LAUNCH else "flag of the trainer"
                problems.append(f"{where}{name}: there is no such {kind}; {unknown(str(name), names)}")
            elif value is not None and (problem := names[name].problem(value)):
                problems.append(f"{where}{name}: {problem}, not {value!r}")
    return problems


def below(values: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of values when other flags, which beat them, are given."""
    replaced = set(said) | {name.removeprefix("no_") for name in said} | {REPLACES.get(name) for name in said}
    return {name: value for name, value in values.items() if name not in replaced}


def as_arguments(values: Mapping[str, Any]) -> list[str]:
    """Flags and values as words of a command line."""
    words: list[str] = []
    for name, value in values.items():
        words.append(f"--{name}")
        if isinstance(value, list):
            words += value
        else:
            words.append(json.dumps(value) if isinstance(value, Mapping) else str(value))
    return words


def take_recipe(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The last `--recipe` of a command line, and the words without any.

    Raises:
        ValueError: when no file follows it.
    """
    path, rest, words = None, [], list(argv)
    while words:
        word = words.pop(0)
        if word == "--recipe":
            if not words or words[0].startswith("--"):
                raise UserError("--recipe: the name of a file is expected after it")
            path = words.pop(0)
        elif word.startswith("--recipe="):
            path = word.partition("=")[2]
        else:
            rest.append(word)
    return path, rest


def asks_for_text_only(values: Mapping[str, Any]) -> bool:
    """Whether flags ask for a run on text alone."""
    return is_on(values.get("text_only"))


def with_recipe(argv: Sequence[str]) -> tuple[list[str], dict[str, Any] | None]:
    """A command line with the values of its recipe in front, where arguments that come later replace them.

    Returns:
        The words, and what the run's record keeps of the recipe: `files`, and `flags`, the values that no argument
        replaced. None without one.

    Raises:
        ValueError, FileNotFoundError: as `load_recipe` and `take_recipe`.
    """
    path, rest = take_recipe(argv)
    if path is None:
        return rest, None
    recipe = load_recipe(find_recipe(path), known_flags())
    said = given(rest)
    kept = below(recipe.of_run(asks_for_text_only(recipe.flags | said)), said)
    return ["--recipe", path, *as_arguments(kept), *rest], {"files": list(recipe.files), "flags": kept}
