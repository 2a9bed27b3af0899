"""Heads: what scikit-learn says at the same strength, and layers like any other."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from tfxfer.backbones import load_backbone
from tfxfer.config import HEADS
from tfxfer.errors import UserError
from tfxfer.evaluate import example_losses
from tfxfer.export import save_predictor, served_outputs
from tfxfer.heads import Prototypes, fit_head, linear, mlp, target_scale, with_class
from tfxfer.heads.fitted import temperature
from tfxfer.models import FineTuner, load_model
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

FITTED = ("logistic", "ridge", "knn", "cosine", "prototype")
SWEPT = ("logistic", "ridge", "knn")
FITS = {SINGLE_LABEL: FITTED, MULTI_LABEL: SWEPT, REGRESSION: ("ridge", "knn")}
EVERY = [(kind, name) for kind, names in FITS.items() for name in names]

DIGITS = Task(SINGLE_LABEL, tuple("0123456789"))
PIXELS, DIGIT = load_digits(return_X_y=True)
PIXELS = PIXELS.astype(np.float32)  # Some of them are 0 in every image.
TRAIN, VALIDATION = (PIXELS[:600], DIGIT[:600]), (PIXELS[600:900], DIGIT[600:900])
TEST = PIXELS[900:]


def task_of(kind: str) -> Task:
    return Task(kind, ("a", "b", "c"))


def made(kind: str, n: int = 60, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels that have to do with each other, more or less."""
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 3, (n, d)).astype(np.float32)
    values = x[:, :3] + rng.normal(size=(n, 3))
    if kind == SINGLE_LABEL:
        return x, values.argmax(-1)
    if kind == MULTI_LABEL:
        return x, (values > 2).astype(np.float32)
    return x, (values * [1, 1000, 0.01] + 5).astype(np.float32)


def answers(layer: keras.layers.Layer, x: np.ndarray) -> np.ndarray:
    outputs = np.asarray(layer(x))
    assert outputs.dtype == np.float32
    assert np.isfinite(outputs).all()
    return outputs.astype(np.float64)


def loss_of(task: Task, layer: keras.layers.Layer, data, train_y: np.ndarray) -> float:
    outputs, y = answers(layer, data[0]), data[1]
    if task.kind == REGRESSION:
        _, spread = target_scale(train_y)
        outputs, y = outputs / spread, y / spread
    return float(np.mean(example_losses(task, outputs, y)))


def scaler_of(x: np.ndarray) -> Any:
    return StandardScaler().fit(x.astype(np.float64))


def logistic(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, tol=1e-8, max_iter=5000)


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_logistic_is_that_of_scikit_learn(strength):
    scaler = scaler_of(TRAIN[0])
    with threadpool_limits(1):
        theirs = logistic(strength).fit(scaler.transform(TRAIN[0].astype(np.float64)), TRAIN[1])
    ours = fit_head("logistic", DIGITS, TRAIN, VALIDATION, strength=strength)
    assert ours.strength == strength
    assert ours.sweep == ()
    kernel, bias = ours.layer.get_weights()
    np.testing.assert_allclose(kernel * scaler.scale_[:, None], theirs.coef_.T, atol=1e-4)
    np.testing.assert_allclose(bias + scaler.mean_ @ kernel, theirs.intercept_, atol=1e-4)
    test = scaler.transform(TEST.astype(np.float64))
    said = softmax(answers(ours.layer, TEST), axis=-1)
    np.testing.assert_array_equal(said.argmax(-1), theirs.predict(test))
    np.testing.assert_allclose(said, theirs.predict_proba(test), atol=1e-5)


def test_logistic_of_labels_or_of_two_classes_is_one_regression_each():
    x, y = made(MULTI_LABEL, 80)
    y[:, 2] = 1  # There is nothing to learn from; odds of (80 + 1/2) to 1/2 remain.
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    ours = fit_head("logistic", task_of(MULTI_LABEL), (x, y), (x, y), strength=0.3)
    said = expit(answers(ours.layer, x))
    for label in range(2):
        theirs = logistic(0.3).fit(scaled, y[:, label])
        np.testing.assert_allclose(said[:, label], theirs.predict_proba(scaled)[:, 1], atol=1e-5)
    np.testing.assert_allclose(said[:, 2], 80.5 / 81, rtol=1e-5)
    two = Task(SINGLE_LABEL, ("no", "yes"))
    first = x, y[:, 0].astype(np.int64)
    alone = softmax(
        answers(fit_head("logistic", two, first, first, strength=0.3).layer, x), axis=-1
    )
    np.testing.assert_allclose(alone[:, 1], said[:, 0], atol=1e-5)


@pytest.mark.parametrize("strength", [0.1, 100.0])
@pytest.mark.parametrize("shape", [(60, 6), (20, 50), (30, 30)])
def test_ridge_is_that_of_scikit_learn(shape, strength):
    x, y = made(REGRESSION, *shape)
    scaler = scaler_of(x)
    theirs = Ridge(strength).fit(scaler.transform(x.astype(np.float64)), y.astype(np.float64))
    ours = fit_head("ridge", task_of(REGRESSION), (x, y), (x, y), strength=strength)
    kernel, bias = ours.layer.get_weights()
    expected = (theirs.coef_ / scaler.scale_).T
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        bias, theirs.intercept_ - scaler.mean_ @ expected, rtol=1e-5, atol=1e-4
    )
    fresh = made(REGRESSION, *shape, seed=1)[0]
    expected = theirs.predict(scaler.transform(fresh.astype(np.float64)))
    np.testing.assert_allclose(answers(ours.layer, fresh), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", [SINGLE_LABEL, MULTI_LABEL])
def test_ridge_of_classes_is_that_of_scikit_learn_times_a_temperature(kind):
    task, train, validation, x = DIGITS, TRAIN, VALIDATION, TEST
    if kind == MULTI_LABEL:
        task, train, validation = task_of(kind), made(kind), made(kind, seed=1)
        x = made(kind, seed=2)[0]
    hot = np.eye(task.units)[train[1]] if kind == SINGLE_LABEL else train[1]
    scaler = scaler_of(train[0])
    theirs = Ridge(10.0).fit(scaler.transform(train[0].astype(np.float64)), 2.0 * hot - 1)
    ours = fit_head("ridge", task, train, validation, strength=10.0)
    scores = theirs.predict(scaler.transform(validation[0].astype(np.float64)))
    scale = temperature(task, scores, validation[1])
    expected = scale * theirs.predict(scaler.transform(x.astype(np.float64)))
    np.testing.assert_allclose(answers(ours.layer, x), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(answers(ours.layer, x).argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("k", [1, 10, 200])
def test_neighbours_are_those_of_scikit_learn(k):
    weights: Any = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    theirs = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(*TRAIN)
    ours = fit_head("knn", DIGITS, TRAIN, VALIDATION, strength=k)
    assert ours.strength == k
    said = softmax(answers(ours.layer, TEST), axis=-1)
    np.testing.assert_allclose(said, theirs.predict_proba(TEST), atol=1e-5)


def test_neighbours_of_labels_and_numbers_tell_the_weighted_mean():
    for kind in (MULTI_LABEL, REGRESSION):
        (x, y), fresh = made(kind), made(kind, seed=1)[0]
        ours = fit_head("knn", task_of(kind), (x, y), (x, y), strength=5)
        unit, asked = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, fresh))
        similar = asked @ unit.T
        rows = np.argsort(-similar)[:, :5]
        weights = softmax(np.take_along_axis(similar, rows, 1) / 0.07, axis=1)
        said = answers(ours.layer, fresh)
        said = expit(said) if kind == MULTI_LABEL else said
        np.testing.assert_allclose(
            said, np.einsum("nk,nku->nu", weights, y[rows]), rtol=1e-4, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_:UserWarning")  # Pixels of 0.
def test_prototypes_are_those_of_scikit_learn():
    theirs = NearestCentroid().fit(*TRAIN)
    ours: Any = fit_head("prototype", DIGITS, TRAIN, VALIDATION).layer
    np.testing.assert_allclose(ours.prototypes, theirs.centroids_, rtol=1e-5)
    said = answers(ours, TEST)
    np.testing.assert_array_equal(said.argmax(-1), theirs.predict(TEST))
    distances = np.sum((TEST[:, None] - theirs.centroids_) ** 2, axis=-1)
    np.testing.assert_allclose(said, -distances * float(ours.temperature), rtol=1e-4)


def test_cosine_is_the_cosine_with_the_mean_direction():
    ours: Any = fit_head("cosine", DIGITS, TRAIN, VALIDATION).layer
    unit, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (TRAIN[0], TEST))
    means = np.stack([unit[TRAIN[1] == digit].mean(axis=0) for digit in range(10)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = float(ours.temperature) * asked @ means.T
    np.testing.assert_allclose(answers(ours, TEST), expected, rtol=1e-4)


@pytest.mark.parametrize(("kind", "name"), [each for each in EVERY if each[1] in SWEPT])
def test_sweep_is_fitting_afresh_and_the_least_loss_is_chosen(kind, name):
    task, train, validation = task_of(kind), made(kind, 120), made(kind, 50, seed=1)
    found = fit_head(name, task, train, validation)
    assert len(found.sweep) > 1
    for strength, loss in found.sweep:
        alone = fit_head(name, task, train, validation, strength=strength)
        # The logistic head tries strengths to scikit-learn's tolerance, and fits one to a finer.
        close = pytest.approx(loss, rel=2e-2 if name == "logistic" else 1e-4)
        assert loss_of(task, alone.layer, validation, train[1]) == close
    assert found.strength == min(found.sweep, key=lambda pair: pair[1])[0]
    chosen = fit_head(name, task, train, validation, strength=found.strength)
    np.testing.assert_allclose(
        answers(found.layer, validation[0]),
        answers(chosen.layer, validation[0]),
        rtol=1e-3,
        atol=1e-5,
    )


def test_logistic_stops_where_it_gets_worse():
    x, y = made(SINGLE_LABEL, 30, 20)
    sweep = fit_head("logistic", task_of(SINGLE_LABEL), (x, y), made(SINGLE_LABEL, 90, 20, 1)).sweep
    assert 1 < len(sweep) < 9
    assert sweep[-1][1] > 1.05 * min(loss for _, loss in sweep)


def test_temperature_is_where_the_likelihood_is_greatest():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(4000, 3))
    y = np.array([rng.choice(3, p=p) for p in softmax(logits, axis=-1)])
    task = task_of(SINGLE_LABEL)
    assert temperature(task, logits / 50, y) == pytest.approx(50, rel=0.1)
    hot = rng.random(logits.shape) < expit(logits)
    assert temperature(task_of(MULTI_LABEL), 8 * logits, hot * 1.0) == pytest.approx(1 / 8, rel=0.1)
    assert temperature(task, np.ones((5, 3)), np.zeros(5, int)) == 1


def test_few_examples_told_right_do_not_make_a_head_sure():
    scale = temperature(task_of(SINGLE_LABEL), np.eye(3), np.arange(3))
    assert softmax(scale * np.eye(3), axis=-1).max() < 0.95


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_head_is_saved_and_served(kind, name, hub_folder, images, tmp_path):
    task = task_of(kind)
    train, validation = made(kind, 30, 8), made(kind, 20, 8, seed=1)
    head = fit_head(name, task, train, validation).layer
    model = FineTuner(load_backbone(str(hub_folder)), head)
    expected = np.asarray(model(images))
    model.save(tmp_path / "model.keras")
    loaded: Any = load_model(tmp_path / "model.keras", safe_mode=False)
    for ours, theirs in zip(head.weights, loaded.head.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(loaded(images), expected, rtol=1e-5, atol=1e-5)
    save_predictor(model, tmp_path / "served", task, (None, None, 1))
    served = served_outputs(
        tmp_path / "served", tf.data.Dataset.from_tensor_slices(images).batch(7)
    )
    if kind == SINGLE_LABEL:
        expected = softmax(expected, axis=-1)
    elif kind == MULTI_LABEL:
        expected = expit(expected)
    np.testing.assert_allclose(served, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_head_is_float32_where_the_policy_is_another(kind, name):
    train = made(kind)
    expected = answers(fit_head(name, task_of(kind), train, train).layer, train[0])
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        said = answers(fit_head(name, task_of(kind), train, train).layer, train[0])
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(said, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_memory_mapped_features_are_like_others(kind, name, tmp_path: Path):
    task, (x, y), validation = task_of(kind), made(kind), made(kind, seed=1)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    ours = fit_head(name, task, (mapped, y), validation)
    expected = fit_head(name, task, (x, y), validation)
    assert ours.sweep == expected.sweep
    np.testing.assert_array_equal(answers(ours.layer, x), answers(expected.layer, x))


@pytest.mark.parametrize(("kind", "name"), EVERY)
@pytest.mark.parametrize("shape", [(12, 4), (12, 40), (3, 5), (2, 4)])
def test_small_and_odd_data_can_be_fitted(kind, name, shape):
    """Few examples, more features than examples, and features that do not vary."""
    x, y = made(kind, *shape)
    x[:, 1], x[:, 3] = 0.1, 0
    y = np.arange(len(y)) % 3 if kind == SINGLE_LABEL else y
    found = fit_head(name, task_of(kind), (x, y), (x, y))
    said = answers(found.layer, made(kind, *shape, seed=1)[0])
    assert said.shape == (len(x), 3)
    # A feature that is the same in all of train tells nothing.
    if name in ("logistic", "ridge"):
        np.testing.assert_allclose(found.layer.get_weights()[0][[1, 3]], 0, atol=1e-6)


@pytest.mark.parametrize("name", FITTED)
def test_one_example_a_class(name):
    x = np.eye(3, 5, dtype=np.float32)
    found = fit_head(name, task_of(SINGLE_LABEL), (x, np.arange(3)), (x, np.arange(3)))
    np.testing.assert_array_equal(answers(found.layer, x).argmax(-1), np.arange(3))


@pytest.mark.parametrize("name", FITTED)
def test_classes_may_be_missing(name):
    """Digit 1 is not in train, digit 2 not in validation; class 10 is nowhere."""
    task = Task(SINGLE_LABEL, (*DIGITS.names, "none"))
    (x, y), (checked, true) = TRAIN, VALIDATION
    train = x[y != 1], y[y != 1]
    found = fit_head(name, task, train, (checked[true != 2], true[true != 2]))
    said = softmax(answers(found.layer, TEST), axis=-1)
    assert set(said.argmax(-1)) == set(range(10)) - {1}
    if name != "ridge":  # It has no likelihood: what it never saw scores -1.
        assert said[:, [1, 10]].max() < 1e-6
    kept = ~np.isin(true, [1, 2])
    alike = fit_head(name, task, train, (checked[kept], true[kept]))
    assert alike.sweep == found.sweep
    np.testing.assert_array_equal(answers(alike.layer, TEST), answers(found.layer, TEST))


@pytest.mark.parametrize("name", ["prototype", "cosine"])
def test_class_is_added_without_training(name, tmp_path):
    known = TRAIN[1] < 9
    nine = Task(SINGLE_LABEL, tuple("012345678"))
    old: Any = fit_head(name, nine, (TRAIN[0][known], TRAIN[1][known]), VALIDATION).layer
    before = answers(old, TEST)
    more: Any = with_class(old, TRAIN[0][~known])
    np.testing.assert_array_equal(answers(old, TEST), before)
    np.testing.assert_allclose(answers(more, TEST)[:, :9], before, rtol=1e-5)
    whole: Any = fit_head(name, DIGITS, TRAIN, VALIDATION).layer
    np.testing.assert_array_equal(more.prototypes, whole.prototypes)
    told = answers(more, TEST).argmax(-1)
    np.testing.assert_array_equal(told, answers(whole, TEST).argmax(-1))
    assert np.mean(told[DIGIT[900:] == 9] == 9) > 0.5
    model = keras.Sequential([keras.Input((64,)), more])
    model.save(tmp_path / "more.keras")
    loaded: Any = keras.models.load_model(tmp_path / "more.keras")
    np.testing.assert_array_equal(loaded(TEST), model(TEST))


@pytest.mark.parametrize("features", [np.ones((0, 4)), np.ones((2, 3)), np.ones(4)])
def test_class_is_added_from_features_only(features):
    layer = Prototypes(2)
    layer.build((None, 4))
    with pytest.raises(ValueError, match=r"Expected features \[n, 4\]"):
        with_class(layer, features)


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("head", [linear, mlp])
def test_heads_to_train_have_the_units_of_the_task(head, kind):
    x, y = made(kind)
    layer = head(task_of(kind), y)
    layer.build((None, 6))
    assert answers(layer, x).shape == (60, 3)
    restored = layer.__class__.from_config(layer.get_config())
    assert restored(x).shape == (60, 3)
    restored.set_weights(layer.get_weights())
    np.testing.assert_array_equal(restored(x), layer(x))
    if kind == REGRESSION:
        with pytest.raises(ValueError, match="received None"):
            head(task_of(kind))
    wide = mlp(task_of(kind), y, units=5)
    wide.build((None, 6))
    assert [weight.shape for weight in wide.trainable_weights] == [(6, 5), (5,), (5, 3), (3,)]


@pytest.mark.parametrize(
    ("name", "kind", "strength", "message"),
    [
        ("svm", SINGLE_LABEL, None, "must be one of logistic, ridge"),
        ("logistic", REGRESSION, None, "Take the ridge head"),
        ("cosine", REGRESSION, None, "Take the ridge head"),
        ("prototype", MULTI_LABEL, None, "Take the ridge head"),
        ("prototype", SINGLE_LABEL, 1.0, "has no strength"),
        ("logistic", SINGLE_LABEL, 0.0, "above 0 and finite, not 0.0"),
        ("ridge", SINGLE_LABEL, float("nan"), "above 0 and finite, not nan"),
        ("knn", SINGLE_LABEL, 61, "from 1 to 60"),
        ("knn", SINGLE_LABEL, 2.5, "from 1 to 60"),
    ],
)
def test_mistakes_are_the_users(name, kind, strength, message):
    train = made(kind)
    with pytest.raises(UserError, match=message):
        fit_head(name, task_of(kind), train, train, strength=strength)


def test_classes_must_be_there():
    x, y = made(SINGLE_LABEL)
    task = task_of(SINGLE_LABEL)
    with pytest.raises(UserError, match="of two classes at least"):
        fit_head("logistic", task, (x, np.zeros_like(y)), (x, y))
    with pytest.raises(UserError, match="classes in train, and has none"):
        fit_head("knn", task, (x, np.zeros_like(y)), (x, np.ones_like(y)))


def test_arrays_must_go_together():
    x, y = made(SINGLE_LABEL)
    for data in ((x[:5], y), (x[:, :2], y), (x[:0], y[:0]), (x[None], y)):
        with pytest.raises(ValueError, match=r"Expected x \[n, d\]"):
            fit_head("ridge", task_of(SINGLE_LABEL), (x, y), data)
    for name in set(HEADS) - set(FITTED):
        with pytest.raises(ValueError, match="build it and train"):
            fit_head(name, task_of(SINGLE_LABEL), (x, y), (x, y))
