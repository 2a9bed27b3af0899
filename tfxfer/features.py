"""What a frozen network says of a part of the data, computed once and read from a cache."""

import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import Backbone, TextContract
from tfxfer.backbones.boundary import Boundary
from tfxfer.cache import Cache, Draft, Parts, Shapes
from tfxfer.data import pipeline
from tfxfer.data.augment import NONE
from tfxfer.data.parts import Part
from tfxfer.distribute import all_agree
from tfxfer.turns import Turns

FEATURES = "features"
"""The kind of the cache entries that `extract` writes."""

BOUNDARY = "boundary"
"""The kind of those that it writes of a boundary."""

# Larger batches are faster up to about here, and larger images fill a device with fewer of them.
_MOST_IMAGES, _MOST_PIXELS = 128, 64 * 224 * 224
_TEXTS = 128

_SHARD_SECONDS = 10.0
"""Work that is lost at most if the process is killed; what is done is then brought to the disk."""


Start = tuple[Boundary, Callable[[], "Features"]]


@dataclass(frozen=True)
class Features:
    """The outputs of a network over a part of the data.

    Attributes:
        x: The outputs, float32 `[views, n, ...]`, for features `[views, n, units]`; memory-mapped.
        y: The labels as the task has them, int64 `[n]` or float32 `[n, units]`; memory-mapped.
        part: The examples, in the order of `x` and `y`.
    """

    x: np.ndarray
    y: np.ndarray
    part: Part

    @property
    def first(self) -> np.ndarray:
        """The first view, `[n, ...]`; the only one where the data are not augmented."""
        return self.x[0]

    def positions(self, part: Part) -> np.ndarray:
        """Returns where the examples of a part stand in `x` and `y`, increasing.

        Raises:
            ValueError: If they do not all stand there.
        """
        found = np.searchsorted(self.part.rows, part.rows)
        inside = part.split == self.part.split and found.max(initial=-1) < self.part.examples
        if not inside or (self.part.rows[found] != part.rows).any():
            raise ValueError(f"Expected examples of {self.part.origin}, received {part.origin}.")
        return found


def covering(parts: Sequence[Part]) -> Part:
    """Returns all examples of some parts of one split, each once.

    So that features of parts that share examples, such as folds, are computed once.

    Args:
        parts: One at least.
    """
    rows = np.unique(np.concatenate([part.rows for part in parts]))
    return dataclasses.replace(parts[0], rows=rows, origin=parts[0].split)


def extract(
    backbone: Backbone,
    part: Part,
    cache: Cache,
    *,
    batch_size: int | None = None,
    augment: str = NONE,
    views: int = 1,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
    boundary: Boundary | None = None,
    start: Start | None = None,
) -> Features:
    """Gives the features of a backbone over a part of the data, in the order of the part.

    They are computed as in inference, whatever of the backbone is frozen, with the weights that it
    has now: those of a backbone that was fine-tuned meanwhile are others, and computed anew.

    A process that is killed meanwhile loses some seconds of work: the next one goes on where it
    was, and gives the same bits.

    Args:
        backbone: Any; made in the scope of `strategy`, if there is one.
        part: The examples.
        cache: Where the features are kept.
        batch_size: Examples a batch, at least 1; as many as are fast for images of that size if
            `None`. In another batch size the last bits may be others, so that each has its own
            entry.
        augment: The augmentation policy of the views.
        views: How many augmented views to take of each example; 1 if `augment` is `none`.
        seed: Seed of the augmentation.
        strategy: As in `compute_once`.
        boundary: Of the backbone; what its beginning makes of the examples is then given, in
            place of features.
        start: An earlier boundary, and a function that gives what is kept there of the same
            examples and views, to go on from that instead of from the inputs. Called only if what
            is asked for is not kept yet.

    Returns:
        The features.

    Raises:
        UserError: If the disk is full or the cache folder cannot be used, or the data cannot be
            read or batched.
    """
    strategy = tf.distribute.get_strategy() if strategy is None else strategy
    assert strategy is not None
    # Traced once for all parts; but replicas have traces of their own.
    several = strategy.num_replicas_in_sync > 1
    weights = weights_digest(boundary or backbone)
    function: Any
    if start is not None:
        function = start[0].features if boundary is None else boundary.since(start[0])
    else:
        function = backbone.infer_fixed(weights) if boundary is None else boundary.prefix
    if several:
        function = function.python_function
    return compute_once(
        function,
        part,
        cache,
        kind=FEATURES if boundary is None else BOUNDARY,
        source=backbone.source,
        parts={
            "backbone fingerprint": backbone.fingerprint,
            "weights": weights,
            **({} if boundary is None else {"boundary": str(boundary.place)}),
            **({} if start is None else {"computed from boundary": str(start[0].place)}),
            "preprocessing": f"{backbone.contract!r}, then {backbone.preprocessing or 'nothing'}",
            "batch normalization": backbone.bn,
            "precision": backbone.dtype_policy.name,
        },
        image_size=backbone.contract.size,
        batch_size=batch_size or _usual_batch(backbone, part),
        augment=augment,
        views=views,
        seed=seed,
        strategy=strategy,
        start=start and start[1],
    )


def _usual_batch(backbone: Backbone, part: Part) -> int:
    if isinstance(backbone.contract, TextContract):
        return _TEXTS
    height, width = backbone.contract.size or part.source.info.shape[:2]
    pixels = height * width if height and width else _MOST_PIXELS
    return max(1, min(_MOST_IMAGES, _MOST_PIXELS // pixels))


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
    strategy: tf.distribute.Strategy | None = None,
    start: Callable[[], Features] | None = None,
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
        strategy: Whose replicas share the work; that in whose scope this is called if `None`, so
            one device outside of any. Replicas take whole batches in turn, so that a step takes
            `replicas * batch_size` examples, and each batch is what one device would compute: it
            is the same entry. Several workers must all call this; each computes its share, and
            writes the entry into its own cache, which may be the same folder.
        start: Gives outputs of another function for the same examples and views, to be the inputs
            instead; `parts` must tell of it.

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
    strategy = strategy or tf.distribute.get_strategy()
    arrays = cache.read(kind, key)
    kept = all_agree(strategy, int(arrays is not None))
    if arrays is None or not kept:
        stored = start and start()

        def batches(done: int) -> tf.data.Dataset:
            if stored is not None:
                return _stored_batches(stored, batch_size, done)
            if augment == NONE:  # What is done is not even read.
                rest = dataclasses.replace(part, rows=part.rows[done:])
                return pipeline.batches(rest, batch_size, image_size=image_size)
            view, row = divmod(done, part.examples)
            return pipeline.view_batches(
                part, batch_size, views, seed=seed, augment=augment, image_size=image_size
            ).skip(view * -(-part.examples // batch_size) + row // batch_size)

        def some(done: int, numbers: np.ndarray) -> tf.data.Dataset:
            rows = part.rows[done:]
            places = [rows[i * batch_size : (i + 1) * batch_size] for i in numbers]
            own = dataclasses.replace(part, rows=np.concatenate([*places, rows[:0]]))
            return pipeline.batches(own, batch_size, image_size=image_size)

        about = f"{source} on {part.source.info.name} {part.split}, {part.examples} examples"
        if augment != NONE:
            about += f", {views} x {augment}"
        write = functools.partial(cache.write, kind, key, about=about)
        apart = some if stored is None and augment == NONE else None
        arrays = _compute(function, batches, apart, (views, part.examples), write, strategy)
    return Features(arrays["x"], arrays["y"], part)


def _stored_batches(stored: Features, batch_size: int, done: int) -> tf.data.Dataset:
    """Batches views of features in order, as `pipeline.view_batches` does images."""
    views, examples = stored.x.shape[:2]
    places = [(view, row) for view in range(views) for row in range(0, examples, batch_size)]
    places = [(view, row) for view, row in places if view * examples + row >= done]

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for view, row in places:
            yield stored.x[view, row : row + batch_size], stored.y[row : row + batch_size]

    signature = (
        tf.TensorSpec([None, *stored.x.shape[2:]], stored.x.dtype),
        tf.TensorSpec([None, *stored.y.shape[1:]], stored.y.dtype),
    )
    data = tf.data.Dataset.from_generator(blocks, output_signature=signature)
    data = data.apply(tf.data.experimental.assert_cardinality(len(places)))
    return data.prefetch(tf.data.AUTOTUNE)


def _compute(
    function: Callable[[tf.Tensor], tf.Tensor],
    batches: Callable[[int], tf.data.Dataset],
    some: Callable[[int, np.ndarray], tf.data.Dataset] | None,
    counts: tuple[int, int],
    write: Callable[[Shapes], AbstractContextManager[Draft]],
    strategy: tf.distribute.Strategy,
) -> dict[str, np.memmap]:
    """Runs a function over batches, and writes what it returns.

    Args:
        function: From inputs to outputs.
        batches: Gives the batches `(x, y)` of all views that come after so many examples.
        some: Gives some of these batches, by their numbers, if that needs no reading of others.
        counts: Views, and examples of each.
        write: Begins the entry, or goes on with it.
        strategy: Whose replicas run the function.

    Returns:
        What was written.
    """
    views, examples = counts
    total = views * examples
    data = batches(0)
    _, labels = data.element_spec
    turns = Turns(function, data, strategy)
    traced = [_numbers(output) for output in turns.returned]
    shapes = {
        "x": ((views, examples, *traced[0].shape[1:]), np.float32),
        "y": ((examples, *labels.shape[1:]), labels.dtype.as_numpy_dtype),
    }
    with write(shapes) as draft:
        x, y = draft.arrays["x"], draft.arrays["y"]
        done, recorded = all_agree(strategy, draft.done), time.monotonic()
        if done:
            data = batches(done)
        for outputs, targets in turns.run(data, some and functools.partial(some, done)):
            taken = 0
            while taken < len(targets) and done < total:
                view, row = divmod(done, examples)
                count = min(len(targets) - taken, examples - row)
                x[view, row : row + count] = outputs[taken : taken + count]
                y[row : row + count] = targets[taken : taken + count]
                taken, done = taken + count, done + count
            draft.release()
            if done < total and time.monotonic() - recorded >= _SHARD_SECONDS:
                draft.record(done)
                recorded = time.monotonic()
        if done != total:
            raise ValueError(f"Expected {views} times {examples} examples, received {done}.")
    return draft.finished


def _numbers(outputs: Any) -> tf.TensorSpec:
    """Checks what a function returns."""
    tensor = tf.is_tensor(outputs) or isinstance(outputs, tf.TensorSpec)
    shape = outputs.shape if tensor else tf.TensorShape(None)
    if not shape.rank or not shape[1:].is_fully_defined() or outputs.dtype == tf.string:
        raise ValueError(
            f"Expected one tensor of numbers, [batch, ...] of a fixed shape, received {outputs}."
        )
    return tf.TensorSpec(shape, tf.float32)


def weights_digest(layer: keras.Layer | Boundary) -> str:
    """Hashes the values that the weights of a layer or model have now; their names do not count.

    Those of a boundary are the weights before it.
    """
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
