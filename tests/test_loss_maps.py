"""Distillation losses of feature maps whose sizes differ."""

import numpy as np
import pytest
import tensorflow as tf

from tests.test_losses import FEATURES, NARROW
from tfxfer import losses
from tfxfer.losses.maps import match_size


def adaptive(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Adaptive average pooling, cell by cell."""
    cells = np.zeros((len(x), height, width, x.shape[-1]))
    for i in range(height):
        for j in range(width):
            rows = slice(i * x.shape[1] // height, -(-(i + 1) * x.shape[1] // height))
            columns = slice(j * x.shape[2] // width, -(-(j + 1) * x.shape[2] // width))
            cells[:, i, j] = x[:, rows, columns].mean((1, 2))
    return cells


@pytest.mark.parametrize(
    ("one", "other"), [((8, 8), (4, 4)), ((7, 7), (3, 5)), ((6, 3), (4, 9)), ((5, 5), (5, 5))]
)
def test_match_size_pools_the_larger(one, other):
    rng = np.random.default_rng(3)
    student, teacher = rng.standard_normal((2, *one, 3)), rng.standard_normal((2, *other, 5))
    size = tuple(np.minimum(one, other))
    pair = match_size(tf.constant(student), tf.constant(teacher))
    np.testing.assert_allclose(pair[0], adaptive(student, *size), rtol=1e-12)
    np.testing.assert_allclose(pair[1], adaptive(teacher, *size), rtol=1e-12)


def test_maps_of_different_sizes():
    large = np.random.default_rng(4).standard_normal((8, 7, 7, 12))
    for name in ("hint", "cosine", "hierarchical_context", "nst", "attention_transfer"):
        function = getattr(losses, name)
        np.testing.assert_allclose(
            function(large, NARROW), function(adaptive(large, 4, 4), NARROW), rtol=1e-9
        )


def test_features_without_height_and_width():
    student, teacher = FEATURES[1], FEATURES[1][::-1]
    expected = np.mean((student - teacher) ** 2, 1)
    np.testing.assert_allclose(losses.hint(student, teacher), expected, rtol=1e-12)
    tokens = [each.reshape(8, 4, 8) for each in (student, teacher)]
    np.testing.assert_allclose(losses.cosine(*tokens), losses.cosine(student, teacher), rtol=1e-12)
