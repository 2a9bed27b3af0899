"""What a backbone costs: operations and time for one image or text."""

import io
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfxfer.backbones.base import Backbone
from tfxfer.backbones.contracts import TEXT
from tfxfer.backbones.saved_model import SavedModelBackbone

_RUNS = 20
_WARM_UP = 3


@dataclass(frozen=True)
class Cost:
    """What features of one image or text cost.

    Attributes:
        flops: Floating point operations; a multiplication with its addition counts as two.
        milliseconds: Median time of one example in a batch of its own, on this machine.
        of: What it was, in words.
    """

    flops: int
    milliseconds: float
    of: str


def measure_cost(backbone: Backbone) -> Cost:
    """Counts the operations for one example, and measures their time.

    Args:
        backbone: Any; it runs as in inference.

    Returns:
        The cost, at 224x224 pixels if the backbone takes images of any size, and of a text of
        about 30 words.
    """
    example = tf.constant(backbone.contract.noise(1))
    run = tf.function(
        lambda inputs: backbone(inputs, training=False),
        input_signature=[tf.TensorSpec(example.shape, example.dtype)],
        autograph=False,
    )
    seconds = []
    for _ in range(_WARM_UP + _RUNS):
        start = time.perf_counter()
        run(example).numpy()
        seconds.append(time.perf_counter() - start)
    flops = count_flops(run.get_concrete_function()) + uncounted_flops(backbone)
    text = backbone.contract.inputs == TEXT
    of = "a text of some 30 words" if text else "an image of {1}x{2}".format(*example.shape)
    return Cost(flops, float(np.median(seconds[_WARM_UP:])) * 1000, of)


def uncounted_flops(backbone: Backbone) -> int:
    """Estimates what the profiler cannot count, as the shapes in a loaded encoder are open.

    Two operations for each weight of a kernel and token (Kaplan et al. 2020, "Scaling laws for
    neural language models", section 2.1), without those of attention itself.

    Args:
        backbone: Any; 0 for those whose operations can be counted.
    """
    if not isinstance(backbone, SavedModelBackbone) or backbone.tokenizer is None:
        return 0
    kernels = [
        weight
        for stage in backbone.stages
        for weight in stage.learned
        if stage.name.startswith("block") and len(weight.shape) > 1
    ]
    tokens = backbone.tokenizer.sequence_length
    return sum(2 * tokens * int(np.prod(kernel.shape)) for kernel in kernels)


def count_flops(function: Any) -> int:
    """Counts by TensorFlow's profiler, which needs the graph in one piece, without variables."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # It warns of lookup tables, which cost nothing here.
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            graph = convert_variables_to_constants_v2(function).graph
    finally:
        logger.setLevel(level)
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        counted = profiler.profile(graph, options=options.with_empty_output().build())
    return counted.total_float_ops
