"""Command lines end with a message for what a user did, and with a traceback for what they did not."""

from __future__ import annotations

import errno
import json
import os
import pickle

import pytest

from llava.errors import (
    FileIsThere,
    FolderInUse,
    MissingFile,
    NotCached,
    NotFinite,
    NotInstalled,
    Stopped,
    UnwritableFile,
    UserError,
    message_of,
    run_command,
    show,
)
from llava.eval.statistics import bootstrap_ratio
from llava.report.page import main as report
from llava.train.preflight.run import main as preflight


def test_an_error_of_the_user_is_a_message(tmp_path):
    with pytest.raises(SystemExit, match=r"^\nERROR: .*no run") as error:
        run_command(lambda: report([str(tmp_path)]))
    assert error.value.__cause__ is None or isinstance(error.value.code, str)
    wrong = ["--model_name_or_path", "/nowhere/at/all", "--data_path", "x.json", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"wrong flags:\n  - --data_path x.json: no such file"):
        run_command(lambda: preflight([*wrong, "--use_cpu", "True"]))


@pytest.mark.parametrize("fault", [lambda: json.loads("{"), lambda: bootstrap_ratio([], [], [])])
def test_any_other_error_keeps_its_traceback(fault):
    """Also one that this package raises where it is called in a wrong way: the class decides, not the place."""
    with pytest.raises(ValueError, match="no caption|Expecting"):
        run_command(fault)


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (MissingFile, FileNotFoundError), (FileIsThere, FileExistsError), (UnwritableFile, OSError),
        (FolderInUse, BlockingIOError), (NotInstalled, ImportError), (NotCached, LookupError),
        (NotFinite, FloatingPointError),
    ],
)  # fmt: skip
def test_each_kind_is_what_callers_expect_and_travels(kind, base):
    error = pickle.loads(pickle.dumps(kind("clip.mp4: gone; put it back")))
    assert isinstance(error, base) and isinstance(error, ValueError)
    assert message_of(error) == "clip.mp4: gone; put it back"


def test_what_the_system_says_of_a_file_is_a_message():
    full = OSError(errno.ENOSPC, "No space left on device", "out/report.html")
    assert message_of(full) == (
        "out/report.html: No space left on device; make room on its disk, then give the same command"
    )
    assert message_of(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None, "a fault of ours"


def test_of_several_processes_one_says_what_all_would(monkeypatch, tmp_path):
    """Each has its own file from torchrun, beside those of the others on its node."""

    def ends(rank: int, error: Exception) -> str | int:
        file = tmp_path / str(rank) / "error.json"
        file.parent.mkdir(exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))

        def fails():
            raise error

        with pytest.raises(SystemExit) as stop:
            run_command(fails)
        assert json.loads(file.read_text())["message"]["extraInfo"]["py_callstack"] == message_of(error) or lost(error)
        return stop.value.code

    def lost(error: Exception) -> bool:
        return "closed by peer" in str(error)

    assert ends(0, UserError("--bf16: wrong")) == "\nERROR: --bf16: wrong"
    assert ends(1, UserError("--bf16: wrong")) == 1
    assert ends(1, UserError("clip 7: wrong")) == "\nERROR: clip 7: wrong", "another reason is said too"
    assert ends(2, RuntimeError("[gloo/transport/tcp/pair.cc:525] Connection closed by peer")) == 1


def test_ctrl_c_and_a_reader_that_goes_end_a_command_without_a_traceback(monkeypatch, capsys):
    def pressed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_command(pressed)
    assert stop.value.code == 130 and capsys.readouterr().err == "\nstopped by Ctrl-C\n"

    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as gone:
        monkeypatch.setattr("sys.stdout", gone)
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: print("a caption", flush=True))
    assert stop.value.code == 141

    def peer_is_gone() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        run_command(peer_is_gone)


def test_the_status_of_a_command_is_its_exit_status():
    for status in (0, 1, None):
        with pytest.raises(SystemExit) as error:
            run_command(lambda status=status: status)
        assert error.value.code == status


def test_what_was_told_to_stop_has_its_own_status(capsys):
    def stop():
        raise Stopped("stopped: the same command goes on")

    with pytest.raises(SystemExit) as error:
        run_command(stop)
    assert error.value.code == 85
    assert capsys.readouterr().err == "\nstopped: the same command goes on\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Un gatto è qui.", "Un gatto è qui."), ("perche\u0301 no\u00a0", "perche\u0301 no\u00a0"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("a\nno problem", "a\\nno problem"), ("a\r\tb", "a\\r\\tb"), ("\x1b[2J", "\\x1b[2J"), ("\u2028", "\\u2028"),
        ("\u202egpm.4", "\\u202egpm.4"), ("\u200b\ufeff", "\\u200b\\ufeff"), ("caff\udce8", "caff\\udce8"),
        ("\0", "\\x00"),
        (7, "7"),
    ],
)  # fmt: skip
def test_foreign_text_is_one_line_that_can_be_written(text, shown):
    assert show(text) == shown == show(shown)
    show(text).encode("utf-8")


def test_a_message_keeps_its_own_lines_and_nothing_else(capsys):
    def stop():
        raise Stopped("clip \x1b[2J\udce8:\nthe same command goes on")

    with pytest.raises(SystemExit):
        run_command(stop)
    assert capsys.readouterr().err == "\nclip \\x1b[2J\\udce8:\nthe same command goes on\n"


@pytest.mark.parametrize(
    ("text", "lever"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)", "--shm-size"),
        ("DataLoader worker (pid 1) is killed by signal: Bus error. Are workers out of shared memory?", "--shm-size"),
        ("Caught RuntimeError in DataLoader worker process 0.\n  x\nRuntimeError: unable to open shared memory object "
         "</torch_1_2_3> in read-write mode: Too many open files (24)", "--dataloader_num_workers"),
        ("received 0 items of ancdata", "ulimit -n"),
        ("[gloo/transport/tcp/unbound_buffer.cc:133] Timed out waiting 25000ms for send", "--ddp_timeout"),
    ],
)  # fmt: skip
def test_what_ran_out_is_named_with_its_lever(text, lever):
    def fails():
        raise RuntimeError(text)

    with pytest.raises(SystemExit) as error:
        run_command(fails)
    assert lever in str(error.value.code) and "\n" not in str(error.value.code).strip()
