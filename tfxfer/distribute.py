"""Which devices share the work."""

import tensorflow as tf


def pick_strategy() -> tf.distribute.Strategy:
    """Returns `MirroredStrategy` over all GPUs if there are several, else the default."""
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def describe(strategy: tf.distribute.Strategy) -> str:
    """Names the devices of a strategy, such as `1 CPU` or `4 GPU`."""
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return f"{strategy.num_replicas_in_sync} {kind}"
