"""Command lines: spellings, groups of `--help`, and one message for all that is wrong."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import _http

from llava.config.commands import check_output, parse, quiet_libraries, refuse
from llava.config.groups import DataFlags, FrameFlags
from llava.config.ranges import COUNT


@dataclass
class Own:
    """Flags of a command."""

    ranges = {"batch_size": COUNT}

    out_file: Path = field(metadata={"help": "What to write."})
    batch_size: int = field(default=16, metadata={"help": "Clips at once, 100 %% of them."})
    many: list[int] | None = field(default=None, metadata={"help": "Numbers."})
    fast: bool = field(default=False, metadata={"help": "Hurry."})
    clips: bool = field(default=True, metadata={"help": "Show clips."})
    word: str | None = None

    def __post_init__(self) -> None:
        if self.word == "bad":
            raise ValueError("--word bad: another word")


@dataclass
class Named:
    """Arguments without a flag."""

    first: Path = field(metadata={"positional": True, "metavar": "DIR", "help": "The first."})
    others: list[str] = field(default_factory=list, metadata={"positional": True, "metavar": "RUN", "help": "More."})
    out: str = field(default="x", metadata={"help": "Where."})


def own(*words: str) -> Own:
    (flags,) = parse("A command.", Own, argv=["--out_file", "a.json", *words], prog="command")
    return flags


def said(capsys: pytest.CaptureFixture[str], *words: str, kinds: Any = (Own,)) -> str:
    with pytest.raises(SystemExit) as stop:
        parse("A command.", *kinds, argv=words, prog="command")
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_underscores_and_hyphens_are_one_flag() -> None:
    assert own("--batch_size", "3") == own("--batch-size", "3") == own("--batch-size=3") == Own(Path("a.json"), 3)
    assert own("--many", "1", "2").many == [1, 2]


def test_booleans_are_switched_with_a_value_and_without() -> None:
    assert [own(*w).fast for w in ([], ["--fast"], ["--fast", "True"], ["--fast", "False"])] == [
        False,
        True,
        True,
        False,
    ]
    assert [own(*w).clips for w in ([], ["--no_clips"], ["--no-clips"], ["--clips", "no"])] == [
        True,
        False,
        False,
        False,
    ]


def test_each_class_gets_its_own_flags() -> None:
    argv = ["--data_path", "a.json", "--video-folder", "clips", "--num_frames", "8", "--out-file", "b"]
    data, frames, flags = parse("A command.", DataFlags, FrameFlags, Own, argv=argv)
    assert (data.data_path, data.video_folder, frames.num_frames, flags.out_file) == ("a.json", "clips", 8, Path("b"))
    assert frames.video_spec(fast_latents=4).fast_rows == 32


def test_arguments_without_a_flag() -> None:
    (named,) = parse("A command.", Named, argv=["runs", "a", "b", "--out", "y"])
    assert named == Named(Path("runs"), ["a", "b"], "y")
    assert parse("A command.", Named, argv=["--out", "y", "runs"])[0] == Named(Path("runs"), [], "y")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out_file", "a", "--batch-sise", "3"], "--batch-sise: there is no such flag; did you mean --batch_size?"),
        (["--out_file", "a", "--batch_s", "3"], "--batch_s: there is no such flag; did you mean --batch_size?"),
        (["--out_file", "a", "--batch_size", "0"], "--batch_size 0: a whole number, 1 or more"),
        (["--out_file", "a", "--batch-size", "x"], "--batch_size: invalid int value: 'x'"),
        (["--out_file", "a", "b"], "b: belongs to no flag; a value with spaces or braces needs quotes"),
        (["--out_file", "a", "--word", "bad"], "--word bad: another word"),
        (["--fast"], "--out_file is needed: What to write."),
        (["--out_file"], "--out_file: expected one argument"),
    ],
)
def test_a_wrong_flag_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert said(capsys, *words) == f"command: {message}\n"


def test_all_wrong_flags_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "--batch_size", "0", "--sise", "3", "--fast").splitlines()
    assert lines[0] == "command: wrong flags:"
    assert [line.split()[1] for line in lines[1:]] == ["--sise:", "--out_file", "--batch_size"]
    lines = said(capsys, "--out_file", "a", "--batch_size", "0", "--word", "bad").splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["--batch_size", "--word"]


def test_a_missing_argument_without_a_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, kinds=(Named,)) == "command: DIR is needed: The first.\n"


def test_a_hub_that_is_not_reached_is_no_line_a_try(caplog: pytest.LogCaptureFixture) -> None:
    quiet_libraries()
    for line in ("'[Errno -2]' thrown while requesting HEAD x", "Retrying in 2s [Retry 2/5].", "Rate limited. Waiting"):
        _http.logger.warning(line)
    assert [record.getMessage() for record in caplog.records] == ["Rate limited. Waiting"]


def test_help_has_groups_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("Does one thing.\n\n    Says so.", DataFlags, FrameFlags, Own, argv=["--help"], prog="command")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: command --data_path --out_file [flags]\n\nDoes one thing.\n\nSays so.\n")
    assert shown.index("\ndata:") < shown.index("--data_path DATA_PATH") < shown.index("\nframes, as in training:")
    assert "Clips at once, 100 % of them. (default: 16)" in shown
    assert "--batch-size" not in shown and "None" not in shown, "one spelling, and no default that is none"
    assert "--no_clips" in shown and "no --clips" in shown


def test_a_refusal_is_one_line_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        refuse(ValueError("no such\x1b[2Jmodel"), "command")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "command: no such\\x1b[2Jmodel\n"
    with pytest.raises(SystemExit):
        refuse(OSError(errno.ENOSPC, "No space left on device"), "command")
    assert "command: the disk is full: make room on it" in capsys.readouterr().err


def test_a_file_that_could_not_be_written_is_refused(tmp_path: Path) -> None:
    check_output("--output", None)
    check_output("--output", tmp_path / "a.json")
    with pytest.raises(ValueError, match="--output .*: is a folder"):
        check_output("--output", tmp_path)
    with pytest.raises(ValueError, match="--output .*: there is no folder .*none; make it first"):
        check_output("--output", tmp_path / "none" / "a.json")


@pytest.mark.parametrize(
    ("module", "prog"),
    [
        ("llava.serve.cli", "llava.serve.cli"),
        ("llava.report.page", "llava.eval.report"),
        ("llava.data.check", "llava.data.check"),
        ("llava.eval.controls", "llava.eval.controls"),
        ("llava.eval.captioning", "llava.eval.captioning"),
        ("llava.eval.pairs", "llava.eval.pairs"),
        ("llava.eval.sighted", "llava.eval.sighted"),
        ("llava.eval.surprisal", "llava.eval.surprisal"),
        ("llava.eval.visual_pairs", "llava.eval.visual_pairs"),
        ("llava.commands.convert_weights", "llava.commands.convert_weights"),
        ("llava.commands.merge_lora", "llava.commands.merge_lora"),
        ("llava.commands.extract", "llava.data.extract"),
    ],
)
def test_every_command_names_a_flag_that_is_not_known(
    capsys: pytest.CaptureFixture[str], module: str, prog: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        import_module(module).main(["--no_such-flag_at_all=3"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"python -m {prog}: wrong flags:\n  - --no_such-flag_at_all: there is no such flag")
    assert " is needed: " in said
