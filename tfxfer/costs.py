"""What a whole model costs: weights, operations and time for one image or text."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import Backbone
from tfxfer.backbones.cost import count_flops, uncounted_flops
from tfxfer.memory import peak_bytes

_ANY_SIZE = 224
_BATCH = 32
# What a SavedModel of TensorFlow 2.21 takes, beside its values, to name, save and restore a weight.
_DISK_BYTES_A_WEIGHT = 3000
_WARM_UP = 3
_LEAST_RUNS = 5
_MOST_RUNS = 200
_SECONDS = 0.3


@dataclass(frozen=True)
class ModelCost:
    """What a model costs where it serves.

    Attributes:
        parameters: Scalars in its weights, those that do not train too.
        bytes: Size of these in memory.
        flops: Floating point operations for one example; a multiplication with its addition
            counts as two.
        latency_ms: Median time of one example in a batch of its own, in milliseconds, on this
            machine.
        disk_bytes: Size of its SavedModel, as `tfxfer.export.save_predictor` writes it, to about
            15%, without the vocabulary of a text encoder.
        memory_bytes: Weights, and what a batch of 32 examples needs beside them at its peak, as
            `tfxfer.memory.peak_bytes` measures it; `None` if it cannot.
    """

    parameters: int
    bytes: int
    flops: int
    latency_ms: float
    disk_bytes: int
    memory_bytes: int | None


def model_cost(
    model: keras.Model, image_shape: tuple[int | None, int | None, int], dtype: str = "float32"
) -> ModelCost:
    """Counts weights and operations of a model as in inference, and measures its time.

    Args:
        model: From images `[batch, height, width, channels]`; what it returns does not matter.
        image_shape: Height, width and channels of an image; 224 where a side is `None`.
        dtype: Of the images, whose values are from 0 to 255.

    Returns:
        The cost.

    Raises:
        ValueError: If `image_shape` is none.
    """
    if len(image_shape) != 3 or image_shape[-1] is None:
        raise ValueError(f"Expected height, width and channels, received {image_shape}.")
    shape = (1, *(side or _ANY_SIZE for side in image_shape))
    return cost_on(model, tf.cast(np.random.default_rng(0).integers(0, 256, shape), dtype))


def cost_on(model: keras.Model, example: tf.Tensor) -> ModelCost:
    """Does what `model_cost` does on an example of any kind, such as a text.

    Args:
        model: From inputs `[batch, ...]`.
        example: One of these, `[1, ...]`.
    """
    run = tf.function(
        lambda inputs: model(inputs, training=False),
        input_signature=[tf.TensorSpec([None, *example.shape[1:]], example.dtype)],
        autograph=False,
    )
    traced = run.get_concrete_function()
    # Operations are counted where shapes are known: the same trace, for a batch of one.
    single = tf.function(lambda inputs: traced(inputs), autograph=False)
    weights = model.weights
    held = sum(_scalars(weight) * tf.as_dtype(weight.dtype).size for weight in weights)
    backbone = getattr(model, "backbone", model)
    more = uncounted_flops(backbone) if isinstance(backbone, Backbone) else 0
    seconds = _median_seconds(lambda: _finish(traced(example)))
    batch = tf.repeat(example, _BATCH, axis=0)
    _finish(traced(batch))  # What TensorFlow takes once in a process is not of this model.
    needed = peak_bytes(lambda: _finish(traced(batch)))
    # A predictor has two signatures, and each has the graph.
    graphs = 2 * traced.graph.as_graph_def().ByteSize()
    return ModelCost(
        parameters=sum(_scalars(weight) for weight in weights),
        bytes=held,
        flops=count_flops(single.get_concrete_function(example)) + more,
        latency_ms=1000 * seconds,
        disk_bytes=held + graphs + _DISK_BYTES_A_WEIGHT * len(weights),
        memory_bytes=None if needed is None else held + needed,
    )


def summed(costs: Sequence[ModelCost]) -> ModelCost:
    """Adds up what several models cost that run one after the other, such as teachers.

    What is unknown of one is unknown of all.
    """
    columns = zip(*map(dataclasses.astuple, costs), strict=True)
    totals: list[Any] = [None if None in column else sum(column) for column in columns]
    return ModelCost(*totals)


def _finish(outputs: Any) -> None:
    """Waits for the values of outputs, which a GPU may still be working on."""
    tf.nest.map_structure(np.asarray, outputs)


def _scalars(weight: keras.Variable) -> int:
    return int(np.prod(weight.shape))


def _median_seconds(run) -> float:
    """Times a call for a short while, which must return only when its work is done."""
    for _ in range(_WARM_UP):
        run()
    seconds: list[float] = []
    while len(seconds) < _LEAST_RUNS or (sum(seconds) < _SECONDS and len(seconds) < _MOST_RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
