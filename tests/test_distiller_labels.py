"""`Distiller`: labels and weights as people have them, some of them missing."""

import keras
import numpy as np
import pytest

from tests.test_distiller import CE, IMAGES, LABELS, RNG, distiller, network, outputs
from tfxfer import Distiller
from tfxfer.task import MULTI_LABEL, REGRESSION

CLASSES = {
    "flat": LABELS,
    "column": LABELS[:, None],
    "floats": LABELS.astype("float32"),
    "one-hot": np.eye(3)[LABELS],
    "one-hot of ints": np.eye(3, dtype="int32")[LABELS],
    "one-hot of bools": np.eye(3, dtype=bool)[LABELS],
}


def without(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Takes labels away, in the way of their kind."""
    classes = labels.ndim == 1 or labels.shape[-1] == 1
    nothing = (np.zeros_like if not classes else lambda each: np.full_like(each, -1))(labels)
    return np.where(known[:, None] if labels.ndim == 2 else known, labels, nothing)


@pytest.mark.parametrize("kind", CLASSES)
def test_missing_labels_of_each_kind_weigh_nothing_in_training_and_evaluation(kind):
    labels, known = CLASSES[kind], np.arange(24) % 2 == 0
    columns = labels.ndim == 2 and labels.shape[-1] == 3
    label_loss = keras.losses.CategoricalCrossentropy(from_logits=True) if columns else CE

    def told(targets: np.ndarray, weight: np.ndarray | None) -> list[float]:
        made = distiller("0*kd")
        made.compile(keras.optimizers.SGD(0.0), label_loss, weighted_metrics=["accuracy"])
        evaluated = made.evaluate(IMAGES, targets, sample_weight=weight, verbose=0)
        loss, accuracy, _ = made.train_on_batch(IMAGES, targets, sample_weight=weight)
        return [*evaluated, loss, accuracy]

    whole = labels.astype("float32") if labels.dtype == bool else labels
    expected = told(whole, known.astype("float32"))
    np.testing.assert_allclose(told(without(labels, known), None), expected, rtol=1e-5)


def test_numbers_that_are_missing_are_not_evaluated_and_whole_numbers_may_be_negative():
    made = Distiller(network(4, 1, units=1), network(8, 2, units=1), "logit_mse", task=REGRESSION)
    made.compile("sgd", "mse")
    y = RNG.normal(size=24).astype("float32")
    y[::3] = np.nan
    said = outputs(made.student)[:, 0]
    expected = np.where(np.isnan(y), 0, said - np.nan_to_num(y)) ** 2
    np.testing.assert_allclose(made.evaluate(IMAGES, y, verbose=0), expected.mean(), rtol=1e-5)
    whole = np.arange(24) - 12
    found = made.evaluate(IMAGES, whole, verbose=0)
    np.testing.assert_allclose(found, np.mean((said - whole) ** 2), rtol=1e-5)


def test_labels_of_several_classes_may_be_bools():
    labels = RNG.integers(0, 2, (24, 3)).astype(bool)

    def told(targets: np.ndarray) -> list[float]:
        made = Distiller(network(4, 1), network(8, 2), "multi_label_kd", task=MULTI_LABEL)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        made.compile("sgd", loss, metrics=["binary_accuracy"])
        return [*made.evaluate(IMAGES, targets, verbose=0), *made.train_on_batch(IMAGES, targets)]

    np.testing.assert_allclose(told(labels), told(labels.astype("float32")), rtol=1e-6)


@pytest.mark.parametrize("kind", CLASSES)
def test_losses_of_the_target_class_read_labels_of_each_kind(kind):
    labels, known = CLASSES[kind], np.arange(24) % 3 > 0
    expected = distiller("dkd+nkd+ofa").loss_terms(IMAGES, np.where(known, LABELS, -1))
    columns = labels.ndim == 2 and labels.shape[-1] == 3
    made = distiller("dkd+nkd+ofa")
    if columns:
        made.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    found = made.loss_terms(IMAGES, without(labels, known))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_bounded_regression_reads_numbers_without_a_column():
    networks = network(4, 1, units=1), network(8, 2, units=1)
    made = Distiller(*networks, "bounded_regression", task=REGRESSION)
    made.compile("sgd", "mse")
    y = np.where(np.arange(24) % 2, np.nan, 3.0).astype("float32")
    flat, column = (made.loss_terms(IMAGES, each) for each in (y, y[:, None]))
    np.testing.assert_allclose(flat["bounded_regression"], column["bounded_regression"])


def test_losses_that_need_labels_say_so():
    made = Distiller(network(4, 1), network(8, 2), "dkd")
    made.compile("sgd")
    with pytest.raises(ValueError, match="Expected labels, which losses with y_true need"):
        made.fit(IMAGES, verbose=0)


def test_weights_may_stand_in_a_column():
    weight = np.linspace(0, 2, 24)
    for losses in ("kd", "pkt"):
        flat, column = (
            distiller(losses).train_on_batch(IMAGES, LABELS, sample_weight=each)
            for each in (weight, weight[:, None])
        )
        np.testing.assert_allclose(flat, column, rtol=1e-6)


def test_without_a_loss_evaluation_tells_metrics_alone():
    made = Distiller(network(4, 1), network(8, 2), "kd")
    made.compile("sgd", metrics=["sparse_categorical_accuracy"])
    history = made.fit(IMAGES, LABELS, validation_data=(IMAGES, LABELS), verbose=0).history
    metric = "sparse_categorical_accuracy"
    assert set(history) == {"loss", "kd", metric, f"val_{metric}"}
    made = Distiller(network(4, 1), network(8, 2), "kd")
    made.compile("sgd")
    with pytest.raises(ValueError, match="Expected a loss or metrics to evaluate"):
        made.evaluate(IMAGES, LABELS, verbose=0)
