"""What the launch script does: its variables, its arguments and a recipe become the command lines of its steps.

Pure: `plan` reads no file but recipes, and starts nothing. `scripts/launch.py` calls it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llava.config.known_flags import WORDS, Known, argument_problems, given, is_on, known_flags
from llava.config.overrides import read_overrides
from llava.config.recipe import PACKAGED, Recipe, as_arguments, below, is_vision, load_recipe, take_recipe
from llava.config.variables import Variables, read_variables
from llava.errors import UserError

RECIPES = "recipes"
DEMO, OWN_DATA = f"{RECIPES}/demo.yaml", f"{RECIPES}/italian.yaml"
PRECISIONS = ("bf16", "fp16", "fp32")
LATER_STAGES = ("2", "3")
CLIP_FLAGS = ("video_folder", "image_folder", "feature_cache")
"""By these a run on text alone finds copies of a clip, and so holds out the captions that a run on video does."""
SHELL_VARIABLES = {
    "NUM_GPUS": "processes of a node; by default one for each GPU",
    "NNODES": "nodes; by default those of the SLURM job, or 1",
    "NODE_RANK": "this node's number from 0, without SLURM",
    "MASTER_ADDR": "address of node 0, without SLURM",
    "MASTER_PORT": "its port (29500)",
    "USE_PLAIN_LM": "1: plain language modelling, whatever --version says",
    "VENV, PYTHON, LLAVA_EXTRAS": "the environment, see scripts/env.sh",
}
"""Variables that the script itself reads."""


Hardware = Callable[[bool], tuple[int, str]]


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class LaunchSettings:
    """What the launch script needs besides the trainer's flags: the section `launch` of a recipe, or variables."""

    recipe: str | None = _setting(None, f"flags as a YAML file; {OWN_DATA} with DATA_PATH, else {DEMO}")
    exp_id: int = _setting(2, "1: text only; 2: video and text")
    precision: str | None = _setting(None, "bf16, fp16 or fp32; by default what the hardware is fast in")
    output_root: str = _setting("output", "where models, runs and features are put")
    caption_limit: int = _setting(200, "clips that are captioned at the end")
    n_layer: int = _setting(12, "layers of the fresh model, where there is no MODEL_PATH")
    n_embd: int = _setting(768, "its width")
    n_head: int = _setting(12, "its heads")
    n_positions: int = _setting(1024, "its positions, and the default of --model_max_length")
    vocab_size: int = _setting(30000, "entries of its tokenizer, which is trained on the captions")
    model_type: str = _setting("gpt2", "its architecture: gpt2, llama, qwen3, ...")
    config_overrides: str | None = _setting(None, "other settings of its config, as a JSON object")
    demo: bool = _setting(False, "draw clips with captions where there is no DATA_PATH")
    demo_dir: str = _setting("demo", "where they are put, and a random DINOv2")
    demo_clips: int = _setting(2500, "training clips")
    grounding: bool = _setting(False, "draw the demo about where and when instead (docs/grounding.md)")
    vision_hidden_size: int = _setting(192, "width of the random DINOv2")
    vision_layers: int = _setting(1, "its layers")
    vision_heads: int = _setting(3, "its heads")
    image_size: int = _setting(126, "its side in pixels")


def launch_settings() -> dict[str, Known]:
    """The fields of `LaunchSettings`, to be checked as flags are."""
    return {
        f.name: Known(f.name, next((k for k in ("bool", "int") if k in str(f.type)), "text"), f.default,
                      f.metadata["help"], "Launch script") for f in fields(LaunchSettings)
    }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What the script is to do.

    Attributes:
        notes: lines to print first.
        variables, steps: variables and arrays of words for the shell; DATA, MAKE, SCORE and GROUND may be empty.
        pending: flags that name what DATA and MAKE are to make, and where.
    """

    notes: list[str]
    variables: dict[str, str]
    steps: dict[str, list[str]]
    pending: dict[str, str]

    def shell(self, unmade: Sequence[str] = ()) -> str:
        """The plan as bash assigns it, with the flags among `pending` that name what is not there."""
        lines = [f"printf '%s\\n' {shlex.quote(note)}" for note in self.notes]
        lines += [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        lines += [f"{name}=({' '.join(map(shlex.quote, words))})" for name, words in self.steps.items()]
        return "\n".join([*lines, f"UNMADE={shlex.quote(','.join(unmade))}"])


def plan(
    environ: Mapping[str, str],
    argv: Sequence[str],
    hardware: Hardware,
    is_first: bool = True,
    repository: Path = Path(),
) -> Plan:
    """What variables and arguments ask for.

    Args:
        hardware: the number of GPUs, 0 where its argument says that none is to be used, and the precision that is fast.
            Called once all is checked.
        is_first: whether this is the first node, which makes data and models.
        repository: where recipes are looked for.

    Raises:
        ValueError: with all wrong variables, arguments and values.
        FileNotFoundError: for a recipe that is not there.
    """
    known, own = known_flags(), launch_settings()
    found = read_variables(environ, known, own, SHELL_VARIABLES)
    file, arguments = take_recipe(argv)
    said = given(arguments)
    problems = found.problems + argument_problems(arguments, known)
    asked = file or found.values.get("recipe")
    if file is None and "recipe" not in found.values:
        asked = OWN_DATA if "data_path" in said or "data_path" in found.values else DEMO
    assert asked is not None
    try:
        recipe = load_recipe(_place(asked, repository), known, own)
    except ValueError as error:
        if not problems:
            raise
        problems += str(error).splitlines()[1:] or [str(error)]
        recipe = Recipe()
    problems += _contradictions(environ, found, said, recipe)
    if problems:
        raise UserError("wrong settings:\n" + "\n".join(f"  - {p.removeprefix('  - ')}" for p in problems))
    settings = _settings(recipe, found, own)
    return _Steps(recipe, found, arguments, settings, _place(asked, repository), is_first).plan(hardware)


def _place(name: str, repository: Path) -> str:
    """A recipe's path: as it is given, or its place among those of the repository, or of the package."""
    for folder in (Path(), repository, PACKAGED.parent):
        for candidate in (name, f"{RECIPES}/{name}", f"{RECIPES}/{name}.yaml"):
            if (folder / candidate).is_file():
                return str(folder / candidate)
    return name


def _settings(recipe: Recipe, found: Variables, own: Mapping[str, Known]) -> LaunchSettings:
    values = recipe.launch | {k: v for k, v in found.values.items() if k in own}
    kinds: dict[str, Callable[[Any], Any]] = {"bool": lambda v: WORDS[str(v).lower()], "int": int}
    return LaunchSettings(**{k: kinds.get(own[k].kind, _text)(v) for k, v in values.items()})


def _text(value: Any) -> str:
    """A mapping of a recipe is JSON for who reads it next."""
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def _contradictions(environ: Mapping[str, str], found: Variables, said: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """What is wrong with settings that are right one by one."""
    problems = []
    experiment = str(found.values.get("exp_id", recipe.launch.get("exp_id", 2)))
    if experiment not in ("1", "2"):
        problems.append(f"EXP_ID={experiment}; use 1 (text only) or 2 (video and text).")
    precision = found.values.get("precision", recipe.launch.get("precision", "fp32"))
    if precision not in PRECISIONS:
        problems.append(f"PRECISION={precision}; use bf16, fp16 or fp32.")
    try:
        overrides = found.values.get("config_overrides", recipe.launch.get("config_overrides"))
        read_overrides(None if overrides is None else _text(overrides), "CONFIG_OVERRIDES")
    except ValueError as error:
        problems.append(str(error))
    text_only = said.get("text_only", found.values.get("text_only", recipe.flags.get("text_only")))
    if text_only is not None and WORDS.get(str(text_only).lower()) is False and experiment == "1":
        problems.append(f"EXP_ID=1 is text alone, and --text_only {text_only} says otherwise: leave one of them out")
    if is_on(text_only) and found.values.get("exp_id") == "2":
        problems.append("EXP_ID=2 is video and text, and --text_only True says otherwise: leave one of them out")
    plain = environ.get("USE_PLAIN_LM") or "1"
    version = said.get("version", found.values.get("version", recipe.flags.get("version", "")))
    if plain != "1" and not version:
        problems.append(
            f"USE_PLAIN_LM={plain}; 1 is the only mode without a chat format: add --version NAME, or set LLAVA_VERSION."
        )
    return problems


class _Steps:
    """The command lines, once everything is known to be right."""

    def __init__(
        self,
        recipe: Recipe,
        found: Variables,
        arguments: list[str],
        settings: LaunchSettings,
        file: str,
        is_first: bool,
    ) -> None:
        self.arguments, self.settings, self.file, self.is_first = arguments, settings, file, is_first
        self.said, self.recipe, self.notes = given(arguments), recipe, list(found.notes)
        self.variables = {k: v for k, v in found.values.items() if k not in launch_settings()}
        self.computed: dict[str, Any] = {}
        self.pending: dict[str, str] = {}
        asked = self.said.get("text_only", self.variables.get("text_only", recipe.flags.get("text_only", "no")))
        self.text_only = settings.exp_id == 1 or is_on(asked)
        if self.text_only:
            left_out = [k for k in self.variables if is_vision(k) and k not in CLIP_FLAGS]
            if left_out:
                names = ", ".join(found.names[k] for k in left_out)
                self.notes.append(f"without effect on text alone: {names}")
            self.variables = {k: v for k, v in self.variables.items() if k not in left_out} | {"text_only": "True"}

    def value(self, name: str) -> Any:
        """A flag's value: an argument beats a variable, which beats what is computed here and the recipe."""
        for layer in (self.said, self.variables, self.computed, self.recipe.of_run(self.text_only)):
            if name in layer:
                return layer[name]
        return None

    def default(self, name: str, value: Any, pending: bool = False) -> None:
        """Gives a flag a value where nobody else did."""
        if self.value(name) is None:
            self.computed[name] = value
            if pending:
                self.pending[name] = value

    def plan(self, hardware: Hardware) -> Plan:
        s = self.settings
        demo = self.value("data_path") is None
        if demo and not s.demo:
            raise UserError(
                f"{self.file} brings no data: set DATA_PATH, a LLaVA JSON or JSONL file or a mixture (without RECIPE "
                "and DATA_PATH the demo runs)"
            )
        suffix, data = "t_it" if self.text_only else "vi_it", f"{s.demo_dir}/data"
        steps: dict[str, list[str]] = {"DATA": [], "MAKE": [], "SCORE": [], "GROUND": []}
        if demo:
            self.notes.insert(0, "DATA_PATH is not set: running the built-in demo (clips and models are made here, "
                              "nothing is downloaded).")  # fmt: skip
            steps["DATA"] = ["--output_dir", data, "--num_train", str(s.demo_clips)]
            if s.grounding:
                self._grounding(steps, data)
            self.default("data_path", f"{data}/train_{suffix}.json", pending=True)
            self.default("eval_data_path", f"{data}/heldout_combinations_{suffix}.json", pending=True)
            if not self.text_only:
                self.default("video_folder", f"{data}/clips", pending=True)
        path = str(self.value("data_path"))
        if self.is_first and not demo and not set(path) & set(",{") and not Path(path).is_file():
            raise UserError(
                f"DATA_PATH={path}: {'is a folder' if Path(path).is_dir() else 'no such file'}. It is a LLaVA JSON or "
                "JSONL file, or a mixture (python -m llava.data.convert makes one of other forms); unset it to run the "
                "demo."
            )
        name = Path(self.file).stem if demo else data_name(path)
        self.default("seed", 0)
        seed = self.value("seed")
        self.default("output_dir", f"{s.output_root}/{name}_exp{1 if self.text_only else 2}_seed{seed}")
        if not demo or not self.text_only:
            self.default("feature_cache", f"{s.output_root}/feature_cache")
        for folder in ("video_folder", "image_folder"):
            if self.text_only and not demo and folder in self.recipe.flags:
                self.default(folder, self.recipe.flags[folder])
        if self.value("vision_tower") is None and demo:
            # For experiment 1 too, so that both make the same.
            tower = f"{s.demo_dir}/tower"
            steps["MAKE"] += as_arguments({
                "make_vision_tower": tower, "vision_hidden_size": s.vision_hidden_size,
                "vision_layers": s.vision_layers, "vision_heads": s.vision_heads, "image_size": s.image_size,
            })  # fmt: skip
            if not self.text_only:
                self.default("vision_tower", tower, pending=True)
        self._model(steps, name, path)
        self.default("model_max_length", s.n_positions)
        gpus, precision = self._hardware(hardware)
        words = as_arguments(below(self.computed | self.variables, self.said))
        steps["TRAIN"] = ["--recipe", self.file, *words, *self.arguments]
        if demo and s.grounding:
            steps["GROUND"] = self._score_grounding(data)
        elif not self.text_only:
            steps["SCORE"] = self._score(demo, data, path)
        spread = any(self.value(flag) for flag in ("deepspeed", "fsdp"))
        variables = {
            "EXPERIMENT": f"{1 if self.text_only else 2} ({'text only' if self.text_only else 'video and text'})",
            "SEED": str(seed), "DATA_PATH": path, "OUTPUT_DIR": str(self.value("output_dir")), "GPUS": str(gpus),
            "PRECISION": precision, "NEEDS_TORCHRUN": str(int(spread)),
            "HOLDS_OUT": str(int(self.value("eval_data_path") is None)),
        }  # fmt: skip
        return Plan(self.notes, variables, steps, self.pending)

    def _grounding(self, steps: dict[str, list[str]], data: str) -> None:
        """The files of the grounding demo, which has no text alone."""
        if self.text_only:
            raise UserError(f"{self.file} asks where and when, which no text alone can tell: leave EXP_ID=1 out")
        steps["DATA"].append("--grounding")
        self.default("data_path", f"{data}/train.json", pending=True)
        self.default("eval_data_path", f"{data}/validation_gains.json", pending=True)
        for folder in ("video_folder", "image_folder"):
            self.default(folder, f"{data}/visual", pending=True)

    def _refuse_adapters(self) -> None:
        """Stages 2 and 3, and LoRA, go on from a model that speaks: the weights of a fresh one would stay as drawn."""
        stage = str(self.value("stage") or "").strip()
        if stage in LATER_STAGES and not self.text_only:
            raise UserError(
                f"stage {stage} goes on from the last one's folder, and MODEL_PATH is not set: "
                f"MODEL_PATH=output/stage{int(stage) - 1}, or wherever that lies"
            )
        if is_on(self.value("lora_enable")):
            raise UserError(
                "lora_enable is set and MODEL_PATH is not: the weights of a fresh model would stay as they were drawn, "
                "and adapters cannot make up for it; name a trained model as MODEL_PATH, or leave lora_enable out"
            )

    def _model(self, steps: dict[str, list[str]], name: str, path: str) -> None:
        """A fresh model, where none is named."""
        if self.value("model_name_or_path") is not None:
            return
        self._refuse_adapters()
        s, kind = self.settings, self.settings.model_type
        folder = f"{s.output_root}/{name}_{kind}_{s.n_layer}x{s.n_embd}_seed{self.value('seed')}"
        self.default("model_name_or_path", folder, pending=True)
        steps["MAKE"] += as_arguments({
            "data_path": path, "output_dir": folder, "seed": self.value("seed"), "vocab_size": s.vocab_size,
            "on_bad_sample": self.value("on_bad_sample") or "stop", "n_layer": s.n_layer, "n_embd": s.n_embd,
            "n_head": s.n_head, "n_positions": s.n_positions, "model_type": kind,
        })  # fmt: skip
        if s.config_overrides:
            steps["MAKE"] += ["--config_overrides", s.config_overrides]

    def _hardware(self, hardware: Hardware) -> tuple[int, str]:
        """GPUs, and the precision of the run by name."""
        gpus, fast = hardware(is_on(self.value("use_cpu")))
        if not gpus:
            self.default("use_cpu", "True")
        halves = ("bf16", "fp16")
        if self.settings.precision is None and any(self.value(half) is not None for half in halves):
            on = [half for half in halves if is_on(self.value(half))]
            return gpus, on[0] if on else "fp32"
        precision = self.settings.precision or fast
        for half in halves:
            # Over what a recipe says, too.
            if half not in self.said | self.variables and (half == precision or half in self.recipe.flags):
                self.computed[half] = str(half == precision)
        return gpus, precision

    def _score(self, demo: bool, data: str, path: str) -> list[str]:
        """The arguments of captioning after training."""
        s = self.settings
        output, scored = str(self.value("output_dir")), [str(self.value("eval_data_path") or path)]
        words = ["--model-path", output, "--control", "--output", f"{output}/captions.json"]
        words += as_arguments({
            "feature_cache": self.value("feature_cache"), "on_bad_sample": self.value("on_bad_sample") or "stop",
        })  # fmt: skip
        for folder in ("video_folder", "image_folder"):
            if self.value(folder):
                words += [f"--{folder}", str(self.value(folder))]
        if is_on(self.value("allow_absolute_paths")):
            words.append("--allow_absolute_paths")
        if demo:
            scored = [f"{data}/heldout_clips_vi_it.json", f"{data}/heldout_combinations_vi_it.json"]
            words += ["--attributes", f"{data}/attributes.json"]
        else:
            words += ["--limit", str(s.caption_limit), "--seed", str(self.value("seed"))]
        return [*words, "--data_path", *scored]

    def _score_grounding(self, data: str) -> list[str]:
        """The arguments of scoring where and when after training, on pairs that were never trained on."""
        words = [str(self.value("output_dir")), "--data_path", f"{data}/test.json", "--batch_size", "64"]
        return words + as_arguments({
            name: self.value(name) for name in ("video_folder", "image_folder", "feature_cache") if self.value(name)
        })  # fmt: skip


def data_name(path: str) -> str:
    """A name for what trains on a file, or on several."""
    if set(path) & set(",{"):
        return re.sub(r"[^A-Za-z0-9._-]+", "_", path.rpartition(".")[0] or path)
    return Path(path).stem
