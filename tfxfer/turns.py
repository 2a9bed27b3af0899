"""How the devices of all workers share batches: each takes its part, or whole ones in turn."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.distribute import worker_count, worker_index


def own_share(data: tf.data.Dataset, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    """Gives each replica of a strategy its share of every batch, in the order of the replicas.

    Args:
        data: Batches of sizes that the number of replicas divides; the same on all workers.
        strategy: The strategy.
    """
    replicas, workers = strategy.num_replicas_in_sync, worker_count(strategy)
    if replicas == 1:
        return data
    if workers == 1:
        return strategy.experimental_distribute_dataset(data)
    own = replicas // workers
    return _handed_out(_split(data, replicas, worker_index(strategy) * own, own), strategy)


def epochs_of_worker(
    batches: Any, first: int, skipped: int, strategy: tf.distribute.Strategy
) -> tf.data.Dataset:
    """Gives each replica its share of every batch of epochs; a worker decodes its own if it can.

    Args:
        batches: Batches, epoch after epoch, as `train_batches` returns them.
        first: The first epoch.
        skipped: Batches of it that were seen.
        strategy: The strategy.
    """
    workers, own = worker_count(strategy), None
    if workers > 1 and hasattr(batches, "of_worker"):
        own = batches.of_worker(worker_index(strategy), workers)
    data = (own or batches).epochs(first)
    data = data.skip(skipped) if skipped else data
    if own is None:
        return own_share(data, strategy)
    replicas = strategy.num_replicas_in_sync // workers
    return _handed_out(_split(data, replicas, 0, replicas), strategy)


def _split(data: tf.data.Dataset, parts: int, first: int, count: int) -> tf.data.Dataset:
    """Cuts batches into parts of one size, and leaves some of them, one after the other."""

    def split(*batch: Any) -> Any:
        def some(array: tf.Tensor) -> tf.Tensor:
            cut = tf.reshape(array, tf.concat([[parts, -1], tf.shape(array)[1:]], 0))
            return tf.ensure_shape(cut, [parts, None, *array.shape[1:]])[first : first + count]

        return tf.nest.map_structure(some, batch)

    return data.map(split).unbatch().prefetch(tf.data.AUTOTUNE)


class Turns:
    """A function of inputs, whose batches the replicas of a strategy take in turn.

    It is traced once, for batches of any size.

    Args:
        function: From inputs `[batch, ...]` to one tensor of numbers `[batch, ...]`.
        data: Batches `(x, y)` of the kind that it is to be run on.
        strategy: The strategy; its workers must all do the same at the same time.

    Attributes:
        returned: What the function returns on each replica of this process, as it was traced.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        data: tf.data.Dataset,
        strategy: tf.distribute.Strategy,
    ):
        self._strategy = strategy
        traced: Any = function
        if not isinstance(function, tf.types.experimental.PolymorphicFunction):
            traced = tf.function(function, autograph=False)
        self._across = worker_count(strategy) > 1
        if self._across:
            self.returned = [traced.get_concrete_function(data.element_spec[0]).structured_outputs]
            self._step: Any = _gathered(function, strategy)
        elif strategy.num_replicas_in_sync > 1:
            inputs = _handed_out(data, strategy).element_spec[0]
            run = tf.function(lambda batch: strategy.run(function, (batch,)), autograph=False)
            self._step = run.get_concrete_function(inputs)
            self.returned = strategy.experimental_local_results(self._step.structured_outputs)
        else:
            self._step = traced.get_concrete_function(data.element_spec[0])
            self.returned = [self._step.structured_outputs]

    def run(
        self,
        data: tf.data.Dataset,
        some: Callable[[np.ndarray], tf.data.Dataset] | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Gives outputs and labels of all examples, some at a time, in their order.

        Args:
            data: Batches `(x, y)`, a known number of them; the same on all workers.
            some: Gives those of some places, in their order, int `[n]`: then a worker reads no
                others. Without it each reads all batches, and leaves out those of others.
        """
        strategy, count = self._strategy, int(data.cardinality())
        replicas = strategy.num_replicas_in_sync
        # So that no replica is without a batch in the last turn; what they make of it is left out.
        padded = data.repeat().take(-(-count // replicas) * replicas) if replicas > 1 else data
        local = strategy.experimental_local_results
        if self._across:
            own = _of_worker(padded, count, strategy)
            if some is not None:
                own = _read_by_worker(some, count, strategy)
            for batch in _handed_out(own, strategy):
                # Each replica has those of all.
                (outputs, *_), (targets, *_) = map(local, self._step(batch))
                yield outputs.numpy(), targets.numpy()
            return
        number = 0
        for inputs, targets in _handed_out(padded, strategy):
            for output, target in zip(local(self._step(inputs)), local(targets), strict=True):
                if number < count or replicas == 1:
                    yield output.numpy(), target.numpy()
                number += 1


def _handed_out(data: tf.data.Dataset, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    """Hands batches to the replicas of this process in turn."""
    if strategy.num_replicas_in_sync == 1:
        return data
    return strategy.distribute_datasets_from_function(lambda context: data)


def _of_worker(
    data: tf.data.Dataset, count: int, strategy: tf.distribute.Strategy
) -> tf.data.Dataset:
    """Leaves the batches whose turn is that of this worker, each with 1 if it is a real one."""
    replicas, index = strategy.num_replicas_in_sync, worker_index(strategy)
    own = replicas // worker_count(strategy)
    mine = data.enumerate().filter(lambda i, batch: (i % replicas) // own == index)
    return mine.map(lambda i, batch: (tf.cast(i < count, tf.int32), *batch)).prefetch(
        tf.data.AUTOTUNE
    )


def _read_by_worker(
    some: Callable[[np.ndarray], tf.data.Dataset], count: int, strategy: tf.distribute.Strategy
) -> tf.data.Dataset:
    """Reads the batches whose turn is that of this worker, each with 1 if it is a real one."""
    replicas, index = strategy.num_replicas_in_sync, worker_index(strategy)
    own = replicas // worker_count(strategy)
    turns = np.arange(-(-count // replicas) * replicas)
    mine = turns[(turns % replicas) // own == index]
    real = mine[mine < count]
    # The first stands for those that there are not, so that this worker has as many as others.
    other = some(np.zeros(1, int)).map(lambda *batch: (tf.constant(0), *batch))
    data = other.repeat(len(mine) - len(real))
    if len(real):
        data = some(real).map(lambda *batch: (tf.constant(1), *batch)).concatenate(data)
    return data.prefetch(tf.data.AUTOTUNE)


def _gathered(function: Callable[[Any], Any], strategy: tf.distribute.Strategy) -> Any:
    """Runs a function on the replicas of all workers, and gives each what all of them return."""

    def replica(real: tf.Tensor, inputs: Any, targets: tf.Tensor) -> list[tf.Tensor]:
        context: Any = tf.distribute.get_replica_context()
        kept = [each[: tf.shape(each)[0] * real] for each in (function(inputs), targets)]
        return [context.all_gather(each, axis=0) for each in kept]

    return tf.function(
        lambda batch: strategy.run(replica, batch), autograph=False, reduce_retracing=True
    )
