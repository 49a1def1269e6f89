"""Weights of projector and resampler from a file: all of it fits, or the error names what does not."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from llava.model.adapter import load_adapter, read_weights


def weights_of(model, *parts: str, front: str = "") -> dict[str, torch.Tensor]:
    return {front + name: value for name, value in model.state_dict().items() if name.startswith(parts)}


@pytest.fixture
def models(build):
    """A trained model and a fresh one."""
    trained, fresh = build(), build()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.25)
    return trained, fresh


@pytest.mark.parametrize("front", ["", "model.", "base_model.model.model."])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_both_parts_are_loaded_and_nothing_else(models, tmp_path, front, suffix):
    trained, fresh = models
    before = {n: p.clone() for n, p in fresh.state_dict().items()}
    weights = weights_of(trained, "mm_projector", "vision_resampler", front=front)
    path = tmp_path / f"adapter{suffix}"
    (torch.save if suffix == ".bin" else save_file)(weights, path)
    message = load_adapter(fresh, str(path))
    assert "of the projector" in message and "of the resampler" in message and str(path) in message
    for name, value in fresh.state_dict().items():
        expected = trained.state_dict() if name.startswith(("mm_projector", "vision_resampler")) else before
        assert torch.equal(value, expected[name]), name


def test_a_whole_checkpoint_serves(models, tmp_path):
    trained, fresh = models
    trained.save_pretrained(tmp_path)
    load_adapter(fresh, str(tmp_path / "model.safetensors"))
    assert torch.equal(fresh.mm_projector[1].weight, trained.mm_projector[1].weight)
    assert not torch.equal(fresh.lm_head.weight, trained.lm_head.weight)


def test_half_precision_becomes_the_models(models, tmp_path):
    trained, fresh = models
    torch.save({n: v.half() for n, v in weights_of(trained, "mm_projector").items()}, tmp_path / "a.bin")
    assert "none of the resampler, which starts fresh" in load_adapter(fresh, str(tmp_path / "a.bin"))
    assert {p.dtype for p in fresh.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("mm_projector.3.bias"), "mm_projector.3.bias is missing"),
        (lambda w: w.update({"mm_projector.9.bias": torch.zeros(1)}), "mm_projector.9.bias is not one of the model's"),
        (lambda w: w.update({"mm_projector.3.bias": torch.zeros(7)}), r"has shape \(7,\), expected \(32,\)"),
        (lambda w: w.update({"mm_projector.3.bias": torch.full((32,), torch.nan)}), "not finite"),
        (lambda w: w.pop("vision_resampler.slow.row"), "vision_resampler.slow.row is missing"),
        (lambda w: [w.pop(n) for n in list(w) if n.startswith("mm_proj")], "mm_projector.0.weight is missing"),
        (lambda w: (w.clear(), w.update(lm_head=torch.ones(1))), "no weight of mm_projector.*only lm_head"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(models, tmp_path, change, words):
    trained, fresh = models
    before = {n: p.clone() for n, p in fresh.state_dict().items()}
    weights = weights_of(trained, "mm_projector", "vision_resampler")
    change(weights)
    torch.save(weights, tmp_path / "a.bin")
    with pytest.raises(ValueError, match=words) as error:
        load_adapter(fresh, str(tmp_path / "a.bin"))
    assert str(error.value).startswith(f"--pretrain_mm_mlp_adapter {tmp_path}")
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_llavas_own_projector_is_refused_by_its_names(models, tmp_path):
    """Two layers without a norm in front: another function of the same features."""
    width, tower = 32, 24
    layers = torch.nn.Sequential(torch.nn.Linear(tower, width), torch.nn.GELU(), torch.nn.Linear(width, width))
    torch.save({f"model.mm_projector.{n}": v for n, v in layers.state_dict().items()}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="mm_projector.1.weight is missing.*no LayerNorm in front"):
        load_adapter(models[1], str(tmp_path / "mm_projector.bin"))


class _Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.bin", pickle.dumps({"mm_projector.0.weight": _Code()}, protocol=2)),
        ("a.bin", b""),
        ("a.bin", b"no weights"),
        ("a.safetensors", b"no weights"),
    ],
)
def test_a_file_of_something_else_is_a_message(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"--pretrain_mm_mlp_adapter .*{name}: no file of weights alone") as error:
        read_weights(str(tmp_path / name))
    assert capsys.readouterr().out == "" and "weights_only" not in str(error.value)


def test_a_list_of_tensors_is_a_message(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "a.bin")
    with pytest.raises(ValueError, match="expected names and tensors"):
        read_weights(str(tmp_path / "a.bin"))
