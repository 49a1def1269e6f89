"""Legitimate runs of every kind: pre-flight finds nothing to complain of and no alarm sounds."""

from __future__ import annotations

import json

import pytest
from transformers import GPT2LMHeadModel

from tests.audit.sound import images
from tests.conftest import CAPTIONS, make_tokenizer, record, tiny_gpt2_config
from tests.train.runs import alarms, train


def clips(text: str, videos: int = 1) -> list[dict]:
    """A record for each caption, `text` before it, of one or more clips."""
    records = []
    for i, caption in enumerate(CAPTIONS):
        names = [f"clip{(i + k) % 6}.mp4" for k in range(videos)]
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": caption}]
        records.append({"id": f"r{i}", "video": names if videos > 1 else names[0], "conversations": turns})
    return records


def check(folder) -> None:
    checks = json.loads((folder / "preflight.json").read_text())["checks"]
    assert [c for c in checks if c["status"] in ("warning", "FAIL")] == []
    assert alarms(folder) == []


@pytest.mark.parametrize(
    "records",
    [
        clips("<video> poi <video>", videos=2),
        clips("Descrivi <video>"),
        [record("a", "a", "clip0.mp4"), record("b", "b", "clip1.mp4")],
        [record(f"r{i}", text, "clip0.mp4") for i, text in enumerate(CAPTIONS)],
        [*clips("<video>"), *(record(f"t{i}", text) for i, text in enumerate(CAPTIONS))],
    ],
    ids=["two videos", "prompt before the video", "one-word captions", "one clip", "video and text"],
)
def test_data_of_every_kind(assets, tmp_path, records):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    train(assets, tmp_path / "run", data_path=path)
    check(tmp_path / "run")


def test_images_alone(assets, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(images([], tmp_path)))
    train(assets, tmp_path / "run", data_path=path, image_folder=tmp_path)
    check(tmp_path / "run")


@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": 1, "mm_perceiver_latents_fast": 2},
        {"bf16": True},
        {"feature_cache": "off"},
        {"mm_perceiver_depth": 0, "mm_projector_type": "linear"},
        {"mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -1},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "max_grad_norm": 0.0},
        {"logging_strategy": "epoch"},
        {"logging_steps": 100},
        {"logging_strategy": "no"},
    ],
    ids=str,
)
def test_flags_of_every_kind(assets, tmp_path, options):
    train(assets, tmp_path / "run", **options)
    check(tmp_path / "run")


def test_only_the_vision_modules_after_a_trained_language_model(assets, tmp_path):
    train(assets, tmp_path / "text", 1, max_steps=40, learning_rate=1e-2)
    train(assets, tmp_path / "run", model_name_or_path=tmp_path / "text",
          mm_tunable_parts="mm_mlp_adapter,mm_vision_resampler")  # fmt: skip
    check(tmp_path / "run")


@pytest.mark.parametrize("tied", [True, False])
def test_a_tokenizer_with_tokens_of_its_own_and_an_untied_head(assets, tmp_path, tied):
    tokenizer = make_tokenizer(pad=None)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>"})
    config = tiny_gpt2_config(tokenizer)
    config.tie_word_embeddings = tied
    tokenizer.save_pretrained(tmp_path / "gpt2")
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    train(assets, tmp_path / "run", model_name_or_path=tmp_path / "gpt2")
    check(tmp_path / "run")
