"""`MutualLearner`: students that learn from each other as they train."""

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.losses import kd
from tfxfer.models.labels import flat_weights
from tfxfer.models.outputs import check_logits, units_of
from tfxfer.models.step import StepModel


@keras.saving.register_keras_serializable(package="tfxfer")
class MutualLearner(StepModel):
    """Students that train together, each on labels and on what the others say.

    The loss of student `i` is its label loss plus `weight` times the mean over the others `j` of
    `KL(p_j || p_i)` (Zhang et al. 2018, "Deep Mutual Learning", equations 5 and 8), and each runs
    once a step. All answer in the same pass, where the paper lets them take turns. They must start
    from different weights, or there is nothing to learn from each other, as `fit` then warns. Every
    example needs a label.

    A plain Keras model; its output is that of all students together, the mean of their
    probabilities as logits. Each student is a model of its own, to be saved by itself.

    Args:
        students: Keras models from the same inputs to logits `[batch, classes]`, built; two at
            least.
        weight: Of what the others say, at least 0.
        temperature: Of the softmax on both sides.
        **kwargs: As for every `keras.Model`.

    Raises:
        ValueError: If these are not two students or more in a list, each built, with weights of
            its own, from logits of two classes or more.
    """

    def __init__(
        self,
        students: Sequence[keras.Model],
        weight: float = 1.0,
        temperature: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(students, Sequence):
            raise ValueError(f"Expected a list of students, received {students!r}.")
        if len(students) < 2:
            raise ValueError(f"Expected two students at least, received {len(students)}.")
        if not weight >= 0:
            raise ValueError(f"Expected a weight of at least 0, received {weight}.")
        owned = [id(each) for student in students for each in student.weights]
        if len(owned) != len(set(owned)):
            raise ValueError("Expected students with weights of their own, received some shared.")
        if not all(student.built for student in students):
            raise ValueError("Expected students that are built, received some that are not.")
        for student in students:
            check_logits(student)
            if units_of(student) == 1:
                raise ValueError("Expected students of two classes or more, received one output.")
        self.students = list(students)
        self.weight, self.temperature = weight, temperature
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Returns the logarithm of the mean of the students' probabilities."""
        logits = [student(inputs, training=training) for student in self.students]
        return _together(logits)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as Keras' `fit`; warns if two students are the same."""
        if any(_alike(one, other) for one, other in combinations(self.students, 2)):
            warnings.warn(
                "Two students have the same weights, and learn nothing from each other: make them "
                "from other seeds.",
                stacklevel=2,
            )
        return super().fit(*args, **kwargs)

    def _forward(self, inputs: Any, targets: Any, sample_weight: Any) -> tuple[Any, tf.Tensor]:
        """Runs each student once, and adds up their losses of this replica's share."""
        logits = [student(inputs, training=True) for student in self.students]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        weights = flat_weights(sample_weight)
        # Keras adds the regularisers of all students with each label loss.
        extra = sum((tf.convert_to_tensor(each) for each in self.losses), tf.constant(0.0))
        loss = -(len(logits) - 1) * extra / replicas
        for i, own in enumerate(logits):
            loss += self.compute_loss(inputs, targets, own, sample_weight, training=True)
            for j, other in enumerate(logits):
                if i != j:
                    value = kd(own, other, temperature=self.temperature)
                    if weights is not None:
                        value = value * tf.cast(weights, value.dtype)
                    share = self.weight / (len(logits) - 1) / replicas
                    loss += share * tf.cast(tf.reduce_mean(value), tf.float32)
        return _together(logits), loss

    def get_config(self) -> dict[str, Any]:
        """Returns the students, serialized, beside the usual."""
        return {
            **super().get_config(),
            "students": [keras.saving.serialize_keras_object(each) for each in self.students],
            "weight": self.weight,
            "temperature": self.temperature,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MutualLearner":
        """Makes the model again from `get_config`."""
        students = [keras.saving.deserialize_keras_object(each) for each in config["students"]]
        return cls(**{**config, "students": students})


def _alike(one: keras.Model, other: keras.Model) -> bool:
    pairs = zip(one.weights, other.weights, strict=False)
    return len(one.weights) == len(other.weights) and all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs
    )


def _together(logits: Sequence[tf.Tensor]) -> tf.Tensor:
    logs = tf.nn.log_softmax(tf.stack([tf.cast(each, tf.float32) for each in logits]))
    return tf.reduce_logsumexp(logs, axis=0) - tf.math.log(float(len(logits)))
