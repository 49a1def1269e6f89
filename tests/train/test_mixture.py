"""A run on a YAML mixture, from its flags to its report, cut and resumed; and the other commands on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava.data import check
from llava.eval import controls
from llava.train.train import main
from scripts.chaos import differences
from tests.conftest import CAPTIONS, record
from tests.train.runs import flags, train

OPTIONS = {"save_strategy": "steps", "save_steps": 2, "preflight": "off", "resume_from_checkpoint": "auto", "seed": 3}


@pytest.fixture(scope="module")
def mixed(assets: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Clips with their own folder and text in the form of chat templates without ids, and a mixture of them."""
    root = tmp_path_factory.mktemp("mixed")
    turns = [[{"role": "user", "content": ""}, {"role": "assistant", "content": text}] for text in CAPTIONS]
    (root / "text.jsonl").write_text("\n".join(json.dumps({"messages": t}) for t in turns))
    (root / "mix.yaml").write_text(
        f"datasets:\n- {{json_path: {assets.video_json}, sampling_strategy: random:4, data_folder: {assets.clips}}}\n"
        f"- {{json_path: {root / 'text.jsonl'}, sampling_strategy: end:50%}}\n"
    )
    return SimpleNamespace(root=root, mix=root / "mix.yaml", options=OPTIONS | {
        "data_path": root / "mix.yaml", "eval_data_path": root / "mix.yaml", "video_folder": None,
        "controls_samples": 2,
    })  # fmt: skip


@pytest.fixture(scope="module")
def whole(assets: SimpleNamespace, mixed: SimpleNamespace) -> Path:
    train(assets, mixed.root / "runs" / "whole", **mixed.options, run_report=True)
    return mixed.root / "runs" / "whole"


def sources(folder: Path, part: str = "train") -> list[dict[str, Any]]:
    return json.loads((folder / "llava_run.json").read_text())["data"][part]["sources"]


def test_the_sources_are_counted_and_reported(mixed: SimpleNamespace, whole: Path) -> None:
    """Six steps of two of the seven records: no epoch shows a record twice."""
    clips, text = sources(whole)
    words = [len(c.split()) for c in CAPTIONS]
    assert (clips["name"], clips["strategy"], clips["records"], clips["in_file"]) == ("video.json", "random:4", 4, 6)
    assert (text["name"], text["strategy"], text["records"], text["words"]) == (
        "text.jsonl",
        "end:50%",
        3,
        sum(words[3:]),
    )
    assert clips["seen"] + text["seen"] in range(11, 13) and min(clips["seen"], text["seen"]) >= 3
    assert [s["records"] for s in sources(whole, "eval")] == [4, 3]
    page = (whole / "report.html").read_text()
    assert "Sources of training" in page and "text.jsonl" in page and "random:4" in page and "samples seen" in page


def test_a_cut_run_goes_on_with_the_same_records(assets: SimpleNamespace, mixed: SimpleNamespace, whole: Path) -> None:
    cut = mixed.root / "runs" / "cut"
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    assert sum(s["seen"] for s in sources(cut / "checkpoint-2")) == 4
    train(assets, cut, **mixed.options, run_report=True)
    assert differences(whole, cut) == []
    assert sources(cut) == sources(whole)


def test_another_mixture_is_not_resumed(assets: SimpleNamespace, mixed: SimpleNamespace, whole: Path) -> None:
    """Nor the same file with another choice, which the flags do not tell."""
    before, cut = mixed.mix.read_text(), mixed.root / "runs" / "other"
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    try:
        mixed.mix.write_text(before.replace("end:50%", "first:50%"))
        with pytest.raises(ValueError, match=r"made with other training records: 7 before, 7 now"):
            main(flags(assets, cut, **mixed.options))
    finally:
        mixed.mix.write_text(before)


def test_wrong_mixtures_are_refused_with_the_other_flags(assets: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("datasets: [{json_path: no.json, sampling_strategy: most}, {path: x}]")
    options = {"data_path": tmp_path / "mix.yaml", "eval_data_path": f"{assets.text_json},no.json", "num_frames": 0}
    with pytest.raises(ValueError) as raised:
        main(flags(assets, tmp_path / "run", **options))
    text = str(raised.value)
    for words in ("--data_path", "datasets[0]: json_path 'no.json'", "datasets[0]: sampling_strategy 'most'",
                  "datasets[1]: key 'path'", "--eval_data_path no.json: no such file", "num_frames"):  # fmt: skip
        assert words in text


def test_other_commands_take_the_same(
    assets: SimpleNamespace, mixed: SimpleNamespace, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main(["--data_path", str(mixed.mix), "--num_workers", "0", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "7 records from 2 sources" in out and "no problem in 7 records: 4 videos" in out
    cache, result = mixed.root / "runs" / "feature_cache", mixed.root / "controls.json"
    both = f"{assets.video_json},{mixed.root / 'more.json'}"
    (mixed.root / "more.json").write_text(json.dumps([record("v0", CAPTIONS[1], "clip0.mp4")]))
    assert controls.main([
        "--model-path", str(whole), "--data_path", both, "--video_folder", str(assets.clips), "--feature_cache",
        str(cache), "--num_workers", "0", "--output", str(result),
    ]) == 0  # fmt: skip
    assert json.loads(result.read_text())["captions"] == 7
