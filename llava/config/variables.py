"""Which variables of the environment set which flag, in the launch script alone.

A flag's variable is its name in capitals, with or without `LLAVA_` in front. Names that other programs use too need the
prefix. Misspelt names that are seen often are an error, since a variable that nobody reads is silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llava.config.known_flags import Known, unknown

PREFIX = "LLAVA_"
COMMON = frozenset({
    "BITS", "CACHE_DIR", "DEBUG", "DELAY_LOAD", "DEMO", "DO_EVAL", "DO_PREDICT", "DO_TRAIN", "HUB_TOKEN", "IMAGE_SIZE",
    "LOCAL_RANK", "LOG_LEVEL", "LOGGING_DIR", "MODEL_TYPE", "NO_CUDA", "PROJECT", "PUSH_TO_HUB", "RUN_NAME", "S2",
    "STAGE", "USE_CACHE", "VERBOSE_LOGGING", "VERSION",
})  # fmt: skip
"""Names of flags that are common elsewhere: without the prefix they are not read."""
OTHER_READERS = frozenset({"LLAVA_EXTRAS", "LLAVA_AUDIT_FAULT", "USE_PLAIN_LM", "LLAVA_LOCAL_RANK"})
"""Variables that somebody else reads: scripts/env.sh, the tests, the trainer."""
ALIASES = {
    "BATCH_SIZE": "per_device_train_batch_size",
    "NUM_WORKERS": "dataloader_num_workers",
    "RESUME": "resume_from_checkpoint",
    "VISION_MODEL": "vision_tower",
    "MODEL_PATH": "model_name_or_path",
}
"""Shorter names, which the launch script has always had."""
NEAR_MISSES = {
    **dict.fromkeys(("EPOCH", "EPOCHS", "NUM_EPOCHS", "N_EPOCHS", "TRAIN_EPOCHS"), "NUM_TRAIN_EPOCHS"),
    **dict.fromkeys(("LR", "LEARNINGRATE", "LEARN_RATE"), "LEARNING_RATE"),
    **dict.fromkeys(("DATAPATH", "DATA_PATHS", "DATA_FILE", "TRAIN_DATA_PATH", "TRAIN_PATH"), "DATA_PATH"),
    **dict.fromkeys(("EVALDATAPATH", "EVAL_PATH", "EVAL_DATA", "VAL_DATA_PATH", "TEST_DATA_PATH"), "EVAL_DATA_PATH"),
    **dict.fromkeys(("VIDEOFOLDER", "VIDEO_FOLDERS", "VIDEO_DIR", "VIDEO_PATH"), "VIDEO_FOLDER"),
    **dict.fromkeys(("IMAGEFOLDER", "IMAGE_FOLDERS", "IMAGE_DIR", "IMAGE_PATH"), "IMAGE_FOLDER"),
    **dict.fromkeys(("OUTPUTDIR", "OUTPUT_PATH", "OUTPUT_FOLDER", "OUT_DIR"), "OUTPUT_DIR"),
    **dict.fromkeys(("BATCHSIZE", "BATCH_SIZES", "TRAIN_BATCH_SIZE"), "BATCH_SIZE"),
    **dict.fromkeys(("GRAD_ACCUM", "GRAD_ACCUM_STEPS", "ACCUMULATION_STEPS", "GRADIENT_ACCUMULATION"),
                    "GRADIENT_ACCUMULATION_STEPS"),
    **dict.fromkeys(("MAX_STEP", "MAXSTEPS", "NUM_STEPS", "TRAIN_STEPS"), "MAX_STEPS"),
    **dict.fromkeys(("SAVE_STEP",), "SAVE_STEPS"),
    **dict.fromkeys(("WARMUP", "WARMUP_STEP"), "WARMUP_STEPS"),
    **dict.fromkeys(("LR_SCHEDULER", "SCHEDULER_TYPE"), "LR_SCHEDULER_TYPE"),
    **dict.fromkeys(("NUM_FRAME", "N_FRAMES"), "NUM_FRAMES"),
    **dict.fromkeys(("MODEL_NAME_OR_DIR", "MODELPATH", "MODEL_DIR"), "MODEL_PATH"),
    **dict.fromkeys(("VISIONTOWER", "VISION_PATH", "TOWER_PATH"), "VISION_MODEL"),
    **dict.fromkeys(("NUM_GPU", "N_GPU", "N_GPUS", "NGPUS", "NPROC_PER_NODE"), "NUM_GPUS"),
    **dict.fromkeys(("NUM_NODES", "N_NODES"), "NNODES"),
    **dict.fromkeys(("EXPID", "EXP", "EXPERIMENT", "EXPERIMENT_ID"), "EXP_ID"),
    **dict.fromkeys(("RANDOM_SEED",), "SEED"),
    **dict.fromkeys(("RECIPES", "RECIPE_FILE"), "RECIPE"),
    **dict.fromkeys(("RESUME_FROM", "RESUME_CHECKPOINT"), "RESUME"),
    **dict.fromkeys(("NUM_LAYERS", "N_LAYERS"), "N_LAYER"),
}  # fmt: skip
"""Names that are no variable here, and the one that was meant."""
SECRETS = ("token",)


def variable(name: str) -> str:
    """The variable of a flag or a setting."""
    return PREFIX + name.upper() if name.upper() in COMMON else name.upper()


@dataclass(frozen=True)
class Variables:
    """What the environment says.

    Attributes:
        values: by flag or setting, as text.
        names: the variable of each.
        notes: a line for each variable taken, and for each that looks like ours and is not read.
        problems: a line for each that is wrong.
    """

    values: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_variables(
    environ: Mapping[str, str], flags: Mapping[str, Known], settings: Mapping[str, Known], others: Mapping[str, str]
) -> Variables:
    """The variables that set flags and settings of the launch script. An empty one counts as not set.

    Args:
        settings: of the launch script.
        others: variables that the launch script reads itself, with what they are.
    """
    names: dict[str, str] = {}
    for name in flags:
        if name.upper() not in COMMON | OTHER_READERS:
            names[name.upper()] = name
        names[PREFIX + name.upper()] = name
    for alias, name in (ALIASES | {name.upper(): name for name in settings}).items():
        names[PREFIX + alias] = name
        if alias not in COMMON:
            names[alias] = name
    found = Variables()
    for key, value in sorted(environ.items()):
        bare = key.removeprefix(PREFIX)
        if not value or key in OTHER_READERS:
            continue
        if key in names:
            _take(found, key, value, names[key], flags, settings)
        elif bare in NEAR_MISSES and bare not in others:
            found.problems.append(f"{key}={value}: no such variable; did you mean {NEAR_MISSES[bare]}?")
        elif key in COMMON and key != "LOCAL_RANK":
            found.notes.append(f"{key} is not read, since other programs use it: {PREFIX}{key} is ours")
        elif key.startswith(PREFIX):
            found.problems.append(f"{key}={value}: no such variable; {unknown(key, names)}")
    return found


def _take(
    found: Variables, key: str, value: str, name: str, flags: Mapping[str, Known], settings: Mapping[str, Known]
) -> None:
    known = settings.get(name) or flags[name]
    shown = "..." if any(word in name for word in SECRETS) else value
    problem = known.problem(value)
    if problem:
        found.problems.append(f"{key}={shown}: {problem}")
    elif name in found.values and found.values[name] != value:
        found.problems.append(
            f"{found.names[name]}={found.values[name]} and {key}={shown} say different things: unset one of them"
        )
    else:
        found.values[name], found.names[name] = value, key
        found.notes.append(f"{key}={shown}" + ("" if name in settings else f" sets --{name}"))
