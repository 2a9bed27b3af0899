"""The front of latency and quality."""

import numpy as np
import pytest

from tfxfer.pareto import AS_FAST, pareto_front


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_the_front_beats_all_others_and_none_of_its_own(seed, higher_is_better):
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 30)
    latencies, values = np.exp(rng.uniform(0, 2, count)), rng.integers(1, 8, count)  # With ties.
    front = np.array(pareto_front(latencies, values, higher_is_better))
    losses = -values if higher_is_better else values

    def beaten(i: int) -> bool:
        as_good = (latencies <= AS_FAST * latencies[i]) & (losses <= losses[i])
        better = (AS_FAST * latencies < latencies[i]) | (losses < losses[i])
        return bool((as_good & better & front).any())

    assert front.any()
    assert [beaten(i) for i in range(len(front))] == (~front).tolist()


def test_ties_stay_together():
    assert pareto_front([1, 1, 2, 2], [0.5, 0.5, 0.5, 0.4]) == [True, True, False, False]


def test_times_that_are_about_the_same_decide_nothing():
    assert pareto_front([1, 1.4, 1.4], [0.5, 0.5, 0.6]) == [False, False, True]
    assert pareto_front([1, 1.4], [0.5, 0.5]) == [True, True]
    assert pareto_front([1, 1.1 * AS_FAST], [0.5, 0.5]) == [True, False]
    steps = pareto_front([1, 1.4, 2.0, 2.9], [0.5, 0.6, 0.7, 0.8])
    assert steps == [False, True, False, True], "the first is about as fast as the second"


def test_lower_may_be_better():
    assert pareto_front([1, 2, 3], [3.0, 1.0, 2.0], higher_is_better=False) == [True, True, False]


def test_one_model_and_none():
    assert pareto_front([3.0], [0.1]) == [True]
    assert pareto_front([], []) == []


@pytest.mark.parametrize(
    ("latencies", "values", "match"),
    [([1, 2], [1], "one value"), ([[1]], [[1]], "one value"), ([1, 2], [1, np.nan], "NaN")],
)
def test_numbers_are_checked(latencies, values, match):
    with pytest.raises(ValueError, match=match):
        pareto_front(latencies, values)
