"""Who may read the weights that were written."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def follow_umask(folder: str | Path) -> None:
    """Gives the weights in a folder the permissions of its `config.json`, which are those that the umask leaves.

    safetensors writes for the owner alone, so that colleagues could list a checkpoint and not load it.
    """
    config = Path(folder) / "config.json"
    with suppress(OSError):  # File systems without permissions refuse to change them.
        for path in config.parent.glob("*.safetensors"):
            path.chmod(config.stat().st_mode & 0o777)
