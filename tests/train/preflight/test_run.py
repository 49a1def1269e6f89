"""Runs with pre-flight: sound ones pass and are not changed, and what it says of others."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

from llava.train.preflight import model as preflight_model
from llava.train.preflight import run as preflight
from llava.train.preflight.run import PreflightError
from llava.train.preflight.run import main as preflight_main
from llava.train.preflight.training import check_dropout, check_trainable, dropouts
from llava.train.train import main
from tests.conftest import record
from tests.train.runs import flags, losses, train


def test_the_experiments_flag_needs_its_confirmation_and_is_hidden(assets, tmp_path, capsys):
    with pytest.raises(ValueError, match="breaks the training on purpose"):
        train(assets, tmp_path / "run", experiment_faults="unmasked_labels")
    with pytest.raises(ValueError, match="unknown unmask"):
        train(assets, tmp_path / "run", experiment_faults="unmask", experiment_faults_confirmed=True)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "experiment_faults" not in capsys.readouterr().out


@pytest.mark.parametrize("experiment", [1, 2])
def test_a_sound_run_passes_and_is_not_changed(assets, tmp_path, experiment):
    checked = train(assets, tmp_path / "a", experiment, preflight="full", learning_rate=1e-2)
    assert checked == train(assets, tmp_path / "b", experiment, preflight="off", learning_rate=1e-2)
    assert json.loads((tmp_path / "b" / "preflight.json").read_text()) == {"mode": "off", "checks": []}
    result = json.loads((tmp_path / "a" / "preflight.json").read_text())
    assert result["passed"] and {c["status"] for c in result["checks"]} == {"ok"}
    checks = {c["check"] for c in result["checks"]}
    kind = "video" if experiment == 2 else "text"
    assert {f"labels, {kind}", f"over-fit, {kind}", "optimiser", "gradients, embeddings", "dropout"} <= checks


def test_mixed_modalities_are_each_checked(assets, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    records = json.loads(assets.video_json.read_text()) + json.loads(assets.text_json.read_text())
    still = record("i0", "Un quadrato rosso.")
    still["conversations"][0]["value"] = "<image>"
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps([*records, still | {"image": "a.png"}]))
    train(assets, tmp_path / "run", data_path=path, image_folder=tmp_path)
    checks = {c["check"]: c for c in json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]}
    assert {"labels, video", "labels, image", "labels, text", "use of the image"} <= set(checks)
    assert "numerics, text" in checks and "use of the video, fast stream" in checks


def test_full_says_when_a_batch_cannot_be_learned(assets, tmp_path):
    with pytest.raises(PreflightError, match=r"over-fit, video: loss \S+ → \S+ on one batch in 100 steps; all groups"):
        train(assets, tmp_path / "run", preflight="full", learning_rate=1e-6)


def test_a_cut_caption_is_counted(assets, tmp_path):
    train(assets, tmp_path / "run", model_max_length=24)
    checks = json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]
    length = next(c for c in checks if c["check"] == "length")
    assert length["status"] == "warning" and "of 6 samples are cut at 24 positions" in length["finding"]


def test_alone_it_takes_the_flags_of_training_and_trains_nothing(assets, tmp_path, capsys):
    argv = flags(assets, tmp_path / "run")
    assert preflight_main([*argv, "--show-samples", "2"]) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"preflight.json", "preflight_samples.html"}
    shown = capsys.readouterr().err
    assert "<vid_patch>×6" in shown and "video v0" in shown and "gradients, projector" in shown
    assert preflight_main([*argv, "--learning_rate", "0"]) == 1
    # A finished run can be checked again.
    train(assets, tmp_path / "run")
    assert preflight_main(argv) == 0


def test_the_samples_page_shows_what_is_predicted(assets, tmp_path):
    train(assets, tmp_path / "run")
    page = (tmp_path / "run" / "preflight_samples.html").read_text()
    assert "&lt;vid_patch&gt;" in page and "<script" not in page
    assert page.count("#008000") > 5, "predicted tokens are green"


def test_a_trainable_tower_lists_only_what_it_uses(assets, tmp_path):
    train(assets, tmp_path / "run", mm_tunable_parts="mm_vision_tower,mm_language_model",
          mm_vision_tower_storage="checkpoint")  # fmt: skip
    checks = json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]
    found = {c["check"]: c["finding"] for c in checks}
    assert "what follows the tower's selected layer (-2)" in found["what trains"]
    assert "gradients, tower" in found


def test_evaluation_clips_that_are_trained_on_are_counted(assets, tmp_path):
    records = json.loads(assets.video_json.read_text())
    path, some = tmp_path / "train.json", tmp_path / "some.json"
    path.write_text(json.dumps(records[:4]))
    some.write_text(json.dumps(records[3:]))
    for name, data in (("leak", path), ("clean", tmp_path / "clean.json")):
        data.write_text(json.dumps(records[:4] if name == "leak" else records[:3]))
        train(assets, tmp_path / name, data_path=data, eval_data_path=some)
        checks = json.loads((tmp_path / name / "preflight.json").read_text())["checks"]
        found = next(c for c in checks if c["check"] == "held-out clips")
        assert (found["status"], found["finding"][:6]) == (
            ("warning", "1 of 3") if name == "leak" else ("ok", "none o")
        )


def test_a_schedule_that_never_warms_up_is_a_warning(assets, tmp_path):
    train(assets, tmp_path / "run", warmup_steps=100)
    checks = json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]
    found = next(c for c in checks if c["check"] == "optimiser")
    assert found["status"] == "warning" and "only 5% of the learning rate" in found["finding"]


def test_a_schedule_that_is_over_too_soon_is_a_warning(assets, tmp_path):
    """Its peak is all of the learning rate, its area next to nothing."""
    train(assets, tmp_path / "run", lr_scheduler_type="polynomial", lr_scheduler_kwargs=json.dumps({"power": 20.0}))
    checks = json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]
    found = next(c for c in checks if c["check"] == "schedule")
    assert found["status"] == "warning" and "reaches 100% of the learning rate, and gives 17%" in found["finding"]


def test_a_part_with_a_thousandth_of_the_learning_rate_is_a_warning(assets, tmp_path):
    train(assets, tmp_path / "run", mm_projector_lr=1e-6)
    checks = json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]
    found = next(c for c in checks if c["check"] == "learning rates")
    assert found["status"] == "warning" and "mm_mlp_adapter (1e-06)" in found["finding"]


@pytest.mark.parametrize("options", [{}, {"packing": False, "per_device_train_batch_size": 6}])
def test_dropout_is_replayed(assets, tmp_path, options):
    """A model with dropout is as sound as one without."""
    folder = tmp_path / "gpt2"
    shutil.copytree(assets.gpt2, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}))
    train(assets, tmp_path / "run", model_name_or_path=folder, **options)
    result = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert {c["status"] for c in result["checks"]} == {"ok"}
    assert "samples apart, video" in {c["check"] for c in result["checks"]}


def test_a_quick_one_sends_vision_forward_and_words_back_through_the_whole_model(assets, tmp_path, monkeypatch):
    """Which positions the last block sees, and whether gradients come back from there."""
    passes = []
    run = preflight._check_model

    def watched(trainer, *args):
        last = trainer.model.transformer.h[-1]
        handle = last.register_forward_hook(
            lambda _, inputs, __: passes.append((inputs[0].shape, inputs[0].requires_grad))
        )
        try:
            return run(trainer, *args)
        finally:
            handle.remove()

    monkeypatch.setattr(preflight, "_check_model", watched)
    train(assets, tmp_path / "run")
    assert [back for _, back in passes] == [False, True]
    longest, words = (shape[1] for shape, _ in passes)
    assert words < longest
    passes.clear()
    train(assets, tmp_path / "full", preflight="full")
    assert len(passes) > 10 and (longest, True) in {(shape[1], back) for shape, back in passes}


def test_random_state_weights_and_gradients_stay(assets, tmp_path, monkeypatch):
    seen = []
    run = preflight._check_model

    def spy(trainer, *args):
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        state = torch.random.get_rng_state()
        with torch.random.fork_rng():
            findings = run(trainer, *args)
        seen.append(all(torch.equal(before[n], p) and p.grad is None for n, p in trainer.model.named_parameters()))
        assert torch.equal(state, torch.random.get_rng_state())
        assert trainer.optimizer is None and isinstance(trainer.model, nn.Module)
        return findings

    monkeypatch.setattr(preflight, "_check_model", spy)
    train(assets, tmp_path / "run", preflight="full", learning_rate=1e-2)
    assert seen == [True] and len(losses(tmp_path / "run")) == 6


def test_a_frozen_vocabulary_is_not_blamed_on_other_parts(build):
    model = build()
    model.transformer.wte.weight.requires_grad_(False)
    model.vision_resampler.slow.requires_grad_(False)
    parts = ["mm_language_model", "mm_mlp_adapter", "mm_vision_resampler"]
    found = {f.check: f for f in check_trainable(model, parts, {})}
    assert "vocabulary cannot learn" in found["what trains, embeddings"].finding
    assert "vocabulary" not in found["what trains, resampler slow"].finding
    assert "tied" not in found["what trains, resampler slow"].remedy


def test_dropout_of_more_than_half_is_named(build):
    model = build().train()
    assert check_dropout(model).status == "ok" and "transformer.h.0.attn.attn_dropout" in dropouts(model)
    for share, status in ((0.5, "ok"), (0.504, "warning"), (0.996, "warning"), (1.0, "FAIL")):
        model.transformer.h[0].mlp.dropout.p = share
        assert check_dropout(model).status == status and f"{100 * share:g}%" in check_dropout(model).finding
    found = check_dropout(model)
    assert found.finding.startswith("transformer.h.0.mlp.dropout drops 100%") and "--dropout" in found.remedy
    model.transformer.h[0].attn.attention_dropout = 0.7  # As Llama keeps it, and asks a function for it.
    assert dropouts(model)["transformer.h.0.attn.attention_dropout"] == 0.7
    model.transformer.h[0].attn.drop_prob = 1
    assert dropouts(model)["transformer.h.0.attn.drop_prob"] == 1.0
    del model.transformer.h[0].attn.drop_prob
    assert "and 1 more, each more than 50%" in check_dropout(model).finding
    assert dropouts(model.eval()) == {}, "nothing is dropped of a module that is not in training mode"


def test_one_clip_that_a_lone_record_names_twice_is_not_two_that_are_alike():
    features = torch.randn(1, 2, 16, 24).repeat(2, 1, 1, 1)
    batch = {"video_features": features, "num_videos": torch.tensor([2]), "num_images": torch.tensor([0])}
    assert preflight_model.check_vision_inputs(batch, "video", clips=1) == []
    assert [f.status for f in preflight_model.check_vision_inputs(batch, "video", clips=2)] == ["FAIL"]


def test_pre_flight_that_is_off_forgets_what_an_earlier_run_found(assets, tmp_path):
    path = tmp_path / "run" / "preflight.json"
    path.parent.mkdir()
    path.write_text('{"mode": "quick", "passed": true, "checks": []}')
    train(assets, tmp_path / "run", 1, preflight="off", max_steps=1)
    assert json.loads(path.read_text()) == {"mode": "off", "checks": []}
