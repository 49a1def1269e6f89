"""Attention among samples that share one row, without a mask of all pairs of positions.

Three ways give the same numbers. `mask`: several short rows, each with a mask of its pairs; wherever the model runs.
`varlen`: one row of all samples, whose bounds (`llava.data.packing.sample_bounds`) flash attention's kernels are told,
torch's own or those of the package flash_attn; on CPU, where there are no such kernels, a loop over the samples.
`flex`: one row, and of FlexAttention's blocks of pairs those that hold none of a sample's own are left out (Dong et al.
2024, https://arxiv.org/abs/2412.05496).

Batches of any other layout go through SDPA, as without packing.

Letters in shapes: L positions of all samples, H heads, K heads of keys and values, E width of a head.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flex_attention_mask, sdpa_mask

from llava.errors import UserError

WAYS = ("auto", "mask", "varlen", "flex")
NAMES = {"varlen": "llava_varlen", "flex": "llava_flex"}
"""How transformers knows the ways that take one row."""
FLASH = ("flash_attention_2", "flash_attention_3")
"""Attention of transformers that takes the bounds of samples by itself."""
TORCH_ARGUMENTS = {"scale", "window_size"}
"""What `torch.nn.attention.varlen.varlen_attn` has since torch 2.11; `enable_gqa` came with torch 2.12."""
WIDEST_HEAD = 256
PROBE_POSITIONS = 4
UNKNOWN = {
    "varlen": {
        "dropout": "dropout", "softcap": "a soft cap", "s_aux": "attention sinks",
        "position_bias": "a bias of positions",
    },
    "flash": {"s_aux": "attention sinks", "position_bias": "a bias of positions"},
    "flex": {"dropout": "dropout"},
}  # fmt: skip
"""What layers may ask of their attention, by its name in transformers, that a way does not have."""

Engine = Callable[..., torch.Tensor]


def torch_varlen() -> Engine | None:
    """torch's own kernels for samples of varying length, where this torch has them whole."""
    try:
        found = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    known = inspect.signature(found).parameters.keys()
    if not known >= TORCH_ARGUMENTS:
        return None
    shares_heads = {"enable_gqa": True} if "enable_gqa" in known else {}

    def attend(q: Any, k: Any, v: Any, bounds: Any, longest: int, scale: Any, window: int | None, *_: Any) -> Any:
        reach = (-1 if window is None else window - 1, 0)
        if not shares_heads and q.shape[1] != k.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return found(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=reach, **shares_heads)

    return attend


def flash_varlen() -> Engine | None:
    """Those of the package flash_attn, which also know dropout and soft caps."""
    try:
        found = importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError):
        return None

    def attend(
        q: Any, k: Any, v: Any, bounds: Any, longest: int, scale: Any, window: int | None, dropout: float, cap: float
    ) -> Any:
        reach = (-1 if window is None else window - 1, 0)
        return found(
            q, k, v, bounds, bounds, longest, longest, dropout, softmax_scale=scale, causal=True, window_size=reach,
            softcap=cap,
        )  # fmt: skip

    return attend


def segment_loop(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, scale: float | None = None,
    window: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Causal attention of each sample by itself, one after the other: the plain meaning of varlen.

    Args:
        query: (L, H, E); `key` and `value` (L, K, E).
        bounds: (samples + 1,) of `sample_bounds`, read by the host.
        window: positions that each one sees, its own included.

    Returns:
        (L, H, E).
    """
    outputs, groups = [], query.shape[1] // key.shape[1]
    starts = bounds.tolist()
    for start, end in zip(starts, starts[1:], strict=False):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        mask = None
        if window is not None and window < end - start:
            places = torch.arange(end - start, device=query.device)
            back = places[:, None] - places
            mask = (back >= 0) & (back < window)
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        found = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale)
        outputs.append(found.transpose(0, 1))
    return torch.cat(outputs)


def ready_mask(inputs_embeds: torch.Tensor) -> torch.Tensor:
    """(1, 1, 1, 1) stands for a mask where the bounds of samples say all: transformers hands a mask of four dimensions
    on as it is, and makes none.
    """
    return inputs_embeds.new_ones((1, 1, 1, 1), dtype=torch.bool)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    engine: Engine | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: SDPA, but for a flat row, whose samples it attends to one by one.

    Args:
        query: (B, H, L, E); `key` and `value` (B, K, L, E), with B 1 in a flat row.
        engine: `torch_varlen` or `flash_varlen`; None where there is but the loop.

    Raises:
        ValueError: when a flat row comes without its bounds, or a layer asks for what the kernels do not know.
    """
    if cu_seq_lens_q is None:
        if attention_mask is not None and attention_mask.shape[-2:] == (1, 1) != (query.shape[2], key.shape[2]):
            raise ValueError(f"{type(module).__name__} does not hand the bounds of samples on to its attention")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, softcap=softcap, **kwargs
        )
    assert max_length_q is not None
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if query.device.type == "cpu":
        if problem := asks_too_much("varlen", kwargs | {"dropout": dropout, "softcap": softcap}):
            raise UserError(problem)
        output = segment_loop(q, k, v, cu_seq_lens_q, scaling, sliding_window)
    else:
        assert engine is not None
        given = half_type(query)
        q, k, v = (x.to(given) for x in (q, k, v))
        output = engine(q, k, v, cu_seq_lens_q, max_length_q, scaling, sliding_window, dropout, softcap or 0.0)
    return output.to(query.dtype).unflatten(0, (query.shape[0], query.shape[2])), None


def half_type(query: torch.Tensor) -> torch.dtype:
    """What flash attention's kernels compute a query in: autocast's type, where a norm left it in fp32."""
    if query.is_cuda and query.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return query.dtype


def flex_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, Any]:  # fmt: skip
    """An attention function of transformers: FlexAttention where the mask is one of blocks, else SDPA."""
    if attention_mask is None or isinstance(attention_mask, torch.Tensor):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    found = importlib.import_module("transformers.integrations.flex_attention")
    return found.flex_attention_forward(module, query, key, value, attention_mask, **kwargs)


def flex_mask(attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
    """A mask function of transformers: blocks for rows that nothing pads on the left or that share samples, and the
    mask of SDPA where padding is told by a mask of its own.
    """
    if attention_mask is None and kwargs["q_length"] == kwargs["kv_length"]:
        return flex_attention_mask(attention_mask=attention_mask, **kwargs)
    return sdpa_mask(attention_mask=attention_mask, **kwargs)


def asked_of_attention(model: Any) -> list[dict[str, Any]]:
    """What each layer hands to its attention in training, beside queries, keys, values and mask, and its `head_dim`;
    empty where the class does not take its attention from transformers, or does not hand the bounds of samples on.
    """
    found: list[dict[str, Any]] = []

    def look(_: Any, query: torch.Tensor, __: Any, value: torch.Tensor, ___: Any, **kwargs: Any) -> tuple:
        if "cu_seq_lens_q" in kwargs:
            found.append(kwargs | {"head_dim": query.shape[-1]})
        shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
        return query.new_zeros(shape), None

    table, training, before = model.get_input_embeddings(), model.training, model.config._attn_implementation
    AttentionInterface.register("llava_look", look)
    ids = torch.arange(PROBE_POSITIONS, device=table.weight.device)[None]
    bounds = torch.tensor([0, PROBE_POSITIONS])
    try:
        model.config._attn_implementation = "llava_look"
        model.train()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.states(table(ids), position_ids=ids, use_cache=False, cu_seq_lens_q=bounds)
    except TypeError:  # It takes no such argument.
        return []
    finally:
        model.config._attn_implementation = before
        model.train(training)
    return found


def asks_too_much(way: str, asked: dict[str, Any]) -> str:
    """What of a layer's attention a way (or `flash`, varlen by flash_attn) does not know; empty where it knows all."""
    has = [
        words for name, words in UNKNOWN[way].items() if isinstance(asked.get(name), torch.Tensor) or asked.get(name)
    ]
    return f"its attention has {' and '.join(has)}, which {way} does not know" if has else ""


def problem_of(way: str, model: Any, device: torch.device, half: bool) -> str:
    """Why a model cannot take a way on a device, with what would help; empty where it can.

    Args:
        half: whether it computes in bf16 or fp16.
    """
    base = model.config._attn_implementation
    flash = base in FLASH and way == "varlen"
    if base != "sdpa" and not flash:
        return (
            f"it goes with --attn_implementation sdpa{' or flash_attention_2' if way == 'varlen' else ''}, not {base}"
        )
    if way == "flex" and device.type == "cpu":
        return "FlexAttention has no backward pass on CPU"
    if way == "varlen" and device.type == "cuda" and not flash:
        if torch_varlen() is None and flash_varlen() is None:
            return f"it needs torch 2.11 (this is {torch.__version__}) or the package flash_attn"
        if not half:
            return "its kernels compute in bf16 or fp16: add --bf16 True"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "its kernels need a GPU of compute capability 8.0 (Ampere) or later"
    asked = asked_of_attention(model)
    if not asked:
        return "the class of the language model has an attention of its own, or does not tell it where samples begin"
    kernels = "flash" if flash or (way == "varlen" and device.type == "cuda" and flash_varlen() is not None) else way
    widths = {layer["head_dim"] for layer in asked}
    if way == "varlen" and device.type == "cuda" and any(w % 8 or w > WIDEST_HEAD for w in widths):
        return f"its kernels take heads of a multiple of 8 up to {WIDEST_HEAD}, and here they are {sorted(widths)} wide"
    return next((found for layer in asked if (found := asks_too_much(kernels, layer))), "")


def choose_way(wanted: str, model: Any, device: torch.device, half: bool) -> tuple[str, str]:
    """The way that `--packed_attention` asks for, and why it is not varlen where `auto` came to another.

    Raises:
        ValueError: when the way that was asked for is not to be had.
    """
    if wanted == "mask" or (wanted == "auto" and device.type != "cuda"):
        return "mask", ""
    way = "varlen" if wanted == "auto" else wanted
    problem = problem_of(way, model, device, half)
    if problem and wanted != "auto":
        raise UserError(f"--packed_attention {wanted}: {problem}; or take auto or mask")
    return ("mask", problem) if problem else (way, "")


def take_way(model: Any, way: str) -> None:
    """Has a model's attention take flat rows by a way, from now on; layouts of other kinds as before."""
    model.packed_attention = way
    if way == "mask" or model.config._attn_implementation in FLASH:
        return
    if way == "varlen":
        wide = any(asks_too_much(way, layer) for layer in asked_of_attention(model))
        engines = (flash_varlen, torch_varlen) if wide else (torch_varlen, flash_varlen)
        engine = next((found for make in engines if (found := make()) is not None), None)
        AttentionInterface.register(NAMES[way], partial(varlen_attention, engine=engine))
        AttentionMaskInterface.register(NAMES[way], sdpa_mask)
    else:
        AttentionInterface.register(NAMES[way], flex_attention)
        AttentionMaskInterface.register(NAMES[way], flex_mask)
    model.config._attn_implementation = NAMES[way]
