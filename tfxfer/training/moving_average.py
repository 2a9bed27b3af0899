"""A moving average of the weights while they train."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import keras
import tensorflow as tf

from tfxfer.models import Staged


class MovingAverage:
    """Keeps `average = decay * average + (1 - decay) * weight`, updated once a step.

    Polyak and Juditsky 1992. In step t the decay is at most (1 + t) / (10 + t), as TensorFlow's
    `ExponentialMovingAverage` has it, so that the start does not weigh for long.

    Args:
        weights: What to average; make this in the scope of their strategy.
        decay: In (0, 1); 0.999 averages over about the last thousand steps.
    """

    def __init__(self, weights: Sequence[keras.Variable], decay: float):
        self._weights = [weight for weight in weights if "float" in str(weight.dtype)]
        self._decay = decay
        self.steps = tf.Variable(0.0, trainable=False)
        self.averages = [
            tf.Variable(weight.value, trainable=False, dtype=weight.dtype)
            for weight in self._weights
        ]

    def update(self) -> None:
        """Takes a step; outside of replicas, since these hold equal weights."""
        decay = tf.minimum(self._decay, (1 + self.steps) / (10 + self.steps))
        for average, weight in zip(self.averages, self._weights, strict=True):
            value = tf.convert_to_tensor(weight.value)
            average.assign(value + tf.cast(decay, value.dtype) * (average - value))
        self.steps.assign_add(1)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Puts the averages in the place of the weights, and the weights back at the end."""
        held = [weight.numpy() for weight in self._weights]
        for average, weight in zip(self.averages, self._weights, strict=True):
            weight.assign(tf.convert_to_tensor(average))
        try:
            yield
        finally:
            for weight, value in zip(self._weights, held, strict=True):
                weight.assign(value)


def moving(model: Staged) -> list[keras.Variable]:
    """Returns the weights that a phase may move, statistics of batch normalization too.

    These only on one device: replicas have their own until an epoch ends.
    """
    several = model.distribute_strategy.num_replicas_in_sync > 1
    statistics = {id(each) for stage in model.stages for each in stage.statistics}
    return [
        weight
        for stage in model.stages
        if any(each.trainable for each in stage.learned) or stage.bn == "train"
        for weight in stage.weights
        if not (several and id(weight) in statistics)
    ]
