"""What a run decides with its model, and that nothing which others read is changed along the way."""

from __future__ import annotations

import copy
from dataclasses import asdict

import pytest
import torch

from llava.data.dataset import LazySupervisedDataset
from llava.train import run_data, run_model, setup
from llava.train.run_flags import parse_arguments
from llava.train.setup import prepare
from tests.train.runs import alarms, flags, train


def parsed(assets, output, **options):
    return parse_arguments(flags(assets, output, preflight="off", **options))


def test_flags_stay_as_they_are_and_the_collators_know_the_rest(assets, tmp_path, monkeypatch):
    monkeypatch.setattr(run_model, "keeps_samples_apart", lambda model: False)
    settings = parsed(assets, tmp_path / "run", eval_data_path=assets.video_json)
    before = [copy.deepcopy(vars(group)) for group in settings[:2]] + [settings.training.to_dict()]
    record = {"flags": {}, "versions": {}}
    trainer = prepare(settings, record).trainer
    assert [*map(asdict, settings[:2]), settings.training.to_dict()] == before
    assert record == {"flags": {}, "versions": {}}, "what was handed in is not written into"
    assert settings.training.packing and not trainer.training_collator.pack
    loaders = [trainer.get_train_dataloader(), trainer.get_eval_dataloader()]
    collators = [getattr(loader, "base_dataloader", loader).collate_fn for loader in loaders]
    assert collators == [trainer.training_collator, trainer.data_collator]
    assert "segment_ids" in next(iter(loaders[0])) and "segment_ids" not in next(iter(loaders[1]))


def test_each_thing_of_a_run_is_made_once(assets, tmp_path, monkeypatch):
    made: dict[str, int] = {}

    def counted(place, name):
        work = getattr(place, name)

        def call(*args, **kwargs):
            made[name] = made.get(name, 0) + 1
            return work(*args, **kwargs)

        monkeypatch.setattr(place, name, call)

    for name in ("load_tokenizer", "read_splits", "make_model", "make_cache", "make_data", "LlavaTrainer"):
        counted(setup, name)
    for name in ("measure_lengths", "fill_cache"):
        counted(run_data, name)
    counted(LazySupervisedDataset, "__init__")
    prepare(parsed(assets, tmp_path / "run", eval_data_path=assets.video_json))
    twice = ("make_data", "measure_lengths", "fill_cache", "__init__")
    assert made == {name: 2 if name in twice else 1 for name in made} and len(made) == 9


def test_opening_the_cache_changes_nothing_of_the_model(assets, tmp_path):
    settings = parsed(assets, tmp_path / "run", vision_precision="bf16", feature_dtype="int8")
    tokenizer = run_model.load_tokenizer(settings)
    train, evaluation, split = run_data.read_splits(settings, tokenizer)
    assert (evaluation, split["held_out"]) == (None, 0) and (train.name, len(train.records), train.problems) == (
        "training",
        6,
        [],
    )
    model = run_model.make_model(settings, tokenizer, train.records).model
    before = copy.deepcopy(model.config.to_dict())
    assert (before["mm_vision_precision"], before["mm_feature_dtype"]) == ("bf16", "int8")
    assert model.vision_tower.precision == "bf16"
    cache = run_data.make_cache(settings, model)
    assert cache is not None and cache.settings["precision"] == "bf16" and cache.settings["dtype"] == "int8"
    assert model.config.to_dict() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vision_tower": None}, "6 records have a video or image, but there is no --vision_tower"),
        ({"data_path": "text_json"}, "no record has a video or image, so projector and resampler would never learn"),
    ],
)
def test_data_and_flags_that_do_not_belong_together_are_refused_before_the_model_is_read(
    assets, tmp_path, monkeypatch, options, words
):
    monkeypatch.setattr(run_model, "load_language_model", lambda *_, **__: pytest.fail("the model was read"))
    options = {name: getattr(assets, value) if value == "text_json" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=words):
        prepare(parsed(assets, tmp_path / "run", **options))


def test_a_run_on_flat_rows_is_the_run_on_rows_with_a_mask(assets, tmp_path):
    """Pre-flight compares the losses of both layouts, too."""
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "num_frames": 2}
    masked = train(assets, tmp_path / "mask", **settings)
    flat = train(assets, tmp_path / "varlen", packed_attention="varlen", pad_to_multiple_of=32, **settings)
    assert flat == pytest.approx(masked, abs=2e-4)
    assert " in 1 rows of" in (tmp_path / "varlen" / "preflight.json").read_text()
    assert not alarms(tmp_path / "varlen")


def test_rows_begin_as_loud_as_is_said_and_a_checkpoint_keeps_its_own(assets, tmp_path, caplog):
    def made(**options):
        settings = parsed(assets, tmp_path / "run", **options)
        tokenizer = run_model.load_tokenizer(settings)
        model = run_model.make_model(settings, tokenizer, run_data.read_splits(settings, tokenizer)[0].records).model
        torch.manual_seed(0)
        return model, model.encode_videos(torch.randn(1, 2, 3, 56, 56)).detach().std().item()

    assert [made(mm_perceiver_row_std=std)[1] for std in (0.05, 0.8)] == pytest.approx([0.05, 0.8], rel=0.3)
    model, std = made(mm_perceiver_row_std=0.8)
    model.save_pretrained(tmp_path / "seen")
    run_model.load_tokenizer(parsed(assets, tmp_path / "run")).save_pretrained(tmp_path / "seen")
    with caplog.at_level("INFO"):
        again = made(model_name_or_path=tmp_path / "seen", mm_perceiver_row_std=0.1)[1]
    assert again == pytest.approx(std, rel=0.3) and "--mm_perceiver_row_std has no effect" in caplog.text
