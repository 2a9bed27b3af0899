"""An entry of the cache while it is written: what of it can be trusted, and by whom it is held."""

import contextlib
import errno
import io
import json
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfxfer.errors import UserError
from tfxfer.locks import lock

FORMAT = 2
"""Part of every key: to be raised when what is stored for the same key is another thing."""

Parts = Mapping[str, str | int | float]
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]

META = "meta.json"
PROGRESS = "progress"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Draft:
    """An entry while it is written.

    Attributes:
        folder: Where it is written.
        arrays: Memory-mapped, to be filled; zero at first, or as a killed process has left them.
        done: What was last recorded, by this process or by one that was killed; 0 at first.
        finished: The same arrays to read, once the entry is written. If another process was
            faster, they are what that one has written.
    """

    arrays: dict[str, np.memmap]
    finished: dict[str, np.memmap]

    def __init__(self, folder: Path, progress: io.FileIO, shapes: Shapes):
        self.folder, self._progress = folder, progress
        self.done, self.finished = recorded(progress), {}
        make = _opened if self.done else _made
        try:
            self.arrays = {
                name: make(folder / f"{name}.npy", np.dtype(dtype), tuple(shape))
                for name, (shape, dtype) in shapes.items()
            }
        except BaseException:
            self.done = 0
            self.leave()
            raise

    def record(self, done: int) -> None:
        """Brings what was filled to the disk, and notes that it can be trusted.

        If the block ends by an exception, or the process is killed, the next `write` of the same
        entry finds what was recorded, and can go on from there. Whatever else is in the arrays
        then may be half-written.

        Args:
            done: How much of the entry is filled, above 0, in whatever unit the writer counts.

        Raises:
            UserError: If the disk is full or the folder cannot be written.
        """
        with reported(self.folder.parent.parent):
            self._flush()
            os.pwrite(self._progress.fileno(), b"%020d" % done, 0)
            os.fsync(self._progress.fileno())
        self.done = done

    def release(self) -> None:
        """Hands what was filled so far to the system, so that it does not count as our memory."""
        for array in self.arrays.values():
            if isinstance(array.base, mmap.mmap):
                array.base.madvise(mmap.MADV_DONTNEED)

    def close(self, kind: str, parts: Parts, about: str) -> None:
        """Brings the arrays to the disk, and says so in `meta.json`.

        That file may be lost with the power: an entry without it is none.
        """
        self._flush()
        stated = {
            name: {
                "shape": list(array.shape),
                "dtype": array.dtype.str,
                "bytes": (self.folder / f"{name}.npy").stat().st_size,
            }
            for name, array in self.arrays.items()
        }
        now = time.time_ns()
        meta = {
            "format": FORMAT,
            "kind": kind,
            "parts": dict(parts),
            "about": about,
            "created": now / 1e9,
            "bytes": sum(array["bytes"] for array in stated.values()),
            "arrays": stated,
        }
        file = self.folder / META
        file.write_text(json.dumps(meta, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.utime(file, ns=(now, now))

    def _flush(self) -> None:
        for array in self.arrays.values():
            array.flush()

    def leave(self) -> None:
        """Lets go of the draft; removes it unless somebody can go on with it."""
        if self.finished or not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._progress.close()


def open_draft(target: Path, shapes: Shapes) -> Draft:
    """Goes on with what another process has left of an entry, or begins it."""
    for folder in target.parent.glob(f".unfinished-{target.name}-*"):
        # It may be in use, or not be what was recorded.
        with contextlib.suppress(OSError, ValueError):
            return Draft(folder, lock(folder / PROGRESS, "r+"), shapes)
    while True:
        folder = target.with_name(f".unfinished-{target.name}-{uuid.uuid4().hex}")
        folder.mkdir()
        # Until it is locked, another process may take it for one that was left.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            return Draft(folder, lock(folder / PROGRESS, "x+"), shapes)


def recorded(progress: io.FileIO) -> int:
    """Reads what `Draft.record` has written; 0 if that is nothing."""
    text = os.pread(progress.fileno(), 20, 0)
    return int(text) if text.isdigit() else 0


def _made(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Makes an array of zeros, and takes the room for it."""
    array = np.lib.format.open_memmap(file, "w+", dtype, shape)
    # Else a page that finds no room as it is written kills the process with SIGBUS.
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array


def _opened(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Opens an array to go on with it.

    Raises:
        ValueError: If it is not of this type and shape, or truncated.
    """
    size = file.stat().st_size  # Opening would bring it to what it should be.
    array = np.lib.format.open_memmap(file, "r+")
    if (array.dtype, array.shape, array.offset + array.nbytes) != (dtype, shape, size):
        raise ValueError(f"{file} holds another array.")
    return array


@contextlib.contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Makes what goes wrong with the disk an error of the user's."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise UserError(
                f"The disk of the cache folder {folder} must have room, and is full",
                "Make some, with --mode=cache --clear or otherwise, or name a folder on "
                "another disk with --cache_dir.",
            ) from error
        raise UserError(
            f"The cache folder {folder} must be one that can be read, written and locked: "
            f"{error.strerror or error}",
            "Name another with --cache_dir.",
        ) from error
