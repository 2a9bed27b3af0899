"""What scores share: checks of what they are given, and the shape of features."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_LARGEST = 1e100  # Sums of squares of features are finite, and so are those of all of float32.


def expect(met: bool | np.bool_, what: str, received: Any) -> None:
    """Raises the ValueError of this package, unless `met`."""
    if not met:
        raise ValueError(f"Expected {what}, received {received}.")


def data(
    features: ArrayLike, y: ArrayLike, regression: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns features `[n, d]`, float64, and classes from 0, or numbers `[n, targets]`, float64.

    Raises:
        ValueError: If these are not what scores take.
    """
    x = np.asarray(features, np.float64)
    expect(
        x.ndim == 2 and x.shape[1] > 0 and len(x) > 1, "features [n, d] of n > 1 examples", x.shape
    )
    _expect_finite(x, "features")
    y = _numbers(y) if regression else integers(y, fewest=2)
    expect(len(y) == len(x), f"labels of {len(x)} examples", f"those of {len(y)}")
    return x, y


def integers(labels: ArrayLike, fewest: int) -> np.ndarray:
    """Returns labels `[n]` as integers from 0 without gaps.

    Raises:
        ValueError: If these are not integers, or have less than the fewest different values.
    """
    y = np.asarray(labels)
    expect(y.ndim == 1 and y.dtype.kind in "iub", "classes, int [n]", f"{y.dtype} {y.shape}")
    values, y = np.unique(y, return_inverse=True)
    expect(len(values) >= fewest, f"at least {fewest} classes", len(values))
    return y


def _numbers(targets: ArrayLike) -> np.ndarray:
    y = np.asarray(targets, np.float64)
    expect(y.ndim in (1, 2) and y.size > 0, "numbers [n] or [n, targets]", y.shape)
    _expect_finite(y, "targets")
    y = y.reshape(len(y), -1)
    expect(np.ptp(y, axis=0).all(), "targets that differ", "a constant one")
    return y


def _expect_finite(x: np.ndarray, what: str) -> None:
    largest = np.maximum(x.max(), -x.min())
    expect(largest <= _LARGEST, f"finite {what}, of {_LARGEST:g} at most", largest)


def by_class(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Returns the rows of each class, whose numbers are from 0 without gaps."""
    return [x[y == label] for label in range(y.max() + 1)]


def centred(x: np.ndarray) -> np.ndarray:
    """Returns `[n, d]` less the mean over examples; of a constant nothing is left, exactly."""
    x = x - x[0]
    x -= x.mean(axis=0)
    return x


def decomposed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the singular value decomposition of `[n, d]`, without what is rounding.

    Returns:
        Left vectors `[n, rank]`; singular values, decreasing, above 0, `[rank]`; right vectors,
        `[rank, d]`.
    """
    u, s, v = np.linalg.svd(x, full_matrices=False)
    rank = int(np.sum(s > s[0] * max(x.shape) * np.finfo(np.float64).eps))
    return u[:, :rank], s[:rank], v[:rank]


def principal(x: np.ndarray) -> np.ndarray:
    """Returns features `[n, d]` along their principal directions, `[n, rank]`, at least one.

    The largest coefficient of a direction is positive, as scikit-learn's `PCA` has it.
    """
    u, s, v = decomposed(centred(x))
    if not len(s):
        return np.zeros((len(x), 1))
    largest = np.abs(v).argmax(axis=1)
    return u * (s * np.sign(v[np.arange(len(s)), largest]))


def or_one(divisor: np.ndarray) -> np.ndarray:
    """Returns a divisor with 1 for 0."""
    return np.where(divisor == 0, 1.0, divisor)
