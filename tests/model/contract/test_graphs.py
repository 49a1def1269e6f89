"""A training step waits for the device nowhere, and is one graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from llava.data.packing import TrainingCollator
from llava.data.prompt import expand_placeholders, preprocess_plain_lm
from llava.model import loss, packed
from tests.conftest import CAPTIONS, SPEC

LAYOUTS = {"text": "tttttt", "video": "vvvvvv", "mixed": "tvtvtv"}
KINDS = ("gpt2", "gpt_neox", "gemma2", "opt", "qwen3")
"""Learned and rotary positions, sliding windows, soft caps."""
WAITING = {"masked_select", "masked_scatter_backward", "nonzero", "unique", "_unique2", "_local_scalar_dense", "equal"}


def training_batch(family, kinds: str, pack: bool) -> dict:
    """Six samples of text (t) and of a clip's features (v), as training lays them out."""
    samples = []
    for i, (kind, caption) in enumerate(zip(kinds, CAPTIONS, strict=True)):
        turns = [{"from": "gpt", "value": expand_placeholders(f"<video> {caption}" if kind == "v" else caption, SPEC)}]
        found = preprocess_plain_lm([turns], family.tokenizer, has_image=kind == "v")
        samples.append({"sample_id": str(i), "input_ids": found["input_ids"][0], "labels": found["labels"][0]})
        if kind == "v":
            patches = family.model.config.mm_patch_grid[0] * family.model.config.mm_patch_grid[1]
            samples[-1]["video_features"] = torch.randn(1, SPEC.num_frames, patches, family.model.config.mm_hidden_size)
    batch = TrainingCollator(family.tokenizer.eos_token_id, templates=family.model.visual_templates(), pack=pack)(
        samples
    )
    assert ("position_ids" in batch) == pack
    return batch | {"num_items_in_batch": torch.tensor(int((batch["labels"] != -100).sum()))}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", KINDS)
def test_a_training_step_never_waits_for_the_device(made, name, layout, pack):
    """On `meta`, where there are no values, whatever asks for one raises."""
    family = made(name)
    batch = training_batch(family, LAYOUTS[layout], pack)
    model = family.copy().to("meta")
    inputs = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in batch.items()}
    model(**inputs).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_operation_of_a_step_sizes_its_result_by_values(made, layout, pack, monkeypatch):
    """On CUDA these wait for the device to count; some have a shape on `meta` all the same."""
    monkeypatch.setattr(loss, "can_look", lambda values: False)  # As on CUDA, where a look costs something.
    family = made("gpt2")
    batch = training_batch(family, LAYOUTS[layout], pack)
    model = family.copy().train()
    model(**batch).loss.backward()  # What is made once and kept may take its time.
    with Operations() as seen:
        model(**batch).loss.backward()
    assert "embedding_dense_backward" in seen.names
    assert not seen.names & WAITING


class Operations(TorchDispatchMode):
    """The operations that a computation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("layout", "pack"), [("text", True), ("video", True), ("mixed", False)])
def test_a_training_step_is_one_graph(made, layout, pack):
    """`fullgraph` refuses a graph with a break."""
    family = made("gpt2")
    batch = training_batch(family, LAYOUTS[layout], pack)
    torch.compiler.reset()
    model = family.copy()
    expected = model(**batch).loss
    found = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)(**batch).loss
    torch.testing.assert_close(found, expected)


def test_other_heads_are_one_graph_too(made):
    """Soft caps and grouped heads."""
    family = made("gemma2")
    batch = training_batch(family, LAYOUTS["mixed"], True)
    torch.compiler.reset()
    model = family.copy()
    found = torch.compile(model, backend="eager", fullgraph=True)(**batch).loss
    torch.testing.assert_close(found, family.copy()(**batch).loss)


@pytest.mark.parametrize("layout", ["text", "video"])
def test_a_batch_is_exported(made, layout):
    family = made("gpt2")
    batch = training_batch(family, LAYOUTS[layout], False)
    inputs = {k: v for k, v in batch.items() if torch.is_tensor(v)}
    program = torch.export.export(family.model, (), inputs)
    torch.testing.assert_close(program.module()(**inputs).loss, family.model(**inputs).loss)


@pytest.mark.parametrize("pack", [True, False])
def test_transformers_is_told_what_it_would_look_for(made, pack, monkeypatch):
    family, told = made("gpt2"), []
    batch = training_batch(family, LAYOUTS["text"], pack)
    for name in ("segments", "_none"):
        function = getattr(packed, name)
        monkeypatch.setattr(packed, name, lambda ids, name=name, f=function: told.append((name, f(ids))) or f(ids))
    family.model(**batch)
    assert {name for name, _ in told} == {"segments" if pack else "_none"}, "asked no more: see llava.model.packed"
    answer = masking_utils.find_packed_sequence_indices(batch.get("position_ids", torch.arange(9)[None]))
    assert torch.equal(told[0][1], answer) if pack else answer is None
