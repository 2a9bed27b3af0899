"""What fitting a head gives, and how validation chooses."""

from dataclasses import dataclass

import keras
import numpy as np
from scipy.optimize import minimize_scalar

from tfxfer.errors import UserError
from tfxfer.evaluate import example_losses
from tfxfer.heads.gradient import target_scale
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

Data = tuple[np.ndarray, np.ndarray]
"""Features `[n, d]` and labels `[n, ...]`."""

UNSEEN = float(np.log(1e-7))
"""Logit of a class without examples, beside others of 0 or more: about never, but finite."""


@dataclass(frozen=True)
class FittedHead:
    """A head and how it was chosen.

    Attributes:
        layer: Features `[batch, d]` to float32 `[batch, task.units]`.
        name: Of the head, as `fit_head` takes it.
        strength: The one that was given or chosen; `None` where there is none.
        sweep: Each strength that was tried and the mean loss on validation: negative
            log-likelihood in nats, or squared error in standard deviations of the targets.
            Empty where there was nothing to choose.
    """

    layer: keras.layers.Layer
    name: str
    strength: float | None
    sweep: tuple[tuple[float, float], ...]


def mean_loss(task: Task, outputs: np.ndarray, y: np.ndarray, train_y: np.ndarray) -> float:
    """Returns what `FittedHead.sweep` holds.

    Args:
        task: What `y` is.
        outputs: Logits or numbers, `[n, units]`.
        y: What is true.
        train_y: Labels of the training examples, which say in what units targets count.
    """
    if task.kind == REGRESSION:
        _, spread = target_scale(train_y)
        outputs, y = outputs / spread, y / spread
    return float(np.mean(example_losses(task, outputs, y)))


def strengths(given: float | None, usual: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the strengths to try: the given one alone, or the usual ones.

    Raises:
        UserError: If the given one is not above 0 and finite.
    """
    if given is None:
        return usual
    if not (given > 0 and np.isfinite(given)):
        raise UserError(f"The strength must be above 0 and finite, not {given}", "Give another.")
    return (given,)


def temperature(task: Task, scores: np.ndarray, y: np.ndarray) -> float:
    """Returns what to multiply scores by, so that they are logits of fair probabilities.

    The scalar of Guo et al. 2017, "On Calibration of Modern Neural Networks" (its inverse), least
    in negative log-likelihood. The labels are smoothed as in Platt 1999, "Probabilistic Outputs for
    Support Vector Machines", by `1 / (n + 2)`: few examples, all told right, do not make it sure of
    everything.

    Args:
        task: One class of several, or several.
        scores: Larger for what is more likely, `[n, classes]`.
        y: What is true, on the same classes.

    Returns:
        A number above 0; 1 if all scores are the same.
    """
    spread = scores.std()
    if spread == 0:
        return 1.0
    classes = scores.shape[1]
    smooth = 1 / (len(y) + 2)
    hot = np.eye(classes)[y] if task.kind == SINGLE_LABEL else y
    targets = (1 - smooth) * hot + smooth * (0.5 if task.kind == MULTI_LABEL else 1 / classes)

    def loss(log_scale: float) -> float:
        return float(np.mean(example_losses(task, np.exp(log_scale) * scores, targets)))

    # The loss is convex in the scale, so that it has one minimum in its logarithm.
    unit = -np.log(spread)
    found = minimize_scalar(
        loss, bounds=(unit - 7, unit + 7), method="bounded", options={"xatol": 1e-3}
    )
    return float(np.exp(found.x))
