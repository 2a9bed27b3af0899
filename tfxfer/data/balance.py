"""Classes of different sizes: what an example weighs, and how often it is drawn."""

import numpy as np
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from tfxfer.data.keys import fold


def sampled_counts(labels: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Draws how often each example occurs in an epoch with the same share for every class.

    Within a class, too, examples occur equally often, but for one time more or less; which ones,
    and which classes get what does not divide evenly, the key decides.

    Args:
        labels: Class of each example, int64 `[n]`.
        key: Integer `[2]`.

    Returns:
        Int64 `[n]`; its sum is `n`.
    """
    classes, labels, sizes = tf.unique_with_counts(labels, tf.int64)
    examples, present = tf.size(labels, tf.int64), tf.size(classes, tf.int64)
    place, luck = (
        tf.random.stateless_uniform((count,), fold(key, i), dtype=tf.float64)
        for i, count in enumerate((present, examples))
    )
    share = examples // present + _one(tf.argsort(tf.argsort(place)) < _int(examples % present))
    # Sorted by class, and within a class by luck: the place of each example among its like.
    order = tf.argsort(tf.cast(labels, tf.float64) + luck)
    before = tf.gather(tf.cumsum(sizes, exclusive=True), labels)
    rank = tf.cast(tf.argsort(order), tf.int64) - before
    share, sizes = tf.gather(share, labels), tf.gather(sizes, labels)
    return share // sizes + _one(rank < share % sizes)


def class_weights(labels: np.ndarray, units: int) -> np.ndarray:
    """Returns the weight of an example of each class, as scikit-learn balances them.

    Args:
        labels: Class of each example, `[n]`.
        units: How many classes there are.

    Returns:
        Float64 `[units]`; 0 of classes without examples.
    """
    present = np.unique(labels)
    weights = np.zeros(units)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return weights


def _one(condition: tf.Tensor) -> tf.Tensor:
    return tf.cast(condition, tf.int64)


def _int(number: tf.Tensor) -> tf.Tensor:
    return tf.cast(number, tf.int32)
