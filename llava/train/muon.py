"""Muon for the matrices of a model's blocks and projector, AdamW for all else, as one optimiser.

Muon steps by the orthogonalised momentum of a matrix: every direction of the matrix learns at the same rate (Jordan et
al. 2024, https://kellerjordan.github.io/posts/muon/). The update is scaled by 0.2 sqrt(max(rows, columns)), so that its
root mean square is AdamW's, and one learning rate fits both (Liu et al. 2025, "Muon is Scalable for LLM Training",
section 2.2). Queries, keys and values that a layer keeps in one matrix are cut apart first: their sizes and so their
directions have nothing to do with each other. Matrices of one size, tall or wide, are
orthogonalised as one batch.

Letters in shapes: N matrices of one size, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llava.errors import UserError

MOMENTUM = 0.95
SCALE = 0.2
STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic: it maximises the slope at 0, and takes singular values into [.7, 1.2] (Jordan et al.)."""
EPSILON = 1e-7
MOST_ELEMENTS = 2**26
"""Of the matrices that are orthogonalised as one batch: five such copies are held at a time."""

FUSED = ("c_attn", "qkv_proj", "qkv", "Wqkv", "att_proj")
"""How modules are called that make all queries, then all keys, then all values."""

Cut = tuple[str, int, tuple[int, ...]]
"""How a fused matrix is cut: `split` along a dimension into sizes, or `heads`: along dimension 0 every head has its
rows of each part one after the other, (heads, parts, rows of one)."""


def orthogonalised(matrices: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values go to [.7, 1.2], singular vectors stay.

    Args:
        matrices: (N, R, C).
        steps: Newton-Schulz iterations.

    Returns:
        (N, R, C): bf16, as there; on CPU in the type of `matrices`, since few processors multiply bf16 fast.
    """
    a, b, c = COEFFICIENTS
    found = matrices if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = found.shape[-2] > found.shape[-1]
    if tall:
        found = found.mT
    found = found / found.flatten(1).norm(dim=1).clamp(min=EPSILON)[:, None, None]
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if tall else found


def pieces(matrix: torch.Tensor, cut: Cut | None) -> list[torch.Tensor]:
    """Views of a matrix (R, C), one a part: of each is either a matrix, or (heads, rows of one, C) to be flattened."""
    if cut is None:
        return [matrix]
    kind, dimension, sizes = cut
    if kind == "split":
        return list(matrix.split(sizes, dim=dimension))
    heads, parts, rows = sizes
    return list(matrix.view(heads, parts, rows, matrix.shape[1]).unbind(1))


def cut_of(name: str, shape: Sequence[int], module: nn.Module, config: Any) -> Cut | None:
    """How the matrix `name` of a module is to be cut; None where it is one.

    Raises:
        ValueError: for a matrix that is fused by its name, in a layout that is not known.
    """
    owner = name.removesuffix(".weight").rpartition(".")[2]
    out = 1 if isinstance(module, Conv1D) else 0
    size = shape[out]
    heads = getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    if owner in ("gate_up_proj", "gate_up", "w12") and size % 2 == 0:
        return "split", out, (size // 2, size // 2)
    if owner == "in_proj" and getattr(config, "model_type", "").endswith("lfm2") and size == 3 * shape[1 - out]:
        return "split", out, (size // 3,) * 3  # Two gates and what they let through.
    if owner == "query_key_value" and size == 3 * heads * width:
        return "heads", 0, (heads, 3, width)
    if owner in FUSED:
        if size == 3 * heads * width:
            return "split", out, (heads * width,) * 3
        if size == (heads + 2 * shared) * width:
            return "split", out, (heads * width, shared * width, shared * width)
        if getattr(config, "multi_query", False) and size == (heads + 2) * width:
            return "split", out, (heads * width, width, width)
    if owner in (*FUSED, "query_key_value", "in_proj"):
        raise UserError(
            f"--optim muon: {name} of {size} x {shape[1 - out]} seems to hold queries, keys and values in a layout "
            "that is not known here, so they cannot be cut apart: use --optim adamw_torch_fused"
        )
    return None


def muon_cuts(model: nn.Module, groups: dict[str, str]) -> dict[str, Cut | None]:
    """The parameters that Muon trains, by name, and how each is cut: matrices of blocks and projector.

    Args:
        groups: `llava.model.builder.parameter_groups` of the model.

    Raises:
        ValueError: see `cut_of`.
    """
    found: dict[str, Cut | None] = {}
    for name, parameter in model.named_parameters():
        ours = groups[name] in ("language model blocks", "projector")
        if parameter.requires_grad and ours and parameter.ndim == 2 and min(parameter.shape) > 1:
            module = model.get_submodule(name.rpartition(".")[0])
            config = model.config if groups[name] != "projector" else None
            found[name] = None if config is None else cut_of(name, parameter.shape, module, config)
    return found


class MuonAdamW(torch.optim.AdamW):
    """Muon where a group says `"muon": True`, AdamW elsewhere; one optimiser for schedulers and checkpoints.

    A Muon group has `cuts`, one for each of its parameters, and no weight decay of its own unless it is given. State of
    each of its parameters: `step`, and `momentum_buffer` in the parameter's shape and type.

    Raises:
        ValueError: for a Muon parameter that is no matrix, or cuts that are not as many as parameters.
    """

    def __init__(self, params: Iterable[dict[str, Any]], **options: Any) -> None:
        groups = [{"muon": False} | group for group in params]
        for group in groups:
            if group["muon"]:
                group["params"] = list(group["params"])
                group.setdefault("momentum", MOMENTUM)
                group.setdefault("ns_steps", STEPS)
                cuts = group.setdefault("cuts", [None] * len(group["params"]))
                if len(cuts) != len(group["params"]) or any(p.ndim != 2 for p in group["params"]):
                    raise UserError(f"group {group.get('name')!r}: Muon takes matrices, and one cut for each")
        super().__init__(groups, **options)
        # Muon's half takes gradients that are unscaled, and no step where one is not finite.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of both halves."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._orthogonal_step(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        known = [(p, cut) for p, cut in zip(group["params"], group["cuts"], strict=True) if p.grad is not None]
        if not known:
            return
        weights, gradients = [p for p, _ in known], [p.grad for p, _ in known]
        for p in weights:
            if "momentum_buffer" not in self.state[p]:
                # AdamW, which reads all states when it is loaded, takes one without steps for an old format.
                self.state[p] |= {"step": _no_steps(p, group), "momentum_buffer": torch.zeros_like(p)}
        buffers = [self.state[p]["momentum_buffer"] for p in weights]
        torch._foreach_add_([self.state[p]["step"] for p in weights], 1)
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        rate = float(group["lr"])
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        by_size: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for (weight, cut), update in zip(known, updates, strict=True):
            for part, view in zip(pieces(update, cut), pieces(weight, cut), strict=True):
                matrix = part.reshape(-1, part.shape[-1])
                # A tall matrix goes with the wide ones of its transposed size.
                matrix = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
                by_size.setdefault((matrix.shape[0], matrix.shape[1]), []).append((matrix, view))
        for (short, long), parts in by_size.items():
            scale = -rate * SCALE * math.sqrt(long)
            most = max(1, MOST_ELEMENTS // (short * long))
            for start in range(0, len(parts), most):
                some = parts[start : start + most]
                batch = torch.stack([matrix for matrix, _ in some])
                steps = orthogonalised(batch, group["ns_steps"]).to(batch.dtype)
                torch._foreach_add_(
                    [view for _, view in some],
                    [_laid_out(step, view) for step, (_, view) in zip(steps, some, strict=True)],
                    alpha=scale,
                )


def _no_steps(parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """() fp32, the count of a parameter's steps, where AdamW keeps its own: on the CPU, which asks no kernel for it,
    but on the parameter's device where the group is fused or capturable. A state that is loaded is moved there.
    """
    on_device = group["fused"] or group["capturable"]
    return torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu")


def _laid_out(step: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """A step (R, C), R <= C, as the view of the weight that it belongs to, which may be a tall matrix."""
    tall = view.numel() > view.shape[-1] ** 2
    return (step.mT if tall else step).reshape(view.shape)
