"""Faults in flags: where each must be caught, and in which words."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

from tests.audit import code_faults as code
from tests.audit.running import PAST_PREFLIGHT, Fault
from tests.train.runs import train

LONG = {"preflight": "off", "max_steps": 260, "logging_steps": 10, "controls": False}


def on_purpose(faults: str) -> dict[str, Any]:
    return {"experiment_faults": faults, "experiment_faults_confirmed": True}


def saved_without_optimizer(scene: SimpleNamespace) -> dict[str, Any]:
    """A run whose checkpoint-2 has weights alone, to go on from."""
    options = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    train(scene.assets, scene.run, **options)
    for step in (4, 6):
        shutil.rmtree(scene.run / f"checkpoint-{step}", ignore_errors=True)
    return {**options, "resume_from_checkpoint": "auto"}


FLAGS = [
    Fault(
        "learning rate 0",
        "flags",
        "refused",
        r"learning rate 0|learning_rate",
        flags={"learning_rate": 0.0},
        quick=True,
    ),
    Fault("learning rate nan", "flags", "refused", r"--learning_rate nan", flags={"learning_rate": "nan"}),
    Fault(
        "projector's learning rate 0",
        "flags",
        "refused",
        r"mm_mlp_adapter\) has learning rate 0|mm_projector_lr",
        flags={"mm_projector_lr": 0.0},
    ),
    Fault(
        "a part with a thousandth of the learning rate",
        "flags",
        "warned",
        r"(?i)thousand",
        flags={"mm_projector_lr": 1e-6},
    ),
    Fault(
        "a warm-up longer than the run",
        "flags",
        "warned",
        r"only 5% of the learning rate|%",
        flags={"warmup_steps": 100},
    ),
    Fault(
        "a guessing language model is frozen",
        "flags",
        "refused",
        r"guesses and is frozen",
        flags={"mm_tunable_parts": "mm_mlp_adapter"},
    ),
    Fault(
        "the experiment's faults without confirmation",
        "flags",
        "refused",
        r"breaks the training on purpose",
        flags={"experiment_faults": "unmasked_labels"},
    ),
    Fault(
        "the experiment's faults, past pre-flight",
        "flags",
        "alarm",
        r"visual targets",
        flags={**PAST_PREFLIGHT, **on_purpose("unmasked_labels")},
    ),
    Fault("0 steps", "flags", "refused", r"--max_steps", flags={"max_steps": 0}, quick=True),
    Fault(
        "negative accumulation",
        "flags",
        "refused",
        r"--gradient_accumulation_steps -2",
        flags={"gradient_accumulation_steps": -2},
        quick=True,
    ),
    Fault("negative length", "flags", "refused", r"--model_max_length -1", flags={"model_max_length": -1}, quick=True),
    Fault("negative seed", "flags", "refused", r"--seed -1", flags={"seed": -1}),
    Fault(
        "batches of 0", "flags", "refused", r"--per_device_train_batch_size 0", flags={"per_device_train_batch_size": 0}
    ),
    Fault("logging every 0 steps", "flags", "refused", r"--logging_steps 0", flags={"logging_steps": 0}),
    Fault(
        "saving every 2.5 steps",
        "flags",
        "refused",
        r"--save_steps 2\.5",
        flags={"save_strategy": "steps", "save_steps": 2.5},
    ),
    Fault("0 epochs", "flags", "refused", r"--num_train_epochs 0", flags={"max_steps": -1, "num_train_epochs": 0}),
    Fault("bf16 and fp16", "flags", "refused", r"(?i)bf16.*fp16|fp16.*bf16", flags={"bf16": True, "fp16": True}),
    Fault(
        "fewer records than a batch, and they are dropped",
        "flags",
        "refused",
        r"(?i)drop_last",
        flags={"per_device_train_batch_size": 8, "dataloader_drop_last": True},
        quick=True,
    ),
    Fault(
        "going on from a checkpoint of weights alone",
        "flags",
        "refused",
        r"(?i)save_only_model|optimi[sz]er",
        prepare=saved_without_optimizer,
    ),
    Fault("an unknown flag", "flags", "refused", r"--learing_rate", flags={"learing_rate": 1e-3}),
    Fault(
        "too high a learning rate",
        "flags",
        "end",
        r"plateau|spike|finite",
        flags={**LONG, "learning_rate": 5.0, "max_grad_norm": 0.0},
    ),
    Fault("weight decay 100", "flags", "end", r"plateau", flags={**LONG, "weight_decay": 100.0, "learning_rate": 1e-2}),
    Fault(
        "nearly everything dropped",
        "flags",
        "end",
        r"plateau|spike",
        plant=code.made_model(code.heavy_dropout),
        flags={**LONG, "learning_rate": 1e-3},
    ),
    Fault(
        "nearly everything dropped, before the first step",
        "flags",
        "warned",
        r"dropout: .*drops 95%",
        plant=code.made_model(code.heavy_dropout),
    ),
]
