"""The phase loop."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import moved, values
from tests.test_saved_model_backbone import Module, saved
from tfxfer.backbones import load_backbone
from tfxfer.errors import UserError
from tfxfer.models import FineTuner
from tfxfer.plan import Phase, gradual
from tfxfer.training.callbacks import MetricsLog
from tfxfer.training.loop import _worse, train


@pytest.fixture
def data(images, labels) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)


class Watch(keras.callbacks.Callback):
    """Notes what moved in a phase, before early stopping puts the best weights back."""

    def __init__(self, seen: list):
        super().__init__()
        self.seen = seen

    def on_train_begin(self, logs=None):
        self.before = {stage.name: values(stage.weights) for stage in self.model.stages}

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append({s.name: moved(self.before[s.name], s.weights) for s in self.model.stages})


def test_each_phase_moves_what_it_declares_and_nothing_else(model, data):
    seen, names = [], []
    plan = gradual(model.stage_names, 1, 1e-2)
    results = train(
        model,
        plan,
        data,
        data,
        on_phase=lambda phase: names.append(phase.name),
        callbacks=lambda phase: [Watch(seen)],
    )
    assert names == [phase.name for phase in plan] == [result.name for result in results]
    for phase, stages in zip(plan, seen, strict=True):
        for stage, tensors in stages.items():
            assert any(tensors) == (stage in phase.stages)
    head, block2, block1 = seen
    assert not any(head["block1"] + head["block2"])
    assert block2["block2"] == [True] * 4 + [False] * 2, "statistics wait for the whole backbone"
    assert all(block1["block1"] + block1["block2"])


def test_optimizer_keeps_its_moments_from_phase_to_phase(model, data):
    plan = gradual(model.stage_names, 1, 1e-2)
    rates, steps = [], []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))
            steps.append(int(self.model.optimizer.iterations))

    train(model, plan, data, data, callbacks=lambda phase: [Look()])
    assert rates == pytest.approx([phase.learning_rate for phase in plan])
    assert steps == [0, 3, 6]


def test_the_best_epoch_is_kept(model, data, images, labels):
    # Labels that training must unlearn: validation is best early.
    other = data.map(lambda images, labels: (images, (labels + 1) % 3))
    (result,) = train(model, [Phase("all", model.stage_names, 6, 0.1)], data, other, patience=6)
    assert result.best_epoch < result.epochs == 6
    loss, accuracy = model.evaluate(other, verbose=0)
    assert loss == pytest.approx(result.val_loss, rel=1e-5)
    assert accuracy == pytest.approx(result.val_accuracy)


def test_a_phase_that_makes_validation_worse_is_undone(model, data):
    names = model.stage_names
    good, spoil = Phase("good", names, 4, 1e-2), Phase("spoil", names, 1, 10.0)
    kept, undone = train(model, [good, spoil], data, data)
    assert kept.kept
    assert not undone.kept
    assert undone.val_loss > kept.val_loss
    loss, accuracy = model.evaluate(data, verbose=0)
    assert loss == pytest.approx(kept.val_loss, rel=1e-5)
    assert accuracy == pytest.approx(kept.val_accuracy)


def test_worse_means_more_than_chance():
    rng = np.random.default_rng(0)
    before = rng.exponential(size=100)
    noise = rng.normal(size=100)
    noise -= noise.mean()
    assert not _worse(before + noise + 0.05, before)
    assert _worse(before + noise + 0.15, before)
    assert not _worse(before - 0.1, before)
    assert not _worse(before, before)


def test_a_phase_stops_when_validation_no_longer_improves(model, data):
    worse = data.map(lambda images, labels: (images, (labels + 1) % 3))
    (result,) = train(model, [Phase("all", model.stage_names, 50, 0.1)], data, worse, patience=2)
    assert result.epochs == result.best_epoch + 2 < 50


def test_a_phase_that_moves_nothing_is_an_error(model, data):
    with pytest.raises(UserError, match="rate 1e-50, and no weight moved"):
        train(model, [Phase("all", model.stage_names, 1, 1e-50)], data, data)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_stage_without_gradients_is_told(data, tmp_path):
    class Cut(keras.layers.Dense):
        def call(self, inputs, training=None):
            return super().call(tf.stop_gradient(inputs))

    model = FineTuner(load_backbone(saved(Module(["a/w", "b/w"]), tmp_path / "hub")), Cut(3))
    (result,) = train(model, [Phase("all", model.stage_names, 1, 1e-3)], data, data)
    assert result.unmoved == ("a", "b")


def test_a_frozen_stage_that_moves_is_an_error(model, data):
    class Meddle(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            weight = self.model.stages[0].weights[0]
            weight.assign(weight + 1e-3)

    plan = gradual(model.stage_names, 1, 1e-2)
    with pytest.raises(RuntimeError, match="freezes stage 'block1', and block1/conv/kernel moved"):
        train(model, plan, data, data, callbacks=lambda phase: [Meddle()])


def test_divergence_is_told_as_such(model, data):
    with pytest.raises(UserError, match=r"finite loss.*below 1e\+30"):
        train(model, [Phase("all", model.stage_names, 3, 1e30)], data, data)


def test_a_plan_for_another_model_is_refused(model, data):
    with pytest.raises(ValueError, match="block7"):
        train(model, [Phase("odd", ("block7",), 1, 1e-3)], data, data)


def test_metrics_log_has_one_line_an_epoch(model, data, tmp_path):
    file = tmp_path / "metrics.jsonl"
    plan = gradual(model.stage_names, 2, 1e-2)
    train(model, plan, data, data, callbacks=lambda phase: [MetricsLog(file, phase)])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["phase"], line["epoch"]) for line in lines] == [
        (phase.name, epoch) for phase in plan for epoch in (1, 2)
    ]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"} < set(
        lines[0]
    )
