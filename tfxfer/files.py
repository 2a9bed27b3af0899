"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".unfinished-"
"""How names begin of what is not written whole."""


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` when the block ends.

    If the block raises, what it wrote is removed, and `path` is as it was. What a killed process
    leaves is beside `path`, for `remove_unfinished`.

    Args:
        path: A file or a folder; its parent is there.
    """
    unfinished = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        yield unfinished
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        unfinished.replace(path)
    finally:
        remove(unfinished)


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes were writing in a folder that nobody else writes to."""
    for path in list(folder.glob(f"{UNFINISHED}*")):
        remove(path)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
