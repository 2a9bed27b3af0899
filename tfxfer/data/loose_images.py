"""Images without labels: all that are in a folder, whatever folders they are in."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfxfer.data.base import IMAGE, DataInfo, DataSource
from tfxfer.data.folder import images_in, shown
from tfxfer.data.images import Header, common_shape, decode_image_file, hash_files, read_headers
from tfxfer.data.kinds import FOLDER, check_path
from tfxfer.data.labels import no_labels
from tfxfer.errors import UserError
from tfxfer.task import Task


class LooseImages(DataSource):
    """Images in a folder and in those inside, as one split `train` without labels.

    Args:
        folder: The folder.
        task: What the labels would be; they say that they are not known.
        skip_bad: Whether to leave out files whose header cannot be read.

    Raises:
        UserError: If there is no image, or one cannot be read and `skip_bad` is off.
    """

    def __init__(self, folder: str | os.PathLike, task: Task, skip_bad: bool = False):
        self._root = Path(folder).expanduser().absolute()
        check_path(FOLDER, self._root)
        files = [file.path for file in images_in(self._root, "", "")]
        headers = read_headers(self._paths(files))
        read = list(zip(files, headers, strict=True))
        bad = [(file, reason) for file, reason in read if not isinstance(reason, Header)]
        if bad and not skip_bad:
            raise UserError(f"{shown(bad[0][0])} {bad[0][1]}", "Correct it, or add --skip_bad.")
        self._files = [file for file, header in read if isinstance(header, Header)]
        if not self._files:
            raise UserError(
                f"{FOLDER}:{shown(str(self._root))} must hold images, and holds none",
                "Name a folder of .jpg, .png, .gif or .bmp files.",
            )
        count = len(self._files)
        self._labels = no_labels(task, count)
        self.info = DataInfo(
            name=f"{FOLDER}:{shown(self._root.name)}",
            task=task,
            inputs=IMAGE,
            shape=common_shape(headers),
            examples={"train": count},
        )
        self.raw_bytes = 200
        digest = hashlib.sha256(repr(self._files).encode("utf-8", "surrogateescape"))
        digest.update(hash_files(self._paths(self._files)).encode())
        self.fingerprint = digest.hexdigest()

    def _paths(self, files: Sequence[str]) -> list[str]:
        return [f"{self._root}/{file}" for file in files]

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(id, path, y)`; the id is the path inside the folder."""
        rows = np.arange(len(self._files)) if rows is None else rows
        ids = np.array([os.fsencode(self._files[row]) for row in rows], object)
        root = os.fsencode(f"{self._root}/")
        return tf.data.Dataset.from_tensor_slices(
            (tf.constant(ids, tf.string, [len(ids)]), self._labels[rows])
        ).map(lambda example_id, y: (example_id, root + example_id, y))

    def decode(self, raw: tf.Tensor) -> tf.Tensor:
        """Decodes an image file; see `decode_image_file`."""
        return decode_image_file(raw, self.info.shape)

    def labels(self, name: str) -> np.ndarray:
        """Returns -1, or NaN, for each image."""
        return self._labels

    def where(self, name: str, row: int) -> str:
        """Returns the path inside the folder."""
        return shown(self._files[row])
