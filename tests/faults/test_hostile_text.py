"""Text of a data set that is a command, a page or a special token: it stays text, or is a problem that names it."""

from __future__ import annotations

import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llava.constants import PLACEHOLDERS, VISUAL_TOKENS
from llava.data import check
from llava.data.records import DatasetError
from llava.eval import captioning, controls
from llava.eval.captioning import Captioner
from llava.report.page import main as report
from tests.conftest import CAPTIONS, EOS, record
from tests.train.runs import train

EVIL = """<script>alert(1)</script> "><img src=x onerror='alert(2)'> {{ 7*7 }} $(touch pwned) `touch pwned`;"""


class Tags(HTMLParser):
    """The tags of a page, and the attributes that could run something."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.scripts = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts += data


def test_hostile_captions_ids_and_paths_stay_text(assets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = EVIL.replace("/", "") + ".mp4"
    rows = []
    for i in range(4):
        shutil.copy(assets.clips / f"clip{i}.mp4", tmp_path / f"{i}{name}")
        rows.append(record(f"{i} {EVIL}", f"{EVIL} {CAPTIONS[i]}", f"{i}{name}", prompt=EVIL))
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    folder = tmp_path / "run"
    train(assets, folder, data_path=data, eval_data_path=data, video_folder=tmp_path, max_steps=2, model_max_length=512,
          report_to="tensorboard", show_samples=4, dataloader_num_workers=1)  # fmt: skip
    argv = ["--model-path", str(folder), "--data_path", str(data), "--video_folder", str(tmp_path), "--feature_cache",
            str(tmp_path / "cache"), "--output", str(folder / "captions.json"), "--control"]  # fmt: skip
    assert captioning.main(argv) == 0
    assert report([str(folder)]) == 0
    for page in (folder / "preflight_samples.html", folder / "report.html"):
        found = Tags(page)
        assert "&lt;script&gt;alert(1)" in page.read_text(), "ids or captions are shown"
        assert "html" in found.tags and not found.handlers
        assert found.tags.count("script") == (page.name == "report.html"), "the page's own, which draws curves"
        assert "alert" not in found.scripts
    assert not list(tmp_path.rglob("pwned"))


FORGED = "no problem in 9 records: 9 videos"


def test_names_ids_and_captions_cannot_forge_a_line(assets, tmp_path, capfd, caplog):
    """Nor reach the terminal with an escape sequence: what is printed, logged and written is one line, escaped."""
    clips = tmp_path / "clips"
    clips.mkdir()
    rows = []
    for i in range(4):
        name = f"{i}\n{FORGED}\x1b[2J\u202e.mp4"
        shutil.copy(assets.clips / f"clip{i}.mp4", clips / name)
        rows.append(record(f"v{i}\n{FORGED}\x1b[2J", f"{CAPTIONS[i]}\n{FORGED}", name))
    data, folder, broken = tmp_path / "data.json", tmp_path / "run", tmp_path / "broken.json"
    data.write_text(json.dumps(rows))
    (clips / "bad\n.mp4").write_text(FORGED)
    broken.write_text(json.dumps([*rows, record(f"x\n{FORGED}", "Un gatto.", f"absent\n{FORGED}"),
                                  record(f"y\n{FORGED}", "Un gatto.", "bad\n.mp4")]))  # fmt: skip
    assert check.main(["--data_path", str(broken), "--video_folder", str(clips), "--num_workers", "0",
                       "--force_sample"]) == 1  # fmt: skip
    train(assets, folder, data_path=data, eval_data_path=data, video_folder=clips, max_steps=2, model_max_length=512,
          show_samples=4)  # fmt: skip
    argv = ["--model-path", str(folder), "--data_path", str(data), "--video_folder", str(clips), "--feature_cache",
            str(tmp_path / "cache"), "--output", str(folder / "captions.json")]  # fmt: skip
    assert captioning.main(argv) == 0
    assert report([str(folder)]) == 0
    out, err = capfd.readouterr()
    printed = out + err + caplog.text
    assert "absent\\n" in printed and FORGED in printed
    for text in (printed, *((folder / page).read_text() for page in ("preflight_samples.html", "report.html"))):
        assert not [line for line in text.splitlines() if line.startswith(FORGED)]
        assert "\x1b[2J" not in text and "\u202e" not in text


def test_one_name_that_is_not_utf_8_stops_no_other(assets, tmp_path, capfd):
    name = os.fsdecode(b"caff\xe8.mp4")
    shutil.copy(assets.clips / "clip0.mp4", tmp_path / name)
    shutil.copy(assets.clips / "clip1.mp4", tmp_path / "clip1.mp4")
    absent = os.fsdecode(b"t\xe8.mp4")
    rows = [record("a", CAPTIONS[0], absent), record("b", CAPTIONS[1], "clip1.mp4"), record("c", CAPTIONS[0], name)]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    argv = ["--data_path", str(data), "--video_folder", str(tmp_path), "--num_workers", "0", "--force_sample"]
    assert check.main(argv) == 1
    out = capfd.readouterr().out
    assert out.startswith("2 problems in 2 records")
    assert "t\\udce8.mp4': no such file" in out and "caff\\udce8.mp4': its name is not UTF-8" in out
    folder = tmp_path / "run"
    train(assets, folder, data_path=data, video_folder=tmp_path, max_steps=1, on_bad_sample="skip")
    bad = [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [problem["record_id"] for problem in bad] == ["a", "c"]


@pytest.fixture(scope="module")
def run(assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "run"
    train(assets, folder, max_steps=1)
    return folder


@pytest.mark.parametrize("token", [*VISUAL_TOKENS, EOS])
@pytest.mark.parametrize("field", ["human", "gpt"])
def test_every_reader_finds_special_tokens(assets, run, tmp_path, capsys, token, field):
    rows = json.loads(assets.video_json.read_text())
    turn = next(t for t in rows[3]["conversations"] if t["from"] == field)
    turn["value"] += f" e poi{token}fine"
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    argv = ["--data_path", str(data), "--video_folder", str(assets.clips)]
    model = ["--model-path", str(run), "--feature_cache", str(tmp_path / "cache")]
    expected = rf"data\.json\[3\] id 'v3': the text contains '{token.replace('|', '[|]')}'"
    for read in (
        lambda: train(assets, tmp_path / "video", data_path=data),
        lambda: train(assets, tmp_path / "text", 1, data_path=data, text_only=True),
        lambda: train(assets, tmp_path / "eval", eval_data_path=data),
        lambda: captioning.main([*argv, *model]),
        lambda: controls.main([*argv, *model]),
    ):
        with pytest.raises(DatasetError, match=expected):
            read()
    assert check.main([*argv, "--num_workers", "0", "--force_sample"]) == 1
    assert f"the text contains '{token}'" in capsys.readouterr().out


@pytest.mark.parametrize("token", [*VISUAL_TOKENS, *PLACEHOLDERS, EOS])
def test_a_prompt_is_words_alone(assets, run, token):
    captioner = Captioner.from_pretrained(run, "cpu")
    with pytest.raises(ValueError, match="give words alone"):
        captioner([assets.clips / "clip0.mp4"], f"Un{token}")
