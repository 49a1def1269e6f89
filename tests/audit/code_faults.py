"""Faults planted into code: each takes a monkeypatch and breaks one imported object."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from llava.data import packing, text_format
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.features.extract import FeatureCache
from llava.data.sampler import ModalityLengthSampler
from llava.model import llava_arch
from llava.model.language_model import llava_gpt2
from llava.model.language_model.llava_gpt2 import LlavaGPT2ForCausalLM
from llava.model.multimodal_resampler.fast_slow import FastSlowResampler
from llava.train import run_model, setup
from llava.train import train as training
from llava.train.trainer import LlavaTrainer
from tests.data.features.changed import change_features, serve_other_clips
from tests.train.forked import flipped

Patch = pytest.MonkeyPatch
plain_preprocess = text_format.preprocess_plain_lm


def relabel(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[Patch], None]:
    """`preprocess_plain_lm` with other labels: `change(input_ids, labels)`, both (L,)."""

    def broken(*args, **kwargs):
        sample = plain_preprocess(*args, **kwargs)
        pairs = zip(sample["input_ids"], sample["labels"], strict=True)
        return {**sample, "labels": [change(ids.clone(), labels.clone()) for ids, labels in pairs]}

    return lambda patch: patch.setattr(text_format, "preprocess_plain_lm", broken)


def mask(*places: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def change(ids, labels):
        labels[list(places)] = -100
        return labels

    return change


def unshifted_loss(patch: Patch) -> None:
    """The loss compares a state with the token it was made from: nothing is predicted."""
    forward = LlavaGPT2ForCausalLM.forward

    def unshifted(self, *args, labels=None, **kwargs):
        if labels is not None:
            labels = torch.cat([labels[:, :1], labels[:, :-1]], dim=1)
        return forward(self, *args, labels=labels, **kwargs)

    patch.setattr(LlavaGPT2ForCausalLM, "forward", unshifted)


def frozen_head(patch: Patch) -> None:
    set_trainable = run_model.set_trainable

    def frozen(model, parts):
        set_trainable(model, parts)
        model.get_output_embeddings().weight.requires_grad_(False)

    patch.setattr(run_model, "set_trainable", frozen)


def fast_stream_overwritten(patch: Patch) -> None:
    def forward(self, features):
        slow = self.slow(features)
        return torch.cat([slow[:, : self.fast.frame.shape[0]], slow], dim=1)

    patch.setattr(FastSlowResampler, "forward", forward)


def slow_stream_overwritten(patch: Patch) -> None:
    def forward(self, features):
        fast = self.fast(features)
        return torch.cat([fast, fast.repeat(1, 4, 1)], dim=1)

    patch.setattr(FastSlowResampler, "forward", forward)


def streams_swapped(patch: Patch) -> None:
    """The rows of the fast stream stand where the slow ones belong."""
    forward = FastSlowResampler.forward

    def swapped(self, features):
        rows = forward(self, features)
        fast = self.fast.frame.shape[0]
        return torch.cat([rows[:, fast:], rows[:, :fast]], dim=1)

    patch.setattr(FastSlowResampler, "forward", swapped)


def first_frame_alone(patch: Patch) -> None:
    """Every frame shows the first."""
    forward = FastSlowResampler.forward

    def still(self, features):
        return forward(self, features[:, :1].expand_as(features))

    patch.setattr(FastSlowResampler, "forward", still)


def one_latent_dead(patch: Patch) -> None:
    forward = FastSlowResampler.forward

    def dead(self, features):
        rows = forward(self, features).clone()
        rows[:, -1] = 0.0
        return rows

    patch.setattr(FastSlowResampler, "forward", dead)


def vision_detached(patch: Patch) -> None:
    encode = LlavaGPT2ForCausalLM.encode_videos
    patch.setattr(LlavaGPT2ForCausalLM, "encode_videos", lambda self, *a, **k: encode(self, *a, **k).detach())


def first_video_for_all(patch: Patch) -> None:
    """Every sample of a batch sees the batch's first video."""
    encode = LlavaGPT2ForCausalLM.encode_videos

    def shared(self, *args, **kwargs):
        rows = encode(self, *args, **kwargs)
        return rows[:1].expand_as(rows).contiguous()

    patch.setattr(LlavaGPT2ForCausalLM, "encode_videos", shared)


def same_rows_for_all(patch: Patch) -> None:
    """Whatever the clip, the language model is given the same rows."""
    encode = LlavaGPT2ForCausalLM.encode_videos

    def same(self, *args, **kwargs):
        rows = encode(self, *args, **kwargs)
        return torch.ones_like(rows) + 0 * rows

    patch.setattr(LlavaGPT2ForCausalLM, "encode_videos", same)


def videos_rolled_in_training(patch: Patch) -> None:
    """In training alone, every sample sees the video of the next one."""
    encode = LlavaGPT2ForCausalLM.encode_videos

    def rolled(self, *args, **kwargs):
        rows = encode(self, *args, **kwargs)
        return rows.roll(1, 0) if self.training else rows

    patch.setattr(LlavaGPT2ForCausalLM, "encode_videos", rolled)


def blind_in_training(patch: Patch) -> None:
    encode = LlavaGPT2ForCausalLM.encode_videos

    def blind(self, *args, **kwargs):
        rows = encode(self, *args, **kwargs)
        return rows.mean(dim=0, keepdim=True).expand_as(rows) + 0 * rows if self.training else rows

    patch.setattr(LlavaGPT2ForCausalLM, "encode_videos", blind)


def token_not_registered(patch: Patch) -> None:
    register = run_model.add_visual_tokens

    def without_one(tokenizer, model):
        ids = register(tokenizer, model)
        ids["<slow_vid_end>"] = tokenizer.eos_token_id
        return ids

    patch.setattr(run_model, "add_visual_tokens", without_one)


def after_optimizer(change: Callable[[LlavaTrainer, torch.optim.Optimizer], None], real: bool = False):
    """`change(trainer, optimiser)` after the optimiser was made; `real`: not on those that pre-flight makes."""

    def plant(patch: Patch) -> None:
        create = LlavaTrainer.create_optimizer

        def changed(self, model=None):
            optimizer = create(self, model)
            if not real or self.is_in_train:
                change(self, optimizer)
            return optimizer

        patch.setattr(LlavaTrainer, "create_optimizer", changed)

    return plant


def misfile(trainer, optimizer) -> None:
    groups = {g["name"]: g for g in optimizer.param_groups}
    groups["mm_vision_resampler"]["params"].append(groups["mm_mlp_adapter"]["params"].pop())


def forget(trainer, optimizer) -> None:
    next(g for g in optimizer.param_groups if g["name"] == "mm_mlp_adapter")["params"].pop()


def copies_of_the_projector(trainer, optimizer) -> None:
    for group in optimizer.param_groups:
        if group["name"].startswith("mm_mlp_adapter"):
            group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]


def replace_embeddings(trainer, optimizer) -> None:
    """As `resize_token_embeddings` after the optimiser was made: the new table is in no group."""
    model = trainer.model
    fresh = nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach().clone(), freeze=False)
    model.set_input_embeddings(fresh)
    model.get_output_embeddings().weight = fresh.weight


def untie_head(trainer, optimizer) -> None:
    head = trainer.model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())


def dead_embeddings(trainer, optimizer) -> None:
    """The word embeddings get no update, while the position embeddings of their group do."""
    trainer.model.transformer.wte.weight.register_hook(torch.zeros_like)


def dead_layer_norm(trainer, optimizer) -> None:
    trainer.model.transformer.h[1].ln_1.weight.register_hook(torch.zeros_like)


def schedule_never_applied(patch: Patch) -> None:
    """The optimiser's learning rate is set back to a constant in every step."""
    step = LlavaTrainer.training_step

    def constant(self, *args, **kwargs):
        for group in self.optimizer.param_groups:
            group["lr"] = 10 * self.args.learning_rate
        return step(self, *args, **kwargs)

    patch.setattr(LlavaTrainer, "training_step", constant)


def gradients_never_zeroed(patch: Patch) -> None:
    patch.setattr(nn.Module, "zero_grad", lambda self, set_to_none=True: None)


def accumulation_not_normalised(patch: Patch) -> None:
    """The loss of each part of an accumulated batch is the mean over its own tokens."""
    compute = LlavaTrainer.compute_loss

    def alone(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return compute(self, model, inputs, return_outputs)

    patch.setattr(LlavaTrainer, "compute_loss", alone)


def sampler_order(change: Callable[[list[int]], list[int]]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        order = ModalityLengthSampler.__iter__
        patch.setattr(ModalityLengthSampler, "__iter__", lambda self: iter(change(list(order(self)))))

    return plant


def features(change: Callable[[FeatureCache, str, torch.Tensor], torch.Tensor]) -> Callable[[Patch], None]:
    """`change(cache, path, features)` instead of what the cache reads."""
    return lambda patch: change_features(patch, change)


def nan_in_clip0(cache, path, found):
    if path.endswith("clip0.mp4"):
        found = found.clone()
        found[0, 0, 0] = float("nan")
    return found


def swapped_clips(first: str, second: str) -> Callable[[Patch], None]:
    """One clip gets another's features."""
    return lambda patch: serve_other_clips(patch, lambda path: path.replace(first, second))


def rows_not_written(patch: Patch) -> None:
    """The rows are counted, checked, and then not written."""
    patch.setattr(llava_arch, "splice", lambda embeds, positions, rows, checked=False: embeds + 0 * rows.sum())


def vision_masked(patch: Patch) -> None:
    """Attention hides every visual position."""
    forward = LlavaGPT2ForCausalLM.forward

    def blind(self, input_ids=None, attention_mask=None, **kwargs):
        if input_ids is not None and attention_mask is not None:
            visual = torch.isin(input_ids, torch.tensor(list(self.config.visual_token_ids.values())))
            attention_mask = attention_mask.masked_fill(visual, 0)
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    patch.setattr(LlavaGPT2ForCausalLM, "forward", blind)


def made_model(change: Callable[[nn.Module], None]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        make = setup.make_model

        def changed(*args, **kwargs):
            made = make(*args, **kwargs)
            change(made.model)
            return made

        patch.setattr(setup, "make_model", changed)

    return plant


@torch.no_grad()
def infinite_weight(model: nn.Module) -> None:
    model.mm_projector[0].weight[0] = float("inf")


def heavy_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.95


def sees_the_future(patch: Patch) -> None:
    """Attention is not causal: each position sees the whole row."""
    forward = LlavaGPT2ForCausalLM.forward

    def bidirectional(self, *args, labels=None, inputs_embeds=None, **kwargs):
        def ahead(module, inputs, output):
            return output + output.roll(-1, 1)

        handle = self.transformer.wte.register_forward_hook(ahead)
        try:
            return forward(self, *args, labels=labels, inputs_embeds=inputs_embeds, **kwargs)
        finally:
            handle.remove()

    patch.setattr(LlavaGPT2ForCausalLM, "forward", bidirectional)


def samples_of_a_row_see_each_other(patch: Patch) -> None:
    call = packing.TrainingCollator.__call__

    def joined(self, samples):
        batch = call(self, samples)
        batch.pop("position_ids", None)
        return batch

    patch.setattr(packing.TrainingCollator, "__call__", joined)


def training_collator(change: Callable[[dict], dict]) -> Callable[[Patch], None]:
    """Another training batch than that of the plain collator."""

    def plant(patch: Patch) -> None:
        call = packing.TrainingCollator.__call__
        patch.setattr(packing.TrainingCollator, "__call__", lambda self, samples: change(call(self, samples)))

    return plant


def last_word_masked(batch: dict) -> dict:
    labels = batch["labels"].clone()
    for row in labels:
        row[(row != -100).nonzero()[-2:]] = -100
    return {**batch, "labels": labels, "supervised_positions": llava_gpt2_positions(labels)}


def llava_gpt2_positions(labels: torch.Tensor) -> torch.Tensor:
    return packing.supervised_positions(labels)


def videos_reversed(batch: dict) -> dict:
    return {**batch, "video_features": batch["video_features"].flip(0)}


def texts_of_the_neighbour(patch: Patch) -> None:
    tokens = LazySupervisedDataset.tokens
    patch.setattr(LazySupervisedDataset, "tokens", lambda self, i: tokens(self, (i + 1) % len(self.records)))


def words_exchanged(patch: Patch) -> None:
    """Supervised ids are not the record's words: every id is its neighbour in the vocabulary."""
    tokens = LazySupervisedDataset.tokens

    def exchanged(self, index):
        ids, labels = (t.clone() for t in tokens(self, index))
        words = (labels != -100) & (ids > 1) & (ids < 300)
        ids[words] -= 1
        labels[words] -= 1
        return ids, labels

    patch.setattr(LazySupervisedDataset, "tokens", exchanged)


def attention_mask_from_the_pad_id(patch: Patch) -> None:
    """Where `pad == eos`, real ends are hidden."""
    call = DataCollatorForSupervisedDataset.__call__

    def hidden(self, samples):
        batch = call(self, samples)
        return {**batch, "attention_mask": (batch["input_ids"] != self.pad_token_id).long()}

    patch.setattr(DataCollatorForSupervisedDataset, "__call__", hidden)


def projector_not_saved(patch: Patch) -> None:
    save = LlavaGPT2ForCausalLM.save_pretrained

    def without(self, folder, state_dict=None, **kwargs):
        state_dict = self.state_dict() if state_dict is None else state_dict
        fresh = {k: torch.randn_like(v) if k.startswith("mm_projector") else v for k, v in state_dict.items()}
        return save(self, folder, state_dict=fresh, **kwargs)

    patch.setattr(llava_gpt2.LlavaGPT2ForCausalLM, "save_pretrained", without)


def after_preflight(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """The fault begins once pre-flight has passed."""

    def planted(patch: Patch) -> None:
        check = training.run_preflight

        def then_plant(*args):
            found = check(*args)
            plant(patch)
            return found

        patch.setattr(training, "run_preflight", then_plant)

    return planted


def relabel_items(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[Patch], None]:
    """The dataset's samples with other labels: `change(input_ids, labels)`, both (L,)."""

    def plant(patch: Patch) -> None:
        tokens = LazySupervisedDataset.tokens

        def changed(self, index):
            ids, labels = (t.clone() for t in tokens(self, index))
            return ids, change(ids, labels)

        patch.setattr(LazySupervisedDataset, "tokens", changed)

    return plant


def features_of_the_neighbour(patch: Patch) -> None:
    """A sample keeps its words and comes with the next record's features."""
    get = LazySupervisedDataset.__getitem__

    def other(self, index):
        return {**get(self, index), "video_features": get(self, (index + 1) % len(self.records))["video_features"]}

    patch.setattr(LazySupervisedDataset, "__getitem__", other)


def skip_steps(trainer, optimizer) -> None:
    """Every second step of the optimiser does nothing."""
    step, count = optimizer.step, [0]

    def skipping(*args, **kwargs):
        count[0] += 1
        return step(*args, **kwargs) if count[0] % 2 else None

    optimizer.step = skipping


def flip_bits(trainer, optimizer) -> None:
    """In every third backward, a bit of a gradient of the projector turns."""
    passes = [0]

    def flip(gradient):
        passes[0] += 1
        return flipped(gradient) if passes[0] % 3 == 0 else None

    trainer.model.mm_projector[0].weight.register_hook(flip)


def maximise(trainer, optimizer) -> None:
    for group in optimizer.param_groups:
        group["maximize"] = True


def turn_gradients(trainer, optimizer) -> None:
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(torch.neg)
