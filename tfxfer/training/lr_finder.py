"""The learning-rate finder: a short mock training whose rate rises until the loss explodes.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3. Rates, smoothing,
stop and the four rules are those of fastai's `lr_find`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from scipy.signal import lfilter

from tfxfer.errors import UserError
from tfxfer.models import FineTuner
from tfxfer.training.epochs import Batches
from tfxfer.training.objective import Objective
from tfxfer.training.replicas import separate_dropout
from tfxfer.training.settings import Settings
from tfxfer.turns import own_share

_MEMORY = 0.98
_EXPLODED = 4.0
_LAST = 5  # Points at the end, where the loss shoots up.
_WINDOW = 15  # Steps between the two slopes that `slide` compares.


@dataclass(frozen=True)
class Suggestions:
    """The rates that four rules take from a curve.

    Attributes:
        valley: In the middle of the longest descent; the one to use if in doubt.
        steepest: Where the loss falls fastest.
        minimum: A tenth of the rate with the smallest loss.
        slide: From the high rates down, where the slope has become steady.
    """

    valley: float
    steepest: float
    minimum: float
    slide: float


@dataclass(frozen=True)
class LrCurve:
    """Losses of a training whose rate rises from step to step.

    Attributes:
        rates: The rate of each step, ascending.
        losses: The loss of each step's batch, as the weights were before that step; finite.
        smoothed: Their moving average.
        suggestions: What the rules make of it.
        diverged: Whether it ended before the last rate, as the loss exploded.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestions: Suggestions
    diverged: bool

    @property
    def fall(self) -> float:
        """Share of the first smoothed loss that was gone at its smallest, in [0, 1]."""
        first, least = self.smoothed[0], min(self.smoothed)
        return (first - least) / first if first > 0 else 0.0


def find_learning_rate(
    model: FineTuner,
    data: Batches,
    objective: Objective,
    *,
    scales: Mapping[str, float] | None = None,
    rates: Sequence[float] | np.ndarray | None = None,
    settings: Settings | None = None,
) -> LrCurve:
    """Trains a model with a rate that rises from step to step, then makes it what it was.

    Weights, averages of batch normalization, states of Keras' random generators and what is
    unfrozen are as before, to the bit. The optimizer is thrown away: compile the model before it
    is trained.

    Args:
        model: A fine-tuner whose output is logits or numbers, `[batch, units]`.
        data: Training batches; where an epoch ends, the next one follows.
        objective: What training makes small.
        scales: The stages to train, and what the rate of each is multiplied with, above 0; all
            stages with 1 if `None`.
        rates: One a step, above 0, ascending; as `exponential_rates` if `None`.
        settings: How steps are taken; as usual if `None`. Averages and epochs play no part.

    Returns:
        The curve.

    Raises:
        UserError: If the loss explodes so early that no slope can be seen.
        ValueError: If a stage is unknown, a scale is not above 0, or rates are not as above.
    """
    scales = dict.fromkeys(model.stage_names, 1.0) if scales is None else dict(scales)
    if not scales or not all(0 < scale < math.inf for scale in scales.values()):
        raise ValueError(f"Expected finite scales above 0, one a stage, received {scales}.")
    steps = exponential_rates() if rates is None else np.asarray(rates, np.float64)
    if not (steps.ndim == 1 and steps.size and steps[0] > 0 and (np.diff(steps) > 0).all()):
        raise ValueError(f"Expected ascending rates above 0, received {rates}.")
    unfrozen = [stage.name for stage in model.stages if any(w.trainable for w in stage.learned)]
    before = [(variable, np.array(variable.numpy())) for variable in model.variables]
    try:
        losses = until_exploded(
            _losses(model, data, objective, scales, steps, settings or Settings())
        )
    finally:
        for variable, value in before:
            variable.assign(value)
        model.unfreeze(unfrozen)
        # Nobody is to train on with what took steps at the highest rates.
        model.optimizer, model.compiled = None, False
    return curve(steps, losses)


def _losses(
    model: FineTuner,
    data: Batches,
    objective: Objective,
    scales: Mapping[str, float],
    rates: np.ndarray,
    settings: Settings,
) -> Iterator[float]:
    """Takes a step with each rate, and yields the loss of its batch."""
    strategy = model.distribute_strategy
    optimizer, compiled_with = settings.make_optimizer(model)
    model.unfreeze(list(scales))
    with strategy.scope():
        settings.compile(
            model, compiled_with, objective, settings.starts(model, model.get_weights())
        )
        separate_dropout(model, strategy)
        optimizer.rates = scales

        def loss(batch):
            model.reset_metrics()  # The loss that `train_step` returns is the mean since then.
            return model.train_step(batch)["loss"]

        replica = tf.function(loss, jit_compile=True, reduce_retracing=True, autograph=False)
        replica = replica if settings.jit else loss

        def step(batch):
            losses = strategy.run(replica, (batch,))
            return strategy.reduce(tf.distribute.ReduceOp.MEAN, losses, axis=None)

        batches = own_share(data.epochs(), strategy)
        step = tf.function(step, autograph=False).get_concrete_function(batches.element_spec)
    for rate, batch in zip(rates, batches, strict=False):
        optimizer.factor.assign(rate)
        yield float(step(batch))


def exponential_rates(lowest: float = 1e-7, highest: float = 10.0, steps: int = 100) -> np.ndarray:
    """Returns rates, float64 `[steps]`, each the same multiple of the one before it."""
    return np.geomspace(lowest, highest, steps)


def smoothed(losses: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns the exponential moving average of losses `[n]`, without bias to its start at 0."""
    seen = 1 - _MEMORY ** np.arange(1, len(losses) + 1)
    return np.asarray(lfilter([1 - _MEMORY], [1, -_MEMORY], losses)) / seen


def until_exploded(losses: Iterator[float]) -> tuple[float, ...]:
    """Takes losses until one is not finite, or their moving average is 4 times its smallest.

    Returns:
        The finite ones, that which ended it included.
    """
    taken: list[float] = []
    for loss in losses:
        if not math.isfinite(loss):
            break
        taken.append(loss)
        average = smoothed(taken)
        if average[-1] > _EXPLODED * average.min():
            break
    return tuple(taken)


def curve(rates: np.ndarray, losses: Sequence[float] | np.ndarray) -> LrCurve:
    """Smooths losses and applies the rules.

    They see neither the first tenth of the rates, where the average has yet to settle, nor the
    last 5 losses.

    Args:
        rates: All that were planned.
        losses: Finite; fewer than rates if the training exploded.

    Raises:
        UserError: If there are too few losses to see a slope.
    """
    average = smoothed(losses)
    seen = slice(len(rates) // 10, len(losses) - _LAST)
    x, y = rates[: len(losses)][seen], average[seen]
    if len(x) <= _WINDOW:
        raise UserError(
            f"The loss must stay finite and small long enough to see where it falls, and it "
            f"explodes at a rate of {rates[max(0, len(losses) - 1)]:.1e} already",
            "Look at the data, or start with smaller rates.",
        )
    return LrCurve(
        rates=tuple(rates[: len(losses)].tolist()),
        losses=tuple(map(float, losses)),
        smoothed=tuple(average.tolist()),
        suggestions=Suggestions(valley(x, y), steepest(x, y), minimum(x, y), slide(x, y)),
        diverged=len(losses) < len(rates),
    )


def valley(rates: np.ndarray, losses: np.ndarray) -> float:
    """Returns the rate in the middle of the longest descent, which may skip points.

    Args:
        rates: Ascending, `[n]`.
        losses: Smoothed, `[n]`.
    """
    lengths = np.ones(len(losses), int)  # Of the longest descent that ends at each point.
    for i in range(1, len(losses)):
        lengths[i] += lengths[:i][losses[:i] > losses[i]].max(initial=0)
    end = int(lengths.argmax())
    start = end - int(lengths[end])
    third = (end - start) / 3
    return float(rates[max(0, start + int(third) + int(third / 2))])


def steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """Returns the rate where the loss falls fastest over the logarithm of the rate."""
    return float(rates[np.argmin(np.diff(losses) / np.diff(np.log(rates)))])


def minimum(rates: np.ndarray, losses: np.ndarray) -> float:
    """Returns a tenth of the rate with the smallest loss."""
    return float(rates[np.argmin(losses)] / 10)


def slide(rates: np.ndarray, losses: np.ndarray, flat: float = 0.005) -> float:
    """Returns the low end of the last window to whose ends the slopes differ, from the top down.

    The window of 15 steps slides down from the highest rate until the slopes at its two ends, in
    loss a step, differ by `flat` at most.

    Args:
        rates: Ascending, `[n]`, more than 15.
        losses: Smoothed, `[n]`.
        flat: How much slopes may differ that count as equal.
    """
    slopes = np.gradient(losses)
    differ = np.abs(slopes[_WINDOW:] - slopes[:-_WINDOW])[::-1] > flat
    passed = len(differ) if differ.all() else int(differ.argmin())
    return float(rates[len(differ) - max(passed, 1)])
