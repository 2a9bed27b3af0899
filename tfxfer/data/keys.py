"""Keys of what is drawn at random: each follows from another and a number, from nothing else."""

import tensorflow as tf


def fold(key: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """Returns a key, int64 `[2]`, that follows from a key and a number."""
    return tf.random.experimental.stateless_fold_in(key, tf.cast(number, tf.int64))
