"""The phase loop."""

import json
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import moved, values
from tests.test_saved_model_backbone import Module, saved
from tfxfer import heads
from tfxfer.backbones import load_backbone
from tfxfer.errors import TrainingError, UserError
from tfxfer.evaluate import predict, score
from tfxfer.models import FineTuner
from tfxfer.models.suffix import Suffix
from tfxfer.plan import Phase, gradual
from tfxfer.report.plots import phase_curves
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task
from tfxfer.training import loop
from tfxfer.training.callbacks import MetricsLog
from tfxfer.training.checkpoints import Checkpoints
from tfxfer.training.loop import Data, _worse
from tfxfer.training.objective import objective
from tfxfer.training.settings import Settings

ABC = Task(SINGLE_LABEL, ("a", "b", "c"))


class Repeated:
    """The same batches in every epoch."""

    def __init__(self, data: tf.data.Dataset):
        self.data = data
        self.steps = int(data.cardinality())
        self.begun: list[int] = []

    def epochs(self, first=0):
        self.begun.append(first)
        return self.data.repeat()


def train(model, plan, data, validation_data, task=ABC, patience=3, **options):
    plan = [replace(phase, patience=patience) for phase in plan]
    y = np.concatenate([batch for _, batch in data.as_numpy_iterator()])
    both = Data(Repeated(data), validation_data)
    return loop.train(model, plan, both, objective(task, y), **options)


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
            rates.append(self.model.optimizer.rates)
            steps.append([int(each.iterations) for each in self.model.optimizer.optimizers])

    train(model, plan, data, data, callbacks=lambda phase: [Look()])
    for phase, found in zip(plan, rates, strict=True):
        assert [found[name] for name in phase.stages] == pytest.approx(phase.rates)
    assert steps == [[0, 0, 0], [0, 0, 3], [0, 3, 6]], "each stage counts its own steps"


def test_the_best_epoch_is_kept(model, data, images, labels):
    # Labels that training must unlearn: validation is best early.
    other = data.map(lambda images, labels: (images, (labels + 1) % 3))
    (result,) = train(model, [Phase("all", model.stage_names, 6, 0.1)], data, other, patience=6)
    assert result.best_epoch < result.epochs == 6
    loss, accuracy = model.evaluate(other, verbose=0)
    assert loss == pytest.approx(result.val_loss, rel=1e-5)
    assert accuracy == pytest.approx(result.val_metric)


def test_a_phase_that_makes_validation_worse_is_undone(model, data):
    names = model.stage_names
    good, spoil = Phase("good", names, 4, 1e-2), Phase("spoil", names, 1, 10.0)
    kept, undone = train(model, [good, spoil], data, data)
    assert kept.kept
    assert not undone.kept
    assert undone.val_loss is not None
    assert kept.val_loss is not None
    assert undone.val_loss > kept.val_loss
    loss, accuracy = model.evaluate(data, verbose=0)
    assert loss == pytest.approx(kept.val_loss, rel=1e-5)
    assert accuracy == pytest.approx(kept.val_metric)


@pytest.mark.parametrize("rate", [10.0, 1e30])
def test_after_an_undone_phase_all_is_as_before_it(rate, data, tmp_path):
    """Moments too: after a phase that was of no use, the next one is as if it had come first."""
    backbone = load_backbone(saved(Module(["a/w", "b/w"]), tmp_path / "hub"))  # No dropout.
    model = FineTuner(backbone, keras.layers.Dense(3))
    start = model.get_weights()
    good, spoil, more = (
        Phase(name, model.stage_names, 2, rate)
        for name, rate in (("good", 1e-3), ("spoil", rate), ("more", 1e-3))
    )
    *_, first = train(model, [good, more], data, data)
    expected = model.get_weights()
    model.set_weights(start)
    _, undone, then = train(model, [good, spoil, more], data, data)
    assert (undone.kept, then.kept) == (False, True)
    assert then.val_loss == first.val_loss
    for ours, theirs in zip(model.get_weights(), expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_phase_that_is_undone_after_a_kill_leaves_no_moments(data, tmp_path):
    backbone = load_backbone(saved(Module(["a/w", "b/w"]), tmp_path / "hub"))
    model = FineTuner(backbone, keras.layers.Dense(3))
    start = model.get_weights()
    rates = {"good": 1e-3, "spoil": 10.0, "more": 1e-3}
    plan = [Phase(name, model.stage_names, 2, rate) for name, rate in rates.items()]
    whole = train(model, plan, data, data)
    expected = model.get_weights()

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    def killed_in(phase):
        return [Kill()] if phase.name == "spoil" else []

    def checkpoints():
        return Checkpoints(tmp_path / "run", {}, seconds=0)

    model.set_weights(start)
    with pytest.raises(KeyboardInterrupt):
        train(model, plan, data, data, checkpoints=checkpoints(), callbacks=killed_in)
    model.set_weights(start)
    again = train(model, plan, data, data, checkpoints=checkpoints())
    assert [each.kept for each in again] == [each.kept for each in whole] == [True, False, True]
    for ours, theirs in zip(model.get_weights(), expected, strict=True):
        assert np.array_equal(ours, theirs)
    assert not Checkpoints(tmp_path / "run", {}).has_weights("moments")


def test_a_phase_that_diverges_is_undone(model, data, tmp_path):
    names, file = model.stage_names, tmp_path / "metrics.jsonl"
    plan = [Phase("good", names, 2, 1e-3), Phase("spoil", names, 3, 1e30)]
    good, spoil = train(model, plan, data, data, callbacks=lambda phase: [MetricsLog(file, phase)])
    assert (spoil.kept, spoil.best_epoch, spoil.loss, spoil.val_loss) == (False, 0, None, None)
    assert model.evaluate(data, verbose=0)[0] == pytest.approx(good.val_loss, rel=1e-5)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in file.read_text().splitlines()]
    assert lines[-1]["val_loss"] is None
    phase_curves(lines, tmp_path / "curves.png", [("", "spoil")])
    assert (tmp_path / "curves.png").is_file()


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


def test_divergence_before_anything_stands_is_an_error(model, data):
    with pytest.raises(TrainingError, match=r"finite loss.*below 1e\+30"):
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


def test_phases_go_on_with_the_next_epochs(model, data, labels):
    repeated = Repeated(data)
    plan = gradual(model.stage_names, 2, 1e-2)
    loop.train(model, plan, Data(repeated, data), objective(ABC, labels))
    assert sorted(set(repeated.begun)) == [0, 2, 4]


def test_without_validation_phases_run_to_their_end_and_stand(model, data):
    names = model.stage_names
    plan = [Phase("good", names, 3, 1e-2), Phase("spoil", names, 2, 10.0)]
    results = train(model, plan, data, None)
    assert [(r.epochs, r.best_epoch, r.kept, r.val_loss) for r in results] == [
        (3, 3, True, None),
        (2, 2, True, None),
    ]


def test_the_head_learns_the_same_from_features(hub_folder, data, images, labels):
    def trained(by_features):
        keras.utils.set_random_seed(5)
        model = FineTuner(load_backbone(str(hub_folder)), keras.layers.Dense(3))

        def shortcut(phase):
            x = tf.data.Dataset.from_tensor_slices((model.backbone(images), labels)).batch(8)
            return Suffix(model), Data(Repeated(x), x)

        calls = []
        whole = Data(Repeated(data), data)
        found = shortcut(None) if by_features else None  # Before the calls are counted.
        run = model.backbone.features
        model.backbone.features = lambda *args: calls.append(args) or run(*args)
        plan = [Phase("head", ("head",), 5, 1e-2)]
        (result,) = loop.train(model, plan, whole, objective(ABC, labels), shortcut=lambda _: found)
        assert bool(calls) != by_features
        return model, result

    by_images, images_result = trained(False)
    by_features, features_result = trained(True)
    assert features_result.val_loss == pytest.approx(images_result.val_loss, rel=1e-4)
    for ours, theirs in zip(by_features.weights, by_images.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    loss, accuracy = by_features.evaluate(data, verbose=0)
    assert loss == pytest.approx(features_result.val_loss, rel=1e-3)
    assert accuracy == pytest.approx(features_result.val_metric)


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_other_tasks_are_learned(hub_folder, images, kind):
    """What is to be told is plain to see: how bright an image is."""
    rng = np.random.default_rng(0)
    bright = rng.uniform(20, 230, (24, 1, 1, 1))
    images = np.clip(bright + rng.normal(size=(24, 12, 12, 1)), 0, 255).astype(np.uint8)
    value = bright.reshape(24, 1).astype(np.float32)
    task = Task(kind, ("bright", "dark"))
    y = (
        np.hstack([value > 125, value <= 125])
        if kind == MULTI_LABEL
        else np.hstack([value * 1000, -value])
    )
    data = tf.data.Dataset.from_tensor_slices((images, y.astype(np.float32))).batch(8)
    model = FineTuner(load_backbone(str(hub_folder), bn="stage"), heads.linear(task, y))
    plan = gradual(model.stage_names, 60, 3e-2)
    results = train(model, plan, data, data, task, patience=60)
    assert {r.metric for r in results} == {"accuracy" if kind == MULTI_LABEL else "rmse"}
    found: Any = score(task, *predict(model, data))
    assert found.f1 > 0.9 if kind == MULTI_LABEL else found.r2 > 0.9


@pytest.mark.parametrize("epochs", [1, 3])
def test_one_phase_on_one_device_is_what_fit_does(hub_folder, data, labels, epochs):
    """To the bit: weights, averages of batch normalization, losses and metrics."""

    def fine_tuner():
        keras.utils.set_random_seed(5)
        model = FineTuner(load_backbone(str(hub_folder), bn="stage"), keras.layers.Dense(3))
        model.unfreeze(model.stage_names)
        return model

    ours, theirs = fine_tuner(), fine_tuner()
    phase = Phase("all", ours.stage_names, epochs, 1e-2)
    (result,) = loop.train(ours, [phase], Data(Repeated(data), None), objective(ABC, labels))
    aim = objective(ABC, labels)
    theirs.compile(keras.optimizers.Adam(1e-2), loss=aim.loss(), metrics=aim.metrics())
    history = theirs.fit(data, epochs=epochs, shuffle=False, verbose=0).history
    assert values(ours.weights) == values(theirs.weights)
    assert result.loss == history["loss"][-1]
    assert result.train_metric == history["accuracy"][-1]


def test_replicas_train_as_one_device(data, labels, mirrored, tmp_path):
    """Without batch normalization, whose statistics are of a replica."""
    network = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            keras.layers.Conv2D(4, 3, activation="relu", name="block1_conv"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    network.save(tmp_path / "plain.keras")

    def trained(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(5)
            model = FineTuner(load_backbone(str(tmp_path / "plain.keras")), keras.layers.Dense(3))
        plan = [replace(phase, schedule="cosine") for phase in gradual(model.stage_names, 3, 1e-2)]
        settings = Settings(ema=0.9, clip_norm=0.5, accumulate=2, l2_sp=0.01, weight_decay=0.01)
        both = Data(Repeated(data), data)
        results = loop.train(model, plan, both, objective(ABC, labels), settings=settings)
        return model.get_weights(), results

    (one, alone), (two, shared) = trained(tf.distribute.get_strategy()), trained(mirrored)
    for ours, theirs in zip(two, one, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for ours, theirs in zip(shared, alone, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=1e-4)


def test_exact_steps_end_within_an_epoch(model, data):
    seen = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

    plan = [Phase("all", model.stage_names, 0, 1e-2, steps=5)]
    (result,) = train(model, plan, data, data, callbacks=lambda phase: [Count()])
    assert seen == [0, 1, 2, 0, 1], "an epoch has 3 steps"
    assert result.epochs == 2


def test_the_average_is_what_is_validated_and_kept(model, data, labels):
    settings = Settings(ema=0.5)
    plan = [Phase("all", model.stage_names, 3, 1e-2)]
    both = Data(Repeated(data), data)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(self.model.head.get_weights()[0])

    start = model.head.get_weights()[0]
    (result,) = loop.train(
        model,
        plan,
        both,
        objective(ABC, labels),
        settings=settings,
        callbacks=lambda phase: [Look()],
    )
    average = start
    for step, kernel in enumerate(seen[: 3 * result.best_epoch]):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * kernel
    np.testing.assert_allclose(model.head.get_weights()[0], average, atol=1e-5)
    assert model.evaluate(data, verbose=0)[0] == pytest.approx(result.val_loss, rel=1e-4)


def test_batch_normalization_of_a_phase_is_of_that_phase_alone(model, data, labels):
    names = model.stage_names
    plan = [Phase("first", names, 1, 1e-3, bn="train"), Phase("second", names, 1, 1e-3)]
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(self.model.backbone.bn)

    both = Data(Repeated(data), data)
    loop.train(model, plan, both, objective(ABC, labels), callbacks=lambda _: [Look()])
    assert seen == ["train", "stage"]
    assert model.backbone.bn == "stage"
