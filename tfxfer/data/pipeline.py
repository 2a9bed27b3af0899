"""From examples in order to batches on their way to the device."""

import tensorflow as tf

from tfxfer.data.splits import Part
from tfxfer.errors import UserError

_SHUFFLE_BYTES = 256 * 2**20


def batches(
    part: Part,
    batch_size: int,
    *,
    image_size: tuple[int, int] | None = None,
    shuffle_seed: int | None = None,
) -> tf.data.Dataset:
    """Batches a part of the data; the last batch may be smaller, so every example counts.

    Args:
        part: Examples `(id, image, label)`, images uint8 `[height, width, channels]`.
        batch_size: Examples a batch, at least 1.
        image_size: Height and width to bring images to where theirs vary, so that they can
            stand in one batch; images of one fixed size stay as they are.
        shuffle_seed: Seed of a new order in every epoch; the order of `part` if `None`.

    Returns:
        Batches `(images, labels)`: uint8 `[batch, height, width, channels]`, int64 `[batch]`.

    Raises:
        UserError: If image sizes vary and `image_size` is `None`.
    """
    dataset = part.dataset.map(lambda example_id, image, label: (image, label))
    height, width, channels = dataset.element_spec[0].shape
    if height is None or width is None:
        if image_size is None:
            raise UserError(
                "Images of different sizes need a backbone with a fixed input size, "
                "and this one takes any",
                "Choose a backbone whose signature states height and width.",
            )
        height, width = image_size
        dataset = dataset.map(
            lambda image, label: (_resize(image, (height, width)), label),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    if shuffle_seed is not None:
        # A full shuffle where the images fit into the budget, a sliding one where they do not.
        buffer = max(batch_size, _SHUFFLE_BYTES // (height * width * channels))
        dataset = dataset.shuffle(min(part.examples, buffer), seed=shuffle_seed)
    dataset = dataset.batch(batch_size, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.apply(
        tf.data.experimental.assert_cardinality(-(-part.examples // batch_size))
    )
    return dataset.prefetch(tf.data.AUTOTUNE)


def _resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    resized = tf.image.resize(image, size, antialias=True)
    return tf.cast(tf.round(resized), tf.uint8)
