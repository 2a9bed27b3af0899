"""The batches of an epoch of training: order, sampling, augmentation and mixture."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.config import BALANCE as BALANCES
from tfxfer.data.augment import MARGIN, MIXUP_ALPHA, NONE, augmenter, mixer, resize
from tfxfer.data.balance import class_weights, sampled_counts
from tfxfer.data.keys import fold
from tfxfer.data.parts import Part

_, CLASS_WEIGHTS, SAMPLING = BALANCES

_SHUFFLE_BYTES = 256 * 2**20
_ENTRY_BYTES = 500  # Of id, label and bookkeeping of one example that waits to be shuffled.
_FOREVER = np.iinfo(np.int64).max

# What is drawn in an epoch, each from a key of its own.
_ORDER, _AUGMENT, _MIX, _SAMPLE = range(4)


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
        margin: As `augment.augmenter` has it.
        alpha: As `augment.mixer` has it.
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
    margin: float = MARGIN
    alpha: float = MIXUP_ALPHA
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
        dataset = tf.data.Dataset.range(first, last).flat_map(Epoch(self))
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(cardinality))
        return dataset.prefetch(tf.data.AUTOTUNE)


class Epoch:
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
            channels = source.info.shape[-1]
            self._augment = augmenter(data.augment, data.image_size, channels, data.margin)
        self._mix = mixer(data.mix, data.alpha) if data.mix != NONE else None

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
            x = decoded(data.part, raw, data.image_size)
        else:
            key = fold(key, tf.strings.to_hash_bucket_fast(example_id, _FOREVER))
            key = fold(key, 0 if data.views else repeat)
            x = self._augment(decoded(data.part, raw, None), key)
        label = tf.one_hot(y, self._units) if data.one_hot else y
        if data.balance != CLASS_WEIGHTS:
            return x, label
        return x, label, tf.gather(self._weights, y)

    def _mixed(self, key, x, y, *weight):
        assert self._mix is not None
        x, y = self._mix(x, y, key)
        return (x, y, tf.linalg.matvec(y, self._weights)) if weight else (x, y)


def decoded(part: Part, raw: tf.Tensor, size: tuple[int, int] | None) -> tf.Tensor:
    """Decodes one stored input of a part; an image is brought to `size` where there is one."""
    x = tf.ensure_shape(part.source.decode(raw), part.source.info.shape)
    return x if size is None else resize(x, size)
