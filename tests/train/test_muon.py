"""Muon: its step, what it is given, how fused matrices are cut, and a run with it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from llava.train.muon import MuonAdamW, cut_of, muon_cuts, orthogonalised, pieces
from llava.train.run_flags import parse_arguments
from tests.model.contract.families import FAMILIES, tiny_config
from tests.train.runs import alarms, flags, train


def step(weights, cuts=None, steps=3, **group):
    """The weights after some steps on gradients that depend on their shapes alone."""
    weights = [nn.Parameter(w.clone()) for w in weights]
    group = {"params": weights, "muon": True, "weight_decay": 0.0} | ({"cuts": cuts} if cuts else {}) | group
    optimizer = MuonAdamW([group], lr=0.05)
    torch.manual_seed(1)
    for _ in range(steps):
        for w in weights:
            w.grad = torch.randn_like(w)
        optimizer.step()
    return [w.detach() for w in weights]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_step_is_torchs_own(decay):
    start = [torch.randn(12, 8), torch.randn(8, 20), torch.randn(8, 12), torch.randn(8, 8)]
    found = step(start, weight_decay=decay)
    weights = [nn.Parameter(w.clone()) for w in start]
    theirs = torch.optim.Muon(weights, lr=0.05, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    torch.manual_seed(1)
    for _ in range(3):
        for w in weights:
            w.grad = torch.randn_like(w)
        theirs.step()
    for ours, w in zip(found, weights, strict=True):
        torch.testing.assert_close(ours, w.detach(), atol=4e-3, rtol=0, msg="but for bf16 inside torch's")


@pytest.mark.parametrize(
    ("options", "device"), [({}, "cpu"), ({"fused": True}, "meta"), ({"capturable": True}, "meta")]
)
def test_steps_are_counted_where_a_loaded_state_counts_them(options, device):
    """On a GPU a run that was never cut counted on the CPU, and one that was resumed on the device."""
    weight = nn.Parameter(torch.ones(4, 2, device="meta"))
    optimizer = MuonAdamW([{"params": [weight], "muon": True}], lr=0.1, **options)
    for turn in ("made", "loaded"):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        count = optimizer.state[weight]["step"]
        assert (count.device.type, count.dtype) == (device, torch.float32), turn
        optimizer.load_state_dict(optimizer.state_dict())


def test_tall_and_wide_matrices_of_one_size_are_one_batch(monkeypatch):
    sizes, real = [], orthogonalised
    monkeypatch.setattr("llava.train.muon.orthogonalised", lambda m, n: sizes.append(tuple(m.shape)) or real(m, n))
    step([torch.randn(12, 8), torch.randn(8, 12), torch.randn(8, 8)], steps=1)
    assert sizes == [(2, 8, 12), (1, 8, 8)]


@pytest.mark.parametrize("shape", [(3, 6, 6), (2, 10, 4), (2, 4, 10)])
def test_singular_values_go_towards_one_and_vectors_stay(shape):
    matrices = torch.randn(shape)
    found = orthogonalised(matrices)
    values = torch.linalg.svdvals(found)
    assert ((values > 0.3) & (values < 1.3)).all(), values
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cores = u.mT @ found @ v.mT
    off = cores - torch.diag_embed(cores.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-4


def test_parts_of_a_fused_matrix_step_as_matrices_of_their_own():
    torch.manual_seed(0)
    parts = [torch.randn(8, 8) for _ in range(3)]
    grads = [torch.randn(8, 8) for _ in range(3)]

    def after(weights, gradients, cuts):
        weights = [nn.Parameter(w.clone()) for w in weights]
        optimizer = MuonAdamW([{"params": weights, "muon": True, "cuts": cuts, "weight_decay": 0.0}], lr=0.1)
        for w, g in zip(weights, gradients, strict=True):
            w.grad = g.clone()
        optimizer.step()
        return [w.detach() for w in weights]

    expected = after(parts, grads, [None] * 3)
    columns = after([torch.cat(parts, 1)], [torch.cat(grads, 1)], [("split", 1, (8, 8, 8))])[0]
    torch.testing.assert_close(columns, torch.cat(expected, 1))
    whole = after([torch.cat(parts, 1)], [torch.cat(grads, 1)], [None])[0]
    assert (whole - columns).abs().max() > 1e-3

    def interleaved(matrices):
        return torch.stack([m.view(2, 4, 8) for m in matrices], 1).reshape(24, 8)

    heads = after([interleaved(parts)], [interleaved(grads)], [("heads", 0, (2, 3, 4))])[0]
    torch.testing.assert_close(heads, interleaved(expected))


@pytest.mark.parametrize("family", [*FAMILIES, "phi3", "gpt_bigcode", "bloom"])
def test_matrices_of_every_family_and_their_parts(family):
    """The last third of a fused matrix makes the values, whatever the others are; with it, they are looked at."""
    torch.manual_seed(0)
    changes = {} if family in FAMILIES else {"pad_token_id": 0}
    config = (tiny_config if family in FAMILIES else _other)(family, 40, **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    groups = {
        n: "embeddings" if "emb" in n or n.startswith(("transformer.wte", "transformer.wpe", "lm_head")) else
        "language model blocks" for n, _ in model.named_parameters()
    }  # fmt: skip
    cuts = muon_cuts(model, groups)
    assert len(cuts) >= 8 and all(model.get_parameter(n).ndim == 2 for n in cuts)
    fused = {n: c for n, c in cuts.items() if c is not None and len(c[2]) == 3}
    fused = {n: c for n, c in fused.items() if not n.endswith("in_proj.weight")}
    has_fused = {"gpt2", "gpt_neox", "phi3", "gpt_bigcode", "bloom"}
    assert bool(fused) == (family in has_fused)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        for name in fused:
            model.get_parameter(name).mul_(20)
            if name.replace("weight", "bias") in dict(model.named_parameters()):
                model.get_parameter(name.replace("weight", "bias")).zero_()

        def logits(part=None, value=None):
            kept = {n: model.get_parameter(n).clone() for n in fused}
            for n, cut in fused.items() if part is not None else ():
                piece = pieces(model.get_parameter(n), cut)[part]
                piece.zero_() if value is None else piece.copy_(value * torch.randn(piece.shape))
            found = model(ids).logits
            for n, weight in kept.items():
                model.get_parameter(n).copy_(weight)
            return found

        if fused:
            sound = logits()
            assert all((logits(part) - sound).abs().max() > 1e-5 for part in range(3))
            for n, cut in fused.items():
                pieces(model.get_parameter(n), cut)[2].zero_()
            blind = logits()
            assert all((logits(part, 5.0) - blind).abs().max() < 1e-5 for part in range(2))
            assert (logits(2, 1.0) - blind).abs().max() > 1e-5


def _other(family, vocabulary, **changes):
    """A config of a family whose models are not trained here."""
    from transformers import CONFIG_MAPPING

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if family == "phi3":
        sizes["num_key_value_heads"] = 2
    return CONFIG_MAPPING[family](vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, **sizes, **changes)


@pytest.mark.parametrize("prefix", ["", "llava_"])
def test_a_short_convolution_projects_by_three_matrices(prefix):
    config = tiny_config("lfm2", 40)
    model = AutoModelForCausalLM.from_config(config).eval()
    config.model_type = f"{prefix}lfm2"
    groups = {n: "embeddings" if "embed" in n or "lm_head" in n else "language model blocks"
              for n, _ in model.named_parameters()}  # fmt: skip
    cuts = {n.rpartition("layers.0.conv.")[2]: c for n, c in muon_cuts(model, groups).items() if "layers.0.conv." in n}
    assert cuts == {"in_proj.weight": ("split", 0, (32, 32, 32)), "out_proj.weight": None}, "filters are no matrices"
    conv, seen = model.model.layers[0].conv, torch.randn(1, 5, 32)
    (before, after, value), taps = pieces(conv.in_proj.weight, cuts["in_proj.weight"]), conv.conv.weight[:, 0]
    gated = nn.functional.pad((seen @ before.T) * (seen @ value.T), (0, 0, len(taps[0]) - 1, 0))
    mixed = sum(gated[:, i : i + 5] * taps[:, i] for i in range(len(taps[0])))
    torch.testing.assert_close(conv(seen), ((seen @ after.T) * mixed) @ conv.out_proj.weight.T)


def test_an_unknown_layout_is_refused_by_name():
    config = tiny_config("llama", 40)
    with pytest.raises(ValueError, match=r"muon: block\.Wqkv\.weight of 100 x 32 .*use --optim adamw_torch_fused"):
        cut_of("block.Wqkv.weight", (100, 32), nn.Linear(32, 100), config)
    with pytest.raises(ValueError, match="takes matrices, and one cut for each"):
        MuonAdamW([{"params": [nn.Parameter(torch.ones(3))], "muon": True}])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"optim_args": "a=1"}, "--optim muon: it takes no --optim_args"),
        ({"deepspeed": "scripts/zero1.json"}, "--optim muon: it needs whole matrices"),
    ],
)
def test_what_does_not_go_with_it_is_refused(assets, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(flags(assets, tmp_path, optim="muon", **words))


def test_a_run_trains_all_by_either_half_and_goes_on_exactly(assets, tmp_path):
    options = {
        "optim": "muon", "max_steps": 24, "learning_rate": 5e-3, "save_strategy": "steps", "save_steps": 12,
        "weight_decay": 0.01,
    }  # fmt: skip
    whole = train(assets, tmp_path / "whole", **options)
    assert whole[-1] < whole[0] - 1 and alarms(tmp_path / "whole") == []
    assert json.loads((tmp_path / "whole" / "llava_run.json").read_text())["flags"]["optim"] == "muon"
    checks = {c["check"]: c for c in json.loads((tmp_path / "whole" / "preflight.json").read_text())["checks"]}
    assert checks["optimiser"]["status"] == "ok" and "by Muon" in checks["optimiser"]["finding"]
    state = torch.load(tmp_path / "whole" / "checkpoint-12" / "optimizer.pt")
    names = {group["name"]: len(group["params"]) for group in state["param_groups"]}
    assert {"mm_language_model, muon", "mm_mlp_adapter, muon", "mm_vision_resampler"} <= set(names)
    assert names["mm_language_model, muon"] == 8, "four matrices in each of two blocks"
    assert sum("momentum_buffer" in kept for kept in state["state"].values()) == 8 + names["mm_mlp_adapter, muon"]
    shutil.copytree(tmp_path / "whole" / "checkpoint-12", tmp_path / "cut" / "checkpoint-12")
    assert train(assets, tmp_path / "cut", resume_from_checkpoint=True, **options) == whole
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    shutil.copytree(tmp_path / "whole" / "checkpoint-12", tmp_path / "other" / "checkpoint-12")
    with pytest.raises(ValueError, match="optim: was 'muon', is 'adamw"):
        train(assets, tmp_path / "other", resume_from_checkpoint=True, **options | {"optim": "adamw_torch_fused"})
