"""Others may read what is saved as far as the umask says."""

from __future__ import annotations

import os
import stat

import pytest

from llava.commands.make_model import make_folder
from tests.conftest import save_tower


@pytest.fixture(params=[0o022, 0o027, 0o077])
def allowed(request):
    """Sets a umask and gives the permissions of a file under it."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def permissions(folder):
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_a_saved_model_follows_the_umask(build, tmp_path, allowed):
    """safetensors writes for the owner alone, and other users then read "no such file"."""
    build().save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    assert permissions(tmp_path / "model") == {allowed}


def test_models_of_the_maker_follow_the_umask(tmp_path, allowed):
    make_folder(tmp_path / "tower", {}, False, lambda folder: save_tower(folder, seed=0))
    assert permissions(tmp_path / "tower") == {allowed}
