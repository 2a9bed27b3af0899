"""Weights and temperatures of a `Distiller` that change as it trains."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras


class LossSchedule(keras.callbacks.Callback):
    """Sets alpha, weights and temperatures of a `Distiller` as each epoch begins.

    A loss with a warm-up of `n` epochs weighs `(epoch + 1) / n` of its weight until then.

    Args:
        alpha: The weight of the label loss by epoch, from 0; stays as it is if `None`.
        weights: The same for losses, by their number, from 0.
        temperatures: The same for their temperatures.

    Raises:
        ValueError: As training begins, if the distiller has no loss of such a number, or one that
            has no temperature; later, if a temperature is not above 0 and finite.
    """

    def __init__(
        self,
        alpha: Callable[[int], float] | None = None,
        weights: Mapping[int, Callable[[int], float]] | None = None,
        temperatures: Mapping[int, Callable[[int], float]] | None = None,
    ):
        super().__init__()
        self._alpha, self._weights = alpha, dict(weights or {})
        self._temperatures = dict(temperatures or {})

    def on_train_begin(self, logs=None):
        """Looks whether what is to change is there."""
        distiller: Any = self.model
        with_temperature = [int(number) for number in distiller.temperatures]
        _check_numbers(self._weights, range(len(distiller.terms)), "losses")
        _check_numbers(self._temperatures, with_temperature, "losses with a temperature")

    def on_epoch_begin(self, epoch, logs=None):
        """Sets what follows a schedule."""
        distiller: Any = self.model
        for number, term in enumerate(distiller.terms):
            if term.warmup:
                share = min(1.0, (epoch + 1) / term.warmup)
                distiller.loss_weights[number].assign(term.weight * share)
        for number, weight in self._weights.items():
            distiller.loss_weights[number].assign(weight(epoch))
        for number, temperature in self._temperatures.items():
            found = temperature(epoch)
            if not 0 < found < math.inf:
                raise ValueError(
                    f"Expected finite temperatures above 0, received {found} for loss "
                    f"{number} in epoch {epoch}."
                )
            distiller.temperatures[str(number)].assign(found)
        if self._alpha is not None:
            distiller.alpha.assign(self._alpha(epoch))


def with_schedule(callbacks: Any, model: keras.Model) -> Any:
    """Adds a `LossSchedule` ahead of what `fit` is given, for warm-ups; of others, the last counts.

    Args:
        callbacks: As `fit` takes them. A `CallbackList` gets one, unless it has one.
        model: What trains.
    """
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        given = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
        return [LossSchedule(), *(each for each in given if each is not None)]
    if not any(isinstance(each, LossSchedule) for each in callbacks.callbacks):
        callbacks.callbacks.insert(0, LossSchedule())
        callbacks.callbacks[0].set_model(model)
    return callbacks


def _check_numbers(given: Collection[int], known: Collection[int], what: str) -> None:
    if unknown := [number for number in given if number not in known]:
        raise ValueError(f"Expected numbers of {what}, of {list(known)}, received {unknown}.")
