"""Every way in which the training is known to break, and that pre-flight names its cause before the first step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import nn

from llava.data import text_format
from llava.data.dataset import LazySupervisedDataset
from llava.data.packing import TrainingCollator
from llava.data.positions import supervised_positions
from llava.model import llava_arch
from llava.model.language_model.llava_gpt2 import LlavaGPT2ForCausalLM
from llava.model.multimodal_resampler.fast_slow import FastSlowResampler
from llava.model.splice import splice
from llava.train.preflight import model as preflight_model
from llava.train.preflight import run as preflight
from llava.train.preflight.run import PreflightError
from llava.train.preflight.run import main as preflight_main
from llava.train.preflight.training import check_trainable
from llava.train.train import main
from llava.train.trainer import LlavaTrainer
from tests.audit import code_faults as code
from tests.conftest import record
from tests.data.features.changed import change_features, serve_other_clips
from tests.train.runs import flags, losses, train

plain_preprocess = text_format.preprocess_plain_lm


def relabel(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable:
    """`preprocess_plain_lm` with other labels: `change(input_ids, labels)`, both (L,)."""

    def broken(*args, **kwargs):
        sample = plain_preprocess(*args, **kwargs)
        pairs = zip(sample["input_ids"], sample["labels"], strict=True)
        return {**sample, "labels": [change(ids.clone(), labels.clone()) for ids, labels in pairs]}

    return broken


def mask_eos(ids, labels):
    labels[-1] = -100
    return labels


def break_unmask(patch):
    patch.setattr(text_format, "preprocess_plain_lm", relabel(lambda ids, labels: ids))


def break_eos(patch):
    patch.setattr(text_format, "preprocess_plain_lm", relabel(mask_eos))


def break_shift(patch):
    patch.setattr(
        text_format,
        "preprocess_plain_lm",
        relabel(lambda ids, labels: torch.cat([labels[1:], labels[-1:]])),
    )


def break_optimiser_group(patch):
    """The projector is filed with the resampler."""
    create = LlavaTrainer.create_optimizer

    def misfiled(self, model=None):
        optimizer = create(self, model)
        groups = {g["name"]: g for g in optimizer.param_groups}
        moved = groups["mm_mlp_adapter"]["params"].pop()
        groups["mm_vision_resampler"]["params"].append(moved)
        return optimizer

    patch.setattr(LlavaTrainer, "create_optimizer", misfiled)


def break_optimiser_forgets(patch):
    create = LlavaTrainer.create_optimizer

    def forgetful(self, model=None):
        optimizer = create(self, model)
        next(g for g in optimizer.param_groups if g["name"] == "mm_mlp_adapter")["params"].pop()
        return optimizer

    patch.setattr(LlavaTrainer, "create_optimizer", forgetful)


def break_features_nan(patch):
    def broken(cache, path, features):
        if path.endswith("clip0.mp4"):
            features[0, 0, 0] = float("nan")
        return features

    change_features(patch, broken)


def break_features_constant(patch):
    change_features(patch, lambda cache, path, features: torch.ones_like(features))


def break_pairing(patch):
    """Every clip gets another clip's features."""
    serve_other_clips(patch, lambda path: path.replace("clip0", "clip1"))


def break_words(patch):
    """A word is lost before the labels are made, so that ids and labels agree."""

    def shorter(*args, **kwargs):
        sample = plain_preprocess(*args, **kwargs)
        return {key: [torch.cat([row[:-4], row[-3:]]) for row in rows] for key, rows in sample.items()}

    patch.setattr(text_format, "preprocess_plain_lm", shorter)


def break_served_sample(patch):
    """The dataset unmasks what the record's tokens mask."""
    get = LazySupervisedDataset.__getitem__
    patch.setattr(
        LazySupervisedDataset, "__getitem__", lambda self, i: (s := get(self, i)) | {"labels": s["input_ids"].clone()}
    )


def break_training_collator(patch):
    """Batches of training alone are shifted."""
    collate = TrainingCollator.__call__

    def shifted(self, samples):
        batch = collate(self, samples)
        batch["labels"] = batch["labels"].roll(1, 1)
        batch["labels"][:, 0] = -100
        return batch | {"supervised_positions": supervised_positions(batch["labels"])}

    patch.setattr(TrainingCollator, "__call__", shifted)


def break_one_video_for_all(patch):
    """Every item of a batch gets the rows of the first, when the batch trains."""

    def first(self, embeds, positions, rows, checked):
        each = len(rows) // max(int(positions.any(1).sum()), 1)
        return splice(embeds, positions, rows[:each].repeat(len(rows) // each, 1), checked)

    prepare = LlavaGPT2ForCausalLM.prepare_inputs_labels_for_multimodal_video

    def shared(self, *args, **kwargs):
        with pytest.MonkeyPatch.context() as inner:
            if self.training:
                inner.setattr(llava_arch, "splice", lambda *a: first(self, *a))
            return prepare(self, *args, **kwargs)

    patch.setattr(LlavaGPT2ForCausalLM, "prepare_inputs_labels_for_multimodal_video", shared)


def break_neighbour_in_training(patch):
    """In training mode each sample also hears its neighbour."""
    prepare = LlavaGPT2ForCausalLM.prepare_inputs_labels_for_multimodal_video

    def mixed(self, *args, **kwargs):
        embeds, labels = prepare(self, *args, **kwargs)
        return (embeds + 0.1 * embeds.roll(1, 0) if self.training else embeds), labels

    patch.setattr(LlavaGPT2ForCausalLM, "prepare_inputs_labels_for_multimodal_video", mixed)


def break_causality_in_training(patch):
    """In training mode a position sees the one after it."""
    prepare = LlavaGPT2ForCausalLM.prepare_inputs_labels_for_multimodal_video

    def ahead(self, *args, **kwargs):
        embeds, labels = prepare(self, *args, **kwargs)
        return (embeds + 0.1 * embeds.roll(-1, 1) if self.training else embeds), labels

    patch.setattr(LlavaGPT2ForCausalLM, "prepare_inputs_labels_for_multimodal_video", ahead)


def break_second_frame(patch):
    """The resampler looks at the first frame alone."""
    forward = FastSlowResampler.forward
    patch.setattr(FastSlowResampler, "forward", lambda self, f: forward(self, f[:, :1].expand(-1, f.shape[1], -1, -1)))


def break_last_row(patch):
    """The last latent of a video is never written."""

    def short(embeds, positions, rows, checked):
        spliced = splice(embeds, positions, rows, checked)
        last = positions & ~torch.nn.functional.pad(positions, (0, 1))[:, 1:]
        return torch.where(last.unsqueeze(-1), embeds, spliced)

    patch.setattr(llava_arch, "splice", short)


def break_rows_of_the_cache(patch):
    """Rows are off by one, but for the first."""

    def shifted(path):
        number = int(path[-5])
        return path.replace(f"clip{number}", f"clip{min(number + 1, 5)}") if number else path

    serve_other_clips(patch, shifted)


def break_last_block(model):
    """A quick pre-flight compares in the first block alone."""
    with torch.no_grad():
        model.transformer.h[-1].mlp.c_fc.weight[0, 0] = float("inf")


def detach_last_block(model):
    """Blocks before it learn nothing, though embeddings still do as the head."""
    model.transformer.h[-1].register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(), *inputs[1:]))


def see_ahead_in_last_block(model):
    model.transformer.h[-1].register_forward_hook(lambda _, __, states: states + 0.1 * states.roll(-1, 1))


FROZEN_MODEL = {"mm_tunable_parts": "mm_mlp_adapter"}


def on_purpose(faults):
    return {"experiment_faults": faults, "experiment_faults_confirmed": True}


@pytest.mark.parametrize(
    ("fault", "overrides", "message"),
    [
        (break_unmask, {}, r"labels, video: visual tokens are targets: the mask of the labels is missing \(6 of 6"),
        (break_eos, {}, r"labels, video: EOS is not supervised exactly once"),
        (break_shift, {}, r"labels are shifted by one"),
        (code.unshifted_loss, {}, r"the model's loss is .* the cross-entropy of its logits"),
        (code.frozen_head, {}, r"transformer\.wte\.weight is frozen.*the vocabulary cannot learn"),
        (code.fast_stream_overwritten, {}, r"fast stream: the fast stream is never computed"),
        (code.fast_stream_overwritten, {}, r"no gradient reaches none of it|gradients, resampler fast"),
        (code.slow_stream_overwritten, {}, r"slow stream: the slow stream is never computed"),
        (code.vision_detached, {}, r"gradients, projector: no gradient reaches"),
        (code.token_not_registered, {}, r"<slow_vid_end> becomes \[\d+\] where the model expects \[0\]"),
        (break_optimiser_group, {"mm_projector_lr": 3e-3}, r"mm_mlp_adapter\) has learning rate 0\.001 instead of"),
        (break_optimiser_forgets, {}, r"optimiser: mm_projector\S+ is in 0 groups"),
        (None, {"learning_rate": 0.0}, r"has learning rate 0"),
        (None, {"mm_projector_lr": 0.0}, r"\(mm_mlp_adapter\) has learning rate 0"),
        (break_features_nan, {}, r"numerics, video: video_features of v0 are not finite"),
        (break_features_constant, {}, r"different clips have the same features"),
        (break_pairing, {}, r"feature cache: the cached features of record 'v0' are not those of .*clip0\.mp4"),
        (break_words, {}, r"words, video: 6 of 6 samples supervise other words than their record has \(record 'v0'"),
        (break_served_sample, {}, r"training batch, video: record 'v\d' is served with other ids or labels"),
        (break_training_collator, {}, r"training batch, video: labels of a sample change in the training batch"),
        (break_one_video_for_all, {}, r"samples apart, video: changing the video of 'v\d' moves"),
        (break_neighbour_in_training, {}, r"samples apart, video: changing the video of 'v\d' moves"),
        (break_causality_in_training, {}, r"samples apart, video: a loss of sample 'v\d' moves with a word that comes"),
        (break_second_frame, {}, r"rows that reach the words, video: 4 of 8 frames have no influence"),
        (break_last_row, {}, r"rows that reach the words, video: 4 of 40 latent rows have no influence"),
        (break_rows_of_the_cache, {}, r"feature cache: the cached features of record 'v[1-4]' are not those of"),
        (code.rows_not_written, {}, r"other features in the fast stream leave the caption's logits as they are"),
        (code.vision_masked, {}, r"other features in the fast stream leave the caption's logits as they are"),
        (code.made_model(code.infinite_weight), {}, r"numerics, video: the output of mm_projector\.0 is not finite"),
        (code.made_model(break_last_block), {}, r"numerics, video: the output of transformer\.h\.1\.mlp\S* is"),
        (code.made_model(detach_last_block), {}, r"language model blocks: no gradient reaches transformer\.h\.0"),
        (code.made_model(detach_last_block), FROZEN_MODEL, r"targets, video: the loss of a word does not depend on"),
        (code.made_model(see_ahead_in_last_block), {}, r"targets, video: the model sees the token"),
        (None, FROZEN_MODEL, r"the language model guesses and is frozen"),
        (None, on_purpose("unmasked_labels"), r"visual tokens are targets"),
        (None, on_purpose("frozen_vocabulary"), r"vocabulary cannot learn"),
        (
            None,
            on_purpose("unmasked_labels,frozen_vocabulary"),
            r"(?s)visual tokens are targets.*vocabulary cannot learn",
        ),
    ],
)  # fmt: skip
def test_every_fault_is_named_before_the_first_step(assets, tmp_path, monkeypatch, fault, overrides, message):
    if fault is not None:
        fault(monkeypatch)
    with pytest.raises(PreflightError, match=message):
        train(assets, tmp_path / "run", **overrides)
    result = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert not result["passed"]
    assert not (tmp_path / "run" / "trainer_state.json").exists()


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
    assert {f"labels, {kind}", f"over-fit, {kind}", "optimiser", "gradients, embeddings"} <= checks


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
