"""A plain model is given as it is, and a wrapped one unwrapped as ever."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from llava.train.unwrap import spare_deepspeed


def test_only_what_is_wrapped_is_looked_at(build):
    model, asked = build(), []
    state = SimpleNamespace(deepspeed_plugin=None)
    accelerator = SimpleNamespace(unwrap_model=lambda *args: asked.append(args) or "unwrapped", state=state)
    spare_deepspeed(accelerator)
    assert accelerator.unwrap_model(model) is accelerator.unwrap_model(model, keep_torch_compile=False) is model
    assert not asked
    wrapped = nn.DataParallel(model)
    assert accelerator.unwrap_model(wrapped) == "unwrapped" and asked == [(wrapped, True, True)]
    assert accelerator.unwrap_model(model, keep_fp32_wrapper=False) == "unwrapped"
