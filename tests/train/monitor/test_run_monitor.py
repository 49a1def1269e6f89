"""What the monitor measures, against plain computations, and that a sound run has no alarm."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llava.model.multimodal_resampler.fast_slow import FastSlowResampler
from llava.train.monitor.finite_guard import FiniteGuard
from llava.train.monitor.run_monitor import RunMonitor, batch_sums
from llava.train.trainer import LlavaTrainer
from tests.data.features.changed import change_features
from tests.train.runs import alarms, train


def history(folder, key):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in log if key in entry]


def test_sums_of_a_batch_by_modality():
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 0.0]])
    batch = {
        "input_ids": torch.tensor([[9, 9, 3, 4], [5, 6, 7, 0]]),
        "labels": torch.tensor([[-100, 9, 3, 4], [-100, 6, 7, -100]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "num_videos": torch.tensor([1, 0]),
        "num_images": torch.tensor([0, 0]),
    }
    sums = batch_sums(losses, batch, torch.tensor([9])).tolist()
    assert sums == [6.0, 2.0, 24.0, 2.0, 1.0, 1.0, 2.0, 1.0, 0.0, 8.0, 1.0]
    losses[1, 0] = math.inf
    assert batch_sums(losses, batch, torch.tensor([9]))[0] == 6.0, "an overflow elsewhere stays there"


def test_sums_are_restored_on_the_device_of_the_run(assets, tmp_path, build):
    """Under DeepSpeed and FSDP the model is still on the CPU when the monitor is made."""
    monitor = RunMonitor(build(vision=False), tmp_path, lambda sums: sums, lambda tag, text, step: None, is_main=True)
    args = SimpleNamespace(device=torch.device("meta"), get_warmup_steps=lambda steps: 0)
    monitor.on_train_begin(args, SimpleNamespace(max_steps=4, logging_steps=1), None)
    monitor.restore(monitor.state(), [1.0, 2.0])
    assert monitor.sums is not None and monitor.sums.device.type == "meta"


@pytest.mark.parametrize("accumulation", [1, 3])
def test_logged_losses_and_norms_equal_the_trainers(assets, tmp_path, accumulation):
    options = {"gradient_accumulation_steps": accumulation, "max_grad_norm": 0.5}
    train(assets, tmp_path / "run", **options)
    folder = tmp_path / "run"
    assert history(folder, "caption_loss") == pytest.approx(history(folder, "loss"), rel=1e-5)
    groups = ("embeddings", "language model blocks", "projector", "resampler fast", "resampler slow")
    norms = zip(*(history(folder, f"grad_norm/{g}") for g in groups), strict=True)
    assert [math.hypot(*n) for n in norms] == pytest.approx(history(folder, "grad_norm"), rel=1e-4)
    assert all(0 < r < 1 for g in groups for r in history(folder, f"update_ratio/{g}"))
    assert history(folder, "learning_rate/projector") == pytest.approx(history(folder, "learning_rate"))
    assert alarms(folder) == []


def test_text_and_caption_losses_are_apart(assets, tmp_path):
    records = json.loads(assets.video_json.read_text()) + json.loads(assets.text_json.read_text())
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(records))
    train(assets, tmp_path / "run", data_path=path, logging_steps=6, group_by_modality_length=False)
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"][0]
    assert {"caption_loss", "text_loss", "padding_share", "samples_per_second"} <= set(log)
    assert abs(log["caption_loss"] - log["text_loss"]) > 1e-6
    assert min(log["caption_loss"], log["text_loss"]) < log["loss"] < max(log["caption_loss"], log["text_loss"])


def test_the_monitor_changes_nothing(assets, tmp_path):
    assert train(assets, tmp_path / "a") == train(assets, tmp_path / "b", run_monitor=False)
    assert not history(tmp_path / "b", "caption_loss")


def test_a_lost_stream_sounds_an_alarm_within_the_first_steps(assets, tmp_path, monkeypatch):
    """Past pre-flight, as when a stream dies in the middle of a run."""

    def slow_twice(self, features):
        slow = self.slow(features)
        return torch.cat([slow[:, : self.fast.frame.shape[0]], slow], dim=1)

    monkeypatch.setattr(FastSlowResampler, "forward", slow_twice)
    train(assets, tmp_path / "run", preflight="off", report_to="tensorboard", logging_steps=100)
    (alarm,) = alarms(tmp_path / "run")
    assert (alarm["step"], alarm["kind"]) == (3, "zero gradient")
    assert "resampler fast" in alarm["message"] and alarm["time"]
    events = EventAccumulator(str(next((tmp_path / "run").rglob("events*")).parent)).Reload()
    assert "alarm/text_summary" in events.Tags()["tensors"]


def test_steps_of_images_alone_say_nothing_of_the_stream_of_videos(tmp_path, build):
    """Batches of one modality: gradients are those of the step at which they are measured, not of those before it."""
    monitor = RunMonitor(build(), tmp_path, lambda sums: sums, lambda tag, text, step: None)
    args = SimpleNamespace(device=torch.device("cpu"), get_warmup_steps=lambda steps: 0)
    state = SimpleNamespace(max_steps=100, logging_steps=2, global_step=0)
    monitor.on_train_begin(args, state, None)
    row = {"input_ids": torch.tensor([[3, 4]]), "labels": torch.tensor([[-100, 4]]),
           "attention_mask": torch.ones(1, 2)}  # fmt: skip

    def steps(number, is_image, norm):
        for step in range(state.global_step + 1, state.global_step + number + 1):
            monitor.on_step_begin(args, state, None)
            image = int(is_image(step))
            shown = {"num_videos": torch.tensor([1 - image]), "num_images": torch.tensor([image])}
            monitor.add_batch(torch.tensor([[1.0]]), row | shown)
            monitor.norms = {"resampler fast": 0.0 if image else norm}
            state.global_step = step
            monitor.on_step_end(args, state, None)

    steps(40, lambda step: step % 2 == 0, 1.0)
    assert monitor.alarms == []
    steps(8, lambda step: False, 0.0)
    assert [alarm.kind for alarm in monitor.alarms] == ["zero gradient"]


def test_unmasked_labels_sound_at_the_first_step(assets, tmp_path):
    train(assets, tmp_path / "run", preflight="off", experiment_faults="unmasked_labels",
          experiment_faults_confirmed=True)  # fmt: skip
    alarm = json.loads((tmp_path / "run" / "alarms.jsonl").read_text().splitlines()[0])
    assert (alarm["step"], alarm["kind"]) == (1, "visual targets")


def test_a_frozen_vocabulary_sounds_the_plateau(assets, tmp_path):
    train(assets, tmp_path / "run", preflight="off", max_steps=60, learning_rate=1e-5)
    found = [(a["kind"], a["step"]) for a in alarms(tmp_path / "run")]
    assert found[0] == ("plateau", 50) and {kind for kind, _ in found[1:]} <= {"blind"}


def test_a_run_that_ends_without_sight_says_so_once(assets, tmp_path, monkeypatch):
    change_features(monkeypatch, lambda cache, path, features: torch.ones_like(features))
    train(assets, tmp_path / "run", preflight="off", eval_data_path=assets.video_json, eval_strategy="steps",
          eval_steps=3)  # fmt: skip
    found = alarms(tmp_path / "run")
    # Features that are all alike also leave attention over them without a gradient.
    assert [a["step"] for a in found if a["kind"] == "blind"] == [6]
    assert {a["kind"] for a in found} <= {"blind", "tensor without update", "features served"}


@pytest.mark.parametrize(("logging_steps", "kept"), [(50, 137), (10_000, 137)])
def test_a_spike_between_logged_steps_is_seen(build, tmp_path, logging_steps, kept):
    """Losses and norms of all steps wait on the device and are read at the steps that are measured, or every 128."""
    monitor = RunMonitor(build(), tmp_path, reduce=lambda sums: sums, write_text=lambda *_: None)
    state = SimpleNamespace(max_steps=400, logging_steps=logging_steps, global_step=0)
    monitor.on_train_begin(SimpleNamespace(get_warmup_steps=lambda _: 0, device=torch.device("cpu")), state, None)
    one = torch.ones(1, dtype=torch.long)
    for step in range(1, 301):
        monitor.on_step_begin(None, state, None)
        for part in range(2):
            batch = {"labels": torch.tensor([[-100, 3, 4]]), "attention_mask": torch.ones(1, 3), "num_videos": one,
                     "num_images": 0 * one, "sample_ids": [f"s{step}.{part}"]}  # fmt: skip
            monitor.add_batch(torch.full((1, 2), 9.0 if step == kept else 2 + 0.1 * math.sin(step)), batch)
        monitor.grad_norm = torch.tensor(70.0 if step == 250 else 1 + 0.1 * math.sin(step))
        state.global_step = step
        monitor.on_step_end(None, state, None)
        assert len(monitor.unread) < 128
    monitor.state()  # A checkpoint leaves none of them behind.
    assert [(a.step, a.kind) for a in monitor.alarms] == [(kept, "spike"), (250, "spike")]
    assert "the loss is 9" in monitor.alarms[0].message and f"'s{kept}.0', 's{kept}.1'" in monitor.alarms[0].message
    assert "the gradient norm is 70" in monitor.alarms[1].message


@pytest.mark.parametrize(("first", "slowness", "said"), [(6.5, 95, []), (5.4, 200, [(300, "plateau")])])
def test_the_end_is_judged_by_the_last_steps_of_a_run_that_never_logs(build, tmp_path, first, slowness, said):
    """A loss that comes below the entropy in the last steps alone: the mean since the first 20 steps is far above. And
    one that falls and does not come below it.
    """
    monitor = RunMonitor(build(), tmp_path, lambda sums: sums, lambda *_: None, entropies={"captions": 3.6})
    state = SimpleNamespace(max_steps=300, logging_steps=10_000, global_step=0)
    monitor.on_train_begin(SimpleNamespace(get_warmup_steps=lambda _: 0, device=torch.device("cpu")), state, None)
    one, last = torch.ones(1, dtype=torch.long), 0.0
    batch = {"labels": torch.tensor([[-100, 3, 4]]), "attention_mask": torch.ones(1, 3), "num_videos": one,
             "num_images": 0 * one, "sample_ids": ["a"]}  # fmt: skip
    for step in range(1, 301):
        monitor.on_step_begin(None, state, None)
        monitor.add_batch(torch.full((1, 2), first - step / slowness), batch)
        state.global_step = step
        monitor.on_step_end(None, state, None)
        last = monitor.observed_loss
    assert [(a.step, a.kind) for a in monitor.alarms] == said
    assert last == pytest.approx(first - 290.5 / slowness, abs=1e-3)


def test_weights_that_do_not_move_sound_an_alarm(assets, tmp_path, monkeypatch):
    """The optimiser holds them and does not change them."""
    create = LlavaTrainer.create_optimizer

    def idle(self, model=None):
        optimizer = create(self, model)
        names = [(n, p) for n, p in self.model.named_parameters() if n.startswith("mm_projector")]
        start = [p.detach().clone() for _, p in names]

        def undo(*_):
            with torch.no_grad():
                for (_, p), before in zip(names, start, strict=True):
                    p.copy_(before)

        optimizer.register_step_post_hook(undo)
        return optimizer

    monkeypatch.setattr(LlavaTrainer, "create_optimizer", idle)
    train(assets, tmp_path / "run", preflight="off")
    alarm = json.loads((tmp_path / "run" / "alarms.jsonl").read_text())
    assert alarm["kind"] == "no update" and "projector" in alarm["message"]


@pytest.mark.parametrize("fused", [True, False])
def test_the_guard_names_the_step(fused):
    weight = torch.nn.Parameter(torch.ones(2))
    guard = FiniteGuard(torch.optim.AdamW([weight], fused=fused))
    assert guard.bad_step(torch.tensor(1.0), 3) is None
    assert guard.bad_step(torch.tensor(math.nan), 4) == 4
    assert guard.bad_step(math.inf, 5) == 5
    assert guard.bad_step(-1.0, 6) == 6  # DeepSpeed's word for not finite.


def test_a_fused_optimiser_skips_what_the_guard_marks():
    """What the guard relies on where the norm is read a step later."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.full((2,), math.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(2))


def test_what_an_earlier_attempt_wrote_is_left_out(assets, tmp_path):
    """A killed run had alarms and controls after its last checkpoint; the resumed one writes its own."""
    folder = tmp_path / "run"
    options = {"save_strategy": "steps", "save_steps": 2, "eval_data_path": assets.video_json,
               "eval_strategy": "steps", "eval_steps": 2}  # fmt: skip
    train(assets, folder, **options)
    shutil.rmtree(folder / "checkpoint-6")
    lines = [json.dumps({"step": step, "kind": "old", "message": "", "remedy": ""}) for step in (3, 4, 5)]
    (folder / "alarms.jsonl").write_text("\n".join([*lines, '{"step": 4, "ki']))
    controls = (folder / "controls.jsonl").read_text()
    train(assets, folder, resume_from_checkpoint=True, **options)
    found = alarms(folder)
    assert [(a["step"], a["kind"]) for a in found if a["kind"] != "blind"] == [(3, "old"), (4, "old")]
    assert (folder / "controls.jsonl").read_text() == controls, "and its controls are those of the whole run"
