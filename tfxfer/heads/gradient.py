"""Heads that a training loop trains by gradient."""

import keras
import numpy as np

from tfxfer.task import REGRESSION, Task


def linear(
    task: Task, labels: np.ndarray | None = None, dropout: float = 0.0
) -> keras.layers.Layer:
    """Returns one dense layer, to logits or to numbers in the units of the targets.

    Args:
        task: What the head is to tell.
        labels: `y` of the training examples, for a regression: with their mean and standard
            deviation behind the dense layer, that learns at the same rates whatever the units.
        dropout: Share of the features that is left out in training, in [0, 1).

    Returns:
        Features `[batch, d]` to `[batch, task.units]`.
    """
    if task.kind != REGRESSION and not dropout:
        return keras.layers.Dense(task.units, name="head", dtype="float32")
    layers: list[keras.layers.Layer] = [keras.layers.Dropout(dropout)] if dropout else []
    layers.append(keras.layers.Dense(task.units, dtype="float32"))
    if task.kind == REGRESSION:
        mean, spread = target_scale(labels)
        layers.append(keras.layers.Rescaling(spread.tolist(), mean.tolist()))
    return keras.Sequential(layers, name="head")


def assign_linear(head: keras.layers.Layer, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Gives a head that `linear` returned the weights of a dense layer that was solved.

    Args:
        head: The head, built.
        kernel: `[d, units]`, to logits or to numbers in the units of the targets.
        bias: `[units]`.
    """
    layers = head.layers if isinstance(head, keras.Sequential) else [head]
    (dense,) = (layer for layer in layers if isinstance(layer, keras.layers.Dense))
    if isinstance(layers[-1], keras.layers.Rescaling):
        mean, spread = np.asarray(layers[-1].offset), np.asarray(layers[-1].scale)
        kernel, bias = kernel / spread, (bias - mean) / spread
    dense.set_weights([kernel, bias])


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
