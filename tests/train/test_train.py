"""End to end: the real `main([...])` on tiny models and clips."""

from __future__ import annotations

import gc
import json
import math
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.config.flags import TrainingArguments
from llava.data.features.extract import open_cache
from llava.data.records import DatasetError, Record
from llava.data.video import VideoError
from llava.eval.captioning import Captioner
from llava.model.language_model.llava_gpt2 import LlavaGPT2ForCausalLM
from llava.train import train as train_module
from llava.train.checkpoint.files import write_manifest
from llava.train.run_model import freeze_unused
from llava.train.train import main
from llava.train.trainer import LlavaTrainer
from tests.conftest import CAPTIONS, record
from tests.train.runs import flags, losses, train


@pytest.mark.parametrize("experiment", [1, 2])
def test_a_run_learns_and_leaves_a_complete_folder(assets, tmp_path, experiment):
    curve = train(assets, tmp_path / "run", experiment, max_steps=30, learning_rate=5e-3)
    assert curve[0] == pytest.approx(5.8, abs=0.2), "a fresh model starts near ln(vocabulary)"
    assert sum(curve[-3:]) / 3 < 0.7 * curve[0]
    run = {p.name for p in (tmp_path / "run").iterdir()}
    assert run >= {"config.json", "model.safetensors", "tokenizer.json", "llava_run.json", "trainer_state.json"}
    record = json.loads((tmp_path / "run" / "llava_run.json").read_text())
    assert record["flags"]["learning_rate"] == 5e-3
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model_type"] == "llava_gpt2"
    if experiment == 2:
        assert config["video_spec"]["num_frames"] == 2
        assert config["mm_processor"]["image_size"] == 56
        assert len(config["mm_vision_tower_checksum"]) == 64


def test_the_collector_rests_while_the_script_imports_and_no_longer(monkeypatch):
    calls = []
    for name in ("disable", "enable", "freeze"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append(name))
    monkeypatch.setattr("llava.errors.run_command", lambda main: calls.append("run"))
    runpy.run_path(str(Path(train_module.__file__)), run_name="__main__")
    assert calls == ["disable", "enable", "freeze", "run"]


def test_a_run_ends_with_its_report(assets, tmp_path):
    train(assets, tmp_path / "run", run_report=True, eval_data_path=assets.video_json)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in page and "mm_vision_resampler" in page and "information gain" in page
    record = json.loads((tmp_path / "run" / "llava_run.json").read_text())
    (source,) = record["data"]["train"].pop("sources")
    assert (source["name"], source["strategy"], source["records"], source["seen"]) == ("video.json", "all", 6, 12)
    supervised = record["data"]["train"].pop("supervised")["captions"]
    assert 2 < supervised["entropy"] < math.log(record["tokenizer"]["outputs"]) and supervised["words"] > 6
    assert record["data"]["eval"]["repeated"] == 6 and record["hardware"]["cores"] >= 1 and "commit" in record
    checks = json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]
    (start,) = (c["nats"] for c in checks if "nats" in c)
    assert start == pytest.approx(math.log(record["tokenizer"]["outputs"]), abs=0.3), "before the first step"
    assert len(record["data"]["train"].pop("ids")) == 32 and record["arm"] is None
    assert record["data"]["train"] == {"records": 6, "by_modality": {"video": 6}, "clips": 6, "longest": 34, "cut": 0}
    assert {row["part"] for row in record["parameters"]} == {
        "mm_language_model", "mm_mlp_adapter", "mm_vision_resampler", "mm_vision_tower",
    }  # fmt: skip


def test_it_memorises_clips_and_writes_their_captions_from_the_files(assets, tmp_path):
    train(assets, tmp_path / "run", max_steps=150, learning_rate=1e-2, per_device_train_batch_size=6)
    captioner = Captioner.from_pretrained(tmp_path / "run", device="cpu")
    assert captioner([assets.clips / f"clip{i}.mp4" for i in range(6)]) == CAPTIONS


def test_cached_features_give_the_losses_of_pixels(assets, tmp_path):
    cached = train(assets, tmp_path / "a")
    direct = train(assets, tmp_path / "b", feature_cache="off", dataloader_num_workers=1)
    assert cached == pytest.approx(direct, abs=2e-3)
    assert list((tmp_path / "feature_cache").glob("*/*.npy"))


def test_int8_features_of_workers_give_the_losses_of_one_process(assets, tmp_path):
    runs = {
        workers: train(assets, tmp_path / str(workers), feature_dtype="int8", feature_cache=tmp_path / "cache",
                       dataloader_num_workers=workers, eval_data_path=assets.video_json, eval_strategy="epoch")
        for workers in (0, 2)
    }  # fmt: skip
    assert runs[0] == runs[2]


def test_text_only_of_video_records_equals_the_text_file(assets, tmp_path):
    ours = train(assets, tmp_path / "a", 1, data_path=assets.video_json, text_only=True)
    assert ours == train(assets, tmp_path / "b", 1)


def test_gradient_accumulation_equals_the_big_batch(assets, tmp_path):
    big = train(assets, tmp_path / "big", per_device_train_batch_size=6, max_steps=5)
    small = train(assets, tmp_path / "small", per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=5)
    assert small == pytest.approx(big, abs=2e-5)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("big", "small"))
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


def test_a_run_that_trains_its_tower_goes_on_exactly(assets, tmp_path):
    """Its weights are stored by the names by which they are read back."""
    options = {
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter", "mm_vision_tower_storage": "checkpoint",
        "save_strategy": "steps", "save_steps": 2, "preflight": "off", "max_steps": 4,
    }  # fmt: skip
    whole = train(assets, tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    assert train(assets, tmp_path / "cut", resume_from_checkpoint=True, **options) == whole


def test_a_checkpoint_that_lacks_weights_of_its_tower_is_refused(assets, tmp_path):
    """They were drawn at random: a tower that the checkpoint holds is found nowhere else."""
    options = {
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter", "mm_vision_tower_storage": "checkpoint",
        "save_strategy": "steps", "save_steps": 3, "resume_from_checkpoint": "auto", "preflight": "off", "max_steps": 3,
    }  # fmt: skip
    train(assets, tmp_path / "run", **options)
    checkpoint = tmp_path / "run" / "checkpoint-3"
    weights = load_file(checkpoint / "model.safetensors")
    lost = next(k for k in weights if k.startswith("vision_tower.") and "layer.0" in k)
    save_file({k: v for k, v in weights.items() if k != lost}, checkpoint / "model.safetensors", {"format": "pt"})
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match=rf"missing \['{re.escape(lost)}'\]"):
        train(assets, tmp_path / "run", **options | {"max_steps": 4})
    with pytest.raises(ValueError, match=rf"missing keys: \['{re.escape(lost)}'\]"):
        LlavaGPT2ForCausalLM.from_pretrained(checkpoint)


@pytest.mark.parametrize("experiment", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_equals_never_having_stopped(assets, tmp_path, experiment, accumulation):
    """A run stopped in the middle of its second epoch, resumed from its last checkpoint."""
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": accumulation}
    whole = train(assets, tmp_path / "whole", experiment, **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "cut" / "checkpoint-4")
    resumed = train(assets, tmp_path / "cut", experiment, resume_from_checkpoint=True, **options)
    assert resumed == whole
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_is_never_overwritten(assets, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3}
    train(assets, tmp_path / "run", 1, **options)
    with pytest.raises(FileExistsError, match="--resume_from_checkpoint True"):
        train(assets, tmp_path / "run", 1, **options)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train(assets, tmp_path / "new", 1, resume_from_checkpoint=True)
    with pytest.raises(FileNotFoundError, match="not a checkpoint folder"):
        train(assets, tmp_path / "new", 1, resume_from_checkpoint=tmp_path)
    assert len(train(assets, tmp_path / "auto", 1, resume_from_checkpoint="auto")) == 6


def test_a_finished_run_without_checkpoints_is_not_overwritten_either(assets, tmp_path):
    train(assets, tmp_path / "run", 1)
    for resume, more in ((None, {}), ("auto", {"max_steps": 8}), (True, {"max_steps": 8})):
        with pytest.raises(FileExistsError, match="finished run"):
            train(assets, tmp_path / "run", 1, resume_from_checkpoint=resume, **more)


def test_resuming_with_other_flags_is_refused(assets, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3}
    train(assets, tmp_path / "run", 1, **options)
    with pytest.raises(ValueError, match=r"--learning_rate: was 0.001, is 0.1"):
        train(assets, tmp_path / "run", 1, resume_from_checkpoint=True, learning_rate=0.1, **options)


def test_training_goes_on_from_a_llava_checkpoint(assets, tmp_path):
    first = train(assets, tmp_path / "first", max_steps=20, learning_rate=5e-3)
    second = train(assets, tmp_path / "second", model_name_or_path=tmp_path / "first")
    assert second[0] < 0.8 * first[0]
    with pytest.raises(ValueError, match=r"--mm_perceiver_latents 9 \(the model has 4\)"):
        train(assets, tmp_path / "third", model_name_or_path=tmp_path / "first", mm_perceiver_latents=9)
    fresh = train(assets, tmp_path / "fresh", model_name_or_path=tmp_path / "first", from_scratch=True)
    assert fresh[0] == pytest.approx(first[0], abs=0.2)


def test_from_scratch_draws_by_the_seed(assets, tmp_path):
    runs = [
        train(assets, tmp_path / f"{i}", 1, from_scratch=True, seed=seed, data_seed=0)
        for i, seed in enumerate([1, 1, 2])
    ]
    assert runs[0] == runs[1] != runs[2]


def test_evaluation_is_the_mean_over_tokens(assets, tmp_path):
    train(assets, tmp_path / "a", eval_data_path=assets.video_json, per_device_eval_batch_size=6)
    train(assets, tmp_path / "b", eval_data_path=assets.video_json, per_device_eval_batch_size=4)
    a, b = (json.loads((tmp_path / n / "eval_results.json").read_text()) for n in "ab")
    assert a["eval_loss"] == pytest.approx(b["eval_loss"], rel=1e-6)
    assert a["eval_samples"] == 6
    assert a["eval_loss"] * a["eval_tokens"] == pytest.approx(a["eval_nats_per_caption"] * 6)


def test_all_wrong_flags_are_reported_together(assets, tmp_path):
    with pytest.raises(ValueError) as error:
        main(
            flags(
                assets, tmp_path, video_folder="/nowhere", mm_tunable_parts="mm_tail", on_bad_sample="shrug",
                frames_upbound=1, logging_nan_inf_filter=True, vision_tower="./no/tower",
            )
        )  # fmt: skip
    for part in (
        "/nowhere",
        "no/tower: no such folder",
        "mm_tail",
        "shrug",
        "frames_upbound",
        "logging_nan_inf_filter",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("experiment", "overrides", "message"),
    [
        (2, {"vision_tower": None}, "6 records have a video or image, but there is no --vision_tower"),
        (2, {"model_max_length": 513}, "beyond the model's 512 positions"),
        (2, {"model_max_length": 11}, "no visual span may be cut"),
        (2, {"mm_vision_select_layer": 7}, "mm_vision_select_layer 7"),
        (2, {"mm_projector_type": "mlp"}, "unknown mm_projector_type"),
        (2, {"mm_tunable_parts": "mm_language_model", "mm_projector_lr": 1e-3}, "does not train"),
        (2, {"mm_tunable_parts": "mm_vision_tower"}, "--mm_vision_tower_storage checkpoint"),
        (1, {"mm_tunable_parts": "mm_mlp_adapter"}, "there is no --vision_tower"),
        (1, {"use_plain_lm": False}, "there is no chat mode"),
        (1, {"label_smoothing_factor": 1.1}, "label_smoothing_factor 1.1: a number from 0 to below 1"),
        (1, {"eval_strategy": "steps", "eval_steps": 2}, "needs --eval_data_path"),
    ],
)
def test_wrong_settings_stop_before_training(assets, tmp_path, experiment, overrides, message):
    with pytest.raises(ValueError, match=message):
        train(assets, tmp_path / "run", experiment, **overrides)
    assert not (tmp_path / "run" / "trainer_state.json").exists()


def test_a_flag_that_does_not_exist_is_an_error(assets, tmp_path):
    with pytest.raises(ValueError, match="--num_frame"):
        main([*flags(assets, tmp_path / "run"), "--num_frame", "3"])


def test_fewer_samples_than_a_batch_are_refused_before_the_first_step(assets, tmp_path):
    """They trained no step, and the run said that it was done."""
    options = {"per_device_train_batch_size": 8, "dataloader_drop_last": True, "max_steps": 4}
    words = r"6 samples are fewer than one global batch of 8 \(8 a device x 1 accumulated x 1 processes\)"
    with pytest.raises(ValueError, match=words):
        train(assets, tmp_path / "run", 1, **options)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert len(train(assets, tmp_path / "fits", 1, **options | {"per_device_train_batch_size": 4})) == 4


def test_a_run_of_fewer_steps_than_planned_is_never_done(assets, tmp_path, monkeypatch, caplog):
    step = LlavaTrainer.training_step

    def stop_early(trainer, *args, **kwargs):
        trainer.control.should_training_stop = True
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(LlavaTrainer, "training_step", stop_early)
    with pytest.raises(ValueError, match="training ended after 1 of 6 steps, and the model was not saved"):
        train(assets, tmp_path / "run", 1, preflight="off")
    assert "done: " not in caplog.text and not (tmp_path / "run" / "model.safetensors").exists()


def test_several_gpus_in_one_process_are_refused(assets, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 2))
    with pytest.raises(ValueError, match=r"one process sees 2 GPUs .*torchrun --nproc_per_node 2"):
        train(assets, tmp_path / "run", 1)


def test_names_that_lead_nowhere_say_what_to_do(assets, tmp_path):
    with pytest.raises(FileNotFoundError, match="llava-make-model makes a fresh one"):
        train(assets, tmp_path / "run", model_name_or_path="gpt2-of-nobody")
    with pytest.raises(FileNotFoundError, match="hf download facebook/dinov2-none"):
        train(assets, tmp_path / "run", vision_tower="facebook/dinov2-none")


def test_a_tower_for_text_alone_is_refused(assets, tmp_path):
    with pytest.raises(ValueError, match="would never learn"):
        train(assets, tmp_path / "run", data_path=assets.text_json)


@pytest.fixture
def with_bad_clips(assets, tmp_path):
    """Six good records, one missing clip, one that is no video, one empty caption, one that does not fit."""
    clips = tmp_path / "clips"
    shutil.copytree(assets.clips, clips)
    (clips / "text.mp4").write_text("this is not a video")
    records = json.loads(assets.video_json.read_text())
    records += [
        record("missing", "Un gatto.", "missing.mp4"),
        record("garbage", "Un gatto.", "text.mp4"),
        record("empty", "", "clip0.mp4"),
        record("long", "Un gatto.", "clip0.mp4", prompt="molto " * 80 + "<video>") | {"video": ["clip0.mp4"] * 2},
    ]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(records))
    return {"data_path": path, "video_folder": clips}


def test_bad_records_stop_training_all_at_once(assets, tmp_path, with_bad_clips):
    with pytest.raises(DatasetError) as error:
        train(assets, tmp_path / "run", **with_bad_clips)
    for name in ("missing", "empty"):  # What needs no file to be opened is said before hours of reading clips.
        assert name in str(error.value)


def test_bad_records_are_left_out_and_never_substituted(assets, tmp_path, with_bad_clips):
    skipped = train(assets, tmp_path / "run", on_bad_sample="skip", **with_bad_clips)
    assert skipped == train(assets, tmp_path / "good")
    lines = (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["record_id"] for line in lines} == {"missing", "garbage", "empty", "long"}


def test_bad_records_are_left_out_without_a_cache_too(assets, tmp_path, with_bad_clips):
    skipped = train(assets, tmp_path / "run", on_bad_sample="skip", feature_cache="off", **with_bad_clips)
    assert skipped == train(assets, tmp_path / "good", feature_cache="off")


def test_without_a_cache_a_bad_video_stops_training(assets, tmp_path, with_bad_clips):
    records = json.loads(with_bad_clips["data_path"].read_text())
    kept = [r for r in records if r["id"] not in ("missing", "empty", "long")]
    with_bad_clips["data_path"].write_text(json.dumps(kept))
    with pytest.raises(VideoError, match=r"text\.mp4"):
        train(assets, tmp_path / "run", feature_cache="off", **with_bad_clips)


def test_a_gradient_that_is_not_finite_ends_the_run_with_the_weights_from_before_it(assets, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(FloatingPointError, match=r"gradient of step 2 is not finite \(samples t.*checkpoint-1"):
        train(assets, folder, 1, learning_rate=1e30, max_grad_norm=0.0, max_steps=20)
    weights = load_file(folder / "checkpoint-1" / "model.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())
    dump = json.loads((folder / "nonfinite_batch.json").read_text())
    assert dump["step"] == 2 and len(dump["sample_ids"]) == len(dump["input_ids"]) == 2
    alarm = json.loads((folder / "alarms.jsonl").read_text())
    assert alarm["kind"] == "not finite" and "--learning_rate" in alarm["remedy"]


def test_weights_that_are_not_finite_are_never_saved(assets, tmp_path):
    options = {"learning_rate": 1e39, "max_grad_norm": 0.0, "logging_steps": 100}
    with pytest.raises(FloatingPointError, match="not saved"):
        train(assets, tmp_path / "run", 1, **options)
    with pytest.raises(FloatingPointError, match="not saved"):
        train(assets, tmp_path / "steps", 1, save_strategy="steps", save_steps=1, **options)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_half_written_checkpoint_is_passed_over(assets, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    whole = train(assets, tmp_path / "run", 1, **options)
    (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").unlink()
    (tmp_path / "run" / "checkpoint-6" / "llava_run.json").unlink()
    assert train(assets, tmp_path / "run", 1, resume_from_checkpoint="auto", **options) == whole


def test_images_alone_freeze_the_fast_stream(build):
    model = build()
    image = Record("i", [], (), ("a.png",), None, {}, "data[0]")
    freeze_unused([image], model)
    assert not any(p.requires_grad for p in model.vision_resampler.fast.parameters())
    assert all(p.requires_grad for p in model.vision_resampler.slow.parameters())


def test_parts_have_their_own_learning_rates(assets, tmp_path):
    options = {"mm_projector_lr": 3e-3, "mm_vision_resampler_lr": 2e-3, "save_strategy": "steps", "save_steps": 6}
    train(assets, tmp_path / "run", lr_scheduler_type="constant", **options)
    groups = torch.load(tmp_path / "run" / "checkpoint-6" / "optimizer.pt", weights_only=True)["param_groups"]
    rates = {g["name"].split(",")[0]: g["lr"] for g in groups}
    assert rates == {"mm_language_model": 1e-3, "mm_mlp_adapter": 3e-3, "mm_vision_resampler": 2e-3}


def test_gradient_checkpointing_and_bf16_train(assets, tmp_path):
    plain = train(assets, tmp_path / "plain")
    assert train(assets, tmp_path / "gc", gradient_checkpointing=True) == pytest.approx(plain, abs=1e-5)
    assert train(assets, tmp_path / "bf16", bf16=True) == pytest.approx(plain, abs=0.05)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_trains_as_an_uncompiled_one(assets, tmp_path):
    curves = [train(assets, tmp_path / str(on), max_steps=8, torch_compile=on) for on in (False, True)]
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    plain, compiled = (load_file(tmp_path / str(on) / "model.safetensors") for on in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)


def test_a_trained_tower_is_saved_and_reloads(assets, tmp_path):
    train(assets, tmp_path / "run", mm_tunable_parts="mm_vision_tower,mm_language_model",
          mm_vision_tower_storage="checkpoint", mm_vision_tower_lr=1e-3)  # fmt: skip
    captioner = Captioner.from_pretrained(tmp_path / "run", device="cpu")
    original = train(assets, tmp_path / "frozen") and Captioner.from_pretrained(tmp_path / "frozen", device="cpu")
    caches = [open_cache(tmp_path / "cache", c.model) for c in (captioner, original)]
    assert caches[0].fingerprint != caches[1].fingerprint, "features of the trained tower are never those of the old"
    assert losses(tmp_path / "run")
