"""The samples of a run that cannot be used, and its vision features: the tower's precision, damage in the cache, and a
stop while they are extracted.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from llava.data.features.store import DamagedFeatures
from llava.errors import Stopped
from llava.eval.captioning import Captioner
from llava.train import run_data
from llava.train.run_flags import parse_arguments
from llava.train.setup import prepare
from llava.train.train import main
from tests.conftest import CAPTIONS, record
from tests.train.runs import flags, train


def damage_one_row(root) -> str:
    """Flips a bit in the features of one clip; returns the name of the file."""
    (array,) = root.glob("*/*.npy")
    data = bytearray(array.read_bytes())
    data[-2] ^= 1
    array.write_bytes(data)
    return array.name


def seen_by_the_projector(assets, output, **options) -> torch.Tensor:
    """Features (V, T, P, Dv) of the first two clips, as they arrive at the projector in a training step."""
    run = prepare(parse_arguments(flags(assets, output, preflight="off", **options)))
    trainer, arrived = run.trainer, []
    trainer.model.mm_projector.register_forward_pre_hook(lambda module, args: arrived.append(args[0]))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
        trainer.model(**batch)
    return arrived[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bf16", [False, True], ids=["step in fp32", "step in bf16"])
def test_features_are_the_same_with_a_cache_and_without(assets, tmp_path, precision, bf16):
    options = {"vision_precision": precision, "bf16": bf16}
    direct = seen_by_the_projector(assets, tmp_path / "direct", feature_cache="off", **options)
    cached = seen_by_the_projector(assets, tmp_path / "cached", **options)
    plain = seen_by_the_projector(assets, tmp_path / "plain", feature_cache="off", vision_precision="fp32")
    assert ((cached - direct).norm() / direct.norm()).item() < 5e-4, "fp16 rounding and nothing else"
    difference = ((direct - plain).norm() / plain.norm()).item()
    assert difference > 1e-3 if precision == "bf16" else difference == 0


def test_losses_with_a_cache_and_without_agree_in_bf16(assets, tmp_path):
    options = {"vision_precision": "bf16", "bf16": True}
    cached = train(assets, tmp_path / "a", **options)
    assert cached == pytest.approx(train(assets, tmp_path / "b", feature_cache="off", **options), abs=2e-3)


def test_the_precision_is_recorded_and_goes_with_the_model(assets, tmp_path, monkeypatch):
    monkeypatch.setattr("llava.train.run_flags.resolve_precision", lambda name, device: "bf16")
    train(assets, tmp_path / "run", vision_precision="auto", feature_dtype="int8", save_strategy="steps", save_steps=3)
    record = json.loads((tmp_path / "run" / "checkpoint-3" / "llava_run.json").read_text())
    assert record["flags"]["vision_precision"] == "bf16", "what auto was, so that a run goes on in the same"
    captioner = Captioner.from_pretrained(tmp_path / "run", device="cpu")
    assert captioner.model.vision_tower.precision == "bf16"
    (settings,) = (tmp_path / "feature_cache").glob("*/settings.json")
    cache = run_data.open_cache(tmp_path / "feature_cache", captioner.model)
    assert cache.folder == settings.parent and len(cache) == 6, "evaluation reads what training read"
    monkeypatch.setattr("llava.train.run_flags.resolve_precision", lambda name, device: "fp32")
    with pytest.raises(ValueError, match="--vision_precision: was 'bf16', is 'fp32'"):
        train(assets, tmp_path / "run", vision_precision="auto", feature_dtype="int8", save_strategy="steps",
              save_steps=3, resume_from_checkpoint="True")  # fmt: skip


def test_a_projector_of_another_run_is_the_start(assets, tmp_path):
    train(assets, tmp_path / "run", max_steps=2)
    weights = tmp_path / "run" / "model.safetensors"
    options = {"preflight": "off", "pretrain_mm_mlp_adapter": weights, "from_scratch": True}
    model = prepare(parse_arguments(flags(assets, tmp_path / "next", **options))).trainer.model.state_dict()
    for name, value in load_file(weights).items():
        same = torch.equal(model[name], value)
        assert same or not name.startswith(("mm_projector", "vision_resampler")), name
        assert not same or not name.startswith("transformer.h.0.attn.c_attn.weight"), "the language model is fresh"


def test_a_projector_that_cannot_be_loaded_is_named(assets, tmp_path):
    with pytest.raises(ValueError, match=r"--pretrain_mm_mlp_adapter /no.bin: no such file\n.*no --vision_tower"):
        parse_arguments(flags(assets, tmp_path, 1, pretrain_mm_mlp_adapter="/no.bin"))


def test_unknown_precisions_and_types_are_named_together(assets, tmp_path):
    with pytest.raises(ValueError, match=r"--vision_precision fp8: use auto.*\n.*--feature_dtype fp8: use float16 or"):
        parse_arguments(flags(assets, tmp_path / "run", vision_precision="fp8", feature_dtype="fp8"))


def test_damaged_features_stop_a_run_and_repair_mends_them(assets, tmp_path):
    sound = train(assets, tmp_path / "a", preflight="off")
    name = damage_one_row(tmp_path / "feature_cache")
    with pytest.raises(DamagedFeatures, match=rf"clip\d\.mp4: its features in .*{name}, row 5.*--repair_features"):
        train(assets, tmp_path / "b", preflight="off")
    assert train(assets, tmp_path / "c", preflight="off", repair_features=True) == sound
    assert train(assets, tmp_path / "d", preflight="off") == sound


def test_a_stop_during_extraction_keeps_what_is_computed(assets, tmp_path, monkeypatch):
    fill = run_data.fill_cache
    monkeypatch.setattr(run_data, "fill_cache", lambda *args: fill(*args[:-1], lambda: True))
    with pytest.raises(Stopped, match="the same command goes on"):
        main(flags(assets, tmp_path / "run"))
    monkeypatch.undo()
    assert train(assets, tmp_path / "run")


def test_training_and_evaluation_lose_their_bad_records_alike(assets, tmp_path):
    rows = [record(f"r{i}", text, f"clip{i}.mp4") for i, text in enumerate(CAPTIONS)]
    rows[1]["video"], rows[2]["conversations"][0]["value"] = "lost.mp4", "<video> " * 9
    rows[2]["video"] = ["clip2.mp4"] * 9
    rows[3]["conversations"][1]["value"] *= 8
    path = tmp_path / "some.json"
    path.write_text(json.dumps(rows))
    options = {"data_path": path, "eval_data_path": path, "on_bad_sample": "skip", "preflight": "off"}
    trainer = prepare(parse_arguments(flags(assets, tmp_path / "run", **options))).trainer
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        assert [r.id for r in dataset.records] == ["r0", "r3", "r4", "r5"] and dataset.num_cut == 1
    assert list(trainer.lengths) == [len(trainer.train_dataset.tokens(i)[0]) for i in range(4)]
    summaries = trainer.run_record["data"]
    assert summaries["train"].items() <= summaries["eval"].items() and "targets" in summaries["eval"]
    assert summaries["train"]["longest"] == max(trainer.lengths) == 64
    for name in ("bad_samples.jsonl", "bad_eval_samples.jsonl"):
        found = [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        assert [(p["record_id"], p["kind"]) for p in found] == [("r1", "missing file"), ("r2", "too long")]
