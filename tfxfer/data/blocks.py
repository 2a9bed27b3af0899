"""A dataset of single examples from a generator of blocks of them."""

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

Block = tuple[np.ndarray, np.ndarray, np.ndarray]


def from_blocks(
    blocks: Callable[[], Iterator[Block]], raw: tf.TensorSpec, labels: np.ndarray, count: int
) -> tf.data.Dataset:
    """Returns a dataset of `(id, raw, y)`.

    A tensor of everything would be a second copy of the data, and one row at a time spends more
    time in Python than in TensorFlow.

    Args:
        blocks: Gives arrays of ids, of raw inputs and of labels, of equal length each time.
        raw: Of one input.
        labels: All labels, of which type and shape are taken.
        count: Number of examples.
    """
    signature = (
        tf.TensorSpec([None], tf.string),
        tf.TensorSpec([None, *raw.shape], raw.dtype),
        tf.TensorSpec([None, *labels.shape[1:]], labels.dtype),
    )
    dataset = tf.data.Dataset.from_generator(blocks, output_signature=signature).unbatch()
    return dataset.apply(tf.data.experimental.assert_cardinality(count))
