"""Whether and from where a run goes on: the newest whole checkpoint, its flags, its data and its global batch."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from llava.config.flags import FREE_FLAGS, ModelArguments, TrainingArguments
from llava.constants import RUN_RECORD
from llava.data.chat_formats import PLAIN
from llava.data.hashes import record_digest
from llava.data.records import Record
from llava.data.text_start import NONE
from llava.errors import FileIsThere, MissingFile, UserError
from llava.train.checkpoint.files import checkpoint_problems, clear_leftovers, list_checkpoints, newest_valid
from llava.train.checkpoint.resumable import DIGESTS_FILE, PROGRESS_FILE
from llava.train.coordinates import SWITCHES as COORDINATE_SWITCHES

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

BATCH_FLAGS = {"per_device_train_batch_size", "gradient_accumulation_steps"}
"""May change as long as their product with the number of processes, the global batch, does not."""
DEEPSPEED_GLOBALS = {
    "deepspeed.utils.tensor_fragment.fragment_address", "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler", "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
}  # fmt: skip
"""What DeepSpeed's own states are made of, beside tensors."""
OPTIMIZER_FLAGS = {
    "learning_rate", "mm_projector_lr", "mm_vision_resampler_lr", "mm_vision_tower_lr", "mm_coordinates_lr",
    "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon",
}  # fmt: skip
"""Their values lie in the optimiser's saved state, which would go on with the old ones without a word."""
STEP_FLAGS = ("max_steps", "num_train_epochs")
"""How long a run trains; one that is finished may train longer."""
ARM_FLAGS = {"other_clips", "blind_share", "text_only", *COORDINATE_SWITCHES}
"""They decide which arm of an experiment a run is."""
STATE_FLAGS = {
    *({f.name for f in fields(ModelArguments)} - {"model_name_or_path", "from_scratch", "attn_implementation",
                                                  "vision_tower", "pretrain_mm_mlp_adapter"}),
    "num_frames", "deepspeed", "fsdp", "fsdp_config",
}  # fmt: skip
"""They decide which weights and states there are, and the saved ones would not fit."""


def on_first_process(work: Callable[[], Result], training_args: TrainingArguments) -> Result:
    """The result, or the error, of `work` in the first process, in all of them."""
    outcome: list[Any] = [None, None]
    if training_args.process_index == 0:
        try:
            outcome[0] = work()
        except (OSError, ValueError) as error:
            outcome[1] = error
    if training_args.world_size > 1:
        torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def find_checkpoint(training_args: TrainingArguments) -> str | None:
    """The checkpoint to resume from: `--resume_from_checkpoint` is a folder, True (the last one) or auto (if any).

    Only whole checkpoints count; what a killed run left half-written is removed.

    Raises:
        FileNotFoundError: when the checkpoint asked for is not there.
        FileExistsError: when the folder holds a run that would be overwritten.
        ValueError: when the checkpoint asked for is damaged, or must not be loaded.
    """
    asked, folder = str(training_args.resume_from_checkpoint or "").lower(), Path(training_args.output_dir)
    clear_leftovers(folder)
    last = newest_valid(folder)
    damaged = [path.name for _, path in list_checkpoints(folder)]
    if last is None and (folder / RUN_RECORD).is_file():
        raise FileIsThere(
            f"--output_dir {folder} holds a finished run without checkpoints, which nothing can go on from: choose "
            "another folder (with --model_name_or_path set to this one to start from its weights)"
        )
    if asked in ("false", "none", ""):
        if last is not None:
            finished = "finished " if (folder / RUN_RECORD).is_file() else ""
            raise FileIsThere(
                f"--output_dir {folder} holds a {finished}run ({last.name}): add --resume_from_checkpoint True to go "
                "on with it, or choose another folder"
            )
        return None
    if asked == "true" and last is None:
        raise MissingFile(
            f"--resume_from_checkpoint True: no checkpoint in {folder}"
            + (f" that is whole ({', '.join(damaged)} are damaged)" if damaged else "")
            + "; start without the flag"
        )
    if asked in ("auto", "true"):
        if last is None and damaged:
            logger.warning("%s: no checkpoint is whole, so the run starts anew", folder)
        if last is not None:
            _check_resumable(last)
        return str(last) if last else None
    named = Path(str(training_args.resume_from_checkpoint))
    _check_resumable(named)
    problems = checkpoint_problems(named)
    if problems:
        raise UserError(
            f"--resume_from_checkpoint {named} is damaged: {'; '.join(problems[:3])}; take an earlier one, or "
            "--resume_from_checkpoint auto for the newest that is whole"
        )
    step = json.loads((named / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    later = [p.name for n, p in list_checkpoints(folder) if n > step and not checkpoint_problems(p, contents=False)]
    if later:
        raise FileIsThere(
            f"--output_dir {folder} holds checkpoints after step {step} ({', '.join(later)}): move them away, choose "
            "another folder, or go on from the last one with --resume_from_checkpoint True"
        )
    return str(named)


def _check_resumable(checkpoint: Path) -> None:
    """Whether a checkpoint holds all that a run goes on from, however it was chosen.

    transformers takes a fresh optimiser and schedule, without a word, where their states are not there.
    """
    refuse_pickles(checkpoint)
    needed = ["trainer_state.json", PROGRESS_FILE, RUN_RECORD]
    lacking = [name for name in needed if not (checkpoint / name).is_file()]
    if not any(checkpoint.glob("global_step*/*")):  # DeepSpeed keeps them there.
        if not (checkpoint / "scheduler.pt").is_file():
            lacking.append("scheduler.pt")
        # FSDP's are optimizer.bin, or a folder optimizer_0.
        if not any(checkpoint.glob("optimizer*")):
            lacking.append("optimizer.pt")
    if lacking:
        raise MissingFile(
            f"--resume_from_checkpoint: {checkpoint} is not a checkpoint folder that a run can go on from: it lacks "
            f"{', '.join(lacking)} (a checkpoint saved with --save_only_model has no optimiser state; give it as "
            "--model_name_or_path to start a new run from its weights, in another --output_dir)"
        )


def refuse_pickles(checkpoint: Path) -> None:
    """Weights are read from safetensors alone, since a pickle runs any code that it was given.

    transformers reads the other states with `weights_only`. DeepSpeed does not, so its files are looked into first.

    Raises:
        ValueError: naming the file and the remedy.
    """
    # FSDP's own copy of the weights is read with `weights_only`.
    named = {p.name for p in checkpoint.glob("pytorch_model*.bin*")} - {"pytorch_model_fsdp.bin"}
    pickled = sorted(named) if checkpoint.is_dir() else []
    if pickled:
        raise UserError(
            f"{checkpoint} holds {pickled[0]}, weights in a pickle, which can run code when it is loaded: remove it "
            "when model.safetensors lies beside it; otherwise convert it where you trust it "
            "(torch.load(..., weights_only=True), then safetensors.torch.save_file)"
        )
    for path in sorted(checkpoint.glob("global_step*/*.pt")):
        foreign = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - DEEPSPEED_GLOBALS
        if foreign:
            raise UserError(
                f"{path} is a pickle that asks for {', '.join(sorted(foreign))}, which DeepSpeed does not write and "
                "which could run code when it is loaded: go on from a checkpoint that you trust"
            )


def check_resume(checkpoint: str, run_record: dict[str, Any], training_args: TrainingArguments) -> None:
    """Compares the flags and the global batch of a resumed run with those that it was started with.

    Raises:
        ValueError: with a table of the flags that changed and would make it another run.
    """
    before = recorded(checkpoint)
    _check_batch(checkpoint, before, run_record)
    changed = changed_flags(before, json.loads(json.dumps(run_record["flags"])))
    for name in raised_steps(Path(checkpoint), changed):
        was, now = changed.pop(name)
        logger.info(
            "the finished run goes on: --%s was %s, is %s. The learning rate is that of the longer schedule from here "
            "on, which may be higher than it ended", name, was, now,
        )  # fmt: skip
    if not changed:
        return
    width = max(len(name) for name in changed)
    rows = [f"  --{n.ljust(width)}: was {a!r}, is {b!r}{_why_not(n)}" for n, (a, b) in changed.items()]
    table = "\n".join(rows)
    if training_args.confirm_changes and not any(_why_not(name) for name in changed):
        logger.warning("%s was made with other flags, as --confirm_changes confirms:\n%s", checkpoint, table)
        return
    raise UserError(
        f"{checkpoint} was made with other flags:\n{table}\nresume with the same flags, start a new run in another "
        "--output_dir (with --model_name_or_path set to the checkpoint to keep its weights), or add --confirm_changes "
        "True where no reason against it is given"
    )


def changed_flags(before: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The flags by whose value a run is another one, with the value in its record and now, where they differ."""
    # Earlier runs had one format, no LoRA, no or whole coordinates and one way to show clips, and no flags for them.
    old = {"version": PLAIN, "lora_enable": False, "other_clips": None, "blind_share": 0.0, "mm_coordinates": False,
           **dict.fromkeys(COORDINATE_SWITCHES, True), **before["flags"]}  # fmt: skip
    # What stood before the first word, whoever decided it; left out, the flag means the same again.
    old["text_start"] = (before.get("text_format") or {}).get("start", NONE)
    new = {**flags, "text_start": flags.get("text_start") or old["text_start"]}
    names = sorted(set(old) & set(new) - FREE_FLAGS - BATCH_FLAGS)
    return {name: (old[name], new[name]) for name in names if old[name] != new[name]}


def raised_steps(checkpoint: Path, changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Which of the changed flags ask for more steps of a run that had taken all of its own."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    steps = state["global_step"]
    if steps < state["max_steps"]:
        return []
    more = {name: now for name, (was, now) in changed.items() if name in STEP_FLAGS and now > max(was, 0)}
    return [name for name, now in more.items() if name != "max_steps" or now > steps]


def keep_order(training_args: TrainingArguments) -> None:
    """Sets `--group_by_modality_length` where nobody named it: as the run began that goes on, else False. Earlier
    commits had another default.
    """
    if training_args.group_by_modality_length is not None:
        return
    training_args.group_by_modality_length = False
    asked, folder = str(training_args.resume_from_checkpoint or "none"), Path(training_args.output_dir)
    places = [path for _, path in list_checkpoints(folder)] + [folder]
    if asked.lower() in ("false", "none"):
        places = []
    elif asked.lower() not in ("true", "auto"):
        places = [Path(asked)]
    for place in places:
        with suppress(OSError, ValueError, KeyError):  # Whoever resumes says what is wrong with it.
            training_args.group_by_modality_length = bool(recorded(place)["flags"]["group_by_modality_length"])
            return


def recorded(checkpoint: str | Path) -> dict[str, Any]:
    """What a run recorded of itself, in its folder or in a checkpoint."""
    record: dict[str, Any] = json.loads((Path(checkpoint) / RUN_RECORD).read_text(encoding="utf-8"))
    return record


def _why_not(name: str) -> str:
    if name in OPTIMIZER_FLAGS:
        return " (cannot change: the optimiser's saved state holds the old value)"
    if name in ARM_FLAGS:
        return " (cannot change: a run that had both is of no arm, and no comparison)"
    return " (cannot change: the saved weights and states would not fit)" if name in STATE_FLAGS else ""


def _check_batch(checkpoint: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Positions in the data are counted in global batches, so one of another size has no place to go on from."""
    old, new = before["batch"], now["batch"]
    words = "{per_device} a device x {accumulation} accumulated x {processes} processes".format
    if old["global"] != new["global"]:
        per_process, rest = divmod(old["global"], new["processes"])
        if rest:
            fitting = [n for n in range(1, old["global"] + 1) if old["global"] % n == 0]
            remedy = f"{new['processes']} processes cannot share {old['global']} samples; use one of {fitting}"
        else:
            most = min(per_process, old["per_device"])
            size = next(n for n in range(most, 0, -1) if per_process % n == 0)
            remedy = (
                f"with {new['processes']} processes keep it with --per_device_train_batch_size {size} "
                f"--gradient_accumulation_steps {per_process // size}"
            )
        raise UserError(
            f"{checkpoint} was made with a global batch of {old['global']} samples ({words(**old)}), now it would be "
            f"{new['global']} ({words(**new)}): {remedy}"
        )
    if old != new:
        logger.info(
            "the global batch of %d samples is now %s (it was %s): the run goes on at the same sample",
            new["global"], words(**new), words(**old),
        )  # fmt: skip
    if old["processes"] != new["processes"] and now["flags"].get("deepspeed"):
        raise UserError(
            f"{checkpoint}: DeepSpeed's states are cut for {old['processes']} processes, now there are "
            f"{new['processes']}: use as many as before"
        )


def record_digests(records: Sequence[Record]) -> np.ndarray:
    """(N,) uint64: `record_digest` of every record."""
    return np.fromiter(map(record_digest, records), dtype=np.uint64, count=len(records))


def fingerprint(digests: np.ndarray) -> str:
    """One hash of all training records in their order, for the run's record."""
    return hashlib.sha256(digests.astype(">u8").tobytes()).hexdigest()


def check_data(
    checkpoint: str, digests: np.ndarray, records: Sequence[Record], training_args: TrainingArguments
) -> None:
    """Compares the training records with those that a checkpoint was made with.

    Raises:
        ValueError: saying what changed, unless `--confirm_changes` confirms it.
    """
    before = np.load(Path(checkpoint) / DIGESTS_FILE, allow_pickle=False)
    if np.array_equal(before, digests):
        return
    shared = min(len(before), len(digests))
    differing = np.flatnonzero(before[:shared] != digests[:shared])
    first = int(differing[0]) if len(differing) else shared
    name = f"record {records[first].id!r} (number {first + 1})" if first < len(records) else "the end of the file"
    message = (
        f"{checkpoint} was made with other training records: {len(before)} before, {len(digests)} now; the first "
        f"difference is at {name}"
    )
    if training_args.confirm_changes:
        logger.warning("%s, as --confirm_changes confirms: the order of the samples is another from here on", message)
        return
    raise UserError(
        f"{message}. Resume with the data that the run was started with, start a new run in another --output_dir, or "
        "go on with the new data with --confirm_changes True"
    )
