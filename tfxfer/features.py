"""What a frozen network says of a part of the data, computed once and read from a cache."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import Backbone
from tfxfer.cache import Cache, Parts
from tfxfer.data import pipeline
from tfxfer.data.augment import NONE
from tfxfer.data.base import TABLE, DataInfo, DataSource
from tfxfer.data.splits import Part

_BLOCK = 256  # Examples handed to TensorFlow at a time.

FEATURES = "features"
"""The kind of the cache entries that `extract` writes."""


@dataclass(frozen=True)
class Features:
    """The outputs of a network over a part of the data.

    Attributes:
        x: The outputs, float32 `[views, n, ...]`, for features `[views, n, units]`; memory-mapped.
        y: The labels as the task has them, int64 `[n]` or float32 `[n, units]`; memory-mapped.
        rows: Positions of the examples in their split, `[n]`, in the order of `x` and `y`.
    """

    x: np.ndarray
    y: np.ndarray
    rows: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """The first view, `[n, ...]`; the only one where the data are not augmented."""
        return self.x[0]


def extract(
    backbone: Backbone,
    part: Part,
    cache: Cache,
    *,
    batch_size: int = 64,
    augment: str = NONE,
    views: int = 1,
    seed: int = 0,
) -> Features:
    """Gives the features of a backbone over a part of the data, in the order of the part.

    They are computed as in inference, whatever of the backbone is frozen, with the weights that it
    has now: those of a backbone that was fine-tuned meanwhile are others, and computed anew.

    Args:
        backbone: Any.
        part: The examples.
        cache: Where the features are kept.
        batch_size: Examples a batch, at least 1. In another batch size the last bits may be
            others, so that each has its own entry.
        augment: The augmentation policy of the views.
        views: How many augmented views to take of each example; 1 if `augment` is `none`.
        seed: Seed of the augmentation.

    Returns:
        The features.

    Raises:
        UserError: If the disk is full or the cache folder cannot be used, or the data cannot be
            read or batched.
    """
    return compute_once(
        functools.partial(backbone, training=False),
        part,
        cache,
        kind=FEATURES,
        source=backbone.source,
        parts={
            "backbone fingerprint": backbone.fingerprint,
            "weights": weights_digest(backbone),
            "preprocessing": f"{backbone.contract!r}, then {backbone.preprocessing or 'nothing'}",
            "batch normalization": backbone.bn,
            "precision": backbone.dtype_policy.name,
        },
        image_size=backbone.contract.size,
        batch_size=batch_size,
        augment=augment,
        views=views,
        seed=seed,
    )


def compute_once(
    function: Callable[[tf.Tensor], tf.Tensor],
    part: Part,
    cache: Cache,
    *,
    kind: str,
    source: str,
    parts: Parts,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 64,
    augment: str = NONE,
    views: int = 1,
    seed: int = 0,
) -> Features:
    """Gives the outputs of any function over a part of the data, such as a teacher's logits.

    For those of a Keras model::

        compute_once(
            functools.partial(teacher, training=False),
            part,
            cache,
            kind="logits",
            source="resnet.keras",
            parts={"graph": fingerprint, "weights": weights_digest(teacher)},
        )

    Args:
        function: From a batch of inputs, `[batch, ...]`, to one tensor of numbers `[batch, ...]`
            whose shape is fixed but for the batch. It is traced by TensorFlow, and not called at
            all if the cache has its outputs.
        part: The examples.
        cache: Where the outputs are kept.
        kind: What the outputs are, lower-case letters and `_`; such as `logits`.
        source: What the function is in words, for a person who lists the cache.
        parts: What the function depends on, strings and numbers by name: its graph, its weights
            and its settings. What the data and the arguments below say is added to it.
        image_size: Height and width to bring images to where theirs vary.
        batch_size: Examples a batch, at least 1.
        augment: The augmentation policy of the views.
        views: How many augmented views to take of each example; 1 if `augment` is `none`.
        seed: Seed of the augmentation.

    Returns:
        The outputs, as float32.

    Raises:
        UserError: As `extract`.
        ValueError: If `views` is below 1, or above it without augmentation, or the function does
            not return one tensor of a fixed shape.
    """
    if views < 1 or (augment == NONE and views > 1):
        raise ValueError(f"Expected 1 view with augment={augment!r}, received views={views}.")
    stated = {
        "dataset": part.source.info.name,
        "data fingerprint": part.source.fingerprint,
        "split": part.split,
        "examples": part.examples,
        "rows": hashlib.sha256(np.asarray(part.rows, "<i8").tobytes()).hexdigest(),
        "image size": "x".join(map(str, image_size or ())),
        "batch size": batch_size,
        "augmentation": augment,
        **({} if augment == NONE else {"views": views, "seed": seed}),
        "computed with": _software(),
    }
    if taken := sorted(set(parts) & set(stated)):
        raise ValueError(f"Expected parts that do not speak of the data, received {taken}.")
    key = {**parts, **stated}
    arrays = cache.read(kind, key)
    if arrays is None:
        batched = (
            pipeline.batches(part, batch_size, image_size=image_size)
            if augment == NONE
            else pipeline.view_batches(
                part, batch_size, views, seed=seed, augment=augment, image_size=image_size
            )
        )
        about = f"{source} on {part.source.info.name} {part.split}, {part.examples} examples"
        if augment != NONE:
            about += f", {views} x {augment}"
        arrays = _compute(function, batched, (views, part.examples), cache, kind, key, about)
    return Features(arrays["x"], arrays["y"], part.rows)


@dataclass(frozen=True)
class FeatureBatches:
    """Batches of features for training, epoch after epoch, a view an epoch in turn.

    Attributes:
        views: Batches of each view.
    """

    views: tuple[pipeline.TrainBatches, ...]

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return self.views[0].steps

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        """Returns the batches of epoch `first`, then those of the next, without end."""
        count = len(self.views)
        if count == 1:
            return self.views[0].epochs(first)
        turn = tf.data.Dataset.range(first, np.iinfo(np.int64).max).flat_map(
            lambda epoch: tf.data.Dataset.from_tensors(epoch % count).repeat(self.steps)
        )
        own = [each.epochs(-((view - first) // count)) for view, each in enumerate(self.views)]
        return tf.data.Dataset.choose_from_datasets(own, turn).prefetch(tf.data.AUTOTUNE)


def feature_batches(
    features: Features, part: Part, batch_size: int, *, seed: int, **options: Any
) -> FeatureBatches:
    """Batches features for training; see `pipeline.train_batches`.

    Args:
        features: Of `part`.
        part: The examples.
        batch_size: Examples a batch, at least 1.
        seed: Of the order, in [0, 2**32).
        **options: More of `train_batches`: `balance`, `replicas`, `one_hot`.

    Returns:
        Batches `(x, y)`, features float32 `[batch, units]`.

    Raises:
        UserError: As `train_batches`.
    """
    return FeatureBatches(
        tuple(
            pipeline.train_batches(
                feature_part(features, part, view),
                batch_size,
                seed=(seed + view) % 2**32,
                **options,
            )
            for view in range(len(features.x))
        )
    )


def feature_part(features: Features, part: Part, view: int = 0) -> Part:
    """Returns a part of the data with features for inputs, in the order of the original."""
    source = _FeatureSource(features, part, view)
    return Part(source, part.split, np.arange(part.examples), f"features of {part.origin}")


class _FeatureSource(DataSource):
    """Features as a table, read from the cache in blocks."""

    def __init__(self, features: Features, part: Part, view: int):
        self._x, self._y = features.x[view], features.y
        original = part.source.info
        self.info = DataInfo(
            original.name, original.task, TABLE, self._x.shape[1:], {part.split: part.examples}
        )
        self.fingerprint = part.source.fingerprint
        self.raw_bytes = int(self._x[:1].nbytes)

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(position, features, y)`."""
        chosen = np.arange(len(self._x)) if rows is None else rows

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for start in range(0, len(chosen), _BLOCK):
                at = chosen[start : start + _BLOCK]
                yield at.astype(str).astype(object), self._x[at], self._y[at]

        signature = (
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None, *self._x.shape[1:]], self._x.dtype),
            tf.TensorSpec([None, *self._y.shape[1:]], self._y.dtype),
        )
        return tf.data.Dataset.from_generator(blocks, output_signature=signature).unbatch()

    def labels(self, name: str) -> np.ndarray:
        """Returns `y`."""
        return self._y


def _compute(
    function: Callable[[tf.Tensor], tf.Tensor],
    batches: tf.data.Dataset,
    counts: tuple[int, int],
    cache: Cache,
    kind: str,
    key: Parts,
    about: str,
) -> dict[str, np.memmap]:
    """Runs a function over the batches `(x, y)` of all views, and writes what it returns."""
    inputs, labels = batches.element_spec
    views, examples = counts
    step = tf.function(
        lambda batch: _numbers(function(batch)),
        # The last batch is smaller, and must not be traced anew.
        input_signature=[tf.TensorSpec([None, *inputs.shape[1:]], inputs.dtype)],
    )
    shape = step.get_concrete_function().output_shapes
    shapes = {
        "x": ((views, examples, *shape[1:]), np.float32),
        "y": ((examples, *labels.shape[1:]), labels.dtype.as_numpy_dtype),
    }
    with cache.write(kind, key, shapes, about) as draft:
        x, y = draft.arrays["x"], draft.arrays["y"]
        done = 0
        for batch, targets in batches:
            view, row = divmod(done, examples)
            rows = slice(row, row + len(targets))
            x[view, rows], y[rows] = step(batch).numpy(), targets.numpy()
            done += len(targets)
            draft.release()
        if done != views * examples:
            raise ValueError(f"Expected {views} times {examples} examples, received {done}.")
    return draft.finished


def _numbers(outputs: tf.Tensor) -> tf.Tensor:
    """Checks what a function returns, and makes it float32."""
    shape = outputs.shape if tf.is_tensor(outputs) else tf.TensorShape(None)
    if not shape.rank or not shape[1:].is_fully_defined() or outputs.dtype == tf.string:
        raise ValueError(
            f"Expected one tensor of numbers, [batch, ...] of a fixed shape, received {outputs}."
        )
    return tf.cast(outputs, tf.float32)


def weights_digest(layer: keras.Layer) -> str:
    """Hashes the values that the weights of a layer or model have now; their names do not count."""
    digest = hashlib.sha256()
    for weight in layer.weights:
        value = tf.convert_to_tensor(weight.value).numpy()
        digest.update(f"{value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _software() -> str:
    """Names what else the last bits depend on."""
    device = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    kernels = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "usual")
    return f"tensorflow {tf.__version__}, keras {keras.__version__}, {device}, oneDNN {kernels}"
