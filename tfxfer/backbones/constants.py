"""Weights as constants of a graph, for networks that stay as they are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

_MOST_BYTES = 2**29  # A graph holds 2 GB, and each copy of it as much again.


class Constants:
    """The values that some weights have when they are read, to trace graphs with.

    TensorFlow folds constants into one another, such as batch normalization into the convolution
    before it: about a third faster on a CPU, and other last digits. Very large networks keep their
    variables, the sooner the more replicas there are, each with constants of its own in the graph.

    Args:
        weights: Of a network; read now.
    """

    def __init__(self, weights: Sequence[keras.Variable]):
        sizes = [np.prod(each.shape) * tf.as_dtype(each.dtype).size for each in weights]
        self._weights, self._bytes = list(weights), sum(sizes)
        self._values: list[np.ndarray] = []
        self.read()

    def read(self) -> bool:
        """Reads the weights again; returns whether some have changed."""
        if self._bytes > _MOST_BYTES:
            return False
        before, self._values = self._values, [np.asarray(weight) for weight in self._weights]
        pairs = zip(before, self._values, strict=False)  # Before the first time there are none.
        return any(not np.array_equal(old, new) for old, new in pairs)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Lets what is traced in the block read the values; what runs eagerly reads the weights."""
        copies = tf.distribute.get_strategy().num_replicas_in_sync
        if tf.executing_eagerly() or copies * self._bytes > _MOST_BYTES:
            yield
            return
        pairs = zip(self._weights, self._values, strict=True)
        with keras.StatelessScope([(weight, tf.constant(value)) for weight, value in pairs]):
            yield
