"""Settings that would lose weights are refused, and gathered weights are looked at where the model's own are cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llava.train.checkpoint.resume import DEEPSPEED_GLOBALS
from llava.train.checkpoint.sharding import (
    flag_problems,
    kinds_in_step,
    not_finite,
    pickle_stage_by_value,
    weights_are_spread,
    without_tied,
)

GATHER = "stage3_gather_16bit_weights_on_model_save"


def arguments(zero: dict | None = None, fsdp: dict | None = None, device: str = "cuda") -> SimpleNamespace:
    config = None
    if zero is not None:
        config = SimpleNamespace(config={"zero_optimization": zero}, is_zero3=lambda: zero["stage"] == 3)
    return SimpleNamespace(
        deepspeed="zero.json" if zero else None, hf_deepspeed_config=config, fsdp=fsdp is not None, fsdp_config=fsdp,
        device=torch.device(device),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (arguments(zero={"stage": 3}), f'"{GATHER}": true'),
        (arguments(fsdp={}, device="cpu"), "--fsdp has no effect on CPU"),
        (arguments(fsdp={"version": 1}), '"fsdp_version": 2'),
        (arguments(fsdp={"state_dict_type": "SHARDED_STATE_DICT"}), '"state_dict_type": "FULL_STATE_DICT"'),
    ],
)
def test_settings_that_would_lose_the_weights_are_refused(args, message):
    (problem,) = flag_problems(args)
    assert message in problem


@pytest.mark.parametrize(
    ("args", "spread"),
    [
        (arguments(), False),
        (arguments(zero={"stage": 2}), False),
        (arguments(zero={"stage": 3, GATHER: True}), True),
        (arguments(fsdp={"version": 2}), True),
    ],
)
def test_sound_settings_pass_and_tell_whether_weights_are_spread(args, spread):
    assert flag_problems(args) == []
    assert weights_are_spread(args) is spread


def test_gathered_weights_are_those_that_are_looked_at(build):
    model = build(vision=False)
    name = "transformer.h.0.mlp.c_fc.weight"
    state = {n: t.clone() for n, t in model.state_dict().items()}
    state[name][0, 0] = torch.nan
    assert not_finite(model, None) == []
    assert not_finite(model, state) == [name]
    assert "lm_head.weight" in state
    assert set(state) - set(without_tied(model, state)) == {"lm_head.weight"}


def test_kinds_in_step_are_those_of_training_and_evaluation_data(build):
    def dataset(cache: object, **kinds: list[str]) -> SimpleNamespace:
        return SimpleNamespace(cache=cache, records=[SimpleNamespace(images=(), videos=()), SimpleNamespace(**kinds)])

    model = build()
    videos, images = dataset(1, images=(), videos=("a",)), dataset(None, images=("b",), videos=())
    assert kinds_in_step(model, videos, None) == {"video": False}
    assert kinds_in_step(model, videos, images) == {"image": True, "video": True}
    assert kinds_in_step(build(vision=False), videos) == {}


def test_a_blank_of_each_kind_in_step_passes_every_vision_module_and_changes_nothing(build, tokenizer):
    model = build()
    ids = torch.tensor([tokenizer("Un gatto nero.")["input_ids"]])
    expected = model(input_ids=ids).logits
    for pixels in (False, True):
        calls: list[str] = []
        for name in ("mm_projector", "vision_resampler.fast", "vision_resampler.slow", "vision_tower"):
            model.get_submodule(name).register_forward_hook(lambda *_, n=name, c=calls: c.append(n))
        model.in_step = {"image": pixels, "video": pixels}
        assert torch.equal(model(input_ids=ids).logits, expected)
        tower = ["vision_tower"] if pixels else []
        one = [*tower, "mm_projector", "vision_resampler.slow"]
        assert calls == [*one, *tower, "mm_projector", "vision_resampler.fast", "vision_resampler.slow"]


def test_the_stage_of_zero_is_pickled_alike_by_every_python(tmp_path, monkeypatch):
    stage_enum = pytest.importorskip("deepspeed.runtime.zero.config").ZeroStageEnum
    monkeypatch.setattr(stage_enum, "__reduce_ex__", lambda self, _: (getattr, (type(self), self.name)))
    path = tmp_path / "optim_states.pt"
    torch.save({"zero_stage": stage_enum.gradients}, path)
    assert "builtins.getattr" in torch.serialization.get_unsafe_globals_in_checkpoint(path)
    pickle_stage_by_value()
    torch.save({"zero_stage": stage_enum.gradients}, path)
    assert set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) <= DEEPSPEED_GLOBALS
    assert torch.load(path, weights_only=False)["zero_stage"] is stage_enum.gradients
