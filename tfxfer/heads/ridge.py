"""Ridge regression: the linear head of least squared error, plus a penalty, in closed form."""

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from tfxfer.heads.fitted import Data, FittedHead, mean_loss, strengths, temperature
from tfxfer.heads.standard import standardised
from tfxfer.task import REGRESSION, SINGLE_LABEL, Task

# From strong to weak, so that of two that are as good the stronger is taken.
_STRENGTHS = tuple(float(10**half) for half in np.arange(6, -2.5, -0.5))


def fit(task: Task, train: Data, validation: Data, strength: float | None = None) -> FittedHead:
    """Fits what scikit-learn's `Ridge(alpha=strength)` fits to standardised features.

    Classes are told by targets of -1 and 1, whose scores a temperature chosen on validation makes
    logits. With `Z` the standardised features and `T` the centred targets, the weights are
    `(Z'Z + strength)^-1 Z'T`, or `Z' (ZZ' + strength)^-1 T` where there are fewer examples than
    features; one eigendecomposition of the smaller of the two serves every strength.

    Args:
        task: Any.
        train: Features and labels.
        validation: What chooses strength and temperature.
        strength: The penalty, if not to be chosen.

    Returns:
        The head, a dense layer on the features as they are.

    Raises:
        UserError: For the strength.
    """
    x, y = train
    z, standard = standardised(x)
    targets = _targets(task, y)
    intercept = targets.mean(axis=0)
    with threadpool_limits(1):  # Where threads are busy, more of them take many times longer.
        left, values, right = _decomposed(z, targets - intercept)
    checked = standard(validation[0]) @ left
    found: dict[float, tuple[float, float]] = {}
    for penalty in strengths(strength, _STRENGTHS):
        scores = checked @ (right / (values + penalty)) + intercept
        scale = 1.0 if task.kind == REGRESSION else temperature(task, scores, validation[1])
        found[penalty] = mean_loss(task, scale * scores, validation[1], y), scale
    best = min(found, key=lambda penalty: found[penalty][0])
    scale = found[best][1]
    return FittedHead(
        layer=standard.dense(scale * (left @ (right / (values + best))), scale * intercept),
        name="ridge",
        strength=best,
        sweep=() if strength is not None else tuple((s, loss) for s, (loss, _) in found.items()),
    )


def _targets(task: Task, y: np.ndarray) -> np.ndarray:
    if task.kind == REGRESSION:
        return y.astype(np.float64)
    return 2.0 * (np.eye(task.units)[y] if task.kind == SINGLE_LABEL else y) - 1.0


def _decomposed(z: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns what gives the weights at a penalty, `left @ (right / (values + penalty))`.

    With m the smaller of n and d: `left` `[d, m]`, `values` `[m, 1]` and `right` `[m, units]`.
    """
    examples, features = z.shape
    if features <= examples:
        values, left = eigh(z.T @ z)
        right = left.T @ (z.T @ targets)
    else:
        values, vectors = eigh(z @ z.T)
        left, right = z.T @ vectors, vectors.T @ targets
    return left, np.maximum(values, 0)[:, None], right
