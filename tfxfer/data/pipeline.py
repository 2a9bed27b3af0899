"""From examples in order to batches on their way to the device."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.config import BALANCE as BALANCES
from tfxfer.data.augment import (
    AUGMENTS,
    CUTMIX,
    MIXES,
    NONE,
    augmenter,
    check_name,
    mixer,
    resize,
)
from tfxfer.data.balance import class_weights, sampled_counts
from tfxfer.data.base import IMAGE
from tfxfer.data.keys import fold
from tfxfer.data.parts import Part
from tfxfer.errors import UserError
from tfxfer.task import REGRESSION, SINGLE_LABEL

_, CLASS_WEIGHTS, SAMPLING = BALANCES

_SHUFFLE_BYTES = 256 * 2**20
_ENTRY_BYTES = 500  # Of id, label and bookkeeping of one example that waits to be shuffled.
_FOREVER = np.iinfo(np.int64).max

# What is drawn in an epoch, each from a key of its own.
_ORDER, _AUGMENT, _MIX, _SAMPLE = range(4)


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
        return _input(part, raw, size), tf.one_hot(y, units) if one_hot else y

    dataset = part.read().take(examples)
    dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    # Without threads of its own: as measured, they cost more than they give.
    dataset = dataset.batch(batch_size)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-examples // batch_size)))
    return dataset.prefetch(tf.data.AUTOTUNE)


@dataclass(frozen=True)
class TrainBatches:
    """Batches of a part of the data for training, epoch after epoch; see `train_batches`.

    Give `epochs()` to `fit`, with `steps_per_epoch=steps`.

    Attributes:
        part: The examples.
        batch_size: Examples a batch, but for the last one of an epoch.
        examples: Examples an epoch.
        seed: Of all that is random.
        image_size: Height and width that images are brought to; `None` if they stay as they are.
        augment: One of `augment.AUGMENTS`.
        mix: One of `augment.MIXES`.
        balance: One of `BALANCES`.
        one_hot: Whether classes are given as float32 `[batch, classes]`.
        views: After how many epochs images are augmented as in the first again; never if 0.
        worker: Number of the worker whose shares of the batches these are, and how many there are.
    """

    part: Part
    batch_size: int
    examples: int
    seed: int
    image_size: tuple[int, int] | None
    augment: str
    mix: str
    balance: str
    one_hot: bool
    views: int = 0
    worker: tuple[int, int] = (0, 1)

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return -(-self.examples // self.batch_size)

    def of_worker(self, index: int, count: int) -> "TrainBatches | None":
        """Returns the shares of a worker, who decodes no others; `None` where these are mixed.

        Args:
            index: Number of the worker.
            count: How many there are, of which `replicas` of `train_batches` is a multiple.
        """
        return replace(self, worker=(index, count)) if self.mix == NONE else None

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        """Returns the batches of epoch `first`, then those of the next, without end."""
        return self._flat(first, _FOREVER, tf.data.INFINITE_CARDINALITY)

    def epoch(self, number: int) -> tf.data.Dataset:
        """Returns the batches of one epoch; the first is 0."""
        return self._flat(number, number + 1, self.steps)

    def _flat(self, first: int, last: int, cardinality: int) -> tf.data.Dataset:
        dataset = tf.data.Dataset.range(first, last).flat_map(_Epoch(self))
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(cardinality))
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
    dataset = tf.data.Dataset.range(views).flat_map(_Epoch(data).in_order)
    cardinality = tf.data.experimental.assert_cardinality(views * data.steps)
    return dataset.apply(cardinality).prefetch(tf.data.AUTOTUNE)


class _Epoch:
    """A function from the number of an epoch to its batches, for `flat_map`.

    Args:
        data: What to batch.
    """

    def __init__(self, data: TrainBatches):
        self._data = data
        source = data.part.source
        self._units = source.info.task.units
        # Outside of the function that is called: there, arrays would become part of the graph.
        self._examples = data.part.read()
        if data.balance != NONE:
            labels = data.part.labels
            self._labels = tf.constant(labels)
            self._weights = tf.constant(class_weights(labels, self._units), tf.float32)
        self._augment = None
        if data.augment != NONE:
            assert data.image_size is not None  # `train_batches` sees to it.
            self._augment = augmenter(data.augment, data.image_size, source.info.shape[-1])
        self._mix = mixer(data.mix) if data.mix != NONE else None

    def __call__(self, number: tf.Tensor) -> tf.data.Dataset:
        """Returns the batches of an epoch.

        Args:
            number: Of the epoch, int64 scalar.
        """
        data = self._data
        # The seed of this function's graph alone, which `shuffle` joins with the one it is given;
        # that of the process, which it would take otherwise, must not matter.
        tf.random.set_seed(1)
        order, augment, mix, sample = self._keys(number)
        dataset = self._sampled(sample) if data.balance == SAMPLING else self._examples
        dataset = dataset.shuffle(
            self._buffer(),
            seed=tf.random.stateless_uniform((), order, None, None, tf.int64),
            reshuffle_each_iteration=False,
        )
        dataset = self._batched(self._of_worker(dataset.take(data.examples)), augment)
        if self._mix is not None:
            dataset = dataset.enumerate().map(
                lambda step, batch: self._mixed(fold(mix, step), *batch),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
        return dataset.apply(tf.data.experimental.assert_cardinality(data.steps))

    def in_order(self, number: tf.Tensor) -> tf.data.Dataset:
        """Returns the batches of an epoch, in the order of the part."""
        _, augment, _, _ = self._keys(number)
        return self._batched(self._examples, augment)

    def _keys(self, number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        seed, views = tf.constant([self._data.seed, 0], tf.int64), self._data.views
        order, augment, mix, sample = (
            fold(fold(seed, number % views if views and i == _AUGMENT else number), i)
            for i in (_ORDER, _AUGMENT, _MIX, _SAMPLE)
        )
        return order, augment, mix, sample

    def _batched(self, dataset: tf.data.Dataset, augment: tf.Tensor) -> tf.data.Dataset:
        dataset = dataset.map(
            lambda *example: self._decoded(augment, *example),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        _, workers = self._data.worker
        return dataset.batch(self._data.batch_size // workers)  # Without threads, as in `batches`.

    def _of_worker(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Leaves the examples, still as they are stored, of a worker's share of each batch."""
        (index, workers), size = self._data.worker, self._data.batch_size
        if workers == 1:
            return dataset

        def own(number: tf.Tensor, *_: Any) -> tf.Tensor:
            place = number % size
            of_batch = tf.minimum(tf.constant(size, tf.int64), self._data.examples - number + place)
            return place * workers // of_batch == index

        return dataset.enumerate().filter(own).map(lambda number, example: example)

    def _sampled(self, key: tf.Tensor) -> tf.data.Dataset:
        """Returns `(id, raw, y, repeat)`, every example as often as it is its turn."""
        counts = tf.data.Dataset.from_tensor_slices(sampled_counts(self._labels, key))
        counted = tf.data.Dataset.zip(self._examples, counts)
        counted = counted.filter(lambda example, count: count > 0)
        return counted.flat_map(
            lambda example, count: tf.data.Dataset.range(count).map(
                lambda repeat: (*example, repeat)
            )
        )

    def _buffer(self) -> int:
        """Returns how many examples wait to be shuffled: all, if they fit into the budget."""
        fit = _SHUFFLE_BYTES // (self._data.part.source.raw_bytes + _ENTRY_BYTES)
        return min(self._data.part.examples, max(self._data.batch_size, fit))

    def _decoded(self, key, example_id, raw, y, repeat=0):
        """Makes of one stored example what models take: `(x, y)`, or with its weight."""
        data = self._data
        if self._augment is None:
            x = _input(data.part, raw, data.image_size)
        else:
            key = fold(key, tf.strings.to_hash_bucket_fast(example_id, _FOREVER))
            key = fold(key, 0 if data.views else repeat)
            x = self._augment(_input(data.part, raw, None), key)
        label = tf.one_hot(y, self._units) if data.one_hot else y
        if data.balance != CLASS_WEIGHTS:
            return x, label
        return x, label, tf.gather(self._weights, y)

    def _mixed(self, key, x, y, *weight):
        assert self._mix is not None
        x, y = self._mix(x, y, key)
        return (x, y, tf.linalg.matvec(y, self._weights)) if weight else (x, y)


def _input(part: Part, raw: tf.Tensor, size: tuple[int, int] | None) -> tf.Tensor:
    x = tf.ensure_shape(part.source.decode(raw), part.source.info.shape)
    return x if size is None else resize(x, size)


def _size(part: Part, image_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Returns what images must be resized to, `None` if they stay as they are."""
    info = part.source.info
    if info.inputs != IMAGE or None not in info.shape[:2]:
        return None
    if image_size is None:
        raise UserError(
            "Images of different sizes need a backbone with a fixed input size, "
            "and this one takes any",
            "Choose a backbone whose signature states height and width.",
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
