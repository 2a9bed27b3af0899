"""What a backbone costs: operations and time for one image."""

import io
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfxfer.backbones.base import Backbone

_ANY_SIZE = (224, 224)
_RUNS = 20
_WARM_UP = 3


@dataclass(frozen=True)
class Cost:
    """What features of one image cost.

    Attributes:
        flops: Floating point operations; a multiplication with its addition counts as two.
        milliseconds: Median time of one image in a batch of its own, on this machine.
        size: Height and width of the image.
    """

    flops: int
    milliseconds: float
    size: tuple[int, int]


def measure_cost(backbone: Backbone) -> Cost:
    """Counts the operations for one image, and measures their time.

    Args:
        backbone: Any; it runs as in inference.

    Returns:
        The cost, at 224x224 pixels if the backbone takes any size.
    """
    size = backbone.contract.size or _ANY_SIZE
    shape = (1, *size, backbone.contract.channels)
    run = tf.function(
        lambda images: backbone(images, training=False),
        input_signature=[tf.TensorSpec(shape, tf.uint8)],
        autograph=False,
    )
    image = tf.constant(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    seconds = []
    for _ in range(_WARM_UP + _RUNS):
        start = time.perf_counter()
        run(image).numpy()
        seconds.append(time.perf_counter() - start)
    flops = count_flops(run.get_concrete_function())
    return Cost(flops, float(np.median(seconds[_WARM_UP:])) * 1000, size)


def count_flops(function: Any) -> int:
    """Counts by TensorFlow's profiler, which needs the graph in one piece, without variables."""
    graph = convert_variables_to_constants_v2(function).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        counted = profiler.profile(graph, options=options.with_empty_output().build())
    return counted.total_float_ops
