"""The members of `transformers.Trainer` that this package overrides, calls or reads, in one place.

An override that transformers no longer calls, or a private attribute that it no longer keeps, fails without a word: a
step would go unwatched, a checkpoint unwritten. `tests/train/test_trainer_members.py` compares these lists with the
installed version and with the classes that override them. They are the same from 5.10 to 5.24.
"""

from __future__ import annotations

OVERRIDDEN: dict[str, tuple[str, ...]] = {
    "train": ("resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "log": ("logs", "start_time"),
    "evaluate": ("eval_dataset", "ignore_keys", "metric_key_prefix"),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "_prepare_inputs": ("inputs",),
    "training_step": ("model", "inputs", "num_items_in_batch"),
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "get_train_dataloader": (),
    "_get_collator_with_removed_columns": ("data_collator", "description"),
    "get_eval_dataloader": ("eval_dataset",),
    "_get_train_sampler": ("train_dataset",),
    "create_accelerator_and_postprocess": (),
    "create_optimizer": ("model",),
    "save_model": ("output_dir", "_internal_call"),
    "_save": ("output_dir", "state_dict"),
    "_save_checkpoint": ("model", "trial"),
    "_get_output_dir": ("trial",),
    "_load_rng_state": ("checkpoint",),
    "_issue_warnings_after_load": ("load_result",),
    "_get_grad_norm": ("model", "grad_norm"),
    "_run_epoch": (
        "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
        "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
        "steps_trained_in_current_epoch",
    ),
    "_maybe_log_save_evaluate": (
        "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate",
    ),
    "_finalize_training": ("trial", "num_train_samples", "start_time"),
}  # fmt: skip
"""Methods that are replaced or wrapped, with the names of their arguments; transformers calls each on itself."""

CALLED: dict[str, tuple[str, ...]] = {
    "_evaluate": ("trial", "ignore_keys_for_eval", "skip_scheduler"),
    "_determine_best_metric": ("metrics", "trial"),
    "compute_loss_context_manager": (),
    "get_decay_parameter_names": ("model",),
    "get_optimizer_cls_and_kwargs": ("args", "model"),
}
"""Methods that are called from here, beyond those that transformers documents."""

READ = (
    "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "is_in_train", "label_smoother", "model_wrapped",
    "control", "callback_handler", "data_collator",
)  # fmt: skip
"""Attributes that are read or set from here, and that transformers keeps under these names."""
