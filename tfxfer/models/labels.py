"""Labels and weights of a batch, of which some may be missing."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.task import REGRESSION, SINGLE_LABEL


def read_labels(targets: Any, task: str) -> tuple[Any, tf.Tensor | None]:
    """Puts a harmless value where a label is missing, and tells where one is.

    Args:
        targets: Labels `[batch]` or `[batch, units]`, of any number type or bool. Missing are
            classes below 0, one-hot rows without a class, and rows with a NaN.
        task: What they are: a kind of `tfxfer.task`.

    Returns:
        The labels, and bool `[batch]`; or what else was given, as it is, and `None`.
    """
    if not (tf.is_tensor(targets) or isinstance(targets, np.ndarray)):
        return targets, None
    targets = tf.convert_to_tensor(targets)
    if targets.shape.rank not in (1, 2):
        return targets, None
    if targets.dtype == tf.bool:
        targets = tf.cast(targets, tf.float32)
    if task == SINGLE_LABEL or (task != REGRESSION and targets.dtype.is_integer):
        given = targets >= 0  # Which NaN is not, either.
    else:
        given = ~tf.math.is_nan(tf.cast(targets, tf.float32))
    known = tf.reduce_all(given, axis=-1) if targets.shape.rank == 2 else given
    if _is_one_hot(targets, task):
        known &= tf.reduce_any(targets > 0, axis=-1)
    return tf.where(given, targets, tf.zeros_like(targets)), known


def labels_for_losses(targets: Any, task: str) -> tf.Tensor:
    """Brings labels to what losses of `tfxfer.losses` take as `y_true`.

    Args:
        targets: As in `read_labels`.
        task: As in `read_labels`.

    Returns:
        Classes, int32 `[batch]`, -1 where one is missing; or `[batch, units]`: shares of classes,
        0 where they are missing, or numbers, NaN where they are.

    Raises:
        ValueError: If there are no labels.
    """
    if targets is None:
        raise ValueError("Expected labels, which losses with y_true need, received none.")
    y, known = read_labels(targets, task)
    if known is None:
        return y
    if _is_one_hot(y, task):
        return tf.where(known[:, None], y, tf.zeros_like(y))
    if task == SINGLE_LABEL:
        return tf.where(known, tf.cast(tf.reshape(y, [-1]), tf.int32), -1)
    return tf.reshape(targets, [tf.shape(y)[0], y.shape[-1] if y.shape.rank == 2 else 1])


def flat_weights(sample_weight: Any) -> tf.Tensor | None:
    """Returns weights `[batch]` or `[batch, 1]` as float32 `[batch]`; `None` if there are none."""
    return None if sample_weight is None else tf.reshape(tf.cast(sample_weight, tf.float32), [-1])


def known_weights(known: tf.Tensor | None, sample_weight: Any) -> tf.Tensor | None:
    """Takes the weight of examples without a label away."""
    weights = flat_weights(sample_weight)
    if known is None:
        return weights
    known = tf.cast(known, tf.float32)
    return known if weights is None else known * weights


def _is_one_hot(targets: tf.Tensor, task: str) -> bool:
    return task == SINGLE_LABEL and targets.shape.rank == 2 and targets.shape[-1] != 1
