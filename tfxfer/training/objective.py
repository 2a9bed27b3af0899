"""What training makes small, and what is shown meanwhile, for each kind of task."""

from dataclasses import dataclass

import keras
import numpy as np

from tfxfer.evaluate import example_losses
from tfxfer.heads import target_scale
from tfxfer.task import MULTI_LABEL, REGRESSION, Task


@dataclass(frozen=True)
class Objective:
    """What a model is compiled with.

    Attributes:
        task: What the model learns.
        soft: Whether labels of one class come as shares of each, `[batch, classes]`.
        spread: Standard deviation of each target of a regression.
    """

    task: Task
    soft: bool = False
    spread: tuple[float, ...] = ()

    @property
    def metric(self) -> str:
        """Name of the metric that is shown beside the loss."""
        return "rmse" if self.task.kind == REGRESSION else "accuracy"

    def loss(self) -> keras.losses.Loss:
        """Returns the loss: cross-entropy of logits, or the squared error.

        Errors count in standard deviations of their targets, so that none drowns the others.
        """
        if self.task.kind == REGRESSION:
            return ScaledMeanSquaredError(self.spread)
        if self.task.kind == MULTI_LABEL:
            return keras.losses.BinaryCrossentropy(from_logits=True)
        if self.soft:
            return keras.losses.CategoricalCrossentropy(from_logits=True)
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def example_losses(self, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the same loss of each example, float64 `[examples]`."""
        scale = self.spread or 1.0
        return example_losses(self.task, outputs / scale, y / scale if self.spread else y)

    def metrics(self) -> list:
        """Returns new metrics, unweighted."""
        if self.task.kind == REGRESSION:
            return [keras.metrics.RootMeanSquaredError(name=self.metric)]
        if self.task.kind == MULTI_LABEL:
            # Logits, so that even odds are 0.
            return [keras.metrics.BinaryAccuracy(name=self.metric, threshold=0.0)]
        return [self.metric]


def objective(task: Task, train_labels: np.ndarray, *, soft: bool = False) -> Objective:
    """Returns the objective of a task.

    Args:
        task: What the model learns.
        train_labels: `y` of the training examples.
        soft: Whether labels of one class come as shares of each, as mixed images have them.
    """
    if task.kind != REGRESSION:
        return Objective(task, soft)
    _, spread = target_scale(train_labels)
    return Objective(task, spread=tuple(map(float, spread)))


@keras.saving.register_keras_serializable(package="tfxfer")
class ScaledMeanSquaredError(keras.losses.Loss):
    """Mean squared error in units of the standard deviation of each target.

    Args:
        spread: Standard deviations `[targets]`, above 0.
        **kwargs: As for every Keras loss.
    """

    def __init__(self, spread, **kwargs):
        super().__init__(**kwargs)
        self.spread = tuple(spread)

    def call(self, y_true, y_pred):
        """Returns the loss of each example, `[batch]`."""
        error = (y_true - y_pred) / keras.ops.convert_to_tensor(self.spread, y_pred.dtype)
        return keras.ops.mean(keras.ops.square(error), axis=-1)

    def get_config(self):
        """Returns the standard deviations beside the usual."""
        return {**super().get_config(), "spread": self.spread}
