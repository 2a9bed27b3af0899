"""What every source of data gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class DataInfo:
    """What is known of a dataset before it is read.

    Attributes:
        name: Name, config and version, such as `digits/1.0.0`.
        label_names: Names of the classes, in the order of the integer labels.
        image_shape: Height, width and channels of an image; `None` where it varies.
        examples: Number of examples per split.
    """

    name: str
    label_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    examples: Mapping[str, int]


class DataSource(Protocol):
    """A labelled dataset, as it stands on disk: batching and shuffling are not its business.

    Attributes:
        info: What is known of it.
        fingerprint: A hash of the data; the source says how much of it is read for that.
    """

    info: DataInfo
    fingerprint: str

    def split(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns a split as `(id, image, label)`, always in the same order.

        The id is a string scalar, the image uint8 `[height, width, channels]`, the label an
        int64 scalar.

        Args:
            name: Of the split.
            rows: Positions to keep, all if `None`; images at others are not decoded.
        """
        ...

    def labels(self, name: str) -> np.ndarray:
        """Returns the labels of a split, int64, in its order, without decoding images."""
        ...
