"""`Distiller` and `MutualLearner`: what would train on something else than is meant."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, logit, softmax

import tfxfer
from tests.backbone_sources import Subclassed
from tests.test_distiller import CE, IMAGES, LABELS, distiller, network, outputs
from tfxfer import Distiller, FineTuner, LossSchedule, MutualLearner, Teacher, load_backbone
from tfxfer.models.outputs import activation_of, units_of
from tfxfer.models.teachers import Teachers
from tfxfer.task import MULTI_LABEL, REGRESSION

VECTORS = np.random.default_rng(1).normal(size=(24, 4)).astype("float32")


def ending(*end: Any, units: int = 3) -> keras.Model:
    """A functional model with an output in a list, as Keras' own guides write it."""
    x = inputs = keras.Input((4,))
    x = keras.layers.Dense(5, activation="relu", name="hidden")(x)
    x = keras.layers.Dense(units)(x)
    for each in end:
        x = each(x)
    return keras.Model(inputs, [x])


class Own(keras.layers.Layer):
    """Whose end nobody can tell."""

    def call(self, inputs):
        return keras.ops.softmax(inputs)


ENDS = {
    "layer": ("softmax", [keras.layers.Softmax()]),
    "tf.nn": ("softmax", [keras.layers.Activation(tf.nn.softmax)]),
    "operation": ("softmax", [keras.ops.softmax]),
    "shape": ("softmax", [keras.layers.Softmax(), keras.layers.Reshape((3, 1)), keras.ops.squeeze]),
    "type": ("softmax", [keras.layers.Softmax(), keras.layers.Activation("linear")]),
    "layer as activation": ("softmax", [keras.layers.Dense(3, keras.layers.Softmax())]),
    "sigmoid": ("sigmoid", [keras.ops.sigmoid, keras.layers.Flatten()]),
    "convolution": (
        "softmax",
        [
            keras.layers.Reshape((1, 1, 3)),
            keras.layers.Conv2D(3, 1, activation="softmax"),
            keras.layers.Flatten(),
        ],
    ),
    "gate": ("logits", [keras.layers.Dense(3, "sigmoid"), keras.layers.Dense(3)]),
    "nothing": ("logits", [keras.layers.Flatten()]),
    "own": ("logits", [Own()]),
}


@pytest.mark.parametrize("kind", ENDS)
def test_the_end_of_a_graph_tells_what_is_returned(kind):
    found, end = ENDS[kind]
    model = ending(*end)
    assert Teacher(model).outputs == found
    assert activation_of(keras.Sequential([keras.Input((4,)), model])) == found
    assert units_of(model) == 3
    learn = [lambda: Distiller(model), lambda: MutualLearner([ending(), model])]
    for make in learn:
        if found == "logits":
            make()
        else:
            with pytest.raises(ValueError, match=f"returns logits, received .* ends in a {found}"):
                make()


def test_a_layer_that_is_used_twice_is_seen_where_it_ends():
    inputs, soft = keras.Input((4,)), keras.layers.Softmax()
    gate = soft(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(gate))
    assert activation_of(model) == "logits"
    same = keras.layers.Reshape((4,))
    model = keras.Model(inputs, same(soft(same(keras.layers.Dense(4)(inputs)))))
    assert activation_of(model) == "softmax"


def test_students_that_do_not_tell_are_taken():
    class Gated(keras.Model):
        def __init__(self):
            super().__init__()
            self.logits = keras.layers.Dense(3)
            self.gate = keras.layers.Dense(4, activation="softmax")

        def call(self, inputs):
            return self.logits(self.gate(inputs) * inputs)

    student = Gated()
    student(VECTORS)
    Distiller(student, ending())
    assert Teacher(student).outputs == "softmax"  # A guess, which `outputs` corrects.
    other = Subclassed()
    other(IMAGES)
    Distiller(other)


def test_probabilities_are_taken_where_nothing_compares_them():
    model = network(4, 1, end="softmax")
    Distiller(model, network(8, 2), "rkd_distance")
    Distiller(model, network(8, 2), "logit_mse", task=REGRESSION)
    Distiller(model, network(8, 2), [lambda student, teacher: student[:, 0]])
    inside = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    backbone = load_backbone(network(4, 1))
    with pytest.raises(ValueError, match="ends in a softmax"):
        Distiller(FineTuner(backbone, keras.layers.Dense(3, activation="softmax")))
    with pytest.raises(ValueError, match="ends in a softmax"):
        Distiller(inside)


@pytest.mark.parametrize(
    ("units", "losses", "task", "says"),
    [
        (1, "rkd_distance", "single_label", "two classes or more.*task='regression'"),
        (3, "multi_label_kd", "single_label", "'multi_label_kd': say task='multi_label'"),
        (3, "kd+bounded_regression", "single_label", "say task='regression'"),
        (1, "kd", "regression", "multi_label_kd, bounded_regression, logit_mse .* received 'kd'"),
        (3, "kd", "multilabel", "task of single_label, multi_label, regression, received"),
    ],
)
def test_losses_and_students_of_another_task(units, losses, task, says):
    with pytest.raises(ValueError, match=says):
        Distiller(network(4, 1, units=units), network(8, 2, units=units), losses, task=task)
    Distiller(network(4, 1, units=1), network(8, 2, units=1), "logit_mse", task=MULTI_LABEL)
    with pytest.raises(ValueError, match="two classes or more"):
        MutualLearner([network(4, 1, units=1), network(4, 2, units=1)])


@pytest.mark.parametrize("told", ["", "softmax"])
def test_a_softmax_says_of_each_label_how_likely_it_is(told):
    teacher = network(8, 2, end="softmax")
    head = teacher.get_layer("logits")
    head.kernel.assign(30 * head.kernel)
    made = Distiller(network(4, 1), Teacher(teacher, told), "multi_label_kd", task=MULTI_LABEL)
    found = made.teachers(IMAGES)["logits"]
    np.testing.assert_allclose(expit(found), outputs(teacher), rtol=1e-4)
    assert expit(found).max() > 0.6


def test_binary_kd_hears_teachers_of_one_class():
    one, other = network(8, 2, end="softmax"), network(6, 3)
    made = Distiller(network(4, 1), [one, other], "binary_kd", task=MULTI_LABEL)
    expected = (outputs(one) + softmax(outputs(other), -1)) / 2
    np.testing.assert_allclose(softmax(made.teachers(IMAGES)["logits"], -1), expected, rtol=1e-5)


def test_numbers_between_0_and_1_are_no_probabilities():
    teacher = network(8, 2, units=1, end="sigmoid")
    made = Distiller(network(4, 1, units=1), teacher, "logit_mse", task=REGRESSION)
    np.testing.assert_allclose(made.teachers(IMAGES)["logits"], outputs(teacher), rtol=1e-6)
    binary = Teachers([Teacher(teacher)], task=MULTI_LABEL)(IMAGES)["logits"]
    np.testing.assert_allclose(binary, logit(outputs(teacher)), rtol=1e-4, atol=1e-6)


def test_an_output_in_a_list_is_that_output():
    losses = "kd+hint(student=hidden,teacher=hidden)"
    made = Distiller(ending(), ending(keras.layers.Softmax()), losses)
    made.compile("sgd", CE, weighted_metrics=["accuracy"])
    assert np.isfinite(made.fit(VECTORS, LABELS, verbose=0).history["loss"]).all()
    with pytest.raises(ValueError, match=r"teacher of 3 outputs.*received 5"):
        Distiller(ending(), ending(units=5))


def test_teachers_of_another_distiller(tmp_path):
    made = distiller(teacher=[network(8, 2), network(6, 3)], teacher_weights=[3, 1])
    made.save(tmp_path / "distiller.keras")
    loaded = tfxfer.load_model(tmp_path / "distiller.keras")
    loaded.teachers = made.teachers
    other = distiller(teacher=made.teachers)
    for each in (loaded, other):
        assert each.teachers.shares.tolist() == [0.75, 0.25]
        found = each.train_on_batch(IMAGES, LABELS, return_dict=True)["loss"]
    np.testing.assert_allclose(found, made.train_on_batch(IMAGES, LABELS)[0], rtol=1e-5)


class OfHub(tf.Module):
    """As `hub.KerasLayer` and networks of Keras 2, with variables of TensorFlow."""

    def __init__(self):
        super().__init__()
        self.weights = [tf.Variable(tf.ones([4, 3]))]

    def __call__(self, inputs, training=False):
        return inputs @ self.weights[0]


def test_weights_that_are_not_of_keras_are_read():
    teacher = OfHub()
    made = Distiller(ending(), teacher, "kd")
    made.compile(keras.optimizers.SGD(0.0), CE)
    first = made.fit(VECTORS, LABELS, batch_size=24, verbose=0).history["kd"]
    teacher.weights[0].assign(5 * np.eye(4, 3))
    assert made.fit(VECTORS, LABELS, batch_size=24, verbose=0).history["kd"] != first


def test_a_reduction_without_alpha():
    made = Distiller(network(4, 1), network(8, 2))
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    with pytest.raises(ValueError, match="another reduction"):
        made.compile("sgd", loss)


def test_outputs_that_nobody_compares_may_be_of_any_number():
    teachers = [network(8, 2, units=5), network(6, 3, units=4)]
    losses = "hint(student=conv1,teacher=conv1)+cosine(student=conv2,teacher=conv2)"
    online = distiller(losses, teacher=teachers)
    packed = online.teachers.packed(IMAGES)
    told, said = online.teachers.unpacked(packed, IMAGES), online.teachers(IMAGES)
    assert list(told) == list(said) == ["conv1", "conv2"]
    for name, value in said.items():
        np.testing.assert_allclose(told[name], value, rtol=1e-6)
    online.fit(IMAGES, LABELS, verbose=0)


def test_a_list_of_callbacks_warms_up_too():
    made = distiller("2*kd(warmup=4)")
    for given in ([], [LossSchedule(weights={0: lambda epoch: 7.0})]):
        callbacks = keras.callbacks.CallbackList(given, add_history=True, model=made)
        made.fit(IMAGES, LABELS, verbose=0, callbacks=callbacks)
        assert float(made.loss_weights[0]) == (7.0 if given else 0.5)
        assert len(callbacks.callbacks) == 2  # With the history.


@pytest.mark.parametrize("loss", [keras.losses.mean_squared_error, keras.losses.MeanSquaredError()])
def test_losses_of_keras_are_of_labels(loss):
    with pytest.raises(ValueError, match=r"\(student, teacher\) logits, received .*y_pred"):
        Distiller(network(4, 1), network(8, 2), [loss])


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf, np.nan])
def test_temperatures_of_a_schedule_are_above_0(temperature):
    schedule = LossSchedule(temperatures={0: lambda epoch: temperature})
    with pytest.raises(ValueError, match="Expected finite temperatures above 0, received"):
        distiller().fit(IMAGES, LABELS, verbose=0, callbacks=[schedule])


def test_students_that_are_the_same_learn_nothing_from_each_other():
    made = MutualLearner([network(4, 1), network(4, 1)])
    made.compile("sgd", CE)
    with pytest.warns(UserWarning, match="Two students have the same weights"):
        made.fit(IMAGES, LABELS, verbose=0)


def test_a_file_trains_on_as_it_was_compiled(tmp_path):
    made = distiller("kd")
    settings: Any = {"gradient_accumulation_steps": 3, "global_clipnorm": np.float32(0.01)}
    made.compile(keras.optimizers.SGD(1.0), CE, **settings)
    made.save(tmp_path / "distiller.keras")
    loaded = tfxfer.load_model(tmp_path / "distiller.keras")
    loaded.teachers = made.teachers
    for each in (made, loaded):
        each.fit(IMAGES, LABELS, batch_size=24, verbose=0)
    assert loaded._parts == 3
    for one, other in zip(made.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    kernel = made.student.get_layer("logits").kernel
    made.compile("sgd", CE, l2_sp=0.1, toward=[(kernel, None)])
    made.save(tmp_path / "distiller.keras")
    with pytest.warns(UserWarning, match=r"compiled with l2_sp=0\.1, .* compile again"):
        tfxfer.load_model(tmp_path / "distiller.keras")
