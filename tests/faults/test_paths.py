"""Every command that reads records keeps their paths under their folder, and has the flag that allows all."""

from __future__ import annotations

import json

import pytest

from llava.data import check
from llava.data.records import DatasetError
from llava.eval import captioning, controls
from tests.train.runs import train


@pytest.fixture(scope="module")
def run(assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths") / "run"
    train(assets, folder, max_steps=1)
    return folder


def command(name, assets, run, data, tmp_path, *more):
    flags = ["--data_path", str(data), *more]
    model = ["--model-path", str(run), "--feature_cache", str(tmp_path / "cache"), "--num_workers", "0"]
    if name == "train":
        allowed = True if more else None
        train(assets, tmp_path / "run", data_path=data, video_folder=None, max_steps=1, allow_absolute_paths=allowed)
    elif name == "check":
        status = check.main([*flags, "--num_workers", "0", "--force_sample"])
        if status:
            raise DatasetError("see what was printed")
    else:
        {"captioning": captioning, "controls": controls}[name].main([*flags, *model])


@pytest.mark.parametrize("name", ["train", "check", "captioning", "controls"])
def test_absolute_paths_need_their_flag(assets, run, tmp_path, capsys, name):
    rows = json.loads(assets.video_json.read_text())
    for row in rows:
        row["video"] = str(assets.clips / row["video"])
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    with pytest.raises(DatasetError) as error:
        command(name, assets, run, data, tmp_path)
    shown = str(error.value) + capsys.readouterr().out
    assert "path outside folder: 6 (" in shown and "id 'v0': video '/" in shown and "--allow_absolute_paths" in shown
    command(name, assets, run, data, tmp_path, "--allow_absolute_paths")
