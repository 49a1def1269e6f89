"""A comparison finds what differs: a loss, the gradients of a small part, attention that leaks."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.gpu import attention, equality, states
from benchmarks.gpu.__main__ import TINY
from benchmarks.gpu.equality import Check, error_of, passed, run_checks
from benchmarks.gpu.parts import NotHereError, Setting
from benchmarks.gpu.variants import big_tower
from benchmarks.models import make_model
from llava.model import packed
from llava.model.multimodal_encoder.dinov2_encoder import DINOv2VisionTower


@pytest.fixture
def setting(tmp_path) -> Setting:
    torch.manual_seed(0)
    return Setting("cpu", tmp_path, TINY, True, 2, 2)


def result(loss: float = 2.0, **gradients: list[float]) -> equality.Result:
    return torch.tensor(loss), {name.replace("_", "."): torch.tensor(values) for name, values in gradients.items()}


def test_an_error_is_that_of_the_part_which_is_off_most():
    plain = result(a_x=[1000.0, 0.0], b_x=[3.0, 4.0])
    assert error_of(plain, plain)[0] == 0.0
    error, note = error_of(plain, result(a_x=[1000.0, 0.0], b_x=[3.0, 4.5]))
    assert error == pytest.approx(0.1) and "b.x" in note
    assert error_of(plain, result(3.0, a_x=[1000.0, 0.0], b_x=[3.0, 4.0]))[0] == 0.5
    zero = result(a_x=[0.0])
    assert error_of(zero, result(a_x=[1e-9]))[0] == math.inf


@pytest.mark.parametrize(
    ("other", "words"),
    [(result(b_x=[1.0]), "one side alone"), (result(a_x=[math.nan]), "not finite: a.x"),
     (result(math.nan, a_x=[1.0]), "not finite: the loss")],
)  # fmt: skip
def test_what_cannot_be_compared_raises(other, words):
    with pytest.raises(ValueError, match=words):
        error_of(result(a_x=[1.0]), other)


def test_attention_that_leaks_between_samples_is_found(setting, monkeypatch):
    """As if nobody had told transformers that samples share rows."""
    monkeypatch.setattr(packed, "segments", packed._none)
    model = make_model(TINY).train()
    samples = equality.mixed_samples(TINY, 2, 6)
    alone, together = (equality.collated(setting, model, samples, pack) for pack in (False, True))
    row = next(run_checks([Check("packed", partial(passed, model, alone), partial(passed, model, together))]))
    assert not row["equal"]


def test_a_batch_that_shows_nothing_about_packing_is_refused(setting):
    model = make_model(TINY)
    with pytest.raises(ValueError, match="shows nothing about packing"):
        equality.collated(setting, model, equality.make_samples(TINY, 2), pack=True)


def test_a_resampler_that_stands_still_is_found(setting):
    model = make_model(TINY).train()
    batch = equality.collated(setting, model, equality.make_samples(TINY, 2), pack=False)
    plain = passed(model, batch)
    for parameter in model.vision_resampler.parameters():
        parameter.requires_grad_(False)
    row = next(run_checks([Check("frozen", lambda: plain, partial(passed, model, batch))]))
    assert row["kind"] == "broke" and "one side alone" in row["note"]


def test_features_of_another_clip_are_found(setting, monkeypatch):
    monkeypatch.setattr(states.FeatureCache, "read", lambda cache, path, split: cache.row(next(iter(cache._entries))))
    rows = {row["measure"]: row for row in states.states(setting)}
    assert not rows["features from the cache, float16, against the tower in the loop"]["equal"]
    assert rows["fused AdamW against parameter by parameter"]["equal"]


def test_a_step_that_is_cut_elsewhere_is_found(setting):
    """Muon without its cuts steps along other directions."""
    model = make_model(TINY)
    gradients = {n: torch.randn_like(p) for n, p in model.named_parameters() if p.requires_grad}

    def uncut(model):
        optimizer = states.muon_adamw(model)
        optimizer.param_groups[0]["cuts"] = [None] * len(optimizer.param_groups[0]["cuts"])
        return optimizer

    plain, fast = (states.stepped(model, gradients, make) for make in (states.muon_adamw, uncut))
    error, note = error_of(plain, fast)
    assert error > 0.05 and "transformer.h" in note


def test_what_a_cpu_has_not_is_named_with_the_reason(setting):
    rows = {row["measure"]: row for row in attention.attention(setting)}
    for name in ("SDPA against eager, packed", "samples in one row by varlen against one sample a row, 16 bits"):
        assert rows.pop(name)["equal"]
    assert rows.pop("SDPA against eager")["equal"]
    missing = {name: row["note"] for name, row in rows.items() if row["kind"] == "not here"}
    assert missing["flex_attention against SDPA, packed, 16 bits"] == "FlexAttention has no backward pass on CPU"
    assert all(missing.values()) and missing.keys() == rows.keys()


def test_what_transformers_has_not_for_a_model_is_no_failure(setting):
    """Its GPT-2 has no FlexAttention, and raised on a GPU."""
    model = make_model(TINY)
    assert not model._supports_flex_attn
    with pytest.raises(NotHereError, match="has none for LlavaGPT2ForCausalLM"):
        attention.by_name(replace(setting, device="cuda"), model, "flex_attention", {})


def test_weights_are_drawn_where_they_stay(monkeypatch):
    """All of them: `meta` in the place of a GPU, where a checksum of the tower has nothing to read."""
    monkeypatch.setattr(DINOv2VisionTower, "checksum", lambda tower: "")
    drawn = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: drawn.append(module) or module)
    for made in (make_model(TINY, device="meta"), make_model(TINY, False, "meta"), big_tower(TINY, "meta")):
        tensors = {**dict(made.named_parameters()), **dict(made.named_buffers())}
        assert tensors and [name for name, tensor in tensors.items() if tensor.device.type != "meta"] == []
    assert len(drawn) >= 3
