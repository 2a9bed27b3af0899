"""`Distiller` and its teachers: inputs by name, weights that change, what is no teacher."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.test_distiller import CE, IMAGES, LABELS, RNG, distiller, kd, network, outputs
from tfxfer import Distiller, LossSchedule, Teacher
from tfxfer.backbones.constants import Constants
from tfxfer.errors import UserError
from tfxfer.models.taps import Taps


def two_inputs(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = {name: keras.Input((4,), name=name) for name in ("a", "b")}
    both = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    hidden = keras.layers.Dense(6, activation="relu", name="hidden")(both)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(hidden))


def test_named_inputs_with_and_without_what_was_kept():
    x = {name: RNG.normal(size=(24, 4)).astype("float32") for name in ("a", "b")}
    teacher = two_inputs(2)
    losses = "kd+hint(student=hidden,teacher=hidden)"
    online, kept = (distiller(losses, two_inputs(1), teacher) for _ in range(2))
    packed = kept.teachers.packed(x).numpy()
    for each, inputs in ((online, x), (kept, {"inputs": x, "teacher": packed})):
        each.fit(inputs, LABELS, batch_size=8, shuffle=False, epochs=2, verbose=0)
        assert each.evaluate(inputs, LABELS, verbose=0)[1] >= 0
    for one, other in zip(online.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_teacher_that_changed_is_heard_by_the_next_fit():
    made = distiller("kd(temperature=1)")
    made.compile(keras.optimizers.SGD(0.0), CE, jit_compile=False)
    teacher = made.teachers.teachers[0].model
    head, traced = teacher.get_layer("logits"), None
    for factor in (20, -1, 1):
        head.kernel.assign(factor * head.kernel)
        found = made.fit(IMAGES, LABELS, batch_size=24, verbose=0).history["kd"][0]
        expected = kd(outputs(made.student), outputs(teacher), 1).mean()
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert (made.train_function is traced) == (factor == 1)  # Traced anew if it must be.
        traced = made.train_function
    head.kernel.assign(2 * head.kernel)
    made.compile(keras.optimizers.SGD(0.0), CE, jit_compile=False)
    found = made.train_on_batch(IMAGES, LABELS, return_dict=True)["kd"]
    expected = kd(outputs(made.student), outputs(teacher), 1).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_constants_of_all_replicas_must_fit(mirrored, monkeypatch):
    model = network(4, 1)
    held = sum(weight.numpy().nbytes for weight in model.weights)
    monkeypatch.setattr("tfxfer.backbones.constants._MOST_BYTES", 2 * held - 1)
    constants = Constants(model.weights)

    def of_constants() -> int:
        def run(images: tf.Tensor) -> tf.Tensor:
            with constants.used():
                return model(images, training=False)

        traced = tf.function(run).get_concrete_function(tf.TensorSpec((1, 12, 12, 3)))
        found = [each for each in traced.graph.get_operations() if each.type == "Const"]
        return sum(each.outputs[0].shape.rank == 4 for each in found)

    assert of_constants() == 2
    with mirrored.scope():
        assert of_constants() == 0


def test_a_teacher_that_cannot_be_compiled_is_not():
    def opaque() -> keras.Model:
        model = network(8, 2)
        model.get_layer("relu1").supports_jit = False
        return model

    assert distiller().supports_jit
    assert not distiller(teacher=opaque()).supports_jit
    made = Distiller(network(4, 1))
    made.compile("sgd", CE, jit_compile=True)
    made.teachers = opaque()
    assert not made.jit_compile


def test_losses_over_the_batch_are_not_computed_in_parts_under_a_strategy(mirrored):
    with mirrored.scope():
        made = Distiller(network(4, 1), network(8, 2), "pkt")
        with pytest.raises(ValueError, match=r"Expected gradient_accumulation_steps=1 .* pkt"):
            made.compile("sgd", CE, gradient_accumulation_steps=2)
        made.compile("sgd", CE, jit_compile=False)


def nested(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)

    def block(name: str, width: int) -> keras.Model:
        layers = [
            keras.layers.Conv2D(width, 3, name="conv"),
            keras.layers.ReLU(name=f"{name}_relu"),
        ]
        return keras.Sequential(layers, name=name)

    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            *(block("one", 4), block("two", 5)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, name="conv_logits"),
        ]
    )


def test_layers_of_one_name_are_told_apart_by_path():
    with pytest.raises(UserError, match=r"student has several layers 'conv'.*one/conv, two/conv"):
        distiller("hint(student=conv,teacher=conv1)", student=nested(1))
    with pytest.raises(UserError, match="teacher has several layers 'conv'"):
        distiller("hint(teacher=conv)", teacher=[nested(1), network(4, 2)])
    taps = Taps(nested(1), ["one/conv", "two/conv", "two_relu", "two"])
    assert taps.channels == {"one/conv": 4, "two/conv": 5, "two_relu": 5, "two": 5}
    _, found = taps(IMAGES, training=False)
    assert found["one/conv"].shape == (24, 10, 10, 4)
    np.testing.assert_array_equal(found["two_relu"], tf.nn.relu(found["two/conv"]))


def test_what_is_no_teacher_or_student_is_told():
    with pytest.raises(ValueError, match=r"Expected a model to learn from.*'runs/1'.*load"):
        Distiller(network(4, 1), "runs/1")
    with pytest.raises(ValueError, match=r"Expected a student, .* received 'tiny'"):
        Distiller("tiny", network(4, 1))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("columns", [[], [0, -1, 2], [0, 1, 5]])
def test_columns_that_are_not_there(columns):
    with pytest.raises(ValueError, match=r"Expected columns of at least 0 and below 5, received"):
        Teacher(network(8, 2, units=5), columns=columns)
    model = network(8, 2, units=5)
    told = Teacher(lambda inputs, training: model(inputs), columns=[7])
    with pytest.raises(ValueError, match="below 5, received"):
        told.logits(model(IMAGES))


def test_a_teacher_of_other_outputs():
    teacher = network(8, 2, units=5)
    for wrong in (teacher, Teacher(teacher, columns=[0, 1])):
        with pytest.raises(ValueError, match=r"Expected a teacher of 3 outputs.*received [25]"):
            distiller(teacher=wrong)
    distiller("rkd_distance", teacher=teacher)  # Which does not look at them.
    distiller(teacher=Teacher(teacher, columns=[0, 1, 4]))


def test_schedules_of_what_is_not_there():
    made = distiller("kd+hard_label")
    for schedule, received in (
        (LossSchedule(weights={7: float}), r"losses, of \[0, 1\], received \[7\]"),
        (
            LossSchedule(temperatures={1: float}),
            r"losses with a temperature, of \[0\], received \[1\]",
        ),
    ):
        with pytest.raises(ValueError, match=f"Expected numbers of {received}"):
            made.fit(IMAGES, LABELS, verbose=0, callbacks=[schedule])
