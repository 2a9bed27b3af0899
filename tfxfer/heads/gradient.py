"""Heads that a training loop trains by gradient."""

import keras
import numpy as np

from tfxfer.task import REGRESSION, Task


def linear(task: Task, labels: np.ndarray | None = None) -> keras.layers.Layer:
    """Returns one dense layer, to logits or to numbers in the units of the targets.

    Args:
        task: What the head is to tell.
        labels: `y` of the training examples, for a regression: with their mean and standard
            deviation behind the dense layer, that learns at the same rates whatever the units.

    Returns:
        Features `[batch, d]` to `[batch, task.units]`.
    """
    if task.kind != REGRESSION:
        return keras.layers.Dense(task.units, name="head")
    mean, spread = target_scale(labels)
    return keras.Sequential(
        [keras.layers.Dense(task.units), keras.layers.Rescaling(spread.tolist(), mean.tolist())],
        name="head",
    )


def mlp(task: Task, labels: np.ndarray | None = None, units: int = 256) -> keras.layers.Layer:
    """Returns a hidden layer and `linear` on it.

    Args:
        task: What the head is to tell.
        labels: As for `linear`.
        units: Width of the hidden layer, at least 1.

    Returns:
        Features `[batch, d]` to `[batch, task.units]`.
    """
    hidden = keras.layers.Dense(units, activation="relu", name="hidden")
    return keras.Sequential([hidden, linear(task, labels)], name="head")


def target_scale(labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each target, 1 where all are the same."""
    if labels is None:
        raise ValueError("Expected the targets of the training examples, received None.")
    spread = labels.std(axis=0, dtype=np.float64)
    return labels.mean(axis=0, dtype=np.float64), np.where(spread > 0, spread, 1.0)
