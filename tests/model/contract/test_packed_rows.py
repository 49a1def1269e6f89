"""Samples that share a row give the loss and the gradients of one sample a row, whichever way they are kept apart."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from llava.data.packing import TrainingCollator
from llava.model import packed_attention
from llava.model.packed_attention import choose_way, take_way
from tests.conftest import CAPTIONS
from tests.model.contract.test_graphs import LAYOUTS, training_batch

FAMILIES = ("gpt2", "gpt_neox", "qwen3", "mixtral")
"""Learned and rotary positions, shared heads, experts."""
MULTIPLE = 64


@pytest.fixture
def flat(monkeypatch):
    """Batches of one row, padded to `MULTIPLE` where asked."""

    def collate(family, layout: str, multiple: int = 1, flat: bool = True) -> dict:
        def made(pad: int, templates: dict, pack: bool) -> TrainingCollator:
            return TrainingCollator(pad, templates, pack, flat=flat, multiple=multiple)

        monkeypatch.setattr("tests.model.contract.test_graphs.TrainingCollator", made)
        torch.manual_seed(0)
        return training_batch(family, LAYOUTS[layout], True)

    return collate


def passed(model, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "multiple"), [("gpt2", 1), *((name, MULTIPLE) for name in FAMILIES)])
def test_varlen_gives_the_loss_and_the_gradients_of_a_mask(made, flat, name, multiple):
    family = made(name)
    expected, grads = passed(family.copy(), flat(family, "mixed", flat=False))
    model = family.copy()
    take_way(model, "varlen")
    batch = flat(family, "mixed", multiple)
    assert len(batch["input_ids"]) == 1 and batch["input_ids"].shape[1] % multiple == 0
    found, own = passed(model, batch)
    torch.testing.assert_close(found, expected)
    assert own.keys() == grads.keys()
    for parameter, grad in grads.items():
        torch.testing.assert_close(own[parameter], grad, rtol=1e-4, atol=1e-6, msg=lambda m, p=parameter: f"{p}: {m}")


def test_a_sliding_window_stays_within_its_sample(made, flat):
    family = made("mistral")
    expected, model = family.copy(), family.copy()
    take_way(model, "varlen")
    for one in (expected, model):
        one.config.sliding_window = 3
        for layer in one.base_model.layers:
            layer.self_attn.config.sliding_window = 3
    loss, grads = passed(expected, flat(family, "text", flat=False))
    whole, _ = passed(family.copy(), flat(family, "text", flat=False))
    found, own = passed(model, flat(family, "text"))
    assert not torch.isclose(loss, whole), "the window is shorter than the samples"
    torch.testing.assert_close(found, loss)
    for parameter, grad in grads.items():
        torch.testing.assert_close(own[parameter], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "layout"), [("gpt2", "video"), ("gpt_neox", "mixed"), ("qwen3", "text")])
def test_varlen_never_waits_for_the_device(made, flat, name, layout):
    """With torch's kernels, whose shapes are known on `meta`."""
    family = made(name)
    batch = flat(family, layout, MULTIPLE)
    model = family.copy().to("meta")
    take_way(model, "varlen")
    model(**{k: v.to("meta") if torch.is_tensor(v) else v for k, v in batch.items()}).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_gradients_that_are_computed_again_are_of_the_same_attention(made, flat):
    family = made("gpt2")
    batch = flat(family, "mixed")
    model = family.copy()
    take_way(model, "varlen")
    _, expected = passed(model, batch)
    again = family.copy()
    take_way(again, "varlen")
    again.gradient_checkpointing = True
    for block in again.base_model.h:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    _, found = passed(again, batch)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma2"])
def test_flex_gives_the_states_of_a_mask(made, flat, name, monkeypatch):
    """FlexAttention's forward alone: it has no backward on CPU. Not compiled, which takes minutes here."""
    from torch.nn.attention import flex_attention as torch_flex
    from transformers import masking_utils
    from transformers.integrations import flex_attention as theirs

    def block_mask(*args, _compile, **kwargs):
        return torch_flex.create_block_mask(*args, **kwargs)

    monkeypatch.setattr(masking_utils, "create_block_mask", block_mask)
    monkeypatch.setattr(theirs, "compile_friendly_flex_attention",
                        lambda q, k, v, training, **kwargs: torch_flex.flex_attention(q, k, v, **kwargs))  # fmt: skip
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    family, used = made(name), []
    forward = theirs.flex_attention_forward
    monkeypatch.setattr(theirs, "flex_attention_forward", lambda *a, **k: used.append(1) or forward(*a, **k))
    model, plain = family.copy(), family.copy()
    plain.config._attn_implementation = "eager" if name == "gemma2" else "sdpa"
    model.config._attn_implementation = "sdpa"
    take_way(model, "flex")
    with torch.no_grad():
        expected = plain(**flat(family, "mixed", flat=False)).loss
        found = model(**flat(family, "mixed", MULTIPLE)).loss
    assert used
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", ["varlen", "flex"])
def test_other_layouts_are_as_before(made, way):
    """Rows of one sample with padding, with a mask and without."""
    family = made("gpt2")
    batch = training_batch(family, LAYOUTS["mixed"], False)
    model = family.copy()
    take_way(model, way)
    for given in (batch, {k: v for k, v in batch.items() if k != "segment_ids"}):
        if way == "varlen" or given is not batch:
            assert torch.equal(model(**given).loss, family.copy()(**given).loss)


def test_batches_of_one_length_share_one_graph(made, flat, monkeypatch):
    """Other words, other bounds of samples and other names: nothing of it may be compiled in, or a captured graph would
    be captured again for every batch.
    """
    family, counter = made("gpt2"), CompileCounter()
    model = family.copy().to("meta")
    take_way(model, "varlen")
    torch.compiler.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    lengths = set()
    for captions in (CAPTIONS, [f"{c} {c}" for c in CAPTIONS], CAPTIONS[::-1]):
        monkeypatch.setattr("tests.model.contract.test_graphs.CAPTIONS", captions)
        batch = flat(family, "mixed", 4 * MULTIPLE)
        lengths.add(int((batch["segment_ids"] >= 0).sum()))
        given = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in batch.items()}
        compiled(**given | {"sample_ids": [f"{len(lengths)}, {name}" for name in batch["sample_ids"]]})
    assert len(lengths) > 1 and counter.frame_count == 1


@pytest.mark.parametrize(
    ("way", "name", "device", "message"),
    [
        ("flex", "gpt2", "cpu", "no backward pass on CPU"),
        ("varlen", "gemma2", "cpu", "--attn_implementation sdpa"),
        ("varlen", "gpt2", "cuda", "bf16 or fp16"),
    ],
)
def test_what_cannot_be_had_is_said(made, way, name, device, message):
    family = made(name)
    if name == "gemma2":
        family.model.config._attn_implementation = "eager"
    with pytest.raises(ValueError, match=f"--packed_attention {way}: .*{message}"):
        choose_way(way, family.model, torch.device(device), half=False)
    assert choose_way("auto", family.model, torch.device("cpu"), half=False) == ("mask", "")


@pytest.mark.parametrize(("setting", "word"), [({"attn_pdrop": 0.1}, "dropout"), ({}, "")])
def test_dropout_of_attention_is_seen(made, setting, word):
    model = made("gpt2").copy()
    for name, value in setting.items():
        setattr(model.config, name, value)
    for block in model.base_model.h:
        block.attn.attn_dropout.p = model.config.attn_pdrop
    state = torch.get_rng_state()
    problem = packed_attention.problem_of("varlen", model, torch.device("cpu"), half=False)
    assert word in problem and bool(problem) == bool(word)
    assert torch.equal(torch.get_rng_state(), state) and model.config._attn_implementation == "sdpa"
    assert model.training
