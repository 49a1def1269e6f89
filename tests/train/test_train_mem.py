"""The launch command of LLaVA-ST's fork, as docs/from-llava-st.md has it, on tiny models."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.train.train import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "from-llava-st.md"


def command() -> tuple[str, dict[str, str]]:
    """The script of the page's command and its flags in order; the environment must be `USE_PLAIN_LM=1`."""
    block = re.search(r"```bash\n(USE_PLAIN_LM=1 .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block, "the page has no command"
    variable, *words = shlex.split(block[1].replace("\\\n", " "))
    assert (variable, words[:2]) == ("USE_PLAIN_LM=1", ["python", "-u"])
    names, values = words[3::2], words[4::2]
    assert len(names) == len(values) and all(name.startswith("--") for name in names)
    return words[2], dict(zip(names, values, strict=True))


@pytest.fixture
def work(assets, tmp_path):
    """A working folder whose records name their videos from there, and the flags that a tiny machine needs instead."""
    shutil.copytree(assets.clips, tmp_path / "data" / "clips")
    records = json.loads(assets.video_json.read_text())
    for record in records:
        record["video"] = f"data/clips/{record['video']}"
    (tmp_path / "videos.json").write_text(json.dumps(records))
    small = {
        "--model_name_or_path": str(assets.gpt2), "--vision_tower": str(assets.tower), "--data_path": "videos.json",
        "--output_dir": "output/run", "--model_max_length": "512", "--num_train_epochs": "2", "--report_to": "none",
    }  # fmt: skip
    return tmp_path, small


def check(run: Path, log: str) -> None:
    """The run trained as the flags say."""
    record = json.loads((run / "llava_run.json").read_text())
    flags = record["flags"]
    assert (flags["warmup_steps"], flags["learning_rate"], flags["mm_perceiver_depth"]) == (0.1, 5e-4, 2)
    assert (flags["version"], flags["save_steps"], flags["attn_implementation"]) == ("plain", 230, "eager")
    assert record["data"]["train"]["by_modality"] == {"video": 6}
    assert all(row["trainable"] for row in record["parameters"] if row["part"] != "mm_vision_tower")
    assert json.loads((run / "preflight.json").read_text())["passed"]
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 2
    lines = [line for line in log.splitlines() if re.match(r" +- --", line)]
    assert [line.split()[1] for line in lines] == ["--use_downsample_image", "--lazy_preprocess"]
    assert log.count("stage 1 sets nothing; given and so decided by the command: --mm_tunable_parts") == 1
    assert log.count("nothing is held out: 6 clips are fewer than 10;") == 1
    assert record["split"]["held_out"] == 0
    assert log.count("USE_PLAIN_LM=1 in the environment decides over --version llama_v2") == 1


@pytest.mark.slow
def test_the_command_runs_with_paths_from_the_working_folder(work):
    folder, small = work
    script, flags = command()
    assert (flags["--video_folder"], flags["--image_folder"]) == ("", ".")
    del flags["--fp16"]
    words = [part for pair in {**flags, **small, "--use_cpu": "True"}.items() for part in pair]
    environment = os.environ | {"USE_PLAIN_LM": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-u", str(ROOT / script), *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    check(folder / "output" / "run", result.stdout + result.stderr)


def test_the_command_runs_with_a_video_folder(work, assets, monkeypatch, caplog):
    folder, small = work
    caplog.set_level("INFO")
    _, flags = command()
    del flags["--fp16"]
    small |= {"--data_path": str(assets.video_json), "--video_folder": str(assets.clips), "--use_cpu": "True"}
    monkeypatch.chdir(folder)
    monkeypatch.setenv("USE_PLAIN_LM", "1")
    main([part for pair in {**flags, **small}.items() for part in pair])
    check(folder / "output" / "run", caplog.text)


def test_half_precision_on_a_cpu_stays_an_error(work, monkeypatch):
    folder, small = work
    _, flags = command()
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="--fp16 True has no effect on CPU: use --bf16 True, or neither"):
        main([part for pair in {**flags, **small, "--use_cpu": "True"}.items() for part in pair])
