"""A folder of arrays that were computed once: written whole or not at all, read memory-mapped.

An entry is a folder `<kind>/<key>` with one `.npy` file an array and a `meta.json`, so that it can
be read without this library. Several processes may share a cache. What is written is in a folder
`<kind>/.unfinished-<key>-<random>` until it is whole; its file `progress` says how much of it can
be trusted, and is locked by the process that writes. The system gives the lock free when that
process ends, however it ends, and another one can go on.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import mmap
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfxfer.errors import UserError

FORMAT = 1
"""Part of every key: to be raised when what is stored for the same key is another thing."""

Parts = Mapping[str, str | int | float]
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]

_ROOT = "TFXFER_CACHE_DIR"
_META = "meta.json"
_KIND = re.compile(r"[a-z_]+")
_KEY = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"\.unfinished-(?P<key>[0-9a-f]{64})-[0-9a-f]{32}")
_REMOVED = re.compile(r"\.removed-[0-9a-f]{32}")
_PROGRESS = "progress"
_KEPT = 7 * 24 * 60 * 60  # Seconds that what was begun waits for somebody to go on with it.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_ATTEMPTS = 3


def default_folder() -> Path:
    """Returns `computed` in `TFXFER_CACHE_DIR`, or in `~/.cache/tfxfer` if that is not set.

    In a folder of its own, so that clearing the cache does not touch downloads.
    """
    return Path(os.environ.get(_ROOT) or "~/.cache/tfxfer").expanduser() / "computed"


def entry_key(kind: str, parts: Parts) -> str:
    """Hashes what an entry was computed from.

    Args:
        kind: What it is, such as `features`.
        parts: What it depends on, strings and finite numbers by name; their order does not matter.

    Returns:
        The SHA-256 of their JSON, 64 hexadecimal digits.

    Raises:
        ValueError: If a part is neither a string nor a finite number.
    """
    for name, value in parts.items():
        if not isinstance(value, str | int | float):
            raise ValueError(f"Expected part {name!r} as a string or a number, received {value!r}.")
    stated = {"format": FORMAT, "kind": kind, "parts": dict(parts)}
    return hashlib.sha256(json.dumps(stated, sort_keys=True, allow_nan=False).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """What is known of an entry without reading its arrays.

    Attributes:
        kind: What it is, such as `features`.
        key: The hash of kind and parts.
        parts: What it was computed from.
        about: The same in words.
        bytes: What its files take.
        created: When it was written, in seconds since 1970.
        used: When it was written or last read, in seconds since 1970.
    """

    kind: str
    key: str
    parts: Parts
    about: str
    bytes: int
    created: float
    used: float


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
        self.done, self.finished = _recorded(progress), {}
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
        with _reported(self.folder.parent.parent):
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
        """Brings arrays and `meta.json` to the disk."""
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
        file = self.folder / _META
        file.write_text(json.dumps(meta, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.utime(file, ns=(now, now))
        _sync(file)
        _sync(self.folder)

    def _flush(self) -> None:
        for name, array in self.arrays.items():
            array.flush()
            _sync(self.folder / f"{name}.npy")

    def leave(self) -> None:
        """Lets go of the draft; removes it unless somebody can go on with it."""
        if self.finished or not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._progress.close()


class Cache:
    """A folder of entries that is kept below a size.

    An entry that does not fit what its `meta.json` says, such as one with a truncated file, is
    never read: it is removed, and treated as if it had never been there. Nothing else in the
    folder is ever touched.

    Args:
        folder: Where the entries are; made when the first one is written.
        limit_bytes: How much they may take together. Beyond it, the least recently used are
            removed, but never the one just written, however large. What is unfinished does not
            count; if nobody goes on with it, it is removed after a week.

    Raises:
        ValueError: If `limit_bytes` is negative.
    """

    def __init__(self, folder: str | os.PathLike, limit_bytes: int):
        if limit_bytes < 0:
            raise ValueError(f"Expected limit_bytes of at least 0, received {limit_bytes}.")
        self.folder = Path(folder).expanduser()
        self.limit_bytes = limit_bytes

    def read(self, kind: str, parts: Parts) -> dict[str, np.memmap] | None:
        """Finds an entry.

        Args:
            kind: What it is.
            parts: What it was computed from.

        Returns:
            Its arrays by name, memory-mapped and not to be written; `None` if there is none. They
            stay readable even if the entry is removed meanwhile.

        Raises:
            UserError: If the folder cannot be read.
        """
        folder = self._path(kind, parts)
        with _reported(self.folder):
            if not folder.is_dir():
                return None
            try:
                arrays = _load(folder, kind, parts)
            except (ValueError, TypeError, LookupError, AttributeError, FileNotFoundError):
                _remove(folder)
                return None
        with contextlib.suppress(OSError):  # It may belong to somebody else.
            now = time.time_ns()
            os.utime(folder / _META, ns=(now, now))
        return arrays

    @contextlib.contextmanager
    def write(self, kind: str, parts: Parts, shapes: Shapes, about: str = "") -> Iterator[Draft]:
        """Writes an entry, which is there once the block ends, and not if it raises.

        If a process that wrote the same entry was killed, or failed, what it had recorded is
        taken over. If one is writing it meanwhile, both do all of the work, and the entry of the
        faster one stays.

        Args:
            kind: What it is: lower-case letters and `_`.
            parts: What it is computed from.
            shapes: Shape and dtype of each array by name; names are identifiers.
            about: What it is in words, for a person; not a part of the key.

        Yields:
            A draft whose `arrays` are to be filled, from what is `done` on, and whose `finished`
            can be read afterwards.

        Raises:
            UserError: If the disk is full or the folder cannot be written.
        """
        if wrong := [name for name in shapes if not name.isidentifier()]:
            raise ValueError(f"Expected identifiers as names of arrays, received {wrong}.")
        target = self._path(kind, parts)
        with _reported(self.folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._tidy()
            draft = _draft(target, shapes)
        try:
            yield draft
            with _reported(self.folder):
                draft.close(kind, parts, about)
                own = _load(draft.folder, kind, parts)
                draft.finished = self._publish(draft.folder, kind, parts) or own
        finally:
            draft.leave()
        self._evict(target)

    def entries(self) -> list[Entry]:
        """Lists the entries, the most recently used first.

        Raises:
            UserError: If the folder cannot be read.
        """
        with _reported(self.folder):
            found = [_entry(folder) for folder in self._folders()]
        entries = [entry for entry in found if entry is not None]
        return sorted(entries, key=lambda entry: (entry.used, entry.key), reverse=True)

    def clear(self) -> tuple[int, int]:
        """Removes all entries, and what processes that were killed or failed have left.

        Returns:
            How many entries were removed, and how many bytes they took.

        Raises:
            UserError: If the folder cannot be written.
        """
        count = size = 0
        with _reported(self.folder):
            self._tidy(kept=float("-inf"))
            for folder in self._folders():
                taken = _size(folder)
                with contextlib.suppress(FileNotFoundError):  # Another process was faster.
                    _take_away(folder)
                    count, size = count + 1, size + taken
        return count, size

    def _path(self, kind: str, parts: Parts) -> Path:
        if not _KIND.fullmatch(kind):
            raise ValueError(f"Expected a kind of lower-case letters and _, received {kind!r}.")
        return self.folder / kind / entry_key(kind, parts)

    def _folders(self) -> list[Path]:
        return [path for path in self._inside() if _KEY.fullmatch(path.name)]

    def _inside(self) -> list[Path]:
        found = sorted(self.folder.iterdir()) if self.folder.exists() else []
        kinds = [path for path in found if _KIND.fullmatch(path.name) and path.is_dir()]
        return [path for kind in kinds for path in sorted(kind.iterdir())]

    def _publish(self, unfinished: Path, kind: str, parts: Parts) -> dict[str, np.memmap] | None:
        """Makes a draft an entry, or finds that there is one already; returns its arrays."""
        target = self._path(kind, parts)
        for _ in range(_ATTEMPTS):
            try:
                unfinished.rename(target)
                (target / _PROGRESS).unlink(missing_ok=True)
                _sync(target.parent)
            except FileNotFoundError:
                return None  # Ours is there no more: another process has evicted it already.
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            if (arrays := self.read(kind, parts)) is not None:
                return arrays
        return None

    def _evict(self, keep: Path) -> None:
        """Removes the least recently used entries beyond the limit, and those that are damaged."""
        found = {folder: _entry(folder) for folder in self._folders()}
        for folder, entry in found.items():
            if entry is None and folder != keep:
                _remove(folder)
        entries = {folder: entry for folder, entry in found.items() if entry is not None}
        total = sum(entry.bytes for entry in entries.values())
        for folder in sorted(entries, key=lambda each: (entries[each].used, each)):
            if total <= self.limit_bytes:
                break
            if folder != keep and _remove(folder):
                total -= entries[folder].bytes

    def _tidy(self, kept: float = _KEPT) -> None:
        """Removes what processes have left that are gone, but what can be gone on with for a while.

        Args:
            kept: Seconds that this is kept since the last progress.
        """
        for path in self._inside():
            if _REMOVED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
            elif unfinished := _UNFINISHED.fullmatch(path.name):
                with contextlib.suppress(OSError), _lock(path / _PROGRESS, "r+") as progress:
                    idle = time.time() - os.fstat(progress.fileno()).st_mtime
                    written = path.with_name(unfinished["key"]).exists()
                    if written or idle >= kept or not _recorded(progress):
                        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
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


def _draft(target: Path, shapes: Shapes) -> Draft:
    """Goes on with what another process has left of an entry, or begins it."""
    for folder in target.parent.glob(f".unfinished-{target.name}-*"):
        # It may be in use, or not be what was recorded.
        with contextlib.suppress(OSError, ValueError):
            return Draft(folder, _lock(folder / _PROGRESS, "r+"), shapes)
    while True:
        folder = target.with_name(f".unfinished-{target.name}-{uuid.uuid4().hex}")
        folder.mkdir()
        # Until it is locked, another process may take it for one that was left.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            return Draft(folder, _lock(folder / _PROGRESS, "x+"), shapes)


def _lock(file: Path, mode: str) -> io.FileIO:
    """Opens a file for this process alone, until it is closed.

    Raises:
        OSError: If another process has it, or has removed it meanwhile.
    """
    opened = io.FileIO(file, mode)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.stat()
    except OSError:
        opened.close()
        raise
    return opened


def _recorded(progress: io.FileIO) -> int:
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


def _load(folder: Path, kind: str, parts: Parts) -> dict[str, np.memmap]:
    """Opens the arrays of an entry.

    Raises:
        ValueError: If they do not fit what `meta.json` says, or it speaks of another entry. What
            else is raised by a file that holds something else also says that it does not fit.
    """
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    stated = {"format": FORMAT, "kind": kind, "parts": dict(parts)}
    if {name: meta[name] for name in stated} != stated:
        raise ValueError(f"{folder} holds another entry.")
    arrays = {}
    for name, expected in meta["arrays"].items():
        file = folder / f"{name}.npy"
        if file.stat().st_size != expected["bytes"]:
            raise ValueError(f"{file} has another size.")
        array = np.lib.format.open_memmap(file, "r")
        if list(array.shape) != expected["shape"] or array.dtype.str != expected["dtype"]:
            raise ValueError(f"{file} holds another array.")
        arrays[name] = array
    return arrays


def _entry(folder: Path) -> Entry | None:
    """Reads what an entry says of itself; `None` if that cannot be read."""
    try:
        file = folder / _META
        meta = json.loads(file.read_text(encoding="utf-8"))
        return Entry(
            kind=folder.parent.name,
            key=folder.name,
            parts=dict(meta["parts"]),
            about=str(meta["about"]),
            bytes=_size(folder),
            created=float(meta["created"]),
            used=file.stat().st_mtime_ns / 1e9,
        )
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _take_away(folder: Path) -> None:
    """Removes an entry, at once for whoever reads."""
    removed = folder.with_name(f".removed-{uuid.uuid4().hex}")
    folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _remove(folder: Path) -> bool:
    """Removes an entry if that can be done, and tells whether it was."""
    try:
        _take_away(folder)
    except OSError:  # Another process was faster, or it belongs to somebody else.
        return False
    return True


def _size(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # Another process may be removing it.
        return sum(file.stat().st_size for file in folder.iterdir())
    return 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
