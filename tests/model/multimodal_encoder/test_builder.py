"""One table says which class serves which model."""

from __future__ import annotations

import json

import pytest

from llava.model.multimodal_encoder.builder import TOWERS, empty_vision_tower, load_vision_tower
from tests.model.multimodal_encoder.towers import PREFIX


def test_every_kind_is_tested():
    assert TOWERS.keys() == PREFIX.keys()


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("vit", ""),
        ("siglip2", ".*NaFlex.*use one of a fixed resolution"),
        ("siglip2_vision_model", ".*NaFlex"),
        ("dinov3_convnext", ".*no patches: use a DINOv3 ViT"),
        (None, ""),
    ],
)
def test_another_model_is_refused_with_the_known_ones(tmp_path, model_type, why):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type} if model_type else {}))
    match = f"--vision_tower .*model type {model_type!r}, expected one of dinov2, .*clip_vision_model{why}"
    with pytest.raises(ValueError, match=match):
        load_vision_tower(str(tmp_path))
    with pytest.raises(ValueError, match="mm_vision_config: model type"):
        empty_vision_tower({"model_type": model_type}, -2, "patch")


def test_a_folder_that_is_not_there_is_named_with_the_remedy(tmp_path):
    match = "--vision_tower .*nothing: neither a folder .*hf download.*--make_vision_tower"
    with pytest.raises(FileNotFoundError, match=match):
        load_vision_tower(str(tmp_path / "nothing"))
