"""Flags out of range: one message each, all at once, and never a traceback of a library."""

from __future__ import annotations

from dataclasses import fields
from importlib.util import find_spec
from typing import Any, get_args

import pytest
import torch

from llava.config.flags import DataArguments, ModelArguments, TrainingArguments
from llava.config.ranges import RANGES, Range, out_of_range
from llava.config.trainer_parser import TrainerParser
from llava.train.run_flags import parse_arguments
from tests.train.runs import flags

FREE = {
    "local_rank",  # torchrun's, and transformers does not read it
}
WHOLE = "a whole number"


def test_a_range_holds_what_it_says():
    assert [Range(0, 1, below=True).holds(x) for x in (-0.1, 0, 0.9, 1, float("nan"), float("inf"))] == [
        False, True, True, False, False, False,
    ]  # fmt: skip
    assert [Range(1, whole=True, share=True).holds(x) for x in (0, 0.5, 1, 2.5, 3)] == [False, True, True, False, True]
    assert [Range(1, whole=True, also=-1).holds(x) for x in (-2, -1, 0, 1)] == [False, True, False, True]
    assert str(Range(1, whole=True, also=-1)) == "a whole number, 1 or more, or -1"
    assert str(Range(0, 1, below=True)) == "a number from 0 to below 1"
    assert str(Range(0, above=True)) == "a number above 0"


def test_every_number_among_the_flags_has_a_range():
    """A flag that a new version of transformers brings is looked at by somebody."""

    def is_number(kind: Any) -> bool:
        parts = kind.split("|") if isinstance(kind, str) else get_args(kind) or (kind,)
        kinds = {getattr(part, "__name__", str(part)).strip() for part in parts}
        return bool(kinds & {"int", "float"}) and not kinds & {"bool", "str"}

    numbers = {
        f.name for group in (ModelArguments, DataArguments, TrainingArguments) for f in fields(group)
        if f.init and is_number(f.type)
    }  # fmt: skip
    assert numbers - set(RANGES) - FREE == set()


def test_the_defaults_are_in_range():
    values = {f.name: f.default for group in (ModelArguments, DataArguments, TrainingArguments) for f in fields(group)}
    assert out_of_range({k: v for k, v in values.items() if isinstance(v, int | float)}) == {}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("gradient_accumulation_steps", -2, f"{WHOLE}, 1 or more"),
        ("max_steps", 0, f"{WHOLE}, 1 or more, or -1"),
        ("model_max_length", -1, f"{WHOLE}, 2 or more"),
        ("seed", -1, f"{WHOLE} from 0 to 4294967295"),
        ("per_device_train_batch_size", 0, f"{WHOLE}, 1 or more"),
        ("per_device_eval_batch_size", 0, f"{WHOLE}, 1 or more"),
        ("logging_steps", 0, f"{WHOLE}, 1 or more, or a share of all steps between 0 and 1"),
        ("save_steps", 2.5, f"{WHOLE}, 1 or more, or a share"),
        ("eval_steps", -1, f"{WHOLE}, 1 or more, or a share"),
        ("learning_rate", "nan", "a number, 0 or more"),
        ("mm_projector_lr", -1, "a number, 0 or more"),
        ("num_train_epochs", 0, "a number above 0"),
        ("warmup_steps", -1, "a number, 0 or more"),
        ("weight_decay", "inf", "a number, 0 or more"),
        ("adam_beta1", 1, "a number from 0 to below 1"),
        ("adam_epsilon", 0, "a number above 0"),
        ("max_grad_norm", -1, "a number, 0 or more"),
        ("num_frames", 0, f"{WHOLE} from 1"),
        ("mm_perceiver_latents", 10**9, f"{WHOLE} from 1 to 65536"),
        ("dataloader_num_workers", -1, f"{WHOLE} from 0"),
        ("clip_timeout", 0, "a number above 0"),
        ("ddp_timeout", 0, f"{WHOLE}, 1 or more"),
    ],
)
def test_a_number_out_of_range_is_one_message(assets, tmp_path, name, value, allowed):
    with pytest.raises(ValueError) as error:
        parse_arguments(flags(assets, tmp_path, 1, **{name: value}))
    lines = [line for line in str(error.value).splitlines() if f"--{name} " in line]
    assert len(lines) == 1 and allowed in lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bf16": True, "fp16": True}, "--fp16 True --bf16 True: one of them"),
        ({"num_frame": 3}, "--num_frame: there is no such flag; did you mean --num_frames"),
        (
            {"learing_rate": 1},
            r"--learing_rate: there is no such flag; did you mean --learning_rate(\?| or --(?!learning-rate))",
        ),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "--warmup_ratio 0.1 and --warmup_steps 5: give one"),
        ({"learning_rate": "high"}, "--learning_rate.*: invalid float value: 'high'"),
        ({"report_to": "nothing_known"}, r"--report_to nothing_known: not installed here, or unknown"),
        ({"optim": "adamw_bnb_8bit"}, "--optim adamw_bnb_8bit: .*pip install -U bitsandbytes"),
        ({"optim": "adamw_torc_fused"}, "--optim adamw_torc_fused: there is no such choice; did you mean adamw"),
        ({"optim": "adamw"}, "--optim adamw: there is no such choice; did you mean adamw_torch or "),
        ({"optim": "x"}, "--optim x: there is no such choice; use muon, adamw_torch, .* or another"),
        ({"eval_strategy": "never"}, "--eval_strategy never: there is no such choice; use auto, no, steps, epoch"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "--lr_scheduler_type cosine_with_min_lr: .*min_lr"),
        ({"lr_scheduler_kwargs": "{min_lr"}, r"--lr_scheduler_kwargs {min_lr: not JSON"),
        ({"deepspeed": "/no.json"}, "--deepspeed /no.json: no such file"),
        ({"dataloader_prefetch_factor": 2}, "--dataloader_prefetch_factor can only be set"),
        ({"accelerator_config": '{"split_batches": true}'}, "--accelerator_config split_batches True: the samples"),
        ({"auto_find_batch_size": True}, "--auto_find_batch_size True goes on with another global batch"),
    ],
)
def test_what_libraries_say_of_flags_is_a_message(assets, tmp_path, options, message):
    if "bitsandbytes" in message and find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(ValueError, match=rf"^wrong flags:\n  - {message}"):
        parse_arguments(flags(assets, tmp_path, 1, **options))


def test_all_is_said_at_once(assets, tmp_path):
    wrong = {"seed": -1, "save_steps": 2.5, "video_folder": "/nowhere", "num_frame": 3, "optim": "x"}
    with pytest.raises(ValueError) as error:
        parse_arguments(flags(assets, tmp_path, 1, **wrong))
    assert len(str(error.value).splitlines()) == 6


def test_the_timeout_between_processes_on_cpu_is_the_flags(assets, tmp_path):
    """transformers hands it on for GPUs alone: a rank that was stopped held the others for half an hour."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parse_arguments(flags(assets, tmp_path / "run", 1, ddp_timeout=7))
        group = torch.distributed.distributed_c10d._get_default_group()
        assert group._get_backend(torch.device("cpu")).options._timeout.total_seconds() == 7
    finally:
        torch.distributed.destroy_process_group()


def test_every_range_is_that_of_a_flag():
    parser = TrainerParser()
    assert set(RANGES) <= {action.dest for action in parser._actions}


def test_a_warm_up_is_given_as_llava_gives_it(assets, tmp_path):
    training_args = parse_arguments(flags(assets, tmp_path, 1, warmup_ratio=0.03))[2]
    assert training_args.get_warmup_steps(200) == 6
