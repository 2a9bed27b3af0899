"""Score from the evidence of a linear model: LogME."""

import numpy as np
from numpy.typing import ArrayLike

from tfxfer.scores.base import data, decomposed

_TINY = np.finfo(np.float64).tiny


def logme(features: ArrayLike, y: ArrayLike, regression: bool = False) -> float:
    """Logarithm of the maximum evidence of a Bayesian linear model, over the number of examples.

    With prior precision `a` of the weights and `b` of the noise, both found by a fixed-point
    iteration as in the authors' code (at most 11 rounds, to 1% in `a / b`), the evidence is
    `log integral p(y | w, b) p(w | a) dw`. Classes are one-hot columns; the score is the mean over
    columns.

    You et al. 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning";
    a fit that is exact but for rounding counts as one with a little noise.

    Args:
        features: `[n, d]`.
        y: Classes, int `[n]`, or numbers, `[n]` or `[n, targets]`.
        regression: Whether `y` holds numbers.

    Returns:
        Any finite number; it depends on the scale of features and of numbers.

    Raises:
        ValueError: If these are not finite features and labels of the same examples, or there is
            one class only, or a target that is constant.
    """
    x, y = data(features, y, regression)
    u, s, _ = decomposed(x)
    s = np.maximum(s**2, _TINY)
    # One column at a time: all one-hot columns of many classes take more memory than features.
    columns = y.T if regression else ((y == c).astype(np.float64) for c in range(y.max() + 1))
    return float(np.mean([_evidence(s, (u.T @ t) ** 2, t @ t, len(x)) for t in columns]))


def _evidence(s: np.ndarray, x2: np.ndarray, y2: float, n: int) -> float:
    """Returns the maximum evidence of one column over `n`.

    Args:
        s: Squared singular values of the features, above 0, decreasing, `[k]`.
        x2: Squares of what the column is along the left singular vectors, `[k]`.
        y2: Sum of the squares of the column, above 0.
        n: Number of examples, at least `k`.
    """
    # Below this, what is outside the features is rounding, and the evidence of no noise infinite.
    outside = max(y2 - x2.sum(), 1e-13 * y2) if len(s) < n else 0.0
    most = 1e12 * s[0] if len(s) else 1.0  # Where the features are as good as left out.
    ratio = noise = 1.0  # a / b, and b.
    for _ in range(11):
        kept, lost = s / (s + ratio), ratio / (s + ratio)
        residual = np.sum(x2 * lost**2) + outside
        noise = (n - len(s) + lost.sum()) / max(residual, _TINY)
        weights = np.sum(x2 * kept**2 / s)
        last, ratio = ratio, kept.sum() / max(weights * noise, _TINY)
        ratio = min(max(ratio, _TINY), most)
        if abs(ratio - last) < 0.01 * last:
            break
    # With these `a` and `b`, what the exponents of the evidence hold adds up to n.
    return float((np.log(noise / (2 * np.pi)) - 1) / 2 - np.log1p(s / ratio).sum() / (2 * n))
