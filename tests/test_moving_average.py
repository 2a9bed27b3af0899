"""The moving average of weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfxfer.training.moving_average import MovingAverage


def test_it_is_the_recurrence_of_the_paper():
    weight, counter = keras.Variable([1.0, 2.0]), keras.Variable(0, dtype="int64")
    average = MovingAverage([weight, counter], 0.5)
    expected = np.array([1.0, 2.0])
    step = tf.function(average.update)
    for t, value in enumerate([[2.0, 0.0], [3.0, 1.0], [5.0, -4.0], [0.0, 7.0]] * 5):
        weight.assign(value)
        step()
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * np.array(value)
    np.testing.assert_allclose(average.averages[0].numpy(), expected, rtol=1e-5)
    assert len(average.averages) == 1, "a counter has no average"


def test_weights_come_back_after_a_swap_and_after_an_error():
    weight = keras.Variable([1.0, 2.0])
    average = MovingAverage([weight], 0.9)
    weight.assign([5.0, 6.0])
    with average.swapped():
        assert weight.numpy().tolist() == [1.0, 2.0]
    assert weight.numpy().tolist() == [5.0, 6.0]
    with pytest.raises(RuntimeError), average.swapped():
        raise RuntimeError
    assert weight.numpy().tolist() == [5.0, 6.0]


def test_replicas_share_one_average(mirrored):
    with mirrored.scope():
        weight = keras.Variable([1.0])
        average = MovingAverage([weight], 0.5)
    weight.assign([3.0])
    tf.function(average.update)()
    np.testing.assert_allclose(average.averages[0].numpy(), 0.1 * 1 + 0.9 * 3, rtol=1e-6)
