"""Where the files of records may lie: under the folders that flags or a mixture name, unless all paths are allowed."""

from __future__ import annotations

import argparse
import os

from llava.data.mixture import DEFAULT_SEED

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
    return os.path.join(folder, path) if folder else path


def add_folder_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say where the files of records lie and which a mixture takes, as training has them."""
    parser.add_argument("--video_folder", help="prefix of the records' video paths")
    parser.add_argument("--image_folder", help="prefix of the records' image paths")
    parser.add_argument(
        "--allow_absolute_paths", action="store_true", help="records may name files outside these folders"
    )
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help="of what a YAML mixture takes at random (default: %(default)s)"
    )
