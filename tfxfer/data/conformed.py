"""Images of one dataset in the shape of another one's."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfxfer.data.augment import resize
from tfxfer.data.base import DataSource


class Conformed(DataSource):
    """A source whose images are brought to a size and a number of channels as they are decoded.

    Args:
        source: Of images.
        shape: Height, width and channels; sides that are `None` stay as they are.
    """

    def __init__(self, source: DataSource, shape: Sequence[int | None]):
        height, width, channels = shape
        self._source, self._channels = source, channels
        self._size = (height, width) if height and width else None
        kept = self._size or source.info.shape[:2]
        self.info = dataclasses.replace(source.info, shape=(*kept, channels))
        self.fingerprint = f"{source.fingerprint} as {tuple(shape)}"
        self.raw_bytes, self.bad = source.raw_bytes, source.bad

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns what the source does."""
        return self._source.read(name, rows)

    def decode(self, raw: tf.Tensor) -> tf.Tensor:
        """Decodes an image, and brings it to the shape; uint8."""
        x = tf.ensure_shape(self._source.decode(raw), self._source.info.shape)
        if x.shape[-1] == 1 and self._channels == 3:
            x = tf.image.grayscale_to_rgb(x)
        elif x.shape[-1] == 3 and self._channels == 1:
            x = tf.image.rgb_to_grayscale(x)
        if self._size is None or x.shape[:2].as_list() == list(self._size):
            return x
        return tf.saturate_cast(tf.round(resize(x, self._size)), tf.uint8)

    def labels(self, name: str) -> np.ndarray:
        """Returns those of the source."""
        return self._source.labels(name)

    def groups(self, name: str) -> np.ndarray | None:
        """Returns those of the source."""
        return self._source.groups(name)

    def where(self, name: str, row: int) -> str:
        """Returns where the source has it."""
        return self._source.where(name, row)
