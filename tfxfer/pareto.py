"""Which of several models no other beats in both speed and quality."""

from collections.abc import Sequence

import numpy as np

AS_FAST = 1.5
"""Measured times that are not further apart than this ratio count as the same."""


def pareto_front(
    latencies: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    higher_is_better: bool = True,
) -> list[bool]:
    """Says which models are on the Pareto front of latency and quality.

    Args:
        latencies: Of each model, one-dimensional; lower is better, and those up to `AS_FAST` times
            another are the same.
        values: Its quality, likewise.
        higher_is_better: Whether a higher quality is better: false for rmse.

    Returns:
        For each model whether none on the front is at least as good in both and better in one.

    Raises:
        ValueError: If the numbers differ in count, or one is not a number.
    """
    costs = np.asarray(latencies, np.float64)
    losses = np.asarray(values, np.float64) * (-1 if higher_is_better else 1)
    if costs.shape != losses.shape or costs.ndim != 1:
        raise ValueError(
            f"Expected one latency and one value a model, received {costs.shape} and "
            f"{losses.shape}."
        )
    if np.isnan([costs, losses]).any():
        raise ValueError("Expected numbers, received NaN.")
    # From the best on: that times are the same is not transitive, and what is not on the front
    # itself must not keep others from it.
    front = np.zeros(len(costs), bool)
    for each in np.lexsort((costs, losses)):
        as_good = (costs <= AS_FAST * costs[each]) & (losses <= losses[each])
        better = (AS_FAST * costs < costs[each]) | (losses < losses[each])
        front[each] = not (front & as_good & better).any()
    return front.tolist()
