"""Which backbone suits: features judged, ties, successive halving, correlations."""

import itertools

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.datasets import load_digits

from tfxfer import scores
from tfxfer.costs import ModelCost
from tfxfer.selection import (
    Candidate,
    Figure,
    Round,
    _looked_at,
    beats,
    correlation,
    correlations,
    figure,
    halving,
    ranks,
    told_by,
)
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

X, Y = (array[:300] for array in load_digits(return_X_y=True))
DIGITS = Task(SINGLE_LABEL, tuple(map(str, range(10))))
RNG = np.random.default_rng(0)


def test_classes_are_told_as_the_scores_say():
    told = told_by(DIGITS, X, Y)
    assert told.knn.mean() == pytest.approx(scores.knn(X, Y))
    assert told.probe.mean() == pytest.approx(scores.linear_probe(X, Y))
    assert told.looked_at == 300
    for name, value in told.scores.items():
        assert value == pytest.approx(getattr(scores, name)(X, Y), rel=1e-9), name


def test_classes_that_do_not_occur_are_no_matter():
    names = Task(SINGLE_LABEL, tuple(map(str, range(20))))
    told = told_by(names, X, 2 * Y)
    assert told.probe.mean() == pytest.approx(scores.linear_probe(X, Y))


def test_long_features_are_shortened_without_another_score():
    x = np.concatenate([X[:80], RNG.normal(size=(80, 200))], axis=1)
    told = told_by(DIGITS, x, Y[:80])
    for name, value in told.scores.items():
        assert value == pytest.approx(getattr(scores, name)(x, Y[:80]), rel=1e-6), name


def test_few_of_many_examples_are_looked_at_by_slow_scores():
    x, y = np.tile(X, (4, 1)), np.tile(Y, 4)
    told = told_by(DIGITS, x, y, seed=1)
    assert told.looked_at == 500
    assert told.knn.shape == told.probe.shape == (1200,)
    assert told.scores == told_by(DIGITS, x, y, seed=1).scores
    assert told.scores != told_by(DIGITS, x, y, seed=2).scores


def test_rare_classes_are_among_the_few_that_are_looked_at():
    rare = np.zeros(2000, int)
    rare[[3, 700, 1999]] = 1
    for seed in range(20):
        rows = _looked_at(rare, seed)
        assert len(rows) == 500
        assert rare[rows].sum() >= 2
    assert (np.diff(_looked_at(np.arange(2000) % 90, 0)) > 0).all()
    assert len(_looked_at(np.arange(2000) % 90, 0)) == 900


def test_labels_of_which_none_varies_tell_nothing():
    y = np.zeros((300, 2), np.float32)
    told = told_by(Task(MULTI_LABEL, ("a", "b")), X, y)
    assert told.scores == {}
    assert told.probe.mean() == told.knn.mean() == 0  # Of no label that is true, nor said.


def test_probabilities_of_source_classes_have_two_scores_more():
    probabilities = softmax(X[:, :7], axis=1)
    told = told_by(DIGITS, probabilities, Y)
    assert told.scores["leep"] == pytest.approx(scores.leep(probabilities, Y))
    assert told.scores["nce"] == pytest.approx(scores.nce(probabilities.argmax(1), Y))
    assert "leep" not in told_by(DIGITS, X, Y).scores


def test_several_labels_are_told_by_f1():
    y = np.stack([Y % 2, Y > 4, np.zeros(300)], axis=1).astype(np.float32)
    told = told_by(Task(MULTI_LABEL, ("odd", "large", "never")), X, y)
    assert 0.8 < told.probe.mean() < 1
    assert set(told.scores) == {"logme"}
    noise = told_by(Task(MULTI_LABEL, ("odd", "large", "never")), RNG.normal(size=(300, 8)), y)
    assert beats(told.probe, noise.probe)


def test_numbers_are_told_by_rmse_of_which_less_is_better():
    y = (X[:, :3] @ [[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]] + [100.0, -5.0]).astype(np.float32)
    task = Task(REGRESSION, ("a", "b"))
    told, noise = told_by(task, X[:, :10], y), told_by(task, RNG.normal(size=(300, 8)), y)
    assert told.probe.mean() < 0.1 * y.std()
    assert ranks([noise.probe, told.probe], higher_is_better=False) == [2, 1]


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_tie_is_a_tie_and_a_difference_is_one(share):
    one = (RNG.random(400) < share).astype(float)
    other = one.copy()
    other[:3] = 1 - other[:3]
    worse = one * (RNG.random(400) < 0.8)
    assert ranks([one, other, worse]) == [1, 1, 3]
    assert not beats(one, one)


@pytest.mark.parametrize("kind", [SINGLE_LABEL, REGRESSION])
def test_the_interval_holds_the_figure(kind):
    task = Task(kind, ("a", "b"))
    found = figure(task, (RNG.random(200) < 0.7).astype(float))
    low, high = found.interval
    assert low < found.value < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 200), rel=0.2)


def test_all_right_is_not_right_for_certain():
    low, high = figure(Task(SINGLE_LABEL, ("a", "b")), np.ones(86)).interval
    assert (low, high) == (pytest.approx(0.957, abs=1e-3), 1.0)


@pytest.mark.parametrize("candidates", range(1, 12))
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 24, 100])
def test_halving_spends_no_more_than_the_budget(candidates, budget):
    rounds = halving(candidates, budget)
    assert sum(each.candidates * each.epochs for each in rounds) <= budget
    assert all(each.epochs >= 1 for each in rounds)
    assert rounds[0].candidates <= candidates
    for one, after in itertools.pairwise(rounds):
        assert after.candidates == -(-one.candidates // 2)
        assert after.epochs >= one.epochs


def test_halving_of_four():
    assert halving(4, 24) == (Round(4, 3), Round(2, 6))
    assert halving(4, 7) == (Round(3, 1), Round(2, 1))


def test_correlation_is_one_where_the_order_is_the_same():
    assert correlation([1, 2, 3, 4], [0.1, 0.5, 0.6, 0.9]) == pytest.approx(1)
    assert correlation([4, 3, 2, 1], [0.1, 0.5, 0.6, 0.9]) == pytest.approx(-1)
    # An error among the worst counts less than one among the best.
    worst, best = ([2, 1, 3, 4], [1, 2, 4, 3])
    of_worst, of_best = (correlation(each, [1, 2, 3, 4]) for each in (worst, best))
    assert of_worst is not None and of_best is not None
    assert of_worst > of_best
    assert correlation([1, 1, 1], [1, 2, 3]) is None
    assert correlation([1], [1]) is None


def candidate(name: str, value: float, size: int) -> Candidate:
    return Candidate(
        name=name,
        rank=1,
        knn=Figure(value, (0, 1)),
        probe=Figure(value, (0, 1)),
        scores={"logme": value, "parameters": float(size)},
        cost=ModelCost(size, 4 * size, 1, 1.0, 4 * size, None),
        on_front=True,
        feature_seconds=1.0,
        score_seconds=1.0,
    )


def test_correlations_have_every_score_and_turn_errors_around():
    found = [candidate("a", 0.5, 30), candidate("b", 0.7, 20), candidate("c", 0.9, 10)]
    told = correlations(found, [0.6, 0.8, 0.9], True)
    assert told == pytest.approx({"knn": 1, "linear_probe": 1, "logme": 1, "parameters": -1})
    told = correlations(found, [6.0, 8.0, 9.0], False)  # The lower the better, of kNN too.
    assert told == pytest.approx({"knn": 1, "linear_probe": 1, "logme": -1, "parameters": 1})
