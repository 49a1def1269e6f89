"""The trainer itself on the device: tiny runs of `llava.train.train.main` on clips that the demo draws.

Their losses must be those of a plain run in fp32; a run that was cut must be the one that never was, to the bit.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from benchmarks.gpu.parts import NotHereError, Row, Setting, compared, not_here, trying
from llava.commands import make_model
from llava.train.train import main
from scripts.chaos import differences

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("ACCELERATE_", "FSDP_")
"""Variables that `TrainingArguments` sets for accelerate begin with these."""
CLIPS, STEPS, CUT = 12, 6, 3
WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""What cuBLAS needs to be told before its first product, to give the same one each time."""

SAME, CLOSE, SIXTEEN, SCALED = 1e-4, 1e-2, 3e-2, 0.1
"""Relative errors of losses over a few steps: sums in another order, features stored in fp16, 16 bits throughout, and
fp16, whose first steps may be skipped until the scale of the loss fits.
"""
MODES: dict[str, tuple[dict[str, Any], float]] = {
    "one sample a row": ({"packing": False}, SAME),
    "two data workers": ({"dataloader_num_workers": 2}, SAME),
    "two halves of the batch": ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, SAME),
    "tower in the loop": ({"feature_cache": "off"}, CLOSE),
    "bf16": ({"bf16": True}, SIXTEEN),
    "fp16": ({"fp16": True}, SCALED),
    "torch.compile": ({"torch_compile": True}, SAME),
}
"""Flags of a run, and how far its losses may be from the plain run's."""
OPTIMISERS = ("adamw_torch_fused", "muon")
STAGES = ("zero1", "zero2", "zero3")


def make_demo(setting: Setting) -> Path:
    """Clips and records of the demo, a tiny language model with dropout and one without, a random tower; made once."""
    folder = setting.folder / "demo"
    if (folder / "dropout").exists():
        return folder
    # Its modules name one another as scripts.
    sys.path.insert(0, str(ROOT / "scripts"))
    drawing = importlib.import_module("make_demo_data")
    drawing.SPLIT_SIZES = dict.fromkeys(drawing.SPLIT_SIZES, 2)
    drawing.main(["--output_dir", str(folder / "data"), "--num_train", str(CLIPS), "--num_workers", "1"])
    make_model.main([
        "--data_path", str(folder / "data" / "train_vi_it.json"), "--output_dir", str(folder / "gpt2"),
        "--vocab_size", "320", "--n_layer", "2", "--n_embd", "64", "--n_head", "2", "--n_positions", "96",
        "--make_vision_tower", str(folder / "tower"), "--vision_hidden_size", "32", "--vision_heads", "2",
        "--image_size", "56",
    ])  # fmt: skip
    config = json.loads((folder / "gpt2" / "config.json").read_text())
    shutil.copytree(folder / "gpt2", folder / "making")
    dropped = dict.fromkeys(("resid_pdrop", "embd_pdrop"), 0.1)
    (folder / "making" / "config.json").write_text(json.dumps(config | dropped))
    (folder / "making").rename(folder / "dropout")
    return folder


def run(setting: Setting, output: Path, **overrides: Any) -> list[float]:
    """The losses of a run of `STEPS` steps."""
    demo = make_demo(setting)
    values: dict[str, Any] = {
        "model_name_or_path": demo / "gpt2", "vision_tower": demo / "tower", "output_dir": output,
        "data_path": demo / "data" / "train_vi_it.json", "video_folder": demo / "data" / "clips",
        "feature_cache": demo / "cache", "force_sample": True, "mm_vision_select_layer": -1,
        "mm_perceiver_latents": 4, "mm_perceiver_latents_fast": 1, "model_max_length": 96, "vision_precision": "fp32",
        "per_device_train_batch_size": 4, "group_by_modality_length": False, "max_steps": STEPS,
        "learning_rate": 1e-3, "logging_steps": 1,
        "save_strategy": "no", "val_fraction": 0, "preflight": "off", "report_to": "none", "disable_tqdm": True,
        "run_report": False, "use_cpu": setting.device == "cpu",
    }  # fmt: skip
    values |= overrides
    try:
        main([part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))])
    finally:
        clear()
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def clear() -> None:
    """Leaves nothing of a run that a later one in this process would read."""
    for name in [n for n in os.environ if n.startswith(SETTINGS)]:
        del os.environ[name]
    unset_hf_deepspeed_config()
    gc.collect()


def plain_run(setting: Setting) -> list[float]:
    """The run that others are compared with, in fp32; made once."""
    kept = setting.folder / "plain.json"
    if not kept.exists():
        kept.write_text(json.dumps(run(setting, setting.folder / "plain")))
    return json.loads(kept.read_text())


def beside_plain(name: str, setting: Setting, flags: dict[str, Any], allowed: float) -> Iterator[Row]:
    """A run in another way, beside the plain one."""
    plain = plain_run(setting)
    losses = run(setting, setting.folder / name.replace(" ", "_"), **flags)
    if len(losses) != len(plain):
        raise ValueError(f"{len(losses)} losses were logged, {len(plain)} in the plain run")
    errors = [abs(a - b) / abs(b) for a, b in zip(losses, plain, strict=True)]
    error = max(errors) if all(map(math.isfinite, errors)) else math.nan
    yield compared(f"run: {name}", error, allowed, f"losses of {len(plain)} steps, {losses[0]:.4f} to {losses[-1]:.4f}")


def in_this_way(name: str, setting: Setting) -> Iterator[Row]:
    flags, allowed = MODES[name]
    if setting.device == "cpu" and name == "fp16":
        raise NotHereError("the trainer takes fp16 on GPUs alone")
    if setting.device == "cpu" and name == "torch.compile":
        raise NotHereError("left out on CPU, where compiling takes longer than all the rest")
    if name == "bf16" and setting.half != torch.bfloat16:
        raise NotHereError("the device has no bf16")
    yield from beside_plain(name, setting, flags, allowed)


def runs(setting: Setting) -> Iterator[Row]:
    """Each mode, and a run behind pre-flight, whose checks of the model are part of it."""
    yield from trying("run: behind pre-flight", lambda: behind_preflight(setting))
    for name in MODES:
        yield from trying(f"run: {name}", partial(in_this_way, name, setting))


def behind_preflight(setting: Setting) -> Iterator[Row]:
    """Pre-flight ends a run where a check of it fails."""
    output = setting.folder / "preflight"
    run(setting, output, preflight="quick", bf16=setting.half == torch.bfloat16)
    found = json.loads((output / "preflight.json").read_text())
    wrong = [check["check"] for check in found["checks"] if check["status"] == "failed"]
    note = f"{len(found['checks'])} checks" + (f"; failed: {', '.join(wrong)}" if wrong else "")
    yield compared("run: behind pre-flight", float(not found["passed"]), 0.0, note)


def resume(setting: Setting) -> Iterator[Row]:
    """A run with dropout, cut at a checkpoint, that goes on in deterministic mode; by both optimisers."""
    os.environ |= WORKSPACE
    for optim in OPTIMISERS:
        yield from trying(f"resumed, {optim}", partial(resumed, setting, optim))


def resumed(setting: Setting, optim: str) -> Iterator[Row]:
    whole, cut = (setting.folder / f"{optim}_{name}" for name in ("whole", "cut"))
    flags = {
        "model_name_or_path": make_demo(setting) / "dropout", "full_determinism": True, "optim": optim,
        "save_strategy": "steps", "save_steps": CUT, "resume_from_checkpoint": "auto",
        "bf16": setting.half == torch.bfloat16,
    }  # fmt: skip
    run(setting, whole, **flags)
    shutil.copytree(whole / f"checkpoint-{CUT}", cut / f"checkpoint-{CUT}")
    run(setting, cut, **flags)
    found = differences(whole, cut)
    note = f"cut at step {CUT} of {STEPS}; " + (f"other {', '.join(found)}" if found else "log, weights, states: equal")
    yield compared(f"resumed, {optim}: differences to the run that was never cut", float(len(found)), 0.0, note)


def as_torchrun(port: int) -> None:
    """The variables that `torchrun --nproc_per_node 1` gives its process."""
    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def zero(setting: Setting) -> Iterator[Row]:
    """DeepSpeed's stages on one device, in a process as torchrun starts it."""
    plain_run(setting)
    as_torchrun(free_port())
    if setting.device == "cpu":
        # It would compile for minutes what several processes of a machine reduce by.
        importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        for name in STAGES:
            flags = {"deepspeed": ROOT / "scripts" / f"{name}.json"}
            yield from trying(f"run: {name}", partial(beside_plain, name, setting, flags, SAME))
    finally:
        leave_group()


def fsdp2(setting: Setting) -> Iterator[Row]:
    """FSDP2 on one device, likewise."""
    if setting.device == "cpu":
        yield not_here("run: fsdp2", "accelerate leaves the weights whole on CPU")
        return
    plain_run(setting)
    as_torchrun(free_port())
    try:
        flags = {"fsdp": "full_shard auto_wrap", "fsdp_config": ROOT / "scripts" / "fsdp2.json"}
        yield from trying("run: fsdp2", partial(beside_plain, "fsdp2", setting, flags, SAME))
    finally:
        leave_group()


def leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
