"""Faults that come after pre-flight, planted one by one: each ends the run or sounds its alarm within 20 steps."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llava.data.hashes import hash64
from llava.data.sampler import ModalityLengthSampler
from llava.errors import message_of
from llava.model.language_model.llava_gpt2 import LlavaGPT2ForCausalLM
from llava.model.multimodal_resampler.fast_slow import StreamResampler
from llava.train import train as training
from llava.train.checkpoint.reload import ReloadError
from llava.train.monitor.invariants import (
    InvariantError,
    Invariants,
    has_moved,
    rate_problems,
    schedule_factor,
    still_remedy,
)
from llava.train.trainer import LlavaTrainer
from tests.train.runs import train

create = LlavaTrainer.create_optimizer


def alarms(folder):
    path = folder / "alarms.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def after_the_optimiser(monkeypatch, change):
    """`change(model)` once the optimiser is there."""

    def created(self, model=None):
        optimizer = create(self, model)
        change(self.model)
        return optimizer

    monkeypatch.setattr(LlavaTrainer, "create_optimizer", created)


def test_weight_decay_alone_is_no_movement():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(1000, generator=generator)
    decayed = before.clone()
    for _ in range(20):
        decayed *= 1 - 1e-3 * 0.1
    assert not has_moved(before, decayed, decayed=True) and has_moved(before, decayed, decayed=False)
    assert has_moved(before, decayed + 1e-5 * torch.randn(1000, generator=generator), decayed=True)
    assert not has_moved(before, before.clone(), decayed=False)
    assert has_moved(torch.zeros(3), torch.full((3,), 1e-6), decayed=True)


def test_the_rate_of_every_group_is_compared():
    groups = [{"name": "mm_language_model", "lr": 5e-4}, {"name": "mm_mlp_adapter, no decay", "lr": 1e-3}]
    rates = {"mm_language_model": 1e-3, "mm_mlp_adapter": 2e-3}
    assert rate_problems(groups, rates, 0.5) == []
    groups[1]["lr"] = 2e-3
    assert rate_problems(groups, rates, 0.5) == ["mm_mlp_adapter has learning rate 0.002, the schedule gives 0.001"]


def test_a_schedule_that_follows_measurements_is_not_known():
    def args(name, **options):
        return SimpleNamespace(
            lr_scheduler_type=name, get_warmup_steps=lambda s: 2, lr_scheduler_kwargs=options, learning_rate=1e-3
        )

    assert [schedule_factor(args("linear"), 4)(step) for step in range(4)] == [0, 0.5, 1, 0.5]
    assert schedule_factor(args("reduce_lr_on_plateau"), 4) is None
    # These end at a rate that is given as such.
    for ends in (args("cosine_with_min_lr", min_lr=1e-4), args("polynomial", lr_end=1e-4)):
        assert schedule_factor(ends, 4)(4) == pytest.approx(0.1)


def test_embeddings_replaced_after_the_optimiser_was_made(assets, tmp_path, monkeypatch):
    def replace(model):
        old = model.get_input_embeddings().weight
        model.set_input_embeddings(nn.Embedding.from_pretrained(old.detach().clone(), freeze=False))
        model.tie_weights()

    after_the_optimiser(monkeypatch, replace)
    with pytest.raises(InvariantError, match=r"step 1: transformer\.wte\.weight trains, but the optimiser does not"):
        train(assets, tmp_path / "run", preflight="off")


def test_a_head_that_is_untied_after_pre_flight(assets, tmp_path, monkeypatch):
    check = training.run_preflight

    def then_untie(trainer, *args):
        found = check(trainer, *args)
        trainer.model.lm_head.weight = nn.Parameter(trainer.model.lm_head.weight.detach().clone())
        return found

    monkeypatch.setattr(training, "run_preflight", then_untie)
    with pytest.raises(InvariantError, match="step 1: the head is no longer tied") as raised:
        train(assets, tmp_path / "run")
    assert "tied" in message_of(raised.value)  # No traceback for the user.


def test_gradients_that_are_not_zeroed(assets, tmp_path, monkeypatch):
    monkeypatch.setattr(LlavaGPT2ForCausalLM, "zero_grad", lambda self, set_to_none=True: None)
    with pytest.raises(InvariantError, match="step 2: .* still has the gradient of the step before"):
        train(assets, tmp_path / "run", preflight="off")


def test_queries_that_have_one_patch_each_are_told_apart_from_a_fault():
    streams = nn.ModuleDict({"slow": StreamResampler(8, 1, 9, (3, 3), 1), "fast": StreamResampler(8, 1, 1, (3, 3), 1)})
    query = "blocks.0.latent_norm.weight"
    assert "lower --mm_perceiver_latents" in still_remedy(streams, [f"slow.{query}"])
    for still in ([f"fast.{query}"], ["slow.blocks.0.mlp_in.weight"], [f"slow.{query}", "slow.norm.weight"]):
        assert "python -m llava.train.preflight" in still_remedy(streams, still)


def test_a_dead_vocabulary_beside_moving_positions(assets, tmp_path, monkeypatch):
    after_the_optimiser(monkeypatch, lambda model: model.transformer.wte.weight.register_hook(lambda g: g * 0))
    train(assets, tmp_path / "run", preflight="off", weight_decay=0.1)
    (alarm,) = alarms(tmp_path / "run")
    assert (alarm["step"], alarm["kind"]) == (6, "tensor without update")
    assert "1 of" in alarm["message"] and "transformer.wte.weight" in alarm["message"]


def test_rows_of_words_that_never_move(assets, tmp_path, monkeypatch):
    def mask(model):
        keep = torch.arange(model.config.vocab_size)[:, None] % 2 == 0
        model.transformer.wte.weight.register_hook(lambda g: g * keep)

    after_the_optimiser(monkeypatch, mask)
    train(assets, tmp_path / "run", preflight="off", weight_decay=0.1)
    assert [(a["step"], a["kind"]) for a in alarms(tmp_path / "run")] == [(6, "word without update")]


def test_a_schedule_that_is_not_the_one_of_the_flags(assets, tmp_path, monkeypatch):
    make = LlavaTrainer.create_scheduler

    def constant(self, *args, **kwargs):
        scheduler = make(self, *args, **kwargs)
        scheduler.lr_lambdas = [lambda step: 1.0 for _ in scheduler.lr_lambdas]
        return scheduler

    monkeypatch.setattr(LlavaTrainer, "create_scheduler", constant)
    train(assets, tmp_path / "run", preflight="off")
    (alarm,) = alarms(tmp_path / "run")
    assert (alarm["step"], alarm["kind"]) == (2, "learning rate")


def test_accumulation_that_is_not_normalised(assets, tmp_path, monkeypatch):
    compute = LlavaTrainer.compute_loss
    monkeypatch.setattr(LlavaTrainer, "compute_loss", lambda self, model, inputs, *a, **k: compute(self, model, inputs))
    train(assets, tmp_path / "run", preflight="off", gradient_accumulation_steps=3)
    (alarm,) = alarms(tmp_path / "run")
    assert (alarm["step"], alarm["kind"]) == (1, "loss")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda order: [*order[:-1], order[0]], r"1 left out \('v\d'\); 1 served more than once \('v\d'\)"),
        (lambda order: order[:-1], r"served 5 samples where there are 6 records: 1 left out \('v\d'\)"),
    ],
)
def test_a_sampler_that_repeats_or_drops(assets, tmp_path, monkeypatch, change, words):
    order = ModalityLengthSampler.__iter__
    monkeypatch.setattr(ModalityLengthSampler, "__iter__", lambda self: iter(change(list(order(self)))))
    train(assets, tmp_path / "run", preflight="off")
    (alarm,) = alarms(tmp_path / "run")
    assert (alarm["step"], alarm["kind"]) == (3, "records served")
    assert re.search(words, alarm["message"])


def test_a_run_resumed_in_an_epoch_counts_on(assets, tmp_path, monkeypatch):
    """Stopped after a step of the first epoch; what the rest serves completes it."""
    options = {"save_strategy": "steps", "save_steps": 1}
    train(assets, tmp_path / "run", **options)
    for step in range(2, 7):
        (tmp_path / "run" / f"checkpoint-{step}").rename(tmp_path / f"gone-{step}")
    (tmp_path / "run" / "llava_run.json").unlink(missing_ok=True)
    train(assets, tmp_path / "run", resume_from_checkpoint=True, **options)
    progress = json.loads((tmp_path / "run" / "checkpoint-2" / "progress.json").read_text())
    assert progress["ranks"][0]["served"][0] == 4 and alarms(tmp_path / "run") == []


def test_what_a_resumed_epoch_served_before_is_not_called_left_out():
    found = []
    args = SimpleNamespace(dataloader_drop_last=False, device="cpu")
    watch = Invariants(
        nn.Linear(1, 1), args, {}, ["a", "b", "c"], sound=found.append, reduce=lambda values: values,
        gather=lambda lists: lists, step_losses=lambda: (0, 0), told=set,
    )  # fmt: skip
    watch.served.restore([2, sum(map(hash64, "ab"))])
    watch.served.add(["a"])
    watch.on_epoch_end(args, SimpleNamespace(epoch=1.0, global_step=3), None)
    assert "3 samples where there are 3 records: which is not known" in found[0].message
    assert "left out" not in found[0].message


def test_a_checkpoint_that_is_another_model(assets, tmp_path, monkeypatch):
    save = LlavaGPT2ForCausalLM.save_pretrained

    def forget(self, folder, state_dict=None, **kwargs):
        state = {k: torch.zeros_like(v) if k == "transformer.ln_f.weight" else v for k, v in self.state_dict().items()}
        return save(self, folder, state_dict=state, **kwargs)

    monkeypatch.setattr(LlavaGPT2ForCausalLM, "save_pretrained", forget)
    with pytest.raises(ReloadError, match=r"checkpoint-3: gives a loss of .* where the model") as raised:
        train(assets, tmp_path / "run", preflight="off", save_strategy="steps", save_steps=3)
    assert "checkpoint-3" in message_of(raised.value)
    assert not (tmp_path / "run" / "checkpoint-3").exists(), "auto would go on from it"
    assert (tmp_path / "run" / "wrong-checkpoint-3").is_dir()


def test_another_weight_decay_than_that_of_the_flags(assets, tmp_path, monkeypatch):
    create = LlavaTrainer.create_optimizer

    def heavy(self, model=None):
        optimizer = create(self, model)
        for group in optimizer.param_groups:
            group["weight_decay"] = 10.0
        return optimizer

    monkeypatch.setattr(LlavaTrainer, "create_optimizer", heavy)
    train(assets, tmp_path / "run", preflight="off", weight_decay=0.1)
    assert any("has weight decay 10, the flags 0.1" in a["message"] for a in alarms(tmp_path / "run"))


def test_sgd_moves_what_has_a_gradient(assets, tmp_path):
    train(assets, tmp_path / "run", preflight="off", optim="sgd", learning_rate=0.05, max_steps=25)
    assert alarms(tmp_path / "run") == []


def test_a_sound_run_with_everything_is_silent(assets, tmp_path):
    train(assets, tmp_path / "run", gradient_accumulation_steps=2, max_steps=24, warmup_steps=4, logging_steps=5,
          save_strategy="steps", save_steps=8, weight_decay=0.1)  # fmt: skip
    assert alarms(tmp_path / "run") == []
