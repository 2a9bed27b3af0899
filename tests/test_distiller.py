"""`Distiller`: its loss, its step, what it leaves alone, and what it keeps in files."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax

import tfxfer
from tests.conftest import small_network
from tfxfer import Distiller, FineTuner, LossSchedule, Teacher, load_backbone
from tfxfer.errors import UserError
from tfxfer.models.teachers import Teachers
from tfxfer.task import MULTI_LABEL, REGRESSION

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 12, 12, 3)).astype("float32")
LABELS = np.arange(24) % 3


def network(width: int, seed: int, bn: bool = False, units: int = 3, end: str = "") -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((12, 12, 3)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(width, 3, strides=2, name="conv1"),
        *([keras.layers.BatchNormalization(name="bn")] if bn else []),
        keras.layers.ReLU(name="relu1"),
        keras.layers.Conv2D(2 * width, 3, name="conv2"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(units, activation=end or None, name="logits"),
    ]
    return keras.Sequential(layers)


def distiller(
    losses: Any = "0.9*kd(temperature=4)", student=None, teacher=None, **options
) -> Distiller:
    made = Distiller(
        student or network(4, 1), teacher or network(8, 2), losses, alpha=0.1, **options
    )
    made.compile(keras.optimizers.SGD(0.1), CE, weighted_metrics=["accuracy"])
    return made


def kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    logs = log_softmax(teacher / temperature, -1) - log_softmax(student / temperature, -1)
    return temperature**2 * np.sum(softmax(teacher / temperature, -1) * logs, -1)


def outputs(model: keras.Model, images=IMAGES) -> np.ndarray:
    return np.asarray(model(images, training=False), np.float64)


def test_the_loss_is_that_of_the_paper():
    made = distiller()
    student, teacher = outputs(made.student), outputs(made.teachers.teachers[0].model)
    weight = np.linspace(0, 2, 24)
    truth = -log_softmax(student, -1)[np.arange(24), LABELS]
    expected = np.mean(weight * (0.1 * truth + 0.9 * kd(student, teacher, 4)))
    logs = made.train_on_batch(IMAGES, LABELS, sample_weight=weight, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["kd"], np.mean(weight * kd(student, teacher, 4)), rtol=1e-4)


def test_regularisers_of_the_student_count_once_and_not_by_alpha():
    student = network(4, 1)
    plain = distiller(student=student).train_on_batch(IMAGES, LABELS, return_dict=True)
    student = network(4, 1)
    layer = student.get_layer("logits")
    layer.kernel.regularizer = keras.regularizers.L2(0.5)
    penalty = 0.5 * float(np.sum(np.square(layer.kernel.numpy())))
    logs = distiller(student=student).train_on_batch(IMAGES, LABELS, return_dict=True)
    np.testing.assert_allclose(logs["loss"] - plain["loss"], penalty, rtol=1e-4)


def test_each_network_runs_once_a_step():
    runs = {name: tf.Variable(0) for name in ("student", "teacher")}
    models = {}
    for name, width in (("student", 4), ("teacher", 8)):
        count = keras.layers.Lambda(lambda x, name=name: (runs[name].assign_add(1), x)[1])
        count.supports_jit = False
        inner = network(width, 1)
        models[name] = keras.Sequential([keras.Input((12, 12, 3)), count, *inner.layers])
    losses = "kd+hint(student=conv1,teacher=conv1)+rkd_distance+nst(student=conv2,teacher=conv2)"
    made = Distiller(models["student"], models["teacher"], losses)
    made.compile("sgd", CE, jit_compile=False)
    made.fit(IMAGES, LABELS, batch_size=8, epochs=2, verbose=0)
    assert {name: int(run) for name, run in runs.items()} == {"student": 6, "teacher": 6}


def test_the_teacher_stays_as_it_is_and_apart():
    teacher = network(8, 2, bn=True)
    teacher.get_layer("conv2").trainable = False
    flags = [layer.trainable for layer in teacher.layers]
    before = teacher.get_weights()
    made = distiller(teacher=teacher)
    made.fit(IMAGES, LABELS, verbose=0)
    assert flags == [layer.trainable for layer in teacher.layers]
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    theirs = {id(weight) for weight in teacher.variables}
    assert theirs.isdisjoint(map(id, made.variables))
    assert theirs.isdisjoint(map(id, made.optimizer.variables))
    assert made.count_params() < teacher.count_params()


def test_evaluate_is_that_of_the_student_and_changes_nothing():
    made = distiller(student=network(4, 1, bn=True))
    before = made.get_weights()
    logs = made.evaluate(IMAGES, LABELS, return_dict=True, verbose=0)
    assert set(logs) == {"loss", "accuracy"}
    student = outputs(made.student)
    truth = -log_softmax(student, -1)[np.arange(24), LABELS]
    np.testing.assert_allclose(logs["loss"], truth.mean(), rtol=1e-5)
    for old, new in zip(before, made.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(made.predict(IMAGES, verbose=0), student.astype("float32"))


def test_a_file_holds_the_student_alone_and_trains_again(tmp_path):
    losses = ["0.9*kd(temperature=2)", "0.5*hint(student=conv1,teacher=conv1)"]
    teacher = network(8, 2)
    made = distiller(losses, teacher=teacher)
    made.fit(IMAGES, LABELS, verbose=0)
    made.save(tmp_path / "distiller.keras")
    loaded = tfxfer.load_model(tmp_path / "distiller.keras")
    assert [weight.shape for weight in loaded.weights] == [weight.shape for weight in made.weights]
    for old, new in zip(made.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(ValueError, match="Expected teachers"):
        loaded.fit(IMAGES, LABELS, verbose=0)
    loaded.teachers = teacher
    for each in (made, loaded):
        each.fit(IMAGES, LABELS, batch_size=24, epochs=2, verbose=0)
    for old, new in zip(made.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(old, new, atol=1e-6)


def test_alpha_and_temperature_follow_schedules_without_another_trace():
    made = distiller()
    seen, traces = [], []
    step = made._forward
    made._forward = lambda *batch: (traces.append(1), step(*batch))[1]
    schedule = LossSchedule(
        alpha=lambda epoch: 0.5 * epoch,
        weights={0: lambda epoch: 1.0 - 0.5 * epoch},
        temperatures={0: lambda epoch: 1.0 + epoch},
    )
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            [float(x) for x in (made.alpha, made.loss_weights[0], made.temperatures["0"])]
            + [len(traces)]
        )
    )
    made.fit(IMAGES, LABELS, batch_size=8, epochs=2, verbose=0, callbacks=[schedule, record])
    once = seen[0][-1]
    assert seen == [[0.0, 1.0, 1.0, once], [0.5, 0.5, 2.0, once]]
    student, teacher = outputs(made.student), outputs(made.teachers.teachers[0].model)
    truth = -log_softmax(student, -1)[np.arange(24), LABELS]
    expected = np.mean(0.5 * truth + 0.5 * kd(student, teacher, 2))
    logs = made.train_on_batch(IMAGES, LABELS, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_a_warm_up_rises_by_epoch():
    made = distiller("2*kd(warmup=4)")
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(float(made.loss_weights[0]))
    )
    made.fit(IMAGES, LABELS, epochs=5, verbose=0, callbacks=[record])
    assert seen == [0.5, 1.0, 1.5, 2.0, 2.0]


@pytest.mark.parametrize("one_hot", [False, True])
def test_examples_without_a_label_count_for_the_teacher_alone(one_hot):
    known = np.arange(24) % 2 == 0
    targets = np.where(known, LABELS, -1)
    made = distiller()
    if one_hot:
        targets = np.where(known[:, None], np.eye(3)[LABELS], 0).astype("float32")
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        made.compile(keras.optimizers.SGD(0.1), loss, weighted_metrics=["categorical_accuracy"])
    student, teacher = outputs(made.student), outputs(made.teachers.teachers[0].model)
    truth = -log_softmax(student, -1)[np.arange(24), LABELS]
    expected = np.mean(0.1 * known * truth + 0.9 * kd(student, teacher, 4))
    logs = made.train_on_batch(IMAGES, targets, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    right = (student.argmax(-1) == LABELS)[known].mean()
    (accuracy,) = (value for name, value in logs.items() if "accuracy" in name)
    np.testing.assert_allclose(accuracy, right)


def test_float_classes_in_a_column_are_classes():
    plain = distiller().train_on_batch(IMAGES, LABELS, return_dict=True)
    column = LABELS[:, None].astype("float32")
    found = distiller().train_on_batch(IMAGES, column, return_dict=True)
    np.testing.assert_allclose(found["loss"], plain["loss"], rtol=1e-6)


def test_another_teacher_is_heard_after_a_fit():
    made = distiller("kd(temperature=1)")
    made.compile(keras.optimizers.SGD(0.0), CE, jit_compile=False)
    made.fit(IMAGES, LABELS, batch_size=24, verbose=0)
    other = network(8, 5)
    head = other.get_layer("logits")
    head.kernel.assign(20 * head.kernel)
    made.teachers = other
    found = made.fit(IMAGES, LABELS, batch_size=24, verbose=0).history["kd"][0]
    expected = kd(outputs(made.student), outputs(other), 1).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_numbers_that_are_missing():
    student, teacher = network(4, 1, units=2), network(8, 2, units=2)
    made = Distiller(student, teacher, "logit_mse", alpha=1.0, task=REGRESSION)
    made.compile("sgd", "mse")
    y = RNG.normal(size=(24, 2)).astype("float32")
    y[::3] = np.nan
    said, told = outputs(student), outputs(teacher)
    errors = np.where(np.isnan(y), 0, said - np.nan_to_num(y)) ** 2
    logs = made.train_on_batch(IMAGES, y, return_dict=True)
    expected = errors.mean() + np.mean((said - told) ** 2)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_without_labels_at_all():
    teacher = network(8, 2)
    head = teacher.get_layer("logits")
    head.kernel.assign(20 * head.kernel)
    made = Distiller(network(4, 1), teacher, "kd(temperature=1)", alpha=0.0)
    made.compile(keras.optimizers.Adam(0.02))
    before = kd(outputs(made.student), outputs(made.teachers.teachers[0].model), 1).mean()
    made.fit(IMAGES, batch_size=8, epochs=20, verbose=0)
    after = kd(outputs(made.student), outputs(made.teachers.teachers[0].model), 1).mean()
    assert after < 0.5 * before


def test_what_was_kept_of_the_teacher_is_what_it_says():
    losses = "kd+hint(student=conv1,teacher=conv1)+cosine"
    teacher = network(8, 2)
    online, kept = (distiller(losses, network(4, 1), teacher) for _ in range(2))
    projectors = [each.get_weights() for each in online.projectors]
    for layer, values in zip(kept.projectors, projectors, strict=True):
        layer.set_weights(values)
    packed = kept.teachers.packed(IMAGES)
    online.fit(IMAGES, LABELS, batch_size=8, shuffle=False, epochs=3, verbose=0)
    taught = {"inputs": IMAGES, "teacher": packed.numpy()}
    kept.fit(taught, LABELS, batch_size=8, shuffle=False, epochs=3, verbose=0)
    for one, other in zip(online.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_several_teachers_are_averaged_as_probabilities():
    one, other = network(8, 2), network(6, 3, end="softmax")
    teachers = Teachers([Teacher(one), Teacher(other)], weights=[3, 1])
    expected = 0.75 * softmax(outputs(one), -1) + 0.25 * outputs(other)
    found = softmax(teachers(IMAGES)["logits"].numpy(), -1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_several_teachers_of_labels_and_of_numbers():
    one, other = network(8, 2, end="sigmoid"), network(6, 3)
    told = Teachers([Teacher(one), Teacher(other)], task=MULTI_LABEL)(IMAGES)["logits"].numpy()
    expected = (outputs(one) + 1 / (1 + np.exp(-outputs(other)))) / 2
    np.testing.assert_allclose(1 / (1 + np.exp(-told)), expected, rtol=1e-5)
    told = Teachers([Teacher(other), Teacher(other)], task=REGRESSION)(IMAGES)["logits"].numpy()
    np.testing.assert_allclose(told, outputs(other), rtol=1e-5)


def test_columns_are_the_classes_of_the_student():
    teacher = network(8, 2, units=5)
    told = Teacher(teacher, columns=[4, 0, 2]).logits(teacher(IMAGES)).numpy()
    np.testing.assert_allclose(told, outputs(teacher)[:, [4, 0, 2]], rtol=1e-6)


def test_layers_within_models_and_stages_of_backbones():
    backbone = load_backbone(small_network())
    student = FineTuner(backbone, keras.layers.Dense(3))
    inner = network(8, 2)
    teacher = keras.Sequential([keras.Input((12, 12, 3)), inner, keras.layers.Softmax()])
    stage = student.stage_names[0]
    losses = f"kd+attention_transfer(student={stage},teacher=relu1)"
    made = Distiller(student, teacher, losses)
    student.unfreeze(student.stage_names)
    made.compile("adam", CE)
    first, *_ = made.fit(IMAGES, LABELS, epochs=3, verbose=0).history["attention_transfer"]
    assert np.isfinite(first) and first > 0
    found = outputs(student)
    tapped, features = made(IMAGES, training=False, features=True)
    np.testing.assert_allclose(tapped, found, rtol=1e-5)
    np.testing.assert_allclose(features["features"], backbone(IMAGES, training=False), rtol=1e-5)


def test_names_that_are_not_there_are_told():
    with pytest.raises(UserError, match=r"The student has no layer or stage 'conv9'.*conv2"):
        distiller("hint(student=conv9,teacher=conv1)")
    with pytest.raises(UserError, match="the teacher has no layer or stage 'blok'"):
        distiller("hint(student=conv1,teacher=blok)")
    with pytest.raises(UserError, match="does not show its layers"):
        opaque = Teacher(lambda inputs, training: network(8, 2)(inputs))
        distiller("hint(student=conv1,teacher=conv1)", teacher=opaque)


def test_student_and_teacher_must_not_share_weights():
    model = network(4, 1)
    with pytest.raises(ValueError, match="weights of its own"):
        distiller(student=model, teacher=model)


def test_a_function_is_a_loss_too():
    def squares(student, teacher):
        return tf.reduce_sum((student - teacher) ** 2, axis=-1)

    made = distiller([squares], weights=[2.0])
    expected = np.sum((outputs(made.student) - outputs(made.teachers.teachers[0].model)) ** 2, -1)
    logs = made.train_on_batch(IMAGES, LABELS, return_dict=True)
    np.testing.assert_allclose(logs["squares"], expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_two_replicas_are_one(mirrored, steps):
    losses = "0.9*kd(temperature=4)+hint(student=conv1,teacher=conv1)+rkd_distance+pkt"

    def trained(strategy: tf.distribute.Strategy) -> list[np.ndarray]:
        with strategy.scope():
            made = distiller(losses, network(4, 1), network(8, 2))
            made.compile(
                keras.optimizers.Adam(0.01), CE, gradient_accumulation_steps=1, jit_compile=False
            )
            keras.utils.set_random_seed(3)
            for layer in made.projectors:
                layer.set_weights([np.full(each.shape, 0.1) for each in layer.get_weights()])
        data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(12).repeat()
        history = made.fit(data, steps_per_epoch=20, epochs=steps, shuffle=False, verbose=0).history
        return [*made.get_weights(), np.array(history["loss"])]

    one = trained(tf.distribute.get_strategy())
    two = trained(mirrored)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
