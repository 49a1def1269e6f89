"""The trainer's command line: all that is wrong is said at once, and `--help` is in groups."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from transformers.trainer_utils import IntervalStrategy
from transformers.training_args import OptimizerNames

from llava.config import llava_st
from llava.config.commands import Parser, unknown_flags
from llava.config.flags import MUON, DataArguments, ModelArguments, TrainingArguments
from llava.errors import UserError

TITLES = {"Model": "model", "Data": "data"}
GROUPS: dict[str, str] = {
    "the run": "output_dir recipe resume_from_checkpoint confirm_changes run_name seed data_seed full_determinism",
    "batches": "per_device_train_batch_size gradient_accumulation_steps model_max_length packing "
    "packed_attention pad_to_multiple_of group_by_modality_length max_steps num_train_epochs dataloader_num_workers "
    "dataloader_prefetch_factor "
    "dataloader_drop_last dataloader_pin_memory dataloader_persistent_workers dataloader_multiprocessing_context "
    "dataloader_in_order ignore_data_skip",
    "optimiser and schedule": "learning_rate mm_projector_lr mm_vision_resampler_lr mm_vision_tower_lr "
    "mm_embeddings_lr mm_coordinates_lr lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio weight_decay "
    "optim optim_args adam_beta1 adam_beta2 adam_epsilon max_grad_norm label_smoothing_factor neftune_noise_alpha",
    "checks and evaluation": "preflight show_samples run_monitor replay_every run_report controls controls_samples "
    "eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size",
    "logs": "logging_steps logging_strategy logging_first_step report_to project disable_tqdm log_level "
    "include_num_input_tokens_seen",
    "checkpoints": "save_strategy save_steps save_total_limit save_words save_only_model load_best_model_at_end "
    "metric_for_best_model greater_is_better",
    "precision and memory": "bf16 fp16 tf32 gradient_checkpointing gradient_checkpointing_kwargs "
    "bf16_full_eval fp16_full_eval torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps "
    "use_liger_kernel liger_kernel_config",
    "devices and processes": "use_cpu deepspeed fsdp fsdp_config ddp_timeout ddp_backend ddp_bucket_cap_mb "
    "ddp_broadcast_buffers ddp_find_unused_parameters ddp_static_graph local_rank accelerator_config "
    "parallelism_config",
    "Hugging Face Hub": "push_to_hub hub_model_id hub_token hub_private_repo hub_strategy hub_always_push hub_revision",
}
"""Flags of `TrainingArguments` as `--help` shows them; those that no group names come last."""
REST = "transformers' other flags"
CHOICES: dict[str, list[str]] = {
    "optim": [MUON, *(choice.value for choice in OptimizerNames)],
    "eval_strategy": ["auto", *(choice.value for choice in IntervalStrategy)],
}
"""Words that flags take whose parser takes any; transformers' message for another word does not name the flag."""
LISTED = 12


class TrainerParser(Parser):
    """Flags of a run in all their groups; what the parser itself finds wrong is an error of ours.

    Attributes:
        added: the flags of LLaVA-ST that the argument classes lack.
    """

    def __init__(self) -> None:
        super().__init__(
            (ModelArguments, DataArguments, TrainingArguments),
            prog="train.py",
            description="Trains a small video-language model, or a language model alone.",
            epilog="Recipes of tried settings: recipes/ and docs/recipes.md. Before a run: python -m llava.data.check "
            "(data), python -m llava.train.preflight (the run's own flags, without training).",
        )
        regroup(self)
        self.added = llava_st.add_flags(self)

    def read(self, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """The values, and what is wrong with the words: flags that are not known or are missing.

        Raises:
            UserError: for a value that is none of its flag's.
            SystemExit: for `--help`.
        """
        known = [name for action in self._actions for name in action.option_strings]
        try:
            values, unknown = self.parse_known_args(words)
        except UserError as error:
            # argparse stops at the first wrong value.
            flags = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
            problems = [str(error), *unknown_flags(flags, known)]
            raise UserError("wrong flags:\n" + "\n".join(f"  - {problem}" for problem in problems)) from error
        absent = [(name, about) for dest, name, about in self.needed if getattr(values, dest) is None]
        return values, unknown_flags(unknown, known) + [f"{name} is needed: {about}" for name, about in absent]

    def error(self, message: str) -> NoReturn:
        raise UserError(re.sub(r"^argument (--\w+)[^:]*", r"\1", message))


def unknown_choices(values: Mapping[str, Any]) -> dict[str, str]:
    """The flags of `CHOICES` whose value is none of theirs, each with its message."""
    found = {}
    for name, known in CHOICES.items():
        value = values[name]
        if value in known:
            continue
        begun = [choice for choice in known if value and choice.startswith(str(value))]
        close = begun[:3] or difflib.get_close_matches(str(value), known, 3)
        if len(known) <= LISTED:
            remedy = f"use {', '.join(known)}"
        elif close:
            remedy = f"did you mean {' or '.join(close)}?"
        else:
            remedy = f"use {', '.join(known[:LISTED])} or another that transformers knows"
        found[name] = f"--{name} {value}: there is no such choice; {remedy}"
    return found


def regroup(parser: Any) -> None:
    """Shows the flags of transformers' one group in groups of what they are about."""
    training = next(g for g in parser._action_groups if g.title == TrainingArguments._argument_group_name)
    actions: dict[str, list[Any]] = {}
    for action in training._group_actions:
        # Of a flag that is on by default there is one more, --no_NAME.
        actions.setdefault(action.dest, []).append(action)
    for group in parser._action_groups:
        group.title = TITLES.get(group.title, group.title)
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        # Not every version of transformers has every flag.
        group._group_actions += [action for name in names.split() for action in actions.pop(name, [])]
    training.title, training._group_actions = REST, [action for same in actions.values() for action in same]
    parser._action_groups.remove(training)
    parser._action_groups.append(training)
