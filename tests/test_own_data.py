"""The three commands that the README gives for data of one's own, as it writes them."""

from __future__ import annotations

import csv
import json
import re
import subprocess

import pytest

from tests.cluster.launching import ROOT, environment
from tests.conftest import CAPTIONS, colour_frames, write_clip

CLIPS = 10


def commands() -> str:
    """The README's first block about own data."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Your own data\n")[1]
    block = re.search(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert block, "the README has no block under 'Your own data'"
    assert len(block[1].splitlines()) == 3, "the README promises three commands"
    return block[1]


@pytest.mark.slow
def test_three_commands_lead_from_a_csv_to_captions_scores_and_a_report(assets, tmp_path):
    for name in ("llava", "recipes", "scripts", "train_italian_video.sh"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "clips").mkdir()
    with open(tmp_path / "captions.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("clip", "caption"))
        for i in range(CLIPS):
            write_clip(tmp_path / "clips" / f"c{i}.mp4", colour_frames(i))
            rows.writerow((f"c{i}.mp4", CAPTIONS[i % len(CAPTIONS)]))
    small = {
        "N_LAYER": 1, "N_EMBD": 32, "N_HEAD": 2, "N_POSITIONS": 64, "VOCAB_SIZE": 300, "BATCH_SIZE": 2, "MAX_STEPS": 2,
        "VISION_MODEL": assets.tower, "NUM_FRAMES": 2, "MM_PERCEIVER_LATENTS": 4, "MM_PERCEIVER_LATENTS_FAST": 1,
        "FORCE_SAMPLE": True, "NUM_WORKERS": 0, "OMP_NUM_THREADS": 1,
    }  # fmt: skip
    variables = environment(tmp_path, **{name: str(value) for name, value in small.items()})
    del variables["OUTPUT_ROOT"]  # The README's place.
    result = subprocess.run(
        ["bash", "-e", "-c", commands()], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    run = tmp_path / "output" / "clips_exp2_seed0"
    held_out = json.loads((run / "held_out.json").read_text(encoding="utf-8"))
    written = json.loads((run / "captions.json").read_text(encoding="utf-8"))
    captions = next(iter(written["captions"].values()))
    assert len(json.loads((tmp_path / "clips.json").read_text(encoding="utf-8"))) == CLIPS
    assert {c["id"] for c in captions} == {r["id"] for r in held_out}, "those that were held out are captioned"
    assert 0 < len(held_out) < CLIPS
    assert any("true video" in name for name in written["scores"]), "and scored"
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")
