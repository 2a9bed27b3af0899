"""Scores of a classifier."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from tests.memory import Memory
from tfxfer.data.parts import Part, Splits
from tfxfer.evaluate import predict, score, summarise_folds
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task


def classes(count: int) -> Task:
    return Task(SINGLE_LABEL, tuple(map(str, range(count))))


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 4)).astype(np.float32) * 5
    labels = rng.integers(0, 4, 50)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    found: Any = score(classes(4), logits, labels)
    assert found.accuracy == accuracy_score(labels, logits.argmax(-1))
    assert found.loss == pytest.approx(log_loss(labels, probabilities), rel=1e-12)
    assert found.examples == 50


def test_interval_is_wilsons():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
    logits = np.eye(2)[np.r_[np.ones(81, int), np.zeros(182, int)]]
    found: Any = score(classes(2), logits, np.ones(263, int))
    low, high = found.accuracy_interval
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_huge_logits_stay_finite():
    assert score(classes(2), np.array([[1e4, -1e4]]), np.array([1])).loss == 2e4


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        ([[np.nan, 0.0]], [0], "finite"),
        ([[np.inf, 0.0]], [0], "finite"),
        ([[1.0, 0.0]], [-1], "from 0 to 1, received -1"),
        ([[1.0, 0.0]], [2], "from 0 to 1, received 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(logits, labels, says):
    with pytest.raises(ValueError, match=says):
        score(classes(2), np.array(logits), np.array(labels))


def test_predict_sees_every_example_in_order(model, images, labels):
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(7)
    logits, found = predict(model, data)
    assert found.tolist() == labels.tolist()
    np.testing.assert_allclose(logits, model(images), atol=1e-5)


def test_scores_of_several_labels_are_scikit_learns():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (80, 3)).astype(np.float32)
    logits = (2 * y - 1 + rng.normal(size=y.shape)).astype(np.float32)
    found: Any = score(Task(MULTI_LABEL, ("a", "b", "c")), logits, y)
    assert found.f1 == pytest.approx(f1_score(y, logits > 0, average="micro"))
    assert found.mean_average_precision == pytest.approx(average_precision_score(y, logits))
    assert found.exact == accuracy_score(y, logits > 0)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    losses = [log_loss(y[:, i], probabilities[:, i]) for i in range(3)]
    assert found.loss == pytest.approx(np.mean(losses))
    low, high = found.f1_interval
    assert low < found.f1 < high < low + 0.2


def test_a_class_that_never_occurs_does_not_count():
    y = np.array([[1, 0], [0, 0]], np.float32)
    found: Any = score(Task(MULTI_LABEL, ("a", "b")), np.array([[3.0, -3], [-3, -3]]), y)
    assert (found.f1, found.mean_average_precision, found.exact) == (1, 1, 1)


def test_scores_of_numbers_are_scikit_learns():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(200, 2)) * [1, 10]
    outputs = y + rng.normal(size=y.shape)
    found: Any = score(Task(REGRESSION, ("a", "b")), outputs, y)
    assert found.mae == pytest.approx(mean_absolute_error(y, outputs))
    assert found.r2 == pytest.approx(r2_score(y, outputs))
    assert found.rmse == pytest.approx(root_mean_squared_error(y.ravel(), outputs.ravel()))
    low, high = found.rmse_interval
    assert low < 1 < high < low + 0.3
    one: Any = score(Task(REGRESSION, ("a", "b")), outputs[:1], y[:1])
    assert one.r2 is None


def test_folds_have_a_wider_interval_than_independent_scores():
    """Nadeau and Bengio: k = 4 folds, a fold tests a third of what it trains on."""
    scores = {
        f"fold {right}": score(
            classes(2), np.eye(2)[[0] * right + [1] * (10 - right)], np.zeros(10, int)
        )
        for right in (4, 5, 6, 7)
    }
    source = Memory(train=40)
    fold = Splits(*(Part(source, "train", np.arange(count), "made") for count in (30, 1, 10)))
    found = summarise_folds(scores, [fold] * 4)
    assert found.name == "accuracy"
    assert found.values == (0.4, 0.5, 0.6, 0.7)
    assert found.mean == pytest.approx(0.55)
    # t of 3 degrees of freedom at 97.5% is 3.18245; the variance of the scores is 1/60.
    half = 3.18245 * ((1 / 4 + 1 / 3) / 60) ** 0.5
    assert found.interval == pytest.approx((0.55 - half, 0.55 + half), rel=1e-5)
    perfect = {name: score(classes(2), np.eye(2)[[0] * 9], np.zeros(9, int)) for name in "ab"}
    perfect["c"] = scores["fold 7"]
    assert summarise_folds(perfect, [fold] * 3).interval[1] == 1.0, "no accuracy is above 1"
