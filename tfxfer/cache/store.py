"""A folder of arrays that were computed once: written whole or not at all, read memory-mapped.

An entry is a folder `<kind>/<key>` with one `.npy` file an array and a `meta.json`, so that it can
be read without this library. Several processes may share a cache. What is written is in a folder
`<kind>/.unfinished-<key>-<random>` until it is whole; its file `progress` says how much of it can
be trusted, and is locked by the process that writes. The system gives the lock free when that
process ends, however it ends, and another one can go on.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfxfer.cache.draft import (
    FORMAT,
    META,
    PROGRESS,
    Draft,
    Parts,
    Shapes,
    open_draft,
    recorded,
    reported,
)
from tfxfer.locks import lock

_ROOT = "TFXFER_CACHE_DIR"
_KIND = re.compile(r"[a-z_]+")
_KEY = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"\.unfinished-(?P<key>[0-9a-f]{64})-[0-9a-f]{32}")
_REMOVED = re.compile(r"\.removed-[0-9a-f]{32}")
_KEPT = 7 * 24 * 60 * 60  # Seconds that what was begun waits for somebody to go on with it.
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
        with reported(self.folder):
            if not folder.is_dir():
                return None
            try:
                arrays = _load(folder, kind, parts)
            except (ValueError, TypeError, LookupError, AttributeError, FileNotFoundError):
                _remove(folder)
                return None
        with contextlib.suppress(OSError):  # It may belong to somebody else.
            now = time.time_ns()
            os.utime(folder / META, ns=(now, now))
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
        with reported(self.folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._tidy()
            draft = open_draft(target, shapes)
        try:
            yield draft
            with reported(self.folder):
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
        with reported(self.folder):
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
        with reported(self.folder):
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
                (target / PROGRESS).unlink(missing_ok=True)
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
                with contextlib.suppress(OSError), lock(path / PROGRESS, "r+") as progress:
                    idle = time.time() - os.fstat(progress.fileno()).st_mtime
                    written = path.with_name(unfinished["key"]).exists()
                    if written or idle >= kept or not recorded(progress):
                        shutil.rmtree(path, ignore_errors=True)


def _load(folder: Path, kind: str, parts: Parts) -> dict[str, np.memmap]:
    """Opens the arrays of an entry.

    Raises:
        ValueError: If they do not fit what `meta.json` says, or it speaks of another entry. What
            else is raised by a file that holds something else also says that it does not fit.
    """
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
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
        file = folder / META
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
