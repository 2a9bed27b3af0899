"""From examples in order to batches on their way to the device."""

import tensorflow as tf

from tfxfer.config import BALANCE as BALANCES
from tfxfer.data.augment import AUGMENTS, CUTMIX, MARGIN, MIXES, MIXUP_ALPHA, NONE, check_name
from tfxfer.data.base import IMAGE
from tfxfer.data.epoch import Epoch, TrainBatches, decoded
from tfxfer.data.parts import Part
from tfxfer.errors import UserError
from tfxfer.task import REGRESSION, SINGLE_LABEL


def batches(
    part: Part,
    batch_size: int,
    *,
    image_size: tuple[int, int] | None = None,
    replicas: int = 1,
    one_hot: bool = False,
) -> tf.data.Dataset:
    """Batches a part of the data in its order, for evaluation; every example counts.

    Except for several replicas: a replica without a share of a batch fails in `tf.distribute`,
    and Keras 3.15 wants equal shares as it builds a model. So batch size and number of examples
    are then brought down to multiples of `replicas`.

    Args:
        part: The examples.
        batch_size: Examples a batch, at least 1; the last batch may be smaller.
        image_size: Height and width to bring images to where theirs vary, so that they can
            stand in one batch; images of one fixed size, and other inputs, stay as they are.
        replicas: Devices that share a batch.
        one_hot: Whether to give classes as float32 `[batch, classes]`; single labels only.

    Returns:
        Batches `(x, y)`. Images 0 to 255 `[batch, height, width, channels]`, uint8 or, where they
        were resized, float32; texts `[batch]`; numbers float32 `[batch, columns]`. `y` as the task
        has it: int64 `[batch]`, or float32 `[batch, units]`.

    Raises:
        UserError: If image sizes vary and `image_size` is `None`, if there are fewer examples
            than replicas, or if `one_hot` is asked for other labels than single ones.
    """
    size = _size(part, image_size)
    _check(part, replicas, one_hot)
    batch_size, examples = _multiple(batch_size, replicas), _multiple(part.examples, replicas)
    units = part.source.info.task.units

    def example(example_id, raw, y):
        del example_id
        return decoded(part, raw, size), tf.one_hot(y, units) if one_hot else y

    dataset = part.read().take(examples)
    dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    # Without threads of its own: as measured, they cost more than they give.
    dataset = dataset.batch(batch_size)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-examples // batch_size)))
    return dataset.prefetch(tf.data.AUTOTUNE)


def train_batches(
    part: Part,
    batch_size: int,
    *,
    seed: int,
    image_size: tuple[int, int] | None = None,
    augment: str = NONE,
    mix: str = NONE,
    balance: str = NONE,
    replicas: int = 1,
    one_hot: bool = False,
    views: int = 0,
    margin: float = MARGIN,
    alpha: float = MIXUP_ALPHA,
) -> TrainBatches:
    """Batches a part of the data for training.

    What an epoch holds follows from `seed`, the number of the epoch and the ids of the examples
    alone: not from threads, from what was read before, nor from `replicas`, but for the few
    examples that are left out in each epoch so that replicas get equal shares.

    The order is shuffled whole if examples, as they are stored, fit into 256 MiB; in a sliding
    window of that size if they do not, so that memory does not grow with the data.

    Args:
        part: The examples.
        batch_size: Examples a batch, at least 1.
        seed: Of order, augmentation, mixture and sampling, in [0, 2**32).
        image_size: As in `batches`.
        augment: How each image is changed, new in every epoch; see `augment.augmenter`.
        mix: How the images of a batch are mixed; see `augment.mixer`.
        balance: `class_weights` weighs an example by examples / (classes * examples of its class),
            as scikit-learn does, so that every class weighs the same; a mixed example by the
            mixture of its classes. `sampling` gives each class the same number of examples in an
            epoch, at most one more or less, and the epoch as many as `part`: an example of a rare
            class occurs several times, each time augmented anew, one of a frequent class not in
            every epoch. Both count the classes that `part` has.
        replicas: As in `batches`.
        one_hot: As in `batches`.
        views: How many augmented views of an image the epochs take in turn, those of the first
            epochs, always one in an epoch; new ones without end if 0.
        margin: How much larger an image is before `light` crops it, at least 1.
        alpha: Parameter of the Beta distribution of `mixup`, above 0.

    Returns:
        Batches as those of `batches`, with images in float32 where they are augmented or mixed,
        and float32 `[batch]` of weights after `(x, y)` for `class_weights`.

    Raises:
        UserError: As `batches`; if inputs that are no images are to be augmented or mixed, if
            mixed single labels are not one-hot, if numbers are to be mixed by `cutmix`, or if
            other labels than single ones are to be balanced.
    """
    size = _size(part, image_size)
    _check(part, replicas, one_hot)
    info = part.source.info
    check_name("augmentation", augment, AUGMENTS)
    check_name("mixture", mix, MIXES)
    check_name("balance", balance, BALANCES)
    for name, value in (("augmentation", augment), ("mixture", mix)):
        if value != NONE and info.inputs != IMAGE:
            raise UserError(
                f"The {name} {value!r} is of images, and {info.name} holds {info.inputs} inputs",
                "Use none.",
            )
    if mix != NONE and info.task.kind == SINGLE_LABEL and not one_hot:
        raise UserError(
            f"The mixture {mix!r} needs labels that can be mixed, and a class number cannot",
            "Ask for one-hot labels.",
        )
    if mix == CUTMIX and info.task.kind == REGRESSION:
        raise UserError(
            f"The mixture {mix!r} needs labels that add up by area, and the task is {info.task}",
            "Use mixup or none.",
        )
    if balance != NONE and info.task.kind != SINGLE_LABEL:
        raise UserError(
            f"The balance {balance!r} needs one class an example, and the task is {info.task}",
            "Use none.",
        )
    if augment != NONE and size is None:
        height, width, _ = info.shape
        assert height is not None and width is not None  # Else `_size` has a size.
        size = height, width
    return TrainBatches(
        part=part,
        batch_size=_multiple(batch_size, replicas),
        examples=_multiple(part.examples, replicas),
        seed=seed,
        image_size=size,
        augment=augment,
        mix=mix,
        balance=balance,
        one_hot=one_hot,
        views=views,
        margin=margin,
        alpha=alpha,
    )


def view_batches(
    part: Part,
    batch_size: int,
    views: int,
    *,
    seed: int,
    augment: str,
    image_size: tuple[int, int] | None = None,
) -> tf.data.Dataset:
    """Batches augmented views of a part in its order, one view after the other.

    Args:
        part: The examples.
        batch_size: Examples a batch, at least 1; the last batch of a view may be smaller.
        views: How many; view `i` has each image as epoch `i` of `train_batches` has it.
        seed: Of the augmentation, in [0, 2**32).
        augment: How each image is changed; not `none`.
        image_size: As in `batches`.

    Returns:
        Batches `(x, y)` as those of `batches`, images float32.

    Raises:
        UserError: As `train_batches`.
    """
    data = train_batches(part, batch_size, seed=seed, augment=augment, image_size=image_size)
    # One dataset for all views, so that the augmentation is traced once.
    dataset = tf.data.Dataset.range(views).flat_map(Epoch(data).in_order)
    cardinality = tf.data.experimental.assert_cardinality(views * data.steps)
    return dataset.apply(cardinality).prefetch(tf.data.AUTOTUNE)


def _size(part: Part, image_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Returns what images must be resized to, `None` if they stay as they are."""
    info = part.source.info
    if info.inputs != IMAGE or None not in info.shape[:2]:
        return None
    if image_size is None:
        raise UserError(
            "Images of different sizes need a backbone with a fixed input size, "
            "and this one takes any",
            "Say what they are to be resized to, as in image_size=(224, 224).",
        )
    return image_size


def _check(part: Part, replicas: int, one_hot: bool) -> None:
    if part.examples < replicas:
        raise UserError(
            f"{replicas} devices need {replicas} examples in each part of the data, and the "
            f"{part.origin} has {part.examples}",
            "Use fewer devices, or more data.",
        )
    task = part.source.info.task
    if one_hot and task.kind != SINGLE_LABEL:
        raise UserError(
            f"One-hot labels need one class an example, and the task is {task}",
            "Leave the labels as they are.",
        )


def _multiple(count: int, replicas: int) -> int:
    """Returns the largest multiple of `replicas` up to `count`, but at least one."""
    return max(count // replicas, 1) * replicas
