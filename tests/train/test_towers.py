"""Whole runs with towers other than DINOv2."""

from __future__ import annotations

import json
import logging
import shutil

import av
import pytest
import torch
from PIL import Image

from llava.commands import extract
from llava.data.features import extract as features
from llava.eval.captioning import Captioner
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.builder import load_vision_tower
from tests.conftest import CAPTIONS, record
from tests.model.multimodal_encoder.towers import save_tower
from tests.train.runs import train


@pytest.fixture
def media(assets, tmp_path):
    """The clips, three of them as images too; the records' file and the folder."""
    folder = tmp_path / "media"
    shutil.copytree(assets.clips, folder)
    records = json.loads(assets.video_json.read_text())
    for i in range(3):
        with av.open(str(folder / f"clip{i}.mp4")) as container:
            Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24")).save(folder / f"image{i}.png")
        image = record(f"i{i}", CAPTIONS[i], "none", "")
        image["conversations"][0]["value"] = "<image>"
        records.append({**{k: v for k, v in image.items() if k != "video"}, "image": f"image{i}.png"})
    path = tmp_path / "media.json"
    path.write_text(json.dumps(records))
    return path, folder


def test_siglip_trains_on_images_and_videos_from_the_cache_and_in_the_loop(
    assets, media, tmp_path, monkeypatch, caplog
):
    data, folder = media
    tower = save_tower("siglip", tmp_path / "siglip")
    options = {
        "vision_tower": tower, "data_path": data, "video_folder": folder, "image_folder": folder,
        "image_aspect_ratio": "square", "mm_vision_select_layer": -2,
    }  # fmt: skip
    argv = [
        "--data_path", str(data), "--video_folder", str(folder), "--image_folder", str(folder), "--vision_tower",
        str(tower), "--feature_cache", str(tmp_path / "feature_cache"), "--num_frames", "2", "--force_sample", "True",
        "--image_aspect_ratio", "square", "--num_workers", "1", "--vision_precision", "fp32",
    ]  # fmt: skip
    assert extract.main(argv) == 0 and extract.main([*argv, "--verify", "9"]) == 0

    def never(*args, **kwargs):
        raise AssertionError("nothing is left to extract")

    monkeypatch.setattr(features, "run_tasks", never)
    with caplog.at_level(logging.INFO):
        cached = train(assets, tmp_path / "cached", **options)
    monkeypatch.undo()
    assert "(siglip_vision_model): 2 of 3 layers run, 4 x 4 patches of 56 pixels" in caplog.text
    checks = {c["check"]: c for c in json.loads((tmp_path / "cached" / "preflight.json").read_text())["checks"]}
    assert checks["feature cache"]["status"] == "ok", checks["feature cache"]
    assert checks["feature cache"]["finding"].startswith("9 rows of 2 of 2 files")
    assert not [c for c in checks.values() if c["status"] in ("FAIL", "warning")]
    assert cached == pytest.approx(train(assets, tmp_path / "loop", feature_cache="off", **options), abs=2e-3)
    captioner = Captioner.from_pretrained(tmp_path / "cached", "cpu")
    assert captioner.model.vision_tower.checksum() == load_vision_tower(str(tower)).checksum()
    assert captioner.model.config.mm_processor["image_mean"] == [0.5] * 3
    assert len(captioner([folder / "clip0.mp4", folder / "clip1.mp4"])) == 2


@pytest.mark.parametrize("kind", ["clip", "dinov3_vit"])
def test_a_tower_that_trains_is_kept_in_the_checkpoint(assets, tmp_path, kind):
    tower = save_tower(kind, tmp_path / kind)
    train(
        assets, tmp_path / "run", vision_tower=tower, mm_vision_tower_storage="checkpoint", mm_vision_select_layer=-3,
        mm_tunable_parts="mm_vision_tower,mm_mlp_adapter,mm_vision_resampler,mm_language_model", max_steps=3,
    )  # fmt: skip
    shutil.rmtree(tower)
    _, model = load_pretrained_model(tmp_path / "run")
    start = load_vision_tower(str(save_tower(kind, tmp_path / "again")), -3)
    trained = dict(model.vision_tower.named_parameters())
    moved = {name for name, before in start.named_parameters() if not torch.equal(before, trained[name])}
    assert moved == trained.keys() - set(start.unused_parameters())
