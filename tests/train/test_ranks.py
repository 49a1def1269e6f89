"""Several processes, plain, with DeepSpeed and with FSDP2: the results are those of one process with the same batch.

One run a mode serves most tests. Its data has batches with a video on no rank, on some and on all, and its last batch
has three records for four places.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import CAPTIONS, colour_frames, record
from tests.train.processes import REPOSITORY, TRAIN, start, torchrun, torchrun_all
from tests.train.runs import flags, losses, train

pytestmark = pytest.mark.slow

FSDP = "tests/train/fsdp_on_cpu.py"
ZERO = ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
TOGETHER = ["two", *ZERO]
MODES = [*TOGETHER, "four", "fsdp2"]


def mode_flags(mode: str) -> list[str]:
    if mode in ZERO:
        return ["--deepspeed", f"scripts/{mode}.json"]
    return ["--fsdp", "--fsdp_config", "scripts/fsdp2.json"] if mode == "fsdp2" else []


@pytest.fixture(scope="module")
def options(assets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two epochs of three steps: four texts, four videos, and an image and two videos; the order is drawn."""
    folder = tmp_path_factory.mktemp("ranks")
    videos = [record(f"v{i}", text, f"clip{i}.mp4") for i, text in enumerate(CAPTIONS)]
    texts = [record(f"t{i}", text) for i, text in enumerate(CAPTIONS[:4])]
    Image.fromarray(colour_frames(6)[0]).save(folder / "frame.png")
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": CAPTIONS[4]}]
    image = {"id": "i0", "image": "frame.png", "conversations": turns}
    (folder / "train.json").write_text(json.dumps([*videos, *texts, image]))
    (folder / "eval.json").write_text(json.dumps(videos[:3] + texts[:2]))
    return {
        "data_path": folder / "train.json", "eval_data_path": folder / "eval.json", "image_folder": folder,
        "max_steps": 6, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 3, "preflight": "off",
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(
    assets: SimpleNamespace, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`finished(mode)`: the folder of a run in that mode, made once; `one` is a single process. Those of two processes
    are made together.
    """
    root = tmp_path_factory.mktemp("modes")

    def arguments(mode: str) -> list[str]:
        chosen = options | ({"gradient_accumulation_steps": 1} if mode == "four" else {})
        if mode == "zero3":
            chosen = chosen | {"preflight": "quick"}
        return [*flags(assets, root / mode, **chosen), *mode_flags(mode)]

    def run(mode: str) -> Path:
        if (root / mode).exists():
            return root / mode
        if mode == "one":
            one = options | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
            train(assets, root / mode, **one)
        elif mode in TOGETHER:
            torchrun_all([arguments(m) for m in TOGETHER])
        else:
            torchrun(arguments(mode), 4 if mode == "four" else 2, FSDP if mode == "fsdp2" else TRAIN)
        return root / mode

    return run


def evaluation(folder: Path) -> dict[str, float]:
    return json.loads((folder / "eval_results.json").read_text())


@pytest.mark.parametrize("mode", MODES)
def test_losses_and_weights_are_those_of_one_process(finished, mode):
    one, many = finished("one"), finished(mode)
    assert losses(many) == pytest.approx(losses(one), abs=1e-5)
    a, b = (load_file(folder / "model.safetensors") for folder in (one, many))
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_and_controls_are_those_of_one_process(finished, mode):
    expected, found = evaluation(finished("one")), evaluation(finished(mode))
    assert (found["eval_samples"], found["eval_tokens"]) == (5, expected["eval_tokens"])
    names = [n for n in expected if n.startswith(("eval_loss", "eval_common", "eval_nats", "eval_gain"))]
    assert {"eval_loss", "eval_common_accuracy", "eval_gain_video"} <= set(names)
    for name in names:
        assert found[name] == pytest.approx(expected[name], abs=1e-4), name


@pytest.mark.parametrize("mode", ["one", "two", "four", "zero3"])
def test_the_monitor_counts_every_record_of_an_epoch_once(finished, mode):
    log = json.loads((finished(mode) / "trainer_state.json").read_text())["log_history"]
    seen = [e["samples_per_second"] / e["supervised_tokens_per_second"] for e in log if "samples_per_second" in e]
    log = json.loads((finished("one") / "trainer_state.json").read_text())["log_history"]
    expected = [e["samples_per_second"] / e["supervised_tokens_per_second"] for e in log if "samples_per_second" in e]
    assert seen == pytest.approx(expected, rel=1e-6)


def test_preflight_checks_the_whole_model_before_deepspeed_spreads_it(finished):
    result = json.loads((finished("zero3") / "preflight.json").read_text())
    assert result["passed"]
    assert {"gradients, resampler fast", "use of the video, slow stream"} <= {c["check"] for c in result["checks"]}


def test_weights_load_without_deepspeed(finished):
    folders = [finished(mode) / name for mode in ("zero2", "zero3", "fsdp2") for name in ("", "checkpoint-3")]
    code = (
        "import sys; from llava.model.language_model.llava_gpt2 import LlavaGPT2ForCausalLM as Model\n"
        "for f in sys.argv[1:]: print(sum(p.numel() for p in Model.from_pretrained(f).parameters()))\n"
        "assert 'deepspeed' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(set(result.stdout.split())) == 1


@pytest.fixture(scope="module")
def resumed(
    assets: SimpleNamespace, options: dict[str, Any], finished: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`resumed(mode)`: the folder of a run that goes on from the middle of that of `finished`, in other processes."""
    root = tmp_path_factory.mktemp("resumed")

    def arguments(mode: str) -> list[str]:
        shutil.copytree(finished(mode) / "checkpoint-3", root / mode / "checkpoint-3")
        preflight = ["--preflight", "quick"] if mode == "zero3" else []
        return [*flags(assets, root / mode, **options, resume_from_checkpoint=True), *mode_flags(mode), *preflight]

    def run(mode: str) -> Path:
        if not (root / mode).exists():
            if mode == "fsdp2":
                torchrun(arguments(mode), script=FSDP)
            else:
                torchrun_all([arguments("zero2"), arguments("zero3")])
        return root / mode

    return run


@pytest.mark.parametrize("mode", ["zero2", "zero3", "fsdp2"])
def test_a_resumed_run_ends_as_one_never_interrupted(finished, resumed, mode):
    whole, folder = finished(mode), resumed(mode)
    assert losses(folder) == losses(whole)
    a, b = (load_file(f / "model.safetensors") for f in (whole, folder))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_one_record_for_two_processes(assets, options, tmp_path):
    """One process has nothing to train on; the metrics of five records are those of one process, up to rounding."""
    path = tmp_path / "train.json"
    path.write_text(json.dumps([record("v0", CAPTIONS[0], "clip0.mp4")]))
    chosen = options | {"data_path": path, "max_steps": 2, "save_strategy": "no", "gradient_accumulation_steps": 1}
    torchrun(flags(assets, tmp_path / "two", **chosen))
    train(assets, tmp_path / "one", **chosen)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    one, two = (evaluation(tmp_path / name) for name in ("one", "two"))
    for name in ("eval_loss", "eval_common_loss", "eval_samples", "eval_tokens"):
        assert two[name] == pytest.approx(one[name], abs=1e-6), name


def test_a_gradient_that_is_not_finite_ends_a_deepspeed_run(assets, options, tmp_path):
    chosen = options | {"learning_rate": 1e30, "save_strategy": "no", "eval_data_path": None, "max_grad_norm": 0}
    process = start([*flags(assets, tmp_path / "run", **chosen), *mode_flags("zero2")])
    output, _ = process.communicate(timeout=900)
    assert process.returncode != 0
    assert "the gradient of step 2 is not finite" in output
    assert "DeepSpeed has updated the weights with it" in output
    assert not (tmp_path / "run" / "model.safetensors").exists()
