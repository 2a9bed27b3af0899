"""What must be the same on all replicas of a model, and what must not."""

from typing import Any

import keras
import tensorflow as tf

_APART = 0x9E3779B1  # Odd, so that all replicas have other seeds.


def average_statistics(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Gives all replicas the mean of their statistics of batch normalization, where it trains.

    Each replica moves its own by the batches that it sees, and what is saved is one of them.

    Args:
        model: What is trained; made in the scope of `strategy`.
        strategy: The strategy. All of its workers must call this.
    """
    moving = [
        variable
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for variable in layer.non_trainable_variables
    ]
    if strategy.num_replicas_in_sync == 1 or not moving:
        return

    def replica() -> None:
        context: Any = tf.distribute.get_replica_context()
        own = [tf.convert_to_tensor(variable.value) for variable in moving]
        means = context.all_reduce(tf.distribute.ReduceOp.MEAN, own)
        for variable, mean in zip(moving, means, strict=True):
            variable.value.assign(mean)

    tf.function(lambda: strategy.run(replica), autograph=False)()


def separate_dropout(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Gives each replica a stream of random numbers of its own, which follows from the first's.

    Keras draws the same mask on every replica.

    Args:
        model: What is trained; made in the scope of `strategy`.
        strategy: The strategy. All of its workers must call this.
    """
    states = [
        generator.state for layer in model._flatten_layers() for generator in layer._seed_generators
    ]
    if strategy.num_replicas_in_sync == 1 or not states:
        return

    def replica() -> None:
        context: Any = tf.distribute.get_replica_context()
        number = tf.cast(context.replica_id_in_sync_group, tf.int64)
        held = [tf.cast(tf.convert_to_tensor(state.value), tf.int64) for state in states]
        own = [tf.where(number == 0, each, 0) for each in held]
        first = context.all_reduce(tf.distribute.ReduceOp.SUM, own)
        for state, each in zip(states, first, strict=True):
            seed, count = tf.unstack(each)
            moved = tf.stack([(seed + number * _APART) % 2**32, count])
            state.value.assign(tf.cast(moved, state.dtype))

    tf.function(lambda: strategy.run(replica), autograph=False)()
