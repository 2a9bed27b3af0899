"""Features as data: what trains a head, in batches and epochs like images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.data.base import TABLE, DataInfo, DataSource
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import TrainBatches, train_batches
from tfxfer.features import Features

_BLOCK = 256  # Examples handed to TensorFlow at a time.


@dataclass(frozen=True)
class FeatureBatches:
    """Batches of features for training, epoch after epoch, a view an epoch in turn.

    Attributes:
        views: Batches of each view.
    """

    views: tuple[TrainBatches, ...]

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return self.views[0].steps

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        """Returns the batches of epoch `first`, then those of the next, without end."""
        count = len(self.views)
        if count == 1:
            return self.views[0].epochs(first)
        turn = tf.data.Dataset.range(first, np.iinfo(np.int64).max).flat_map(
            lambda epoch: tf.data.Dataset.from_tensors(epoch % count).repeat(self.steps)
        )
        own = [each.epochs(-((view - first) // count)) for view, each in enumerate(self.views)]
        return tf.data.Dataset.choose_from_datasets(own, turn).prefetch(tf.data.AUTOTUNE)


def feature_batches(
    features: Features, part: Part, batch_size: int, *, seed: int, **options: Any
) -> FeatureBatches:
    """Batches features for training; see `train_batches`.

    Args:
        features: Of these examples, or of more.
        part: The examples.
        batch_size: Examples a batch, at least 1.
        seed: Of the order, in [0, 2**32).
        **options: More of `train_batches`: `balance`, `replicas`, `one_hot`.

    Returns:
        Batches `(x, y)`, features float32 `[batch, units]`.

    Raises:
        UserError: As `train_batches`.
    """
    return FeatureBatches(
        tuple(
            train_batches(
                feature_part(features, part, view),
                batch_size,
                seed=(seed + view) % 2**32,
                **options,
            )
            for view in range(len(features.x))
        )
    )


def feature_part(features: Features, part: Part, view: int = 0) -> Part:
    """Returns a part of the data with features for inputs, in the order of the original.

    Args:
        features: Of these examples, or of more.
        part: The examples.
        view: Which of the views to take.

    Raises:
        ValueError: If there are no features of an example.
    """
    source = _FeatureSource(features, view)
    return Part(source, part.split, features.positions(part), f"features of {part.origin}")


class _FeatureSource(DataSource):
    """Features as a table, read in blocks, since they may not fit into memory."""

    def __init__(self, features: Features, view: int):
        self._x, self._y = features.x[view], features.y
        original, split = features.part.source.info, features.part.split
        self.info = DataInfo(
            original.name, original.task, TABLE, self._x.shape[1:], {split: len(self._x)}
        )
        self.fingerprint = features.part.source.fingerprint
        self.raw_bytes = int(self._x[:1].nbytes)

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(position, features, y)`."""
        chosen = np.arange(len(self._x)) if rows is None else rows

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for start in range(0, len(chosen), _BLOCK):
                at = chosen[start : start + _BLOCK]
                yield at.astype(str).astype(object), self._x[at], self._y[at]

        signature = (
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None, *self._x.shape[1:]], self._x.dtype),
            tf.TensorSpec([None, *self._y.shape[1:]], self._y.dtype),
        )
        return tf.data.Dataset.from_generator(blocks, output_signature=signature).unbatch()

    def labels(self, name: str) -> np.ndarray:
        """Returns `y`."""
        return self._y
