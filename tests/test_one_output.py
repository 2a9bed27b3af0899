"""Teachers of two classes with one output."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, softmax

from tests.conftest import small_network
from tfxfer.errors import UserError
from tfxfer.methods.teachers import load_teacher, teacher_parts
from tfxfer.models.teachers import Teachers
from tfxfer.task import MULTI_LABEL, SINGLE_LABEL, Task

TASK = Task(SINGLE_LABEL, ("cat", "dog"))


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_output_is_of_the_second_class(activation, tmp_path):
    keras.utils.set_random_seed(2)
    network = keras.Sequential([small_network(), keras.layers.Dense(1, activation)])
    path, labels = tmp_path / "whole.keras", tmp_path / "labels.txt"
    network.save(path)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8))
    told = network(tf.cast(images, tf.float32) / 255)[:, 0].numpy()
    second = told if activation else expit(told)

    def said(teacher) -> np.ndarray:
        return softmax(Teachers([teacher])(images)["logits"].numpy(), axis=-1)

    teacher = load_teacher(str(path), TASK)
    assert teacher.units == 2
    np.testing.assert_allclose(said(teacher), np.stack([1 - second, second], -1), atol=1e-6)
    labels.write_text("dog\ncat\n")
    turned = load_teacher(f"{path}(labels={labels})", TASK)
    np.testing.assert_allclose(said(turned), np.stack([second, 1 - second], -1), atol=1e-6)
    assert teacher_parts(Teachers([teacher])) != teacher_parts(Teachers([turned]))
    for task in (Task(MULTI_LABEL, ("cat", "dog")), Task(SINGLE_LABEL, ("cat", "dog", "emu"))):
        with pytest.raises(UserError, match="has 1 outputs without names"):
            load_teacher(str(path), task)
