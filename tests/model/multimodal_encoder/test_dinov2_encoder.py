"""The frozen tower computes in its own precision, and bf16 leaves its weights alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from llava.model.multimodal_encoder import base
from llava.model.multimodal_encoder.base import resolve_precision
from llava.model.multimodal_encoder.builder import load_vision_tower
from llava.model.multimodal_encoder.dinov2_encoder import DINOv2VisionTower
from tests.conftest import save_tower

PIXELS = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tower(assets):
    return load_vision_tower(str(assets.tower))


def test_bf16_rounds_and_leaves_the_weights(tower):
    plain, checksum = tower(PIXELS), tower.checksum()
    tower.precision = "bf16"
    fast = tower(PIXELS)
    error = ((fast - plain).norm() / plain.norm()).item()
    assert 1e-4 < error < 0.02
    assert fast.dtype == torch.float32, "the residual stream is not rounded"
    assert tower.checksum() == checksum


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_autocast_of_a_training_step_does_not_change_a_frozen_tower(tower, precision):
    tower.precision = precision
    alone = tower(PIXELS)
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=kind):
            assert torch.equal(tower(PIXELS), alone)


def test_a_tower_that_trains_follows_autocast(tower):
    tower.requires_grad_(True)
    alone = tower(PIXELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(tower(PIXELS), alone)


def test_auto_is_bf16_where_the_processor_has_it(monkeypatch):
    class Flags(type(Path())):
        text = ""

        def exists(self):
            return True

        def read_text(self):
            return Flags.text

    monkeypatch.setattr(base, "Path", Flags)
    for text, expected in (("avx2 avx512_bf16 fma", "bf16"), ("amx_bf16", "bf16"), ("avx2 avx512f", "fp32")):
        Flags.text = text
        assert resolve_precision("auto", "cpu") == expected
        assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
        assert resolve_precision("bf16", "cpu") == "bf16"
    Flags.text = "avx512_bf16"
    assert resolve_precision("auto", "mps") == "fp32", "the processor's flags say nothing of another device"
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, native=native: native)
        assert resolve_precision("auto", "cuda:1") == ("bf16" if native else "fp32")
    with pytest.raises(ValueError, match="--vision_precision fp8: use one of"):
        resolve_precision("fp8", "cpu")


def numbered(model_class, config_class, **options):
    """A tower whose n-th weight by name is all n + 1 and then counts up, whatever transformers draws; names as in 5.23.

    In 5.10 a gated layer holds two weights in one tensor.
    """
    config = config_class(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, **options
    )
    model = model_class(config)
    renamed = {old: new for new, old in base.ATTENTION_NAMES}
    values = {}
    for name, tensor in model.state_dict().items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        if ".weights_in." in name:
            for part, half in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
                values[name.replace("weights_in", part)] = half
        else:
            values[name.replace("weights_out", "down_proj")] = tensor
    with torch.no_grad():
        for number, name in enumerate(sorted(values), 1):
            values[name].copy_(number + torch.arange(values[name].numel()).view(values[name].shape) / 1000)
    return DINOv2VisionTower(model, -2, "patch")


@pytest.mark.parametrize(
    ("classes", "options", "expected"),
    [
        ((Dinov2Model, Dinov2Config), {}, "v2:edd1c5197f45366aceb951486b43d656407435e1a517a2d0d308d3a9f21b8"),
        (
            (Dinov2WithRegistersModel, Dinov2WithRegistersConfig),
            {},
            "v2:89e619064cf95c24945afffc2129c6c2c17c6290daa85233a85ee95eff7a6",
        ),
        (
            (Dinov2Model, Dinov2Config),
            {"use_swiglu_ffn": True},
            "v2:9d5ae047da3f73e988f8393b23937a7fa48d91a2b1bfecc24a29b886e1b48",
        ),
    ],
)
def test_the_checksum_is_the_same_under_every_transformers(classes, options, expected):
    """transformers renames weights, declares registers after positions, and split the gated layer's first weight."""
    assert numbered(*classes, **options).checksum() == expected


def test_names_do_not_count_and_values_and_places_do(tower, monkeypatch):
    before = tower.checksum()
    state = tower.vision_model.state_dict()

    def checksum_of(names):
        with monkeypatch.context() as patch:
            patch.setattr(tower.vision_model, "state_dict", lambda: names)
            return tower.checksum()

    renamed = {
        name.replace("attention", "attn").replace("norm", "ln").replace("proj", "p"): t for name, t in state.items()
    }
    assert renamed.keys() != state.keys() and checksum_of(renamed) == before
    weights = [n for n in state if ".layer.0.attention." in n and n.endswith("weight")]
    query, key = weights[:2]
    layers = [[n for n in state if f".{i}." in n] for i in range(2)]
    other_places = dict(zip([*layers[0], *layers[1]], [*layers[1], *layers[0]], strict=True))
    nudged = state[query].clone()
    nudged[3, 4] += 1e-6
    for changed in (
        {**state, query: state[key], key: state[query]},
        {name: state[other_places.get(name, name)] for name in state},
        {**state, query: nudged},
        {**state, query: state[query].reshape(-1, state[query].shape[1] // 2)},
        {**state, query: state[query][:-1]},
    ):
        assert checksum_of(changed) != before
    assert checksum_of({n: t for n, t in state.items() if not n.endswith("mask_token")}) == before
    assert checksum_of({n: t.double() for n, t in state.items()}) == before


@pytest.mark.parametrize("name", ["num_attention_heads", "layer_norm_eps", "hidden_act"])
def test_equal_weights_in_another_architecture_are_another_tower(tower, monkeypatch, name):
    before = tower.checksum()
    monkeypatch.setattr(tower.vision_model.config, name, {"hidden_act": "relu", "layer_norm_eps": 1e-5}.get(name, 3))
    assert tower.checksum() != before


def test_checksums_of_earlier_commits_are_known_whatever_transformers_made_them(tower, tmp_path):
    """They hashed names, so that a checkpoint made beside transformers 5.23 was refused beside 5.10."""
    model = tower.vision_model

    def digest(rename):
        sha = base.hashlib.sha256()
        for name, tensor in sorted((rename(n), t) for n, t in model.state_dict().items()):
            sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            sha.update(tensor.numpy().tobytes())
        return sha.hexdigest()

    def old(name):
        for new, was in base.ATTENTION_NAMES:
            name = name.replace(new, was)
        return name

    def new(name):
        for now, was in base.ATTENTION_NAMES:
            name = name.replace(was, now)
        return name

    assert digest(old) != digest(new)
    save_tower(tmp_path / "other", seed=3)
    other = load_vision_tower(str(tmp_path / "other"))
    for known in (digest(old), digest(new), tower.checksum()):
        assert tower.has_checksum(known) and not other.has_checksum(known)
        assert not tower.has_checksum(known[:-1]), "all of it counts"


@pytest.mark.parametrize("storage", ["reference", "checkpoint"])
def test_a_checkpoint_with_a_checksum_of_an_earlier_commit_opens(build, tower, tmp_path, storage):
    model = build(storage=storage)
    model.config.mm_vision_tower_checksum = list(tower.old_checksums())[-1]
    model.save_pretrained(tmp_path / "run")
    loaded = type(model).from_pretrained(tmp_path / "run")
    assert torch.equal(loaded.vision_tower(PIXELS), tower(PIXELS))
    if storage == "reference":
        assert loaded.config.mm_vision_tower_checksum == tower.checksum(), "and is written anew from now on"
    save_tower(tmp_path / "other", seed=3)
    if storage == "reference":
        with pytest.raises(ValueError, match="is not the one that this model was trained with"):
            type(model).from_pretrained(tmp_path / "run", vision_tower=str(tmp_path / "other"))
