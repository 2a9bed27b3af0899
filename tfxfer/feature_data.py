"""Features as data: what trains a head, in batches and epochs like images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.data.base import TABLE, DataInfo, DataSource
from tfxfer.data.epoch import TrainBatches
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import batches, train_batches
from tfxfer.features import Features

_BLOCK = 256  # Examples handed to TensorFlow at a time.


@dataclass(frozen=True)
class FeatureBatches:
    """Batches of features for training, epoch after epoch, a view an epoch in turn.

    They come in the order in which `train_batches` gives the images themselves, however large
    either are: what is shuffled are positions, and the features are looked up a batch at a time.

    Attributes:
        positions: Batches of positions in the features.
        features: To look up.
    """

    positions: TrainBatches
    features: Features

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return self.positions.steps

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        """Returns the batches of epoch `first`, then those of the next, without end."""
        views = len(self.features.x)
        return _looked_up(
            self.positions.epochs(first),
            self.features,
            lambda batch: (first + batch // self.steps) % views,
        )


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
        Batches `(x, y)`, features float32 `[batch, ...]`, for features `[batch, units]`. Those of
        several views are what images are made of by `train_batches` with the same seed and `views`.

    Raises:
        UserError: As `train_batches`.
        ValueError: If there are no features of an example.
    """
    positions = _positions(features, part)
    return FeatureBatches(train_batches(positions, batch_size, seed=seed, **options), features)


def ordered_feature_batches(
    features: Features, part: Part, batch_size: int, **options: Any
) -> tf.data.Dataset:
    """Batches features in the order of the part, for evaluation; see `batches`.

    Args:
        features: Of these examples, or of more; their first view counts.
        part: The examples.
        batch_size: Examples a batch, at least 1.
        **options: More of `batches`: `replicas`, `one_hot`.

    Returns:
        Batches `(x, y)`, features float32 `[batch, ...]`.

    Raises:
        UserError: As `batches`.
        ValueError: If there are no features of an example.
    """
    data = batches(_positions(features, part), batch_size, **options)
    return _looked_up(data, features, lambda batch: 0)


def _positions(features: Features, part: Part) -> Part:
    rows = features.positions(part)
    return Part(_Positions(features), part.split, rows, f"features of {part.origin}")


def _looked_up(
    data: tf.data.Dataset, features: Features, view: Callable[[tf.Tensor], Any]
) -> tf.data.Dataset:
    """Puts features in place of their positions; `view` tells which of a batch's number."""

    def rows(view: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return np.asarray(features.x[view][positions])

    def look_up(number: tf.Tensor, batch: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        positions, *rest = batch
        x = tf.numpy_function(rows, (view(number), positions), features.x.dtype, stateful=False)
        return tf.ensure_shape(x, (positions.shape[0], *features.x.shape[2:])), *rest

    looked_up = data.enumerate().map(
        lambda number, *batch: look_up(number, batch[0]),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return looked_up.prefetch(tf.data.AUTOTUNE)


class _Positions(DataSource):
    """The positions of examples in features, in place of these."""

    def __init__(self, features: Features):
        original, self._y = features.part.source, features.y
        count = {features.part.split: len(self._y)}
        self.info = DataInfo(original.info.name, original.info.task, TABLE, (), count)
        self.fingerprint = original.fingerprint
        # As large as the original, so that as much of them is shuffled at a time.
        self.raw_bytes = original.raw_bytes

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(position, position, y)`."""
        chosen = np.arange(len(self._y)) if rows is None else rows
        examples = tf.data.Dataset.from_tensor_slices((chosen, self._y[chosen]))
        return examples.map(lambda at, y: (tf.strings.as_string(at), at, y))

    def labels(self, name: str) -> np.ndarray:
        """Returns `y`."""
        return self._y


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
