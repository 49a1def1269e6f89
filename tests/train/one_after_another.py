"""Runs of `main([...])` one after another in the same processes, since their start takes longer than a tiny run.

torchrun --nproc_per_node 2 tests/train/one_after_another.py '[["--flag", "value"], ["--flag", "other"]]'
"""

from __future__ import annotations

import gc
import json
import os
import sys

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llava.train.train import main

SETTINGS = ("ACCELERATE_", "FSDP_")
"""Variables that `TrainingArguments` sets for accelerate begin with these."""


def clear() -> None:
    """Leaves nothing of a run that a later one would read."""
    for name in [n for n in os.environ if n.startswith(SETTINGS)]:
        del os.environ[name]
    unset_hf_deepspeed_config()
    gc.collect()


if __name__ == "__main__":
    for arguments in json.loads(sys.argv[1]):
        main(arguments)
        clear()
