"""A study from its command to its answer, cut and gone on with; the runs are trained in this process."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava.errors import Stopped, UserError
from llava.study import finish
from llava.study.__main__ import about, main
from llava.study.jobs import Jobs
from llava.train.checkpoint.stop import Stop
from llava.train.train import main as train
from tests.conftest import CAPTIONS, record
from tests.train.runs import flags as run_flags

NOT_GIVEN = {"output_dir", "resume_from_checkpoint", "val_fraction"}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the study ran, in this process; a cut run stops at its second step, as on a signal."""
    listed: list[str] = []

    def run(self: Jobs, command: Sequence[str], what: str, folder: Path | None = None, env: Any = None) -> None:
        self.check()
        listed.append(what)
        if folder is not None:
            train(list(command)[2:])
        else:
            assert command[1] == "-m"
            import_module(command[2]).main(list(command)[3:])

    monkeypatch.setattr(Jobs, "run", run)
    return listed


def command(assets: SimpleNamespace, data: Path, output: Path, *more: str, **options: Any) -> list[str]:
    """The study's command line: the flags of a tiny run, without those that a study sets."""
    words = run_flags(assets, output, data_path=data, max_steps=4, run_report=True, dataloader_num_workers=0, **options)
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    given = [w for k, v in pairs.items() if k.removeprefix("--") not in NOT_GIVEN for w in (k, v)]
    return ["--output", str(output), "--seeds", "1", *given, *more]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [record(f"v{i}-{n}", t, f"clip{i}.mp4") for i, t in enumerate(CAPTIONS) for n, t in enumerate([t, t[::-1]])]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return tmp_path / "train.json"


def test_from_data_to_words_after_a_kill(assets, data, tmp_path, ran, monkeypatch, capsys):
    output = tmp_path / "study"
    words = command(
        assets, data, output, save_strategy="steps", save_steps=1, controls="False", eval_data_path=assets.video_json,
        use_cpu="True", save_words="20,50",
    )  # fmt: skip
    asked = []

    def requested(self: Stop) -> bool:
        if self.output_dir == output / "seed0" / "M":
            asked.append(1)
            self.reason = "signal SIGINT" if len(asked) > 4 else None
        return self.reason is not None

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="the same command goes on"):
        patch.setattr(Stop, "requested", requested)
        main(words)
    said = capsys.readouterr().out
    assert f"3 runs in {output}: 1 seed of V, M, T" in said and "3 runs of 4 steps left: about" in said
    assert "measured on 12 steps of V and of T" in said and not (output / ".trial").exists()
    main(["--status", "--output", str(output)])
    said = capsys.readouterr().out
    assert "cut at step" in said and "1 of 3 runs are finished" in said and "not begun" in said

    number = len(ran)
    main(words)
    other, text = "seed 0, M (another clip's video)", "seed 0, T (text alone)"
    sees, reads = "the tests blind_words, sighted_captions, milestones of ", "the tests blind_words, milestones of "
    assert ran[number:] == [other, sees + other, text, reads + text]
    said = capsys.readouterr().out
    assert "measured on the runs so far" in said and "No verdict" in said and "1 seed" in said
    page = (output / finish.MARKDOWN).read_text()
    assert "No verdict" in page and (output / "report.html").is_file()
    assert "## At other budgets" in page and "| 20 words | " in page and "| 50 words | " in page
    texts = [(output / f"{name}.csv").read_text().splitlines() for name in ("items", "milestones")]
    ends, earlier = (list(csv.DictReader(lines)) for lines in texts)
    assert len(ends) > 6 * 5 and {r["step"] for r in ends} == {"4"}
    assert {r["run"] for r in ends} == {f"seed0/{arm}" for arm in "VMT"}
    assert {r["run"] for r in earlier} == {f"seed0/{a}/chck_{n}" for a in "VMT" for n in (20, 50)}
    assert {r["step"] for r in earlier} == {"2", "4"} and list(earlier[0]) == list(ends[0])
    state = json.loads((output / "seed0" / "M" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4], "each step once"
    kept = {arm: json.loads((output / "seed0" / arm / "llava_run.json").read_text()) for arm in "TVM"}
    assert kept["T"]["flags"]["text_only"] and kept["T"]["flags"]["vision_tower"] is None
    assert kept["V"]["arm"]["blind"] == kept["M"]["arm"]["blind"] and kept["V"]["arm"]["other_clips"] is None
    assert kept["M"]["arm"]["other_clips"]["seed"] == 0 and kept["T"]["arm"] is None
    assert len({k["data"]["train"]["ids"] for k in kept.values()}) == 1
    for name in ("seed", "learning_rate", "max_steps", "per_device_train_batch_size", "text_start"):
        assert len({str(k["flags"][name]) for k in kept.values()}) == 1, name

    number = len(ran)
    main([*words, "--learning_rate", "0.001"])
    assert len(ran) == number, "all is there, and the same rate in other words is the same"
    with pytest.raises(UserError, match=r"other settings:\n  --learning_rate: was 0.001, is 0.002\n"):
        main([*words, "--learning_rate", "2e-3"])
    main([*words, "--seeds", "2", "--only", "seed=1,arm=T"])
    text = text.replace("seed 0", "seed 1")
    assert ran[number:] == [text, reads + text]
    assert "4 of 6 runs are finished" in capsys.readouterr().out


def test_few_clips_are_spoken_of_before_a_run_is_trained(assets, data, tmp_path, ran, capsys):
    words = command(
        assets, data, tmp_path / "study", "--arms", "V,M", use_cpu="True", preflight="off", controls="False"
    )
    main(words)
    said = capsys.readouterr().out
    assert said.index(f"WARNING, before a run is trained: {finish.NOTHING}") < said.index("1 of 2: seed 0, V")
    assert (tmp_path / "study" / "study.md").read_text().count(finish.NOTHING) == 1


def test_what_cannot_be_tested_is_said_before_anything_is_trained(assets, data, tmp_path, ran, capsys):
    words = command(assets, data, tmp_path / "study")
    norms, pairs, plain = (tmp_path / name for name in ("norms.tsv", "pairs.csv", "plain.csv"))
    plain.write_text("good,bad\nUn gatto,Un gatti\n")
    norms.write_text("word\tAOA\ngatto\t3,5\n")
    pairs.write_text("good,bad,video\nUn gatto,Un gatti,nowhere.mp4\n")
    for asked, said in (
        (["--norms", str(norms), "--column", "VISUAL"], "--column VISUAL: no table has it"),
        (["--column", "AOA"], "--norms and --column go together"),
        (["--pairs", str(norms)], "norms.tsv"),
        (["--pairs", str(pairs)], "nowhere.mp4"),
        (["--text", str(norms), str(tmp_path / "again" / "norms.txt")], "two tests would be called norms"),
        (["--classes", str(pairs)], "class"),
    ):
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / "norms.txt").write_text("Un gatto.")
        with pytest.raises((UserError, ValueError), match=said):
            main([*words, *asked])
    with pytest.raises(SystemExit):
        main([*words, "--pairs", str(plain), "--primary", "pairs_mine"])
    assert "no such test; use captions or pairs_plain" in capsys.readouterr().err
    assert not ran and not (tmp_path / "study").exists()


def test_a_flag_that_is_nearly_one_of_the_study_is_told(capsys):
    for wrong, right in (("--seds", "--seeds"), ("--blindshare", "--blind_share"), ("--pair", "--pairs")):
        with pytest.raises(SystemExit):
            main([wrong, "5"])
        assert f"{wrong}: there is no such flag; did you mean {right}?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--arms", "V", "M"])
    assert "--arms V: write V,M,T, or V,M without text alone, as one word" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--seeds", "3", "clips.json", "--status"])
    assert "clips.json: belongs to no flag" in capsys.readouterr().err


def test_an_installed_package_says_that_it_has_no_demo(tmp_path, ran, monkeypatch):
    monkeypatch.setattr("llava.study.__main__.REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no data are named .DATA_PATH, VIDEO_FOLDER., and the demo is not part"):
        main(["--output", "study", "--seeds", "1", "--use_cpu", "True"])
    assert not ran


@pytest.mark.parametrize(
    ("hours", "said"), [(0.001, "1 min"), (0.51, "31 min"), (2.04, "2.0 hours"), (1300, "1,300 hours")]
)
def test_how_long_is_said_as_people_say_it(hours, said):
    assert about(hours) == f"about {said}"


def test_flags_that_a_study_sets_are_refused(assets, data, tmp_path, ran):
    with pytest.raises(UserError, match="--seed: --seeds says how many\n.*--text_only: arm T is text alone"):
        main([*command(assets, data, tmp_path / "study"), "--seed", "3", "--text_only", "True"])
    with pytest.raises(UserError, match="--on_bad_sample skip: text alone opens no clip"):
        main([*command(assets, data, tmp_path / "study"), "--on_bad_sample", "skip"])
    for wrong in (["--seeds", "0"], ["--blind_share", "1"], ["--arms", "T,V"]):
        with pytest.raises(SystemExit):
            main([*wrong, "--output", str(tmp_path / "study")])
    assert not ran and not (tmp_path / "study").exists() and sys.exc_info() == (None, None, None)
