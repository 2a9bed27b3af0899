"""Images in one folder per class, with train, validation and test folders or without."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfxfer.data.base import IMAGE, BadExample, DataInfo, DataSource
from tfxfer.data.images import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    Header,
    common_shape,
    decode_image_file,
    hash_files,
    read_headers,
)
from tfxfer.data.kinds import FOLDER, check_path
from tfxfer.data.labels import check_usable
from tfxfer.data.split_names import split_named
from tfxfer.errors import UserError
from tfxfer.spec import Spec
from tfxfer.task import SINGLE_LABEL, Task

PREFIX = f"{FOLDER}:"

_FIX = (
    "Put the images into one folder per class, such as PATH/cat/1.jpg, or PATH/train/cat/1.jpg "
    "beside PATH/test/cat/2.jpg."
)
_IGNORED = ("thumbs.db", "desktop.ini", "__macosx")


def open_folder(spec: Spec, *, task: str = "") -> "FolderSource":
    """Opens `folder:PATH`.

    The folder holds one folder per class, or train, validation and test folders that do (`train`,
    `training`; `val`, `valid`, `validation`, `dev`; `test`, `testing`; in any case). Without
    them everything is `train`. Other folders beside `train` are passed over, as are hidden files
    and files that are not named as images. Folders inside that of a class, and symbolic links,
    are followed.

    Args:
        spec: Without options.
        task: Empty or `single_label`.

    Returns:
        The images. Its classes are the folders with usable images for training. `bad` lists files
        whose header cannot be read, images of formats that are not decoded, empty class folders,
        and images of classes that training lacks.

    Raises:
        UserError: If there are no images of two classes for training.
    """
    spec.only(())
    if task not in ("", SINGLE_LABEL):
        raise UserError(
            f"{spec.name!r} has one class an image, and the task is {task}",
            "Give images with several labels or numbers in a table, such as csv:PATH.",
        )
    root = Path(spec.name.removeprefix(PREFIX)).expanduser().absolute()
    check_path(FOLDER, root)
    return FolderSource(root)


# TFDS ImageFolder reads such folders too, but ends at the first file that cannot be decoded
# without naming it, takes all folders at the top for splits, and has no rows to choose from.
class FolderSource(DataSource):
    """Images in one folder per class; see `open_folder`. Raw inputs are paths.

    The fingerprint covers the names and the contents of the files, of more than 1 GiB as
    `hash_files` says.

    Args:
        root: The folder, absolute.
    """

    def __init__(self, root: Path):
        self._root = root
        folders = {
            name: _class_folders(root, folder) for name, folder in _split_folders(root).items()
        }
        files = {
            name: [file for found in listing.classes.values() for file in found]
            for name, listing in folders.items()
        }
        self._files = {name: [file.path for file in found] for name, found in files.items()}
        headers = {name: read_headers(self._paths(found)) for name, found in self._files.items()}
        usable = {
            file.label
            for file, header in zip(files["train"], headers["train"], strict=True)
            if isinstance(header, Header)
        }
        names = tuple(sorted(usable))
        bad: list[BadExample] = []
        self._labels: dict[str, np.ndarray] = {}
        index = {label: position for position, label in enumerate(names)}
        for name, listing in folders.items():
            bad += [BadExample(where, reason, name) for where, reason in listing.bad]
            for row, (file, header) in enumerate(zip(files[name], headers[name], strict=True)):
                if isinstance(header, str):
                    bad.append(BadExample(shown(file.path), header, name, row))
                elif file.label not in index:
                    reason = f"is of class {shown(file.label)!r}, which has no image in train"
                    bad.append(BadExample(shown(file.path), reason, name, row))
            self._labels[name] = np.array([index.get(f.label, -1) for f in files[name]], np.int64)
        self.bad = tuple(bad)
        task = Task(SINGLE_LABEL, tuple(map(shown, names)))
        fix = f"{_FIX} {shown(str(root))} may be one level too deep or too high."
        check_usable(f"{PREFIX}{shown(str(root))}", task, self._labels["train"], bad, fix)
        self.info = DataInfo(
            name=f"{PREFIX}{shown(root.name)}",
            task=task,
            inputs=IMAGE,
            shape=common_shape([header for found in headers.values() for header in found]),
            examples={name: len(found) for name, found in self._files.items()},
        )
        self.raw_bytes = 200
        digest = hashlib.sha256(repr((names, self._files)).encode("utf-8", "surrogateescape"))
        everything = [path for found in self._files.values() for path in self._paths(found)]
        digest.update(hash_files(everything).encode())
        self.fingerprint = digest.hexdigest()

    def _paths(self, files: Sequence[str]) -> list[str]:
        return [f"{self._root}/{file}" for file in files]

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(id, path, y)`; the id is the path inside the folder."""
        files, labels = self._files[name], self._labels[name]
        if rows is not None:
            files, labels = [files[row] for row in rows], labels[rows]
        ids = np.array([os.fsencode(file) for file in files], object)
        root = os.fsencode(f"{self._root}/")
        return tf.data.Dataset.from_tensor_slices(
            (tf.constant(ids, tf.string, [len(ids)]), labels)
        ).map(lambda example_id, y: (example_id, root + example_id, y))

    def decode(self, raw: tf.Tensor) -> tf.Tensor:
        """Decodes an image file; see `decode_image_file`."""
        return decode_image_file(raw, self.info.shape)

    def labels(self, name: str) -> np.ndarray:
        """Returns the classes of a split, int64 `[n]`; -1 for one that training lacks."""
        return self._labels[name]

    def where(self, name: str, row: int) -> str:
        """Returns the path inside the folder."""
        return shown(self._files[name][row])


@dataclass(frozen=True)
class ImageFile:
    """An image: its path inside the root, and its label."""

    path: str
    label: str


@dataclass(frozen=True)
class _Listing:
    classes: Mapping[str, Sequence[ImageFile]]
    bad: Sequence[tuple[str, str]]


def shown(name: str) -> str:
    """Returns a name of a file in characters that every terminal and file can take."""
    return os.fsencode(name).decode("utf-8", "replace")


def _split_folders(root: Path) -> dict[str, str]:
    """Returns the folder of each split, inside the root; that of `train` may be the root."""
    found: dict[str, str] = {}
    folders = [entry.name for entry in _entries(root) if entry.is_dir()]
    for folder in folders:
        name = split_named(folder)
        if name in found:
            raise UserError(
                f"{PREFIX}{root} must have one folder for {name}, and has "
                f"{found[name]!r} and {folder!r}",
                "Merge or rename them.",
            )
        if name:
            found[name] = folder
    if "train" not in found:
        if found and len(found) == len(folders):
            raise UserError(
                f"{PREFIX}{root} must have a folder 'train' beside "
                f"{' and '.join(map(repr, found.values()))}",
                _FIX,
            )
        return {"train": ""}
    # There may be a class of trains: its folder holds images, not folders.
    inside = _entries(root / found["train"])
    if not any(entry.is_dir() for entry in inside) and len(found) < len(folders):
        return {"train": ""}
    return {name: found[name] for name in ("train", "validation", "test") if name in found}


def _class_folders(root: Path, folder: str) -> _Listing:
    classes: dict[str, list[ImageFile]] = {}
    bad: list[tuple[str, str]] = []
    loose = []
    for entry in _entries(root / folder):
        path = f"{folder}/{entry.name}" if folder else entry.name
        if not entry.is_dir():
            if _is_image(entry.name):
                loose.append(path)
        elif found := list(images_in(root, path, entry.name)):
            classes[entry.name] = found
        else:
            bad.append((shown(path), "is a class folder without images"))
    if loose:
        more = f", as are {len(loose) - 1} more" if len(loose) > 1 else ""
        bad.append((shown(loose[0]), f"is in no class folder{more}"))
    return _Listing(classes, bad)


def images_in(
    root: Path, folder: str, label: str, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[ImageFile]:
    """Finds the images in a folder and in those inside of it.

    Args:
        root: That paths are told from.
        folder: Inside the root; the root itself if empty.
        label: That the images get.
        above: Folders that this one is in, by device and number.
    """
    status = (root / folder).stat()
    here = (status.st_dev, status.st_ino)
    if here in above:  # A link to a folder above: following it would never end.
        return
    for entry in _entries(root / folder):
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_dir():
            yield from images_in(root, path, label, above | {here})
        elif _is_image(entry.name):
            yield ImageFile(path, label)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower() not in _IGNORED
            ]
    except OSError as error:
        raise UserError(
            f"Folder {shown(str(folder))!r} cannot be read: {error.strerror}",
            "Check its permissions.",
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES
