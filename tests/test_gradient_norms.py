"""Gradients relative to the weights, and the stages chosen by them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import moved, values
from tfxfer import backbones
from tfxfer.errors import UserError
from tfxfer.models import FineTuner
from tfxfer.training.gradient_norms import relative_gradient_norms, surgical_choice

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def batches(images, labels):
    return [(images[:12], labels[:12]), (images[12:], labels[12:])]


def test_nothing_moves_and_the_same_stages_train_as_before(model, batches):
    model.unfreeze(["block2"])
    before = values(model.weights)
    norms = relative_gradient_norms(model, batches, LOSS)
    assert not any(moved(before, model.weights))
    assert model.backbone.unfrozen == ("block2",)
    assert [weight.trainable for weight in model.stages[-1].learned] == [False, False]
    assert list(norms) == ["block1", "block2", "head"]
    assert all(norm > 0 for norm in norms.values())


def test_the_head_agrees_with_the_gradient_of_cross_entropy(model, batches):
    """Of the logits that is (p - y) / n, so that of the kernel is features' (p - y) / n."""
    model.head.set_weights([*model.head.get_weights()[:1], np.array([0.1, 0.2, -0.3])])
    kernel, bias = model.head.get_weights()
    expected = []
    for images, labels in batches:
        features = model.backbone(images).numpy()
        errors = keras.ops.softmax(features @ kernel + bias) - np.eye(3)[labels]
        errors = np.array(errors) / len(labels)
        expected.append(np.linalg.norm(features.T @ errors) / np.linalg.norm(kernel))
        expected.append(np.linalg.norm(errors.sum(axis=0)) / np.linalg.norm(bias))
    norms = relative_gradient_norms(model, batches, LOSS)
    assert norms["head"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_it_is_relative(model, batches):
    """Zero weights have no ratio; twice the weights have half of it if the gradient is the same."""
    first = relative_gradient_norms(model, batches, LOSS)
    kernel, _ = model.head.get_weights()
    # Three outputs shifted alike are the same probabilities, and gradients.
    shift = 1e3 * np.ones((1, 3), np.float32) * kernel.mean()
    model.head.set_weights([kernel + shift, np.zeros(3)])
    shifted = relative_gradient_norms(model, batches, LOSS)
    ratio = np.linalg.norm(kernel) / np.linalg.norm(kernel + shift)
    assert shifted["head"] == pytest.approx(first["head"] * ratio, rel=1e-2)


def test_weights_of_examples_count(model, batches):
    images, labels = batches[0]
    weight = np.zeros(12, np.float32)
    none = relative_gradient_norms(model, [(images, labels, weight)], LOSS)
    assert set(none.values()) == {0.0}


def test_two_devices_measure_the_same(hub_folder, mirrored, batches):
    def new():
        return FineTuner(backbones.load_backbone(str(hub_folder)), keras.layers.Dense(3))

    alone = new()
    with mirrored.scope():
        both = new()
    both.set_weights(alone.get_weights())
    expected = relative_gradient_norms(alone, batches, LOSS)
    assert relative_gradient_norms(both, batches, LOSS) == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_measured_is_told(model, batches):
    with pytest.raises(ValueError, match="at least one batch"):
        relative_gradient_norms(model, [], LOSS)
    model.head.set_weights([np.full((8, 3), np.nan), np.zeros(3)])
    model.unfreeze(["head"])
    with pytest.raises(UserError, match="'block1' must be finite"):
        relative_gradient_norms(model, tf.data.Dataset.from_tensors(batches[0]), LOSS)
    assert model.backbone.unfrozen == (), "restored after a mistake too"


def test_the_stages_with_the_largest_are_chosen():
    norms = {"stem": 0.1, "block1": 0.3, "block2": 0.2, "head": 9.0}
    assert surgical_choice(norms) == ("block1",)
    assert surgical_choice(norms, 2) == ("block1", "block2")
    with pytest.raises(ValueError, match="from 1 to 3, received 4"):
        surgical_choice(norms, 4)
