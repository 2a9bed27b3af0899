"""One step of training: large batches in parts, clipping, replicas, the pull toward the start."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import moved, values
from tfxfer.backbones import load_backbone
from tfxfer.models import FineTuner
from tfxfer.training.optimizer import stage_optimizer


def plain_network() -> keras.Model:
    """Without batch normalization, whose statistics go by the part or the replica."""
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="block1_conv"),
            keras.layers.Conv2D(6, 3, activation="relu", name="block2_conv"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


def fine_tuner(tmp_path, strategy: Any = None) -> FineTuner:
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        network = tmp_path / "plain.keras"
        if not network.exists():
            plain_network().save(network)
        keras.utils.set_random_seed(3)
        model = FineTuner(load_backbone(str(network)), keras.layers.Dense(3))
        model.unfreeze(model.stage_names)
    return model


def compiled(model: FineTuner, kind="adam", rate=1e-2, decay=0.0, scaled=False, **options):
    with model.distribute_strategy.scope():
        optimizer: Any = stage_optimizer(model, kind, decay)
        optimizer.rates = dict.fromkeys(model.stage_names, rate)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
            optimizer.build(model.trainable_variables)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        model.compile(optimizer, loss=loss, metrics=[accuracy], **options)
    return model


def steps(model: FineTuner, data: tf.data.Dataset, count: int) -> FineTuner:
    strategy = model.distribute_strategy

    batches = strategy.experimental_distribute_dataset(data.repeat().take(count))
    step = tf.function(lambda batch: strategy.run(model.train_step, (batch,)))
    traced = step.get_concrete_function(batches.element_spec)
    for batch in batches:
        traced(batch)
    return model


@pytest.fixture
def data(images, labels) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(12)


def same(one: keras.Model, other: keras.Model, tolerance: float) -> None:
    for ours, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)


@pytest.mark.parametrize("parts", [2, 5, 12, 30])
def test_parts_of_a_batch_make_the_step_of_the_whole(tmp_path, data, parts):
    whole = steps(compiled(fine_tuner(tmp_path)), data, 6)
    split = compiled(fine_tuner(tmp_path), gradient_accumulation_steps=parts)
    steps(split, data, 6)
    same(split, whole, 1e-5)
    for name, value in whole.get_metrics_result().items():
        assert float(split.get_metrics_result()[name]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"global_clipnorm": 0.05},
        {"global_clipnorm": 0.05, "scaled": True},
        {"l2_sp": 0.1},
        {"decay": 0.05},
        {"kind": "sgd", "gradient_accumulation_steps": 2},
    ],
)
def test_two_replicas_are_one(tmp_path, mirrored, data, options):
    def trained(strategy):
        model = fine_tuner(tmp_path, strategy)
        more = dict(options)
        if "l2_sp" in more:
            kernel = model.trainable_weights[0]
            more["toward"] = [(kernel, tf.ones(kernel.shape)), (model.head.kernel, None)]
        return steps(compiled(model, **more), data, 20)

    same(trained(mirrored), trained(None), 1e-5)


def test_clipping_is_of_all_weights_together(tmp_path, data):
    """With plain steps of rate 1, the move is the gradient."""

    def move(**options):
        model = compiled(fine_tuner(tmp_path), "sgd", 1.0, **options)
        before = model.get_weights()
        steps(model, data, 1)
        after = model.get_weights()
        return [new - old for new, old in zip(after, before, strict=True)]

    free = move()
    norm = np.sqrt(sum(np.sum(each**2) for each in free))
    clipped = move(global_clipnorm=float(norm / 4))
    for ours, theirs in zip(clipped, free, strict=True):
        np.testing.assert_allclose(ours, theirs / 4, atol=1e-6)
    for ours, theirs in zip(move(global_clipnorm=float(norm * 2)), free, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


def test_the_pull_is_a_spring_toward_the_start(tmp_path, data):
    def move(strength, start):
        model = fine_tuner(tmp_path)
        kernel = model.trainable_weights[0]
        toward = [(kernel, None if start is None else tf.fill(kernel.shape, start))]
        compiled(model, "sgd", 1.0, l2_sp=strength, toward=toward)
        before = model.get_weights()
        steps(model, data, 1)
        return before, model.get_weights()

    before, free = move(0.0, 5.0)
    _, pulled = move(0.1, 5.0)
    np.testing.assert_allclose(pulled[0], free[0] + 0.1 * (5.0 - before[0]), atol=1e-5)
    _, decayed = move(0.1, None)
    np.testing.assert_allclose(decayed[0], free[0] - 0.1 * before[0], atol=1e-5)
    for ours, theirs in zip(pulled[1:], free[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_weight_decay_spares_biases(tmp_path, data):
    def trained(decay):
        return steps(compiled(fine_tuner(tmp_path), "sgd", 0.1, decay), data, 1)

    free, decayed = trained(0.0), trained(0.5)
    start = fine_tuner(tmp_path)
    for weight, other, first in zip(decayed.weights, free.weights, start.weights, strict=True):
        shrunk = 0.1 * 0.5 * first.numpy() if len(weight.shape) > 1 else 0.0
        np.testing.assert_allclose(weight.numpy(), other.numpy() - shrunk, atol=1e-6)


def test_only_stages_that_train_move_and_count(tmp_path, data):
    model = fine_tuner(tmp_path)
    compiled(model)
    model.unfreeze(["head"])
    before = values(model.backbone.weights)
    steps(model, data, 3)
    assert not any(moved(before, model.backbone.weights))
    assert [int(each.iterations) for each in model.optimizer.optimizers] == [0, 0, 3]


def test_rates_and_factor_multiply(tmp_path, data):
    def move(rate, factor):
        model = compiled(fine_tuner(tmp_path), "sgd")
        model.optimizer.rates = dict.fromkeys(model.stage_names, rate)
        model.optimizer.factor.assign(factor)
        return steps(model, data, 2)

    same(move(0.1, 0.5), move(0.05, 1.0), 1e-7)


def test_half_precision_gradients_that_overflow_are_passed_over(tmp_path, data):
    model = compiled(fine_tuner(tmp_path), scaled=True, global_clipnorm=1.0)
    model.optimizer.dynamic_scale.assign(np.float32(3e38))
    before = values(model.weights)
    steps(model, data.map(lambda x, y: (x, y, tf.fill(tf.shape(y), 1e6))), 1)
    assert not any(moved(before, model.weights))
    assert float(model.optimizer.dynamic_scale) == pytest.approx(1.5e38)


@pytest.mark.parametrize(
    "options", [{"gradient_accumulation_steps": 0}, {"global_clipnorm": -1.0}, {"l2_sp": -1.0}]
)
def test_numbers_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="Expected"):
        fine_tuner(tmp_path).compile("adam", **options)


def test_no_other_optimizer_is_known():
    with pytest.raises(ValueError, match="adagrad"):
        stage_optimizer(None, "adagrad")  # type: ignore[arg-type]
