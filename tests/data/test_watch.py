"""Which file a process reads is known to the others, and a file that takes too long ends its process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llava.data.watch import ClipWatch
from llava.errors import path_of

HANG = """
import threading
from llava.data.watch import ClipWatch
watch = ClipWatch(2)
with watch.reading("a.mp4"):
    pass
with watch.reading("clips/hang.mp4"):
    threading.Event().wait()
"""


def test_a_file_is_known_while_it_is_read():
    watch = ClipWatch(60)
    assert path_of(os.getpid()) is None
    for path in ("clips/a long name.mp4", "clips/è.mp4", "b" * 5000):
        with watch.reading(path):
            assert watch.path_of(os.getpid()) == path_of(os.getpid()) == path[:4096]
            assert watch.path_of(1) is None
        assert path_of(os.getpid()) is None
    with pytest.raises(ValueError, match="broken"), watch.reading("c.mp4"):
        raise ValueError("broken")
    assert path_of(os.getpid()) is None


def test_a_file_that_takes_too_long_ends_its_process():
    ended = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 1
    assert "clips/hang.mp4: reading took longer than --clip_timeout 2 s" in ended.stderr
