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
        label_smoothing: Share of each label that training spreads over all classes (Szegedy et al.
            2016, section 7); of one class it needs `soft`.
        unlabelled: Whether some examples have no label, so that metrics go by weights.
    """

    task: Task
    soft: bool = False
    spread: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    unlabelled: bool = False

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
            return keras.losses.BinaryCrossentropy(
                from_logits=True, label_smoothing=self.label_smoothing
            )
        if self.soft:
            return keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=self.label_smoothing
            )
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def example_losses(self, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the same loss of each example, float64 `[examples]`; labels are not smoothed."""
        scale = self.spread or 1.0
        return example_losses(self.task, outputs / scale, y / scale if self.spread else y)

    def measure(self, outputs: np.ndarray, y: np.ndarray) -> float:
        """Returns `metric` over all examples."""
        if self.task.kind == REGRESSION:
            return float(np.sqrt(np.mean((outputs - y) ** 2)))
        if self.task.kind == MULTI_LABEL:
            return float(np.mean((outputs > 0) == (y > 0.5)))
        classes = y if y.ndim == 1 else np.argmax(y, axis=-1)
        return float(np.mean(np.argmax(outputs, axis=-1) == classes))

    def metrics(self) -> list:
        """Returns new metrics, unweighted, with their variables: call it in a strategy's scope."""
        if self.task.kind == REGRESSION:
            return [keras.metrics.RootMeanSquaredError(name=self.metric)]
        if self.task.kind == MULTI_LABEL:
            # Logits, so that even odds are 0.
            return [keras.metrics.BinaryAccuracy(name=self.metric, threshold=0.0)]
        if self.soft:
            return [keras.metrics.CategoricalAccuracy(name=self.metric)]
        return [keras.metrics.SparseCategoricalAccuracy(name=self.metric)]


def objective(
    task: Task, train_labels: np.ndarray, *, soft: bool = False, label_smoothing: float = 0.0
) -> Objective:
    """Returns the objective of a task.

    Args:
        task: What the model learns.
        train_labels: `y` of the training examples.
        soft: Whether labels of one class come as shares of each, as mixed images have them.
        label_smoothing: In [0, 1); a regression has none.
    """
    if task.kind != REGRESSION:
        return Objective(task, soft, label_smoothing=label_smoothing)
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
