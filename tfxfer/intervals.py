"""95% intervals of shares, means and differences over examples or seeds."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, bootstrap, t

_RESAMPLES = 2000


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Returns the 95% interval of Wilson 1927, "Probable Inference, the Law of Succession, ...".

    Args:
        successes: How many there are, at most `trials`.
        trials: At least 1.
    """
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(samples: tuple[np.ndarray, ...], statistic) -> tuple[float, float]:
    """Returns the 95% percentile interval of Efron 1979, "Bootstrap Methods: Another Look ...".

    Args:
        samples: Arrays `[n]`, of the same examples if there are several.
        statistic: Of these, along an `axis`.

    Returns:
        Low and high end; of one example its own value.
    """
    if len(samples[0]) < 2:
        value = float(statistic(*samples))
        return value, value
    found = bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        batch=100,
        paired=len(samples) > 1,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """Returns Student's 95% interval for the mean of independent values; `None` for fewer than 2.

    Args:
        values: One-dimensional.
    """
    count = len(values)
    if count < 2:
        return None
    mean = np.mean(values, dtype=np.float64)
    spread = np.std(values, ddof=1, dtype=np.float64)
    half = t.ppf(0.975, count - 1) * spread / np.sqrt(count)
    return float(mean - half), float(mean + half)


def paired_interval(
    values: Sequence[float] | np.ndarray, unit: float = 0.0
) -> tuple[float, float] | None:
    """Returns a 95% interval for the mean of differences, one an example; `None` for fewer than 2.

    It is Student's, with one example more of the largest difference in the variance. Of right and
    wrong that is the half example more in every cell of Agresti and Min 2005, "Simple improved
    confidence intervals for comparing matched proportions": where few examples differ, or all by
    as much, the variance alone is too small.

    Args:
        values: One-dimensional.
        unit: What an example would differ by, where none does: 1 for right and wrong. Where that
            is not known, 0, the interval of differences that are all 0 is a point.
    """
    count = len(values)
    if count < 2:
        return None
    mean, most = np.mean(values, dtype=np.float64), np.max(np.abs(values)) or unit
    variance = np.var(values, ddof=1, dtype=np.float64) + most**2 / count
    half = t.ppf(0.975, count - 1) * np.sqrt(variance / count)
    return float(mean - half), float(mean + half)
