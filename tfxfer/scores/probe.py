"""Score of a linear head in closed form."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from sklearn.metrics import r2_score

from tfxfer.scores.base import centred, data, expect, or_one

_STRENGTHS = 2.0 ** np.arange(-10, 25)


def linear_probe(
    features: ArrayLike, y: ArrayLike, regression: bool = False, l2: float | None = None
) -> float:
    """How well ridge regression tells each example from all others.

    See `linear_probe_predictions`.

    Args:
        features: `[n, d]`.
        y: Classes, int `[n]`, or numbers, `[n]` or `[n, targets]`.
        regression: Whether `y` holds numbers.
        l2: Penalty on squared weights, above 0; found if not given.

    Returns:
        Accuracy, from 0 to 1, or for numbers R squared, at most 1, the mean over targets. Where
        features tell nothing it is less than chance: without the example its class is rarer.

    Raises:
        ValueError: As `linear_probe_predictions` does.
    """
    told = linear_probe_predictions(features, y, regression, l2)
    return float(r2_score(np.reshape(y, told.shape), told) if regression else np.mean(told == y))


def linear_probe_predictions(
    features: ArrayLike, y: ArrayLike, regression: bool = False, l2: float | None = None
) -> np.ndarray:
    """What ridge regression, fitted to all others, takes each example for.

    Features are standardised, targets are numbers or -1 and 1 for each class, and the intercept
    goes unpunished. Fits without one example follow from that with all, by `(t - t_all) / (1 - h)`,
    `h` the diagonal of the hat matrix; one decomposition serves all. Takes memory for `n * classes`
    numbers, too.

    Golub et al. 1979, "Generalized Cross-Validation as a Method for Choosing a Good Ridge
    Parameter"; the head of Zhai et al. 2020, "A Large-scale Study of Representation Learning with
    the Visual Task Adaptation Benchmark", which has an `l2` of 1024.

    Args:
        features: `[n, d]`.
        y: Classes, int `[n]`, or numbers, `[n]` or `[n, targets]`.
        regression: Whether `y` holds numbers.
        l2: Penalty on squared weights, above 0; if not given, the power of 2 from -10 to 24 of
            least generalised cross-validation.

    Returns:
        Classes `[n]`, or numbers `[n, targets]`.

    Raises:
        ValueError: If these are not finite features and labels of the same examples, there is one
            class only or a target that is constant, or the penalty is not above 0 and finite.
    """
    classes = np.unique(y)
    x, y = data(features, y, regression)
    expect(l2 is None or 0 < l2 < np.inf, "an l2 above 0 and finite", l2)
    n = len(x)
    targets = _standardised(y) if regression else 2 * np.eye(y.max() + 1)[y] - 1
    u, s = _directions(_standardised(x))
    around = targets - targets.mean(axis=0)
    inside = u.T @ around
    energy, full = np.sum(inside**2, axis=1), len(s) == n - 1
    outside = 0.0 if full else max(np.sum(around**2) - energy.sum(), 0.0)
    if l2 is None:
        lost = _STRENGTHS[:, None] / (s**2 + _STRENGTHS[:, None])
        error = lost**2 @ energy + outside
        l2 = float(_STRENGTHS[np.argmin(error / (n - 1 - len(s) + lost.sum(axis=1)) ** 2)])
    lost = l2 / (s**2 + l2)
    residual = around - u @ ((1 - lost) * inside.T).T
    rest = 0.0 if full else 1 - 1 / n - np.sum(u**2, axis=1)  # 1 - h, but for what is lost.
    left = np.maximum(rest + u**2 @ lost, np.finfo(np.float64).eps)
    told = targets - residual / left[:, None]
    if regression:
        return told * or_one(centred(y).std(axis=0)) + y.mean(axis=0)
    return classes[told.argmax(axis=1)]


def _directions(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns left singular vectors `[n, rank]` and singular values `[rank]`.

    From the squares, which takes a fraction of the time of a decomposition, and whose rounding is
    far below any penalty that is usual.
    """
    wide = x.shape[1] > len(x)
    squares, v = eigh(x @ x.T if wide else x.T @ x)
    kept = squares > squares[-1] * max(x.shape) * np.finfo(np.float64).eps
    s, v = np.sqrt(squares[kept]), v[:, kept]
    return (v if wide else (x @ v) / s), s


def _standardised(x: np.ndarray) -> np.ndarray:
    z = centred(x)
    z /= or_one(z.std(axis=0))
    return z
