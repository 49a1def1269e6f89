"""Every way in which the training is known to break, and that pre-flight names its cause before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from llava.data import text_format
from llava.data.dataset import LazySupervisedDataset
from llava.data.packing import TrainingCollator
from llava.data.positions import supervised_positions
from llava.model import llava_arch
from llava.model.language_model.llava_gpt2 import LlavaGPT2ForCausalLM
from llava.model.multimodal_resampler.fast_slow import FastSlowResampler
from llava.model.splice import splice
from llava.train.preflight.run import PreflightError
from llava.train.trainer import LlavaTrainer
from tests.audit import code_faults as code
from tests.data.features.changed import change_features, serve_other_clips
from tests.train.runs import train

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
