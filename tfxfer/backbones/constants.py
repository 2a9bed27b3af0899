"""Weights as constants of a graph, for networks that stay as they are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

_MOST_BYTES = 2**29  # A graph holds 2 GB, and each copy of it as much again.


class Constants:
    """The values that some weights have now, to trace graphs with.

    TensorFlow folds constants into one another, such as batch normalization into the convolution
    before it: about a third faster on a CPU, and other last digits. Very large networks keep their
    variables.

    Args:
        weights: Of a network.
    """

    def __init__(self, weights: Sequence[keras.Variable]):
        values = [np.asarray(weight) for weight in weights]
        fit = sum(value.nbytes for value in values) <= _MOST_BYTES
        self._pairs = list(zip(weights, values, strict=True)) if fit else []

    @contextmanager
    def used(self) -> Iterator[None]:
        """Lets what is traced in the block read the values; what runs eagerly reads the weights."""
        if not self._pairs or tf.executing_eagerly():
            yield
            return
        mapping = [(weight, tf.constant(value)) for weight, value in self._pairs]
        with keras.StatelessScope(state_mapping=mapping):
            yield
