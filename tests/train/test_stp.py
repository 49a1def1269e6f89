"""Whole runs with STP, from the flags to captions."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor

from llava.config.flags import video_spec
from llava.eval.captioning import Captioner
from llava.model.multimodal_resampler.stp import SpatialTemporalPacker
from llava.train import run_data, run_model
from llava.train.run_flags import parse_arguments
from tests.conftest import CAPTIONS, record
from tests.train.runs import alarms, flags, losses, train

STP = {"mm_resampler_type": "stp", "mm_perceiver_temporal_factor": 2}


def image_record(name: str, file: str) -> dict:
    """A record that shows an image."""
    made = record(name, CAPTIONS[0], file, "")
    made["conversations"][0]["value"], made["image"] = "<image>", made.pop("video")
    return made


def made_model(assets, output: Path, **options):
    """The run of the flags as far as its model, with what is frozen for a reason."""
    settings = parse_arguments(flags(assets, output, preflight="off", **{**STP, **options}))
    tokenizer = run_model.load_tokenizer(settings)
    records = run_data.read_splits(settings, tokenizer)[0].records
    return run_model.make_model(settings, tokenizer, records)


@pytest.fixture(scope="module")
def run(assets, tmp_path_factory) -> Path:
    """Clips and an image, packed, from cached features."""
    folder = tmp_path_factory.mktemp("stp")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(assets.clips / "red.png")
    data = folder / "data.json"
    data.write_text(json.dumps([*json.loads(assets.video_json.read_text()), image_record("i0", "red.png")]))
    train(
        assets, folder / "run", data_path=data, image_folder=assets.clips, max_steps=21, learning_rate=3e-3,
        gradient_checkpointing=True, controls=False, run_report=True, **STP,
    )  # fmt: skip
    return folder / "run"


def test_a_run_learns_and_nothing_warns(run):
    checks = json.loads((run / "preflight.json").read_text())["checks"]
    assert [c for c in checks if c["status"] in ("FAIL", "warning")] == []
    found = {c["check"]: c["finding"] for c in checks}
    assert {f"gradients, resampler {part}" for part in ("base", "fast", "slow")} <= found.keys()
    assert {"use of the video, fast stream", "use of the video, slow stream", "use of the image"} <= found.keys()
    assert alarms(run) == []
    curve = losses(run)
    assert curve[-1] < curve[0] - 1
    assert "resampler base" in (run / "report.html").read_text() and "| stp |" in (run / "README.md").read_text()


def test_its_checkpoint_writes_captions_and_ships_its_code(run, assets):
    captioner = Captioner.from_pretrained(run, "cpu")
    assert isinstance(captioner.model.vision_resampler, SpatialTemporalPacker)
    assert len(captioner([assets.clips / "clip0.mp4", assets.clips / "clip1.mp4"], max_new_tokens=4)) == 2
    processor = AutoProcessor.from_pretrained(run)
    ids = processor(videos=str(assets.clips / "clip0.mp4"))["input_ids"]
    assert processor.spec.rows == 6 and int((ids == captioner.model.config.visual_token_ids["<vid_patch>"]).sum()) == 2
    assert (run / "llava_model_multimodal_resampler_stp.py").is_file()


def test_what_cannot_be_is_told_from_the_flags(assets, tmp_path):
    def refused(words: str, **options) -> None:
        with pytest.raises(ValueError, match=words):
            parse_arguments(flags(assets, tmp_path / "run", **options))

    refused(r"num_frames \(2\) does not divide into steps of 5 .*temporal_factor to 2 or 1", mm_resampler_type="stp")
    refused("--mm_perceiver_temporal_factor 2: .* fast_slow_resampler has rows for", mm_perceiver_temporal_factor=2)
    refused("--mm_perceiver_pretrained /no.bin: no such file", mm_perceiver_pretrained="/no.bin", **STP)
    assert video_spec(*parse_arguments(flags(assets, tmp_path / "run", **STP))[:2]).slow_rows == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mm_perceiver_latents": 9}, "4x4 patches do not divide into the 3x3 of mm_perceiver_latents 9: use one of"),
        ({"mm_vision_select_feature": "cls_patch"}, "cls_patch: stp has no place for a class token"),
        ({"mm_perceiver_heads": 3}, "32 does not divide into 3 mm_perceiver_heads"),
        ({"mm_resampler_type": "perceiver", "mm_perceiver_temporal_factor": None}, "use fast_slow_resampler or stp"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_computed(assets, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        made_model(assets, tmp_path / "run", **options)


def test_another_packer_than_the_model_has_is_refused(run, assets, tmp_path):
    words = r"--mm_perceiver_temporal_factor 1 \(the model has 2\), --mm_perceiver_heads 2 \(the model has 1\)"
    other = {"mm_perceiver_temporal_factor": 1, "mm_perceiver_heads": 2}
    with pytest.raises(ValueError, match=words):
        made_model(assets, tmp_path / "run", model_name_or_path=run, **other)


def test_what_only_videos_or_nothing_can_teach_is_frozen_with_the_reason(assets, tmp_path):
    (tmp_path / "images.json").write_text(json.dumps([image_record("i0", "red.png")]))
    Image.new("RGB", (64, 64)).save(tmp_path / "red.png")
    exempt = made_model(assets, tmp_path / "a", data_path=tmp_path / "images.json", image_folder=tmp_path).exempt
    parts = {name.split(".")[1] for name in exempt}
    assert parts == {"fast", "slow"} and "vision_resampler.slow.value.weight" not in exempt
    exempt = made_model(assets, tmp_path / "b", mm_perceiver_temporal_factor=1).exempt
    assert set(exempt) == {n for n in exempt if n.startswith("vision_resampler.slow.") and ("query" in n or "key" in n)}
    assert len(exempt) == 16 and all("blocks have one" in reason for reason in exempt.values())


def test_weights_of_the_packer_are_taken_from_a_file(run, assets, tmp_path, caplog):
    weights = made_model(assets, tmp_path / "a", model_name_or_path=run).model.vision_resampler.state_dict()
    save_file({f"vision_resampler.{n}": v for n, v in weights.items()}, tmp_path / "stp.safetensors")
    with caplog.at_level(logging.INFO):
        made = made_model(
            assets, tmp_path / "b", mm_perceiver_pretrained=tmp_path / "stp.safetensors", mm_perceiver_depth=3
        )
    assert all(torch.equal(v, weights[n]) for n, v in made.model.vision_resampler.state_dict().items())
    assert "weights of the resampler" in caplog.text and "--mm_perceiver_depth 3 has no effect" in caplog.text
    save_file({"fast.out.weight": weights["fast.out.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"part.safetensors does not fit .*base.* is missing.*and \d+ more"):
        made_model(assets, tmp_path / "c", mm_perceiver_pretrained=tmp_path / "part.safetensors")
