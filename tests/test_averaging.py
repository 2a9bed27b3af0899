"""Weights after training: on the line from the start, and the mean of the best epochs."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from tfxfer.training.averaging import greedy_soup, wise_ft
from tfxfer.training.checkpoints import Checkpoints


class Point(keras.Model):
    """A point in the plane, and a counter."""

    def __init__(self):
        super().__init__()
        self.point = self.add_weight(shape=(2,), name="point")
        self.count = self.add_weight(shape=(), dtype="int32", trainable=False, name="count")
        self.built = True

    def call(self, inputs):
        return inputs


@pytest.fixture
def point():
    return Point()


def weights(x: float, y: float, count: int = 0) -> list[np.ndarray]:
    return [np.array([x, y], "float32"), np.array(count, "int32")]


def loss_at(x: float, y: float):
    """The squared distance to a point."""
    return lambda model: float(np.sum((model.get_weights()[0] - np.array([x, y])) ** 2))


def test_the_best_point_on_the_line_is_found(point):
    start, trained = weights(0, 0, count=1), weights(10, 20, count=5)
    averaged = wise_ft(point, start, trained, loss_at(3, 6))
    assert averaged.chosen == (0.3,)
    assert averaged.val_loss == pytest.approx(0, abs=1e-10)
    point_found, count = point.get_weights()
    assert point_found == pytest.approx([3, 6])
    assert count == 5
    assert dict(averaged.tried) == {
        alpha: pytest.approx(500 * (alpha - 0.3) ** 2, abs=1e-5) for alpha in np.arange(11) / 10
    }


def test_the_ends_of_the_line_are_exact(point):
    start, trained = weights(0.1, 1e-30), weights(1 / 3, 1e30)
    for alphas, end in (((0.0,), start), ((1.0,), trained)):
        wise_ft(point, start, trained, loss_at(0, 0), alphas)
        assert point.get_weights()[0].tobytes() == end[0].tobytes()


def test_of_equal_losses_the_trained_weights_win(point):
    wise_ft(point, weights(0, 0), weights(1, 1), lambda model: 2.0)
    assert point.get_weights()[0].tolist() == [1, 1]


def test_a_loss_that_is_not_finite_never_wins(point):
    def loss(model):
        (x, _), _ = model.get_weights()
        return float("nan") if x < 5 else float(x)

    assert wise_ft(point, weights(0, 0), weights(10, 0), loss).chosen == (0.5,)
    soup = greedy_soup(point, [weights(1, 0), weights(7, 0), weights(9, 0)], loss)
    assert soup.chosen == ("2",)
    with pytest.raises(ValueError, match="finite"):
        wise_ft(point, weights(0, 0), weights(1, 0), loss)
    with pytest.raises(ValueError, match="finite"):
        greedy_soup(point, [weights(0, 0)], loss)


def test_wise_ft_wants_fitting_weights_and_shares(point):
    with pytest.raises(ValueError, match="alphas"):
        wise_ft(point, weights(0, 0), weights(1, 1), loss_at(0, 0), (0, 1.5))
    with pytest.raises(ValueError, match="alphas"):
        wise_ft(point, weights(0, 0), weights(1, 1), loss_at(0, 0), ())
    with pytest.raises(ValueError, match="same shapes"):
        wise_ft(point, weights(0, 0)[:1], weights(1, 1), loss_at(0, 0))


def test_a_soup_keeps_what_does_not_make_it_worse(point):
    # By loss: b (1), c (4), a (100). With c the mean of b and c is on the spot; with a it is not.
    candidates = [weights(10, 0, 1), weights(1, 0, 2), weights(-2, 1.5, 3)]
    soup = greedy_soup(point, candidates, loss_at(-0.5, 0.75))
    assert soup.chosen == ("2", "3")
    assert soup.val_loss == 0
    assert [name for name, _ in soup.tried] == ["1", "2", "3", "2 + 3", "2 + 3 + 1"]
    mean, count = point.get_weights()
    assert mean.tolist() == [-0.5, 0.75]
    assert count == 2


def test_a_soup_of_one_and_of_equal_candidates(point):
    assert greedy_soup(point, [weights(3, 4)], loss_at(0, 0)).val_loss == 25
    assert point.get_weights()[0].tolist() == [3, 4]
    soup = greedy_soup(point, [weights(0.1, 0.7)] * 3, loss_at(0, 0))
    assert soup.chosen == ("1", "2", "3")
    assert point.get_weights()[0].tobytes() == weights(0.1, 0.7)[0].tobytes()
    with pytest.raises(ValueError, match="candidate"):
        greedy_soup(point, [], loss_at(0, 0))


def test_a_soup_is_never_worse_than_its_best_ingredient(point):
    random = np.random.default_rng(3)

    def loss(model):  # With many valleys, so that a mean may be worse.
        x = model.get_weights()[0].astype(float)
        return float(np.sum(x**2) + 3 * np.sum(np.cos(5 * x)))

    gained = 0
    for _ in range(20):
        candidates = [weights(*random.normal(size=2)) for _ in range(4)]
        soup = greedy_soup(point, candidates, loss)
        singles = [
            value for name, value in soup.tried if value is not None and "+" not in str(name)
        ]
        assert soup.val_loss <= min(singles)
        assert loss(point) == soup.val_loss
        gained += soup.val_loss < min(singles)
    assert gained


def test_a_soup_of_files(point, tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    for name, x in (("a", 0.0), ("b", 5.0), ("c", 2.0)):
        point.set_weights(weights(x, 0))
        checkpoints.write_weights(name, point)
    paths = [checkpoints.weights_file(name) for name in "abc"]
    soup = greedy_soup(point, paths, loss_at(1.5, 0))
    assert soup.chosen == ("c", "a")  # The mean of 2 and 0 is as far as 2 is.
    assert point.get_weights()[0].tolist() == [1, 0]
    json.dumps(dataclasses.asdict(soup))


def test_averages_of_batch_normalization_are_between_too(model):
    start = model.get_weights()
    trained = [each + 1 for each in start]
    wise_ft(model, start, trained, lambda model: 0.0, alphas=(0.5,))
    for before, now in zip(start, model.get_weights(), strict=True):
        np.testing.assert_allclose(now, before + 0.5, rtol=1e-6)
