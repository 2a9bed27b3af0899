"""From examples in order to batches on their way to the device."""

import tensorflow as tf

from tfxfer.data.splits import Part
from tfxfer.errors import UserError

_SHUFFLE_BYTES = 256 * 2**20
_USUAL_BYTES = 500 * 500 * 3  # Of an image of unknown size.


def batches(
    part: Part,
    batch_size: int,
    *,
    image_size: tuple[int, int] | None = None,
    shuffle_seed: int | None = None,
    replicas: int = 1,
) -> tf.data.Dataset:
    """Batches a part of the data; the last batch may be smaller, so every example counts.

    Except for several replicas: a replica without a share of a batch fails in `tf.distribute`,
    and Keras 3.15 wants equal shares as it builds a model. So batch size and number of examples
    are then brought down to multiples of `replicas`, in shuffled data others in every epoch.

    Args:
        part: Examples `(id, image, label)`, images uint8 `[height, width, channels]`.
        batch_size: Examples a batch, at least 1.
        image_size: Height and width to bring images to where theirs vary, so that they can
            stand in one batch; images of one fixed size stay as they are.
        shuffle_seed: Seed of a new order in every epoch; the order of `part` if `None`.
        replicas: Devices that share a batch.

    Returns:
        Batches `(images, labels)`: values 0 to 255 `[batch, height, width, channels]`, uint8 or,
        where they were resized, float32; int64 `[batch]`.

    Raises:
        UserError: If image sizes vary and `image_size` is `None`, or if there are fewer examples
            than replicas.
    """
    dataset = part.dataset.map(lambda example_id, image, label: (image, label))
    shape = dataset.element_spec[0].shape
    varies = None in (shape[0], shape[1])
    if varies and image_size is None:
        raise UserError(
            "Images of different sizes need a backbone with a fixed input size, "
            "and this one takes any",
            "Choose a backbone whose signature states height and width.",
        )
    if part.examples < replicas:
        raise UserError(
            f"{replicas} devices need {replicas} examples in each part of the data, and the "
            f"{part.origin} has {part.examples}",
            "Use fewer devices, or more data.",
        )
    if shuffle_seed is not None:
        # A full shuffle where the images fit into the budget, a sliding one where they do not.
        size = _USUAL_BYTES if varies else shape.num_elements()
        buffer = max(batch_size, _SHUFFLE_BYTES // size)
        dataset = dataset.shuffle(min(part.examples, buffer), seed=shuffle_seed)
    if varies:
        dataset = dataset.map(
            # As the backbone itself resizes, so that a served image gets the same features.
            lambda image, label: (tf.image.resize(image, image_size, antialias=True), label),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    batch_size, examples = (_multiple(n, replicas) for n in (batch_size, part.examples))
    dataset = dataset.take(examples).batch(batch_size, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-examples // batch_size)))
    return dataset.prefetch(tf.data.AUTOTUNE)


def _multiple(count: int, replicas: int) -> int:
    """Returns the largest multiple of `replicas` up to `count`, but at least one."""
    return max(count // replicas, 1) * replicas
