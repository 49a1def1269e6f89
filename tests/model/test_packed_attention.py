"""Attention of a flat row: each sample by itself, by whichever kernels there are, and an error where there are none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from llava.data.packing import sample_bounds
from llava.model import packed_attention
from llava.model.packed_attention import (
    asks_too_much,
    flash_varlen,
    problem_of,
    segment_loop,
    torch_varlen,
    varlen_attention,
)

BOUNDS = sample_bounds([3, 5, 1])["cu_seq_lens_q"]


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """(L, H, E), from a dense mask of all pairs."""
    owner = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2])
    back = torch.arange(9)[:, None] - torch.arange(9)
    seen = (owner[:, None] == owner) & (back >= 0) & (back < (window or 9))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhe,khe->hqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hqk,khe->qhe", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("window", [None, 2, 20])
@pytest.mark.parametrize("heads", [4, 2])
def test_the_loop_is_attention_within_samples(heads, window):
    torch.manual_seed(0)
    q, k, v = torch.randn(9, 4, 8), torch.randn(9, heads, 8), torch.randn(9, heads, 8)
    torch.testing.assert_close(segment_loop(q, k, v, BOUNDS, window=window), attended(q, k, v, window))


def test_samples_without_positions_change_nothing():
    q = torch.randn(9, 2, 8)
    bounds = torch.tensor([0, 3, 3, 8, 9, 9])
    torch.testing.assert_close(segment_loop(q, q, q, bounds), segment_loop(q, q, q, BOUNDS))


def test_a_flat_row_without_its_bounds_is_an_error():
    q = torch.randn(1, 2, 9, 8)
    with pytest.raises(ValueError, match="Linear does not hand the bounds of samples on"):
        varlen_attention(torch.nn.Linear(1, 1), q, q, q, torch.ones(1, 1, 1, 1, dtype=torch.bool))


def test_a_cap_that_the_kernels_lack_is_an_error():
    q = torch.randn(1, 2, 9, 8)
    with pytest.raises(ValueError, match="a soft cap, which varlen does not know"):
        varlen_attention(torch.nn.Identity(), q, q, q, None, softcap=5.0, cu_seq_lens_q=BOUNDS, max_length_q=5)
    assert not asks_too_much("flash", {"softcap": 5.0, "dropout": 0.1})
    assert "attention sinks" in asks_too_much("flash", {"s_aux": torch.zeros(2)})


@pytest.mark.parametrize("extra", [{"enable_gqa": False}, {}])
def test_torch_is_asked_for_causal_attention_within_a_window(monkeypatch, extra):
    """With `enable_gqa` (torch 2.12), and without (2.11), where keys are repeated for their heads."""
    calls = []

    def newer(q, k, v, a, b, longest, same, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        calls.append((k.shape[1], longest, scale, window_size, enable_gqa))

    def older(q, k, v, a, b, longest, same, *, scale=None, window_size=(-1, -1)):
        calls.append((k.shape[1], longest, scale, window_size, False))

    monkeypatch.setitem(
        sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=newer if extra else older)
    )
    attend = torch_varlen()
    for window in (None, 4):
        attend(torch.ones(9, 4, 8), torch.ones(9, 2, 8), torch.ones(9, 2, 8), BOUNDS, 5, 0.5, window, 0.0, 0.0)
    heads = 2 if extra else 4
    assert calls == [(heads, 5, 0.5, (-1, 0), bool(extra)), (heads, 5, 0.5, (3, 0), bool(extra))]


def test_flash_attn_is_asked_for_dropout_and_caps(monkeypatch):
    found = {}

    def varlen(q, k, v, a, b, longest, same, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
               softcap=0.0):  # fmt: skip
        found.update(longest=longest, dropout=dropout_p, scale=softmax_scale, causal=causal, window=window_size,
                     cap=softcap)  # fmt: skip

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen))
    q = torch.ones(9, 4, 8)
    flash_varlen()(q, q, q, BOUNDS, 5, 0.5, 4, 0.1, 30.0)
    assert found == {"longest": 5, "dropout": 0.1, "scale": 0.5, "causal": True, "window": (3, 0), "cap": 30.0}


def test_a_torch_without_kernels_says_which_has_them(build, monkeypatch):
    old = SimpleNamespace(varlen_attn=lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False: None)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", old)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    problem = problem_of("varlen", build(vision=False), torch.device("cuda"), half=True)
    assert "needs torch 2.11" in problem and torch.__version__ in problem and "flash_attn" in problem
    assert problem_of("varlen", build(vision=False), torch.device("cpu"), half=False) == "", "the loop needs none"


def test_a_class_with_an_attention_of_its_own_is_not_trusted(build, monkeypatch):
    model = build(vision=False)
    monkeypatch.setattr(packed_attention, "asked_of_attention", lambda _: [])
    assert "an attention of its own" in problem_of("varlen", model, torch.device("cpu"), half=False)
