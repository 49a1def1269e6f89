"""`llava/train/train.py` with FSDP on CPU, which accelerate keeps for accelerators: run by `torchrun` in the tests."""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from llava.train.checkpoint import sharding
from llava.train.train import main

prepare = AcceleratorState.__init__


def prepare_with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    prepare(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = prepare_with_fsdp
    sharding.flag_problems = lambda args: []
    main()
