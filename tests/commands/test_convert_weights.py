"""LLaVA-ST's packer becomes a file that training loads, or what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.commands.convert_weights import main
from llava.config.video import VideoSpec
from llava.data.coordinates import NAMES
from llava.model.adapter import load_coordinates, load_resampler
from llava.model.coordinates import TABLES, CoordinateTables
from llava.model.multimodal_resampler.builder import build_resampler
from llava.model.multimodal_resampler.llava_st import from_llava_st

ASSETS = Path(__file__).parents[1] / "assets"
FRONT = "model.vision_resampler."
SLOW = f"{FRONT}token_packer_slow.devide_attention"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(ASSETS / "stp_golden.safetensors")


@pytest.fixture
def checkpoint(golden, tmp_path) -> Path:
    """A folder as LLaVA-ST publishes them: two shards with their index, bf16 beside fp32, other parts of a model."""
    weights = {n.replace("weights.", FRONT): v for n, v in golden.items() if n.startswith("weights.")}
    weights |= {"model.embed_tokens.weight": torch.randn(5, 24), "model.mm_projector.0.weight": torch.randn(24, 8)}
    names = sorted(weights)
    folder = tmp_path / "LLaVA-ST"
    folder.mkdir()
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: weights[name] for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llava_qwen", "mm_resampler_type": "fast_slow_resampler"}')
    return folder


def stp():
    spec = VideoSpec(num_frames=10, fast_latents=1, slow_latents=9, temporal_factor=5)
    return build_resampler("stp", 24, spec, (9, 9), inner=32, heads=4)


class Model(torch.nn.Module):
    """What `load_resampler` looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_resampler = stp()


def test_weights_that_are_there_twice_are_not_chosen_among(checkpoint, tmp_path):
    """A folder with the weights of two steps, or of a model and its adapters."""
    name = f"{SLOW}.to_out.weight"
    (file,) = [f for f in checkpoint.glob("*.safetensors") if name in load_file(f)]
    weight = load_file(file)[name]
    save_file({name: weight.clone()}, checkpoint / "same.safetensors")
    assert main([str(checkpoint), str(tmp_path / "same.safetensors"), "--heads", "4"]) == 0
    save_file({name: weight + 1}, checkpoint / "same.safetensors")
    with pytest.raises(ValueError, match=r"two of its files have .*to_out.weight, and they differ"):
        main([str(checkpoint), str(tmp_path / "out.safetensors"), "--heads", "4"])
    save_file({f"base_model.{name}": weight + 1}, checkpoint / "same.safetensors")
    with pytest.raises(ValueError, match="are two weights of one place, and differ"):
        main([str(checkpoint), str(tmp_path / "out.safetensors"), "--heads", "4"])


def test_a_checkpoint_of_llava_st_gives_its_values(checkpoint, golden, tmp_path, capsys):
    out = tmp_path / "stp.safetensors"
    assert main([str(checkpoint), str(out), "--heads", "4"]) == 0
    said, number = capsys.readouterr().out, len(Model().state_dict())
    assert f"{number} weights of the three packers, and no tables of coordinates, for a language model of wid" in said
    flags = "--mm_resampler_type stp --mm_perceiver_width 32 --mm_perceiver_heads 4 --mm_perceiver_pretrained"
    assert f"{flags} {out}\n" in said and len(load_file(out)) == number
    model = Model()
    assert "weights of the resampler" in load_resampler(model, str(out))
    expected = torch.cat([golden["stp.fast"].flatten(0, 1), golden["stp.slow"].flatten(0, 1)])
    torch.testing.assert_close(model.vision_resampler(golden["stp.input"][None])[0], expected, rtol=0, atol=1e-5)


def add_tables(folder, width=24, **change):
    """LLaVA-ST's tables beside its other weights, as a checkpoint of a later stage has them."""
    tables = {f"model.{name}.weight": torch.randn(100, width) for name in TABLES} | change
    save_file({name: value for name, value in tables.items() if value is not None}, folder / "z.safetensors")
    return {name.split(".")[1]: value for name, value in tables.items()}


def test_tables_of_coordinates_are_converted_and_loaded(checkpoint, tmp_path, capsys):
    tables, out = add_tables(checkpoint), tmp_path / "stp.safetensors"
    assert main([str(checkpoint), str(out), "--heads", "4"]) == 0
    said = capsys.readouterr().out
    assert "and 6 tables of coordinates" in said
    assert f"--mm_perceiver_pretrained {out} --mm_coordinates True --mm_coordinates_pretrained {out}\n" in said
    model = Model()
    model.coordinates = CoordinateTables(24, {name: i for i, name in enumerate(NAMES)})
    # Both parts of one file, and LLaVA-ST's own file of the tables.
    assert "weights of the resampler" in load_resampler(model, str(out))
    for path in (out, checkpoint / "z.safetensors"):
        assert load_coordinates(model, str(path)) == f"loaded from {path}: 6 tables of coordinates"
        assert all(torch.equal(getattr(model.coordinates, name), value) for name, value in tables.items())
        torch.nn.init.zeros_(model.coordinates.temporal_input_embeddings)
    model.coordinates = CoordinateTables(32, {name: i for i, name in enumerate(NAMES)})
    with pytest.raises(ValueError, match=r"temporal_input_embeddings has shape \(100, 24\), expected \(100, 32\)"):
        load_coordinates(model, str(out))
    with pytest.raises(ValueError, match="does not fit this model: coordinates.temporal_input_embeddings is missing"):
        load_coordinates(model, str(checkpoint / "model-00001-of-00002.safetensors"))


@pytest.mark.parametrize(
    ("width", "change", "words"),
    [
        (24, {f"model.{TABLES[1]}.weight": None}, f"coordinates.{TABLES[1]} is missing"),
        (32, {}, r"has shape \(100, 32\), expected \(100, 24\)"),
        (24, {f"model.{TABLES[0]}.weight": torch.full((100, 24), torch.inf)}, "has values that are not finite"),
        (24, {f"base_model.model.{TABLES[0]}.weight": torch.ones(100, 24)}, "two of one table, and differ"),
    ],
)
def test_what_are_no_tables_is_named(checkpoint, tmp_path, width, change, words):
    add_tables(checkpoint, width, **change)
    with pytest.raises(ValueError, match=words):
        main([str(checkpoint), str(tmp_path / "out.safetensors"), "--heads", "4"])
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_names_of_llava_st_load_as_they_are(golden, tmp_path, suffix):
    """LLaVA-ST's own file for its flag has no name in front."""
    weights = {n.removeprefix("weights."): v for n, v in golden.items() if n.startswith("weights.")}
    path = tmp_path / f"packer{suffix}"
    (torch.save if suffix == ".bin" else save_file)(weights, path)
    model = Model()
    load_resampler(model, str(path))
    assert all(torch.equal(v, from_llava_st(golden)[n]) for n, v in model.vision_resampler.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(f"{SLOW}.ln_k.bias"), "stp.slow.norm_key.bias is missing"),
        (lambda w: w.update({f"{SLOW}.gate.bias": torch.ones(1)}), "stp.slow.gate.bias is not one of"),
        (lambda w: w[f"{SLOW}.to_q.0.bias"].fill_(torch.nan), "stp.slow.query_mlp.0.bias has values that are not"),
        (lambda w: w.clear(), "no token_packer.devide_attention.to_out.weight"),
    ],
)
def test_what_is_no_packer_is_named(golden, tmp_path, change, words):
    weights = {n.replace("weights.", FRONT): v.clone() for n, v in golden.items() if n.startswith("weights.")}
    change(weights)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=words):
        main([str(tmp_path), str(tmp_path / "out.safetensors"), "--heads", "4"])
    assert not (tmp_path / "out.safetensors").exists()


def test_wrong_places(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: neither a file of weights"):
        main([str(tmp_path / "nowhere"), str(tmp_path / "out.safetensors")])
    with pytest.raises(ValueError, match="ends in .safetensors"):
        main([str(checkpoint), str(tmp_path / "out")])
    with pytest.raises(FileExistsError, match="is there already"):
        main([str(checkpoint), str(checkpoint / "model-00001-of-00002.safetensors")])
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="broken.safetensors: no file of weights"):
        main([str(tmp_path / "broken.safetensors"), str(tmp_path / "out.safetensors")])
    with pytest.raises(ValueError, match="32 does not divide into 5"):
        main([str(checkpoint), str(tmp_path / "out.safetensors"), "--heads", "5"])
