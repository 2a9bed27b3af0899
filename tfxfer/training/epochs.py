"""The epochs of one phase: steps over the replicas, validation, early stopping, checkpoints."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.data.joined import Batches
from tfxfer.evaluate import inference, predict
from tfxfer.models.step import StepModel
from tfxfer.training.checkpoints import State
from tfxfer.training.moving_average import MovingAverage
from tfxfer.training.objective import Objective
from tfxfer.training.replicas import average_statistics, separate_dropout
from tfxfer.turns import epochs_of_worker


@dataclass(frozen=True)
class Data:
    """What a model is trained and validated on.

    Attributes:
        train: Training batches.
        validation: Batches `(x, y)` of validation; `None` if phases run to their last epoch.
    """

    train: Batches
    validation: tf.data.Dataset | None


@dataclass
class Standing:
    """How far a phase is.

    Attributes:
        epoch: Number of the running epoch, from 0.
        step: Steps of it that are done.
        history: Losses and metrics of each epoch that is done, by name.
        best: The epoch of the best weights.
    """

    epoch: int
    step: int
    history: dict[str, list[float]]
    best: int

    @classmethod
    def of(cls, state: State | None) -> "Standing":
        """Returns what `vars` stated, which JSON can hold, or the beginning."""
        return cls(**state) if state else cls(0, 0, {}, 0)


@dataclass(frozen=True)
class Epochs:
    """How the epochs of a phase are run.

    Attributes:
        model: What is trained, compiled.
        data: On what.
        objective: What validation measures.
        first: Epochs of the data that earlier phases saw.
        steps: Steps of the phase.
        patience: Epochs without a better validation loss before it stops; never if 0.
        average: The moving average that is validated and kept, if there is one.
        jit: Whether to compile steps with XLA.
        before_step: Called with the number of each step in the phase, and sets its rates.
        rate: Returns the learning rate of a step of the phase, which is shown.
        keep: Called after an epoch, with whether it is the best so far and with the validation
            loss of each example, if there is validation, while the model holds the weights of it.
        checkpoint: Called between two steps, when the standing is whole.
    """

    model: StepModel
    data: Data
    objective: Objective
    first: int
    steps: int
    patience: int
    average: MovingAverage | None
    jit: bool
    before_step: Callable[[int], None]
    rate: Callable[[int], float]
    keep: Callable[[Standing, bool, np.ndarray | None], None]
    checkpoint: Callable[[Standing], None]

    def trace(self, strategy: tf.distribute.Strategy) -> Callable[[Any], None]:
        """Traces a training step for batches of any size.

        Args:
            strategy: Whose replicas share a batch.
        """
        replica = self.model.train_step
        if self.jit:
            replica = tf.function(replica, jit_compile=True, reduce_retracing=True, autograph=False)

        def step(batch):
            strategy.run(replica, (batch,))
            if self.average is not None:
                self.average.update()

        batches = epochs_of_worker(self.data.train, self.first, 0, strategy)
        # As in Keras' own loop, no step is converted: that takes longer than to trace it.
        return tf.function(step, autograph=False).get_concrete_function(batches.element_spec)

    def run(
        self,
        step: Callable[[Any], None],
        strategy: tf.distribute.Strategy,
        standing: Standing,
        callbacks: Sequence[keras.callbacks.Callback],
        verbose: int,
    ) -> Standing:
        """Trains from where the phase stands to its end; see the attributes.

        Args:
            step: What `trace` returned.
            strategy: As in `trace`.
            standing: Where to go on.
            callbacks: Keras'; without the logs of single batches, which would wait for the device.
            verbose: Keras' own.

        Returns:
            Where the phase stands at its end.
        """
        each = self.data.train.steps
        count = -(-self.steps // each)
        calls = keras.callbacks.CallbackList(
            list(callbacks),
            add_progbar=verbose > 0,
            model=self.model,
            verbose=verbose,
            epochs=count,
            steps=each,
            initial_epoch=standing.epoch,
        )
        separate_dropout(self.model, strategy)
        self.model.stop_training = False
        calls.on_train_begin()
        batches = self._from(standing, strategy)
        validate = None
        if self.data.validation is not None:
            validate = inference(self.model, self.data.validation)
        while standing.epoch < count and not self.model.stop_training:
            calls.on_epoch_begin(standing.epoch)
            if standing.step == 0:
                self.model.reset_metrics()
            done = standing.epoch * each
            for number in range(standing.step, min(each, self.steps - done)):
                calls.on_train_batch_begin(number)
                self.before_step(done + number)
                step(next(batches))
                calls.on_train_batch_end(number)
                standing.step = number + 1
                self.checkpoint(standing)
            average_statistics(self.model, strategy)
            logs = self._end_epoch(standing, validate)
            calls.on_epoch_end(standing.epoch - 1, logs)
            if self._stops(standing):
                break
        calls.on_train_end()
        return standing

    def _from(self, standing: Standing, strategy: tf.distribute.Strategy) -> Iterator[Any]:
        first = self.first + standing.epoch
        return iter(epochs_of_worker(self.data.train, first, standing.step, strategy))

    def _end_epoch(self, standing: Standing, validate: Any) -> Mapping[str, float]:
        logs = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        best, losses = True, None
        with self.average.swapped() if self.average is not None else nullcontext():
            if validate is not None:
                outputs, y = predict(self.model, self.data.validation, validate)
                losses = self.objective.example_losses(outputs, y)
                logs["val_loss"] = float(losses.mean())
                logs[f"val_{self.objective.metric}"] = self.objective.measure(outputs, y)
                best = logs["val_loss"] < min(standing.history.get("val_loss", [np.inf]))
            for name, value in logs.items():
                standing.history.setdefault(name, []).append(value)
            if best:
                standing.best = standing.epoch
            last = standing.epoch * self.data.train.steps + standing.step - 1
            standing.epoch, standing.step = standing.epoch + 1, 0
            self.keep(standing, best, losses)
        return {**logs, "learning_rate": self.rate(last)}

    def _stops(self, standing: Standing) -> bool:
        finite = all(np.isfinite(values[-1]) for values in standing.history.values())
        late = self.patience and standing.epoch - 1 - standing.best >= self.patience
        return not finite or bool(late and self.data.validation is not None)


class Timer:
    """Wall seconds, those of earlier processes included.

    Args:
        before: Seconds that are spent already.
    """

    def __init__(self, before: float = 0.0):
        self._start = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._start
