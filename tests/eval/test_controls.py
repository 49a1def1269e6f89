"""The controls against plain reasoning: what each condition hides, and that a blind model gains nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from llava.config.video import VideoSpec
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.prompt import pad_token_id, preprocess_plain_lm, video_tokens
from llava.data.records import load_records
from llava.eval.controls import (
    ControlLosses,
    _blank_video,
    black_pixels,
    choose_samples,
    control_losses,
    format_controls,
    main,
    other_samples,
    shuffle_frames,
    shuffle_seeds,
    stream_mask,
)
from llava.eval.loss import after_first_token, caption_losses, token_losses
from tests.conftest import PROCESSOR, SPEC, record
from tests.train.runs import train


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20), st.integers(0, 5))
def test_other_samples_are_other_clips_of_the_same_kind(clips, seed):
    kinds = [c in "ab" for c in clips]
    others = other_samples(clips, kinds, seed)
    for i, j in enumerate(others):
        if j is None:
            assert len({c for c, k in zip(clips, kinds, strict=True) if k == kinds[i]}) == 1
        else:
            assert clips[j] != clips[i] and kinds[j] == kinds[i]
    assert others == other_samples(clips, kinds, seed)
    shown = {clips[j] for j in others if j is not None}
    assert shown == {c for c, j in zip(clips, others, strict=True) if j is not None}, "each clip is shown once"


@given(st.integers(2, 9), st.integers(0, 5))
def test_every_frame_moves(frames, seed):
    videos = torch.arange(3 * frames).view(3, frames, 1)
    shuffled = shuffle_frames(videos, seed)
    assert (shuffled != videos).all()
    assert torch.equal(shuffled.sort(dim=1).values, videos)
    assert torch.equal(shuffle_frames(videos[:, :1], seed), videos[:, :1])


def test_stream_mask_hides_exactly_one_stream(build, tokenizer):
    model = build()
    ids = model.config.visual_token_ids
    span = [ids[t] for t in video_tokens(SPEC)]
    rows = torch.tensor([[40, *span, 41, *span, 42, 43], [*span, 41, 42, *[0] * 12]])
    mask = (torch.arange(rows.shape[1]) < torch.tensor([[24], [12]])).long()
    video_ids = sorted(set(span))
    for removed, hidden in (("fast", [0, 1]), ("slow", range(2, 10))):
        expected = mask.clone()
        for row, start in ((0, 1), (0, 12), (1, 0)):
            expected[row, [start + i for i in hidden]] = 0
        assert torch.equal(stream_mask(rows, mask, video_ids, SPEC, removed), expected)


def test_black_pixels_are_black():
    pixels = black_pixels(PROCESSOR)
    mean, std = (torch.tensor(v)[:, None, None] for v in (PROCESSOR.image_mean, PROCESSOR.image_std))
    assert torch.allclose(pixels * std + mean, torch.zeros(3, 56, 56), atol=1e-6)


def test_a_blank_video_of_a_tower_whose_weights_fsdp_spread(build):
    """Its features are computed outside of the model's own forward pass, where FSDP brings no weights together."""
    model = build()
    videos = torch.randn(2, SPEC.num_frames, 16, model.config.mm_hidden_size)
    with torch.no_grad():
        expected = _blank_video(model)("video_features", videos)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with torch.no_grad():
            found = _blank_video(model)("video_features", videos)
    finally:
        dist.destroy_process_group()
    assert torch.equal(found, expected)


@pytest.fixture
def data(assets, build, tokenizer):
    """A model, a dataset without cache and its collator."""
    model = build()
    records, _ = load_records(str(assets.video_json), None, str(assets.clips))
    dataset = LazySupervisedDataset(records, tokenizer, preprocess_plain_lm, 64, SPEC, PROCESSOR)
    return model, dataset, DataCollatorForSupervisedDataset(pad_token_id(tokenizer))


def run_controls(model, dataset, collate, batch_size=4):
    chosen, others = choose_samples(dataset.records)
    return control_losses(model, dataset, collate, list(zip(chosen, others, strict=True)), batch_size)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_controls_of_a_seeing_model(data, attention):
    model, dataset, collate = data
    model.set_attn_implementation(attention)
    with torch.no_grad():
        for stream in (model.vision_resampler.fast, model.vision_resampler.slow):
            stream.norm.weight.fill_(3.0)
    found = run_controls(model, dataset, collate)
    assert set(found.nats) == {"true", "other", "shuffled", "blank", "no_fast", "no_slow"}
    for name, nats in found.nats.items():
        assert np.isfinite(nats).all() and len(nats) == 6
        assert name == "true" or not np.allclose(nats, found.nats["true"], atol=1e-4)
    assert found.tokens.tolist() == caption_losses(model, collate([dataset[i] for i in range(6)]))[1].tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_no_gain_depends_on_the_batch_or_the_number_of_processes(assets, build, tokenizer, batch_size):
    """Frames that are shuffled by their place in the batch give the gain of time another value in each of them."""
    spec = VideoSpec(num_frames=5, fast_latents=1, slow_latents=4, force_sample=True)
    model = build(spec=spec)
    with torch.no_grad():
        model.vision_resampler.slow.norm.weight.fill_(3.0)
        model.vision_resampler.slow.frame.normal_(generator=torch.Generator().manual_seed(0))
    records, _ = load_records(str(assets.video_json), None, str(assets.clips))
    dataset = LazySupervisedDataset(records, tokenizer, preprocess_plain_lm, 64, spec, PROCESSOR)
    collate = DataCollatorForSupervisedDataset(pad_token_id(tokenizer))
    expected = run_controls(model, dataset, collate)
    pairs = list(zip(*choose_samples(records), strict=True))
    whole = control_losses(model, dataset, collate, pairs, batch_size)
    first, second = (control_losses(model, dataset, collate, pairs[rank::2], batch_size) for rank in range(2))
    for name, nats in expected.nats.items():
        assert whole.nats[name] == pytest.approx(nats, abs=1e-4), name
        assert first.nats[name] == pytest.approx(nats[::2], abs=1e-4), name
        assert second.nats[name] == pytest.approx(nats[1::2], abs=1e-4), name
    orders = {tuple(shuffle_frames(torch.arange(5)[None], [seed])[0].tolist()) for seed in shuffle_seeds(records)}
    assert len(orders) > 2, "the clips differ in their order"


def test_a_blind_model_gains_nothing(data):
    model, dataset, collate = data
    with torch.no_grad():
        for stream in (model.vision_resampler.fast, model.vision_resampler.slow):
            stream.norm.weight.zero_()
            stream.frame.zero_()
    summary = run_controls(model, dataset, collate).summary()
    for gain in ("video", "time", "blank"):
        assert summary["gains"][gain]["per_caption"] == pytest.approx([0, 0, 0], abs=1e-4)


def test_hidden_streams_do_not_reach_the_caption(data):
    """Without both streams' positions the loss is that of the words behind blank positions: no clip can matter."""
    model, dataset, collate = data
    batch = collate([dataset[0]])
    other = collate([{**dataset[0], "pixel_values_videos": dataset[1]["pixel_values_videos"]}])
    ids = sorted({model.config.visual_token_ids[t] for t in video_tokens(SPEC)})
    mask = stream_mask(batch["input_ids"], batch["attention_mask"], ids, SPEC, "fast")
    before = token_losses(model, batch | {"attention_mask": mask})
    fast = model.vision_resampler.fast
    handle = fast.register_forward_hook(lambda m, a, out: torch.randn_like(out))
    assert torch.allclose(token_losses(model, batch | {"attention_mask": mask}), before, atol=1e-5)
    handle.remove()
    assert not torch.allclose(token_losses(model, other | {"attention_mask": mask}), before, atol=1e-5)


def test_summary_and_table():
    nats = {"true": np.array([1.0, 2.0, 3.0]), "other": np.array([2.0, 4.0, 3.0])}
    names = np.array(["a", "b", "c"]), np.array(["x.mp4", "x.mp4", "y.mp4"])
    found = ControlLosses(nats, np.array([2.0, 2.0, 2.0]), np.array([0, 0, 1]), *names)
    summary = found.join([found]).summary(7)
    assert summary["step"] == 7 and summary["captions"] == 6 and summary["clips"] == 2
    assert summary["losses"]["other"] == {"per_caption": 3.0, "per_token": 1.5}
    assert summary["gains"]["video"]["per_caption"][0] == 1.0
    assert "+1.000 [" in format_controls(summary)
    alone = ControlLosses(nats, np.array([2.0, 2.0, 2.0]), np.array([0, 0, 0]), *names).summary()
    assert alone["gains"]["video"]["per_caption"] == [1.0, None, None] and "one clip" in format_controls(alone)


def test_a_clip_that_helps_less_cannot_forge_a_line():
    listed = [{"path": "a\nno problem\x1b[2J.mp4", "ids": ["v\nno problem"], "gain": -1.0}]
    less = {"less": 1, "clips": 2, "listed": listed}
    text = format_controls({"captions": 2, "clips": 2, "losses": {}, "gains": {}, "help_less": less})
    assert "2 clips; too few to tell a gain from chance, nats a caption (a token):" in text
    many = format_controls({"captions": 6, "clips": 6, "losses": {}, "gains": {}, "help_less": less})
    assert "6 clips, nats a caption (a token):" in many
    assert "a\\nno problem" in text and text.count("\n") == 3 and "\x1b" not in text


def test_common_targets_of_text_and_video(data, tokenizer):
    model, dataset, collate = data
    ids = list(model.config.visual_token_ids.values())
    batch = collate([dataset[0], dataset[1]])
    common = after_first_token(batch["input_ids"], batch["labels"], ids)
    words = [batch["input_ids"][b, 1:][common[b]].tolist() for b in range(2)]
    for b, caption in enumerate(("Un gatto nero dorme sul divano.", "Una palla rossa rotola verso destra.")):
        alone = preprocess_plain_lm([[{"from": "gpt", "value": caption}]], tokenizer)
        text = collate([{**{k: v[0] for k, v in alone.items() if k == "input_ids"}, "labels": alone["labels"][0],
                         "sample_id": "t"}])  # fmt: skip
        assert words[b] == text["input_ids"][0, 1:].tolist()
        assert after_first_token(text["input_ids"], text["labels"], ids).all()


def test_controls_from_the_command_line_and_in_training(assets, tmp_path, capsys):
    train(assets, tmp_path / "run", eval_data_path=assets.video_json, eval_strategy="steps", eval_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "controls.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6], "the last evaluation is written once"
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert sum("eval_gain_video" in entry for entry in log) == 2
    output = tmp_path / "controls.json"
    argv = ["--model-path", tmp_path / "run", "--data_path", assets.video_json, "--video_folder", assets.clips]
    assert main([*map(str, argv), "--feature_cache", str(tmp_path / "feature_cache"), "--output", str(output)]) == 0
    assert "shuffled" in capsys.readouterr().out
    result = json.loads(output.read_text())
    for condition, loss in lines[-1]["losses"].items():
        assert result["losses"][condition]["per_caption"] == pytest.approx(loss["per_caption"], abs=1e-3)


def test_one_clip_has_no_controls(assets, tmp_path, caplog):
    path = tmp_path / "one.json"
    path.write_text(json.dumps([record("a", "Un gatto.", "clip0.mp4"), record("b", "Un cane.", "clip0.mp4")]))
    train(assets, tmp_path / "run", data_path=path, eval_data_path=path)
    assert "at least two records with different videos" in caplog.text
    assert not (tmp_path / "run" / "controls.jsonl").exists()
