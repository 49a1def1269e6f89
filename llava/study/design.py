"""The runs of a study and the flags of each. Pure.

One initial model a seed, and from it three arms: T trains on the text of the records, V on each text after its own
clip's video, M on each after another clip's. V and M share positions, parameters, compute and the draw of what is shown
blind; V - M is seeing, M - T is what having any video costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.config.flags import FREE_FLAGS
from llava.config.known_flags import BOOL, WORDS, Known, given, known_flags
from llava.config.launch import CLIP_FLAGS, Hardware, plan
from llava.config.recipe import is_vision, with_recipe
from llava.data.text_start import EOS
from llava.errors import UserError

TEXT, OWN, OTHER = "T", "V", "M"
ARMS = (OWN, OTHER, TEXT)
"""In the order in which they train: what is wrong with clips is found first."""
ABOUT = {TEXT: "text alone", OWN: "each clip's own video", OTHER: "another clip's video"}
SET_HERE = {
    "seed": "--seeds says how many",
    "data_seed": "every seed has its own order",
    "output_dir": "--output is the folder of all runs",
    "text_only": "arm T is text alone",
    "other_clips": "arm M is shown them, drawn from its seed",
    "resume_from_checkpoint": "every run goes on by itself",
}
"""Flags of the trainer that a study sets, and how."""


@dataclass(frozen=True)
class StudyRun:
    """A run of the study, in a folder of its own."""

    seed: int
    arm: str
    folder: Path

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.arm} ({ABOUT[self.arm]})"


def runs_of(output: Path, seeds: int, arms: Sequence[str] = ARMS) -> list[StudyRun]:
    """All runs, seed by seed: more seeds leave the numbers of those before as they are."""
    return [StudyRun(seed, arm, output / f"seed{seed}" / arm) for seed in range(seeds) for arm in arms]


def chosen(runs: Sequence[StudyRun], only: str | None, task: str | None) -> list[StudyRun]:
    """The runs that this command is to make.

    Args:
        only: `seed=0,arm=V`, or one of the two.
        task: the number of one run, as a SLURM array gives it (`SLURM_ARRAY_TASK_ID`).

    Raises:
        UserError: when they name no run.
    """
    if only is None and task is None:
        return list(runs)
    if only is None:
        number = int(task) if task is not None and task.isdecimal() else -1
        if not 0 <= number < len(runs):
            raise UserError(
                f"SLURM_ARRAY_TASK_ID={task}: the runs are numbered 0 to {len(runs) - 1} (sbatch --array=0-"
                f"{len(runs) - 1})"
            )
        return [runs[number]]
    wanted = dict(part.partition("=")[::2] for part in only.replace(" ", "").split(","))
    if set(wanted) - {"seed", "arm"}:
        raise UserError(f"--only {only}: write seed=0,arm=V, or one of the two")
    found = [r for r in runs if wanted.get("seed", str(r.seed)) == str(r.seed) and wanted.get("arm", r.arm) == r.arm]
    if not found:
        raise UserError(f"--only {only}: no such run; {_listed(runs)}")
    return found


def _listed(runs: Sequence[StudyRun]) -> str:
    arms = ", ".join(dict.fromkeys(r.arm for r in runs))
    return f"seeds are 0 to {max(r.seed for r in runs)}, arms {arms}"


@dataclass(frozen=True)
class SeedPlan:
    """What the runs of a seed have in common.

    Attributes:
        notes: lines about the settings.
        data, make: arguments of the commands that make the demo's clips and the initial model; empty for none.
        flags: of the arm V, as text, without what is its own.
        gpus: processes that train a run, 0 for one on the CPU.
        needs_launcher: whether one process needs torchrun too.
    """

    notes: list[str]
    data: list[str]
    make: list[str]
    flags: dict[str, Any]
    gpus: int
    needs_launcher: bool


def planned(
    environ: Mapping[str, str], argv: Sequence[str], output: Path, seed: int, hardware: Hardware, repository: Path
) -> SeedPlan:
    """What the launch script would do for the arm V of a seed, with its variables, recipes and defaults.

    Args:
        environ: variables that set flags, as those of train_italian_video.sh.
        argv: flags of the trainer, and `--recipe`.

    Raises:
        UserError: with all settings that are wrong.
    """
    said = {name.replace("-", "_") for name in given(argv)}
    problems = [f"--{name}: {why}" for name, why in SET_HERE.items() if name in said]
    if problems:
        raise UserError("a study sets these itself:\n" + "\n".join(f"  - {p}" for p in problems))
    kept = {k: v for k, v in environ.items() if k.removeprefix("LLAVA_").lower() not in SET_HERE}
    kept |= {"EXP_ID": "2", "SEED": str(seed), "OUTPUT_ROOT": str(output), "OUTPUT_DIR": str(output / "run")}
    found = plan(kept, list(argv), hardware, repository=repository)
    known = known_flags()
    words, _ = with_recipe(found.steps["TRAIN"])
    flags = _normal(given(words), known)
    for name in ("recipe", "output_dir", "resume_from_checkpoint", "seed"):
        flags.pop(name, None)
    if flags.get("on_bad_sample", "stop") != "stop":
        raise UserError(
            "--on_bad_sample skip: text alone opens no clip, so that it would train on records that the other arms "
            "leave out; mend the data (python -m llava.data.check names what is wrong)"
        )
    if flags.get("text_start", EOS) != EOS:
        raise UserError(
            f"--text_start {flags['text_start']}: without a token in front nothing predicts the first word of a text, "
            "so that T would predict fewer words than V and M, and no arm's first word could be tested blind. "
            f"Leave --text_start out (flag, variable or recipe): every arm then begins with one token ({EOS})"
        )
    if flags.get("version", "plain") == "plain":
        flags["text_start"] = EOS
    notes = [n for n in found.notes if not n.startswith(("SEED=", "EXP_ID=", "OUTPUT_DIR=", "OUTPUT_ROOT="))]
    needs = found.variables["NEEDS_TORCHRUN"] == "1"
    return SeedPlan(notes, found.steps["DATA"], found.steps["MAKE"], flags, int(found.variables["GPUS"]), needs)


def _normal(flags: Mapping[str, Any], known: Mapping[str, Known]) -> dict[str, Any]:
    """Flags in one spelling: `--no_packing` is packing False, and `--bf16` bf16 True."""
    found: dict[str, Any] = {}
    for name, value in flags.items():
        positive = known.get(name.removeprefix("no_"))
        if name not in known and positive is not None and positive.kind == BOOL:
            name, value = positive.name, not WORDS.get(str(value).lower(), True)
        found[name] = value if isinstance(value, list) else str(value)
    return found


def flags_of(run: StudyRun, plan: SeedPlan, blind_share: float) -> dict[str, Any]:
    """The trainer's flags of a run."""
    flags = {**plan.flags, "seed": run.seed, "output_dir": str(run.folder), "resume_from_checkpoint": "auto"}
    if run.arm == TEXT:
        # It is told where clips lie, so that it holds out the captions of the same ones.
        return {k: v for k, v in flags.items() if not is_vision(k) or k in CLIP_FLAGS} | {"text_only": "True"}
    flags["blind_share"] = blind_share
    return flags | ({"other_clips": run.seed} if run.arm == OTHER else {})


def settings_of(plan: SeedPlan, arms: Sequence[str], blind_share: float) -> dict[str, Any]:
    """What makes a study the one that it is: by these a study that goes on is compared with itself.

    What differs between seeds is left out, and so are flags that change where and how a run goes, not what it computes.
    """
    made = {k: v for k, v in given(plan.make).items() if k not in ("seed", "output_dir", "make_vision_tower")}
    flags = {k: _plain(v) for k, v in plan.flags.items() if k not in FREE_FLAGS or k == "eval_data_path"}
    if plan.make:
        flags.pop("model_name_or_path", None)
        flags |= {f"{k} (of the initial model)": _plain(v) for k, v in made.items() if k != "data_path"}
    return {"arms": list(arms), "blind_share": blind_share, "flags": flags}


def _plain(value: Any) -> Any:
    """A value that is written in one way: 1e-3 is 0.001, and yes is True."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return WORDS.get(value.lower(), value)
