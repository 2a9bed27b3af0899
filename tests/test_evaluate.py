"""Scores of a classifier."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import accuracy_score, log_loss

from tfxfer.evaluate import predict, score


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 4)).astype(np.float32) * 5
    labels = rng.integers(0, 4, 50)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    found = score(logits, labels)
    assert found.accuracy == accuracy_score(labels, logits.argmax(-1))
    assert found.loss == pytest.approx(log_loss(labels, probabilities), rel=1e-12)
    assert found.examples == 50


def test_interval_is_wilsons():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
    logits = np.eye(2)[np.r_[np.ones(81, int), np.zeros(182, int)]]
    low, high = score(logits, np.ones(263, int)).accuracy_interval
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_huge_logits_stay_finite():
    assert score(np.array([[1e4, -1e4]]), np.array([1])).loss == 2e4


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
        score(np.array(logits), np.array(labels))


def test_predict_sees_every_example_in_order(model, images, labels):
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(7)
    logits, found = predict(model, data)
    assert found.tolist() == labels.tolist()
    np.testing.assert_allclose(logits, model(images), atol=1e-5)
