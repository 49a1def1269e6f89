"""How many kernels a training step launches, part by part: a measure of `python -m benchmarks.run`.

On a GPU small models wait for the host, which launches one kernel after the other; their number, and not their size,
is the step's time. It is counted on CPU as the number of operations that reach the dispatcher and compute: views,
allocations and records of the profiler are left out, a fused or foreach operation is one. So it is a proxy: CUDA makes
one to three kernels of some operations, and a few of a foreach over many tensors. Their number does not depend on
widths, so that narrow models of the same layers stand for wide ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.models import SIZES, WORDS, Size, make_step
from benchmarks.timing import Row, row
from llava.model.builder import parameter_groups
from llava.model.vlm import VisionCausalLM
from llava.train.half_weights import HalfWeights
from llava.train.monitor.run_monitor import batch_sums
from llava.train.muon import MuonAdamW, muon_cuts

NOT_KERNELS = ("empty", "new_empty", "detach", "_unsafe_view", "_record_function", "_local_scalar_dense")
COMPILED = re.compile(
    r"^\s*(?:\w+ = )?((?:cpp|triton)_\w+(?:\.run)?|extern_kernels\.\w+|torch\.ops\.\S+?)\(", re.MULTILINE
)
"""A call in the code that Inductor writes."""


class Kernels(TorchDispatchMode):
    """Counts operations that compute, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and not name.startswith(NOT_KERNELS):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def narrowed(size: Size) -> Size:
    """The same layers and parts, with little to compute."""
    width = 8 * size.n_head
    return replace(size, n_embd=width, vocabulary=512, tower=64, image=28, fast=1, slow=4, batch=2, frames=2)


def count(work: Callable[[], Any]) -> int:
    with Kernels() as found:
        work()
    return found.counts.total()


def muon_groups(model: VisionCausalLM) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of Muon, with their cuts, and all others that train."""
    cuts = muon_cuts(model, parameter_groups(model))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours = {"params": [named[name] for name in cuts], "cuts": list(cuts.values()), "muon": True, "weight_decay": 0.0}
    return ours, {"params": [p for name, p in named.items() if name not in cuts]}


def step_parts(size: Size, once: bool, batches: int = 1) -> dict[str, int]:
    """Kernels of each part of a step in bf16, in its steady state.

    Args:
        once: whether weights are cast to bf16 once a step, and matrices of one size orthogonalised as one batch.
        batches: how many are accumulated.
    """
    model, batch = make_step(size, "cpu")
    batch["num_items_in_batch"] = torch.tensor(batches * size.batch * WORDS)
    trained = [p for p in model.parameters() if p.requires_grad]
    half = HalfWeights(model, torch.bfloat16)
    adamw = torch.optim.AdamW(trained, fused=True)
    ours, others = muon_groups(model)
    if once or not hasattr(torch.optim, "Muon"):
        muon: Any = MuonAdamW([ours, others], lr=1e-4, fused=True).step
    else:
        theirs = torch.optim.Muon(ours["params"], lr=1e-4), torch.optim.AdamW(others["params"], fused=True)
        muon = lambda: [optimizer.step() for optimizer in theirs]  # noqa: E731
    visual = torch.tensor(sorted(model.config.visual_token_ids.values()))
    found: dict[str, int] = {}
    for _ in range(2):  # In the first step optimisers make their states.
        model.zero_grad(set_to_none=True)
        half.forget()
        found = dict.fromkeys(("forward", "backward", "sums of the monitor"), 0)
        for _ in range(batches):
            kept: dict[str, Any] = {}

            def forward(kept: dict[str, Any] = kept) -> None:
                with half.used() if once else nullcontext(), torch.autocast("cpu", torch.bfloat16):
                    kept["output"] = model(**batch, return_logits=False)

            found["forward"] += count(forward)
            losses = kept["output"].token_losses
            found["sums of the monitor"] += count(lambda losses=losses: batch_sums(losses, batch, visual))
            found["backward"] += count(kept["output"].loss.backward)
        found["clipping"] = count(lambda: torch.nn.utils.clip_grad_norm_(trained, 1.0))
        found["AdamW"] = count(adamw.step)
        found["Muon and AdamW"] = count(muon)
    return found


def compiled_passes(size: Size) -> tuple[int, int]:
    """Kernels of forward and backward pass as `--torch_compile` compiles them."""
    from torch._inductor.utils import run_fw_bw_and_get_code

    model, batch = make_step(size, "cpu")
    torch.compiler.reset()
    compiled = torch.compile(model)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(**batch).loss

    _, codes = run_fw_bw_and_get_code(loss)
    forward, backward = (len(COMPILED.findall(code[code.index("def call(") :])) for code in codes)
    return forward, backward


def kernels(compiles: bool = True, names: Sequence[str] = ("demo", "12x768")) -> list[Row]:
    """Kernels of a step, cast weight by weight against cast once, and compiled."""
    rows = []
    for name in names:
        size = narrowed(SIZES[name])
        for batches in (1, 4):
            plain, ours = (step_parts(size, once, batches) for once in (False, True))
            for optimizer in ("AdamW", "Muon and AdamW"):
                left_out = {"AdamW", "Muon and AdamW"} - {optimizer}
                whole = [sum(n for part, n in found.items() if part not in left_out) for found in (plain, ours)]
                note = f"bf16, {batches} batches a step"
                rows.append(row(f"step of {name}, {optimizer}", "kernels", [whole[0]], [whole[1]], note))
            if batches == 1:
                rows += [
                    row(f"{part} of {name}", "kernels", [plain[part]], [ours[part]], "part of a step") for part in plain
                ]
        if compiles:
            eager = step_parts(size, once=False)
            rows += [
                row(f"compiled {part} of {name}", "kernels", [eager[part]], [found], "against eager, cast by autocast")
                for part, found in zip(("forward", "backward"), compiled_passes(size), strict=True)
            ]
    return rows
