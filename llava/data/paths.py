"""Where the files of records may lie: under the folders that flags or a mixture name, unless all paths are allowed."""

from __future__ import annotations

import os

OUTSIDE = "path outside folder"
"""Kind of the problem of a path that leaves its folder."""


def leaves_folder(path: str) -> bool:
    """Whether a path is absolute or has a `..`, by its text alone.

    `a/../b` counts too: what it names depends on whether `a` is a link. Links inside the folder are followed, wherever
    they lead: they are the work of who set the folder up, often to share one copy of a large data set, and no text of
    a record can make one.
    """
    if os.path.isabs(path) or os.path.splitdrive(path)[0]:
        return True
    return ".." in path and ".." in path.replace("\\", "/").split("/")


def place(path: str, folder: str) -> str:
    """The path under its folder; without one it is relative to the working directory."""
    if not folder:
        return path
    if os.sep == "/" and not path.startswith("/"):  # As `os.path.join` does, at a fifth of its time.
        return folder + path if folder.endswith("/") else f"{folder}/{path}"
    return os.path.join(folder, path)
