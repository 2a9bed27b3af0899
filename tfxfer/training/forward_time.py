"""How long the frozen network takes for an example."""

import time

import tensorflow as tf

from tfxfer.backbones import Backbone

_RUNS = 2


def forward_seconds(backbone: Backbone, batch_size: int) -> float:
    """Times the backbone on a batch of noise, as in inference.

    In a batch, an example costs a fraction of what it costs alone.

    Args:
        backbone: Any.
        batch_size: Examples at once, at least 1.

    Returns:
        Seconds an example, the least of two runs; at 224x224 pixels if the backbone takes any size.
    """
    inputs = tf.constant(backbone.contract.noise(batch_size))
    # Not `infer`, whose traces would become more general, as images may have other channels.
    run = tf.function(lambda batch: backbone(batch, training=False), autograph=False)
    run(inputs).numpy()
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        run(inputs).numpy()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / batch_size
