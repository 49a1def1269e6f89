"""What the commands of the tests write is what a study reads."""

from __future__ import annotations

import io

import torch

from llava.eval import pairs, sighted, surprisal
from llava.study.results import read_study
from tests.conftest import CAPTIONS
from tests.eval.test_pairs import file_of, written


def test_a_study_reads_the_files_of_the_commands(assets, build, tokenizer, tmp_path):
    data = ["--data_path", str(assets.video_json)]
    clips = ["--video_folder", str(assets.clips), "--feature_cache", str(tmp_path / "cache")]
    asked = file_of(tmp_path, [(CAPTIONS[i], CAPTIONS[i + 1], "k") for i in (0, 1)], video=["clip0.mp4", "clip1.mp4"])
    for arm in "VMT":
        model = build(vision=arm != "T")
        torch.manual_seed(ord(arm))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
        run = str(written(model, tokenizer, tmp_path / "study" / "seed0" / arm))
        surprisal.main([run, *data, *clips])
        if arm == "T":
            pairs.main([run, asked])
        else:
            sighted.main([run, *data, *clips, "--num_workers", "0"])
            pairs.main([run, asked, *clips, "--num_workers", "0"])
    long = io.StringIO()
    tables = {t.test: t for t in read_study(tmp_path / "study", long)}
    assert {name: (t.unit, len(t.items), "".join(t.values)) for name, t in tables.items() if "mean" not in name} == {
        "captions": ("nats", 37, "VMT"), "sighted_captions": ("nats", 6, "VM"), "pairs_mine": ("correct", 2, "VMT"),
        "pairs_mine, own video": ("correct", 2, "VM"), "pairs_mine, another's video": ("correct", 2, "VM"),
    }  # fmt: skip
    words = tables["captions"]
    assert words.words[:3] == ["un", "gatto", "nero"] and words.kinds[:2] == ["function", "content"]
    assert len(set(words.clusters)) == 6 and set(words.clusters) == set(tables["sighted_captions"].clusters)
    assert set(tables["pairs_mine"].clusters) < set(words.clusters), "a clip has one name in all tests"
    assert len(long.getvalue().splitlines()) == 1 + 3 * 37 + 2 * 6 + 2 * (3 * 2 + 2 * 2 * 2)
