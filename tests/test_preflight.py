"""What a few batches show before a distillation: each mistake is one line."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import moved, values
from tfxfer.backbones import load_backbone
from tfxfer.errors import UserError
from tfxfer.methods.compared import Trained, transfer_card
from tfxfer.methods.preflight import better_than_chance, preflight
from tfxfer.models import Distiller, FineTuner, Teacher
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task
from tfxfer.training.loop import PhaseResult
from tfxfer.transfer import HELPED, NO_EVIDENCE

NAMES = ("red", "green", "blue")
TASK = Task(SINGLE_LABEL, NAMES)
RNG = np.random.default_rng(0)
Y = RNG.permutation(np.arange(48) % 3)
X = np.zeros((48, 8, 8, 3), np.float32)
X[np.arange(48), :, :, Y] = 200
X += RNG.uniform(0, 55, X.shape).astype(np.float32)

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BCE = keras.losses.BinaryCrossentropy(from_logits=True)


def seeing(
    scale: float = 10.0, order=(0, 1, 2), end: str = "", width: int = 200, bias: float = 0.0
) -> keras.Model:
    """Tells the colour of an image, and carries some weights beside."""
    mean = keras.layers.GlobalAveragePooling2D()
    dense = keras.layers.Dense(3, activation=end or None, name="classes")
    beside = keras.layers.Dense(width, use_bias=False, name="beside")
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    hidden = keras.layers.Concatenate(name="hidden")([mean(x), beside(mean(x))])
    model = keras.Model(inputs, dense(hidden))
    kernel = np.zeros((3 + width, 3), np.float32)
    kernel[:3] = scale * np.eye(3)[:, list(order)]
    dense.set_weights([kernel, np.full(3, bias)])
    return model


def student(seed: int = 1) -> FineTuner:
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, name="block1_conv"),
        keras.layers.BatchNormalization(name="block1_bn"),
        keras.layers.ReLU(name="block1_relu"),
        keras.layers.Conv2D(8, 3, name="block2_conv"),
        keras.layers.Dropout(0.1),
    ]
    backbone = load_backbone(keras.Sequential(layers), bn="train")
    return FineTuner(backbone, keras.layers.Dense(3))


def made(teachers: Any = None, losses="0.9*kd(temperature=4)", loss: Any = CE, **options):
    options = {"alpha": 0.1, "student": None, **options}
    learner = options.pop("student") or student()
    distiller = Distiller(learner, teachers or seeing(), losses, **options)
    distiller.compile(loss=loss)
    return distiller


def data(x=X, y=Y) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(16)


def refused(says: str, distiller: Distiller, task: Task = TASK, **options: Any) -> None:
    batches = options.pop("batches", None) or data()
    with pytest.raises(UserError, match=says) as error:
        preflight(distiller, batches, task, **options)
    assert "\n" not in str(error.value)


def test_it_measures_and_leaves_all_as_it_was():
    distiller = made()
    learner: Any = distiller.student
    learner.unfreeze(["block2"])
    before = values(distiller.weights)
    found = preflight(distiller, data(), TASK)
    assert (found.examples, found.metric, found.teacher) == (48, "accuracy", 1.0)
    said = learner(X, training=False).numpy().argmax(-1)
    assert found.student == pytest.approx(np.mean(said == Y))
    assert list(found.gradients) == ["labels", "0.9*kd(temperature=4)"]
    assert found.notes == ()
    assert not any(moved(before, distiller.weights))
    assert learner.backbone.unfrozen == ("block2",)
    assert not learner.head.trainable
    first, second = found.lines()
    assert first == (
        f"preflight accuracy on 48 training examples: teacher 1.000, student {found.student:.3f} "
        "before training"
    )
    assert second.startswith("          gradients of the losses: labels ")


def test_gradients_are_those_of_the_weighted_losses():
    """Of the logits, cross-entropy has (p - y) / n; so the bias of the head has their sum."""
    learner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    learner.add(keras.layers.Dense(3, kernel_initializer="zeros"))
    learner.layers[0].trainable = learner.layers[-1].trainable = True
    distiller = made(student=learner, losses="2*logit_mse", alpha=0.25)
    found = preflight(distiller, data(X[:16], Y[:16]), TASK).gradients
    flat = X[:16].reshape(16, -1).astype(np.float64)
    errors = 0.25 * (np.full((16, 3), 1 / 3) - np.eye(3)[Y[:16]]) / 16
    expected = np.hypot(np.linalg.norm(flat.T @ errors), np.linalg.norm(errors.sum(0)))
    assert found["labels"] == pytest.approx(expected, rel=1e-4)
    teacher = distiller.teachers(X[:16])["logits"].numpy()
    errors = 2 * 2 * (0 - teacher) / teacher.size
    expected = np.hypot(np.linalg.norm(flat.T @ errors), np.linalg.norm(errors.sum(0)))
    assert found["2*logit_mse"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("end", "said", "says"),
    [
        ("softmax", "logits", "look like probabilities.*add up to 1. Say outputs=softmax"),
        ("", "softmax", r"must be probabilities \(softmax\), and are from .* Say outputs=logits"),
        ("", "sigmoid", r"must be probabilities \(sigmoid\)"),
        ("sigmoid", "softmax", "must add up to 1 .* Say outputs=sigmoid"),
    ],
)
def test_logits_and_probabilities_are_told_apart(end, said, says):
    refused(says, made(Teacher(seeing(end=end), said)))
    assert preflight(made(Teacher(seeing(end=end))), data(), TASK).teacher == 1.0


def test_probabilities_of_several_classes_are_told_from_logits():
    task, y = Task(MULTI_LABEL, NAMES), np.eye(3, dtype=np.float32)[Y]
    options: Any = {"loss": BCE, "losses": "multi_label_kd", "task": MULTI_LABEL}
    as_logits = made(Teacher(seeing(end="sigmoid", bias=-5), "logits"), **options)
    refused("Say outputs=sigmoid", as_logits, task, batches=data(y=y))
    found = preflight(made(seeing(end="sigmoid", bias=-5), **options), data(y=y), task)
    assert (found.metric, found.teacher) == ("accuracy of decisions", 1.0)


def test_outputs_are_finite():
    broken = seeing()
    broken.layers[-1].bias.assign([np.nan, 0.0, 0.0])
    refused("must be finite, and 33% of them are not", made([seeing(), broken]))


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1)])
def test_a_teacher_with_classes_in_another_order_only_guesses(order):
    distiller = made(Teacher(seeing(order=order), name="teacher 'x.keras'"))
    says = r"teacher 'x.keras' must be better than chance, .*accuracy 0.000.*labels=FILE"
    refused(says, distiller)
    assert preflight(distiller, data(), TASK, force=True).teacher == 0.0
    refused("better than chance", made([seeing(), seeing(order=order)], teacher_weights=[9, 1]))


def test_a_teacher_that_always_says_the_same_only_guesses():
    """Also where that is right most of the time, which a plain count would take for knowledge."""
    y = np.where(np.arange(48) < 44, 0, 1)
    constant = seeing(scale=0.0)
    constant.layers[-1].bias.assign([5.0, 0.0, 0.0])
    refused("accuracy 0.917", made(constant), batches=data(y=y))
    x = X[np.argsort(Y, kind="stable")]
    order = np.concatenate([np.arange(16), np.arange(4) + 16])
    few = data(x[order], np.sort(Y, kind="stable")[order])
    assert preflight(made(), few, TASK).teacher == 1.0


def test_nothing_is_said_of_too_few_or_of_one_class():
    shifted = seeing(order=(1, 2, 0))
    assert preflight(made(shifted), data(X[:19], Y[:19]), TASK).teacher == 0.0
    one = Y == 1
    assert preflight(made(), tf.data.Dataset.from_tensors((X, np.full(48, 1))), TASK).examples == 48
    assert preflight(made(), tf.data.Dataset.from_tensors((X[one], Y[one])), TASK).teacher == 1.0


def test_examples_without_labels_are_passed_over():
    y = np.where(np.arange(48) % 2, Y, -1)
    found = preflight(made(), data(y=y), TASK)
    assert (found.examples, found.teacher) == (24, 1.0)
    soft = np.eye(3, dtype=np.float32)[Y] * (y >= 0)[:, None]
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    found = preflight(made(loss=loss), data(y=soft), TASK)
    assert (found.examples, found.teacher) == (24, 1.0)


def test_without_any_labels():
    distiller = made(alpha=0.0, loss=None)
    found = preflight(distiller, data(y=np.full(48, -1)), TASK)
    assert (found.examples, found.teacher, found.student) == (0, None, None)
    assert found.lines()[0] == "preflight no labelled examples"
    assert list(found.gradients) == ["0.9*kd(temperature=4)"]


def test_a_label_loss_that_nobody_asks_for_may_be_zero():
    found = preflight(made(alpha=0.0), data(), TASK)
    assert found.gradients["labels"] == 0
    assert found.notes == ()


def test_roles_that_are_swapped_are_told():
    noisy, good = seeing(order=(0, 1, 1), width=10), seeing(width=90)
    refused("is larger .* and better already: accuracy 1.000", made(noisy, student=good))
    preflight(made(noisy, student=good), data(), TASK, force=True)
    preflight(made(seeing(order=(0, 1, 1), width=90), student=seeing(width=10)), data(), TASK)
    preflight(made(seeing(width=10), student=seeing(width=90)), data(), TASK)


HINT = "hint(student=block1,teacher=block1)"


def test_a_loss_without_a_gradient_is_told():
    dead = student()
    dead.backbone.network.get_layer("block1_bn").beta.assign(np.full(4, -100.0))
    found = preflight(made(student(2), f"kd+{HINT}", student=dead), data(), TASK, force=True)
    assert found.gradients[HINT] == 0
    assert found.notes[0].startswith(f"the gradient of {HINT} is zero at the start")
    alone = made(student(2), HINT, student=dead, alpha=0.0, loss=None)
    refused("A loss must have a gradient .* it is zero: hint", alone, force=True)
    broken = student()
    broken.head.bias.assign([np.inf, 0.0, 0.0])
    refused("The loss labels .* it is not finite", made(student=broken))


@pytest.mark.parametrize("away", [0.0, 1e-8])
def test_a_student_may_begin_as_its_teacher(away):
    """With the same weights: their features are alike, but for rounding maybe."""
    learner, teacher = student(), student()
    bias = teacher.backbone.network.get_layer("block1_conv").bias
    bias.assign(bias + away)
    hint = "hint(student=block1_conv,teacher=block1_conv)"
    distiller = made(teacher, f"{hint}+0.1*logit_mse", student=learner)
    (note,) = preflight(distiller, data(), TASK, force=True).notes[:1]
    assert note.startswith(f"the gradient of {hint} is zero at the start")


@pytest.mark.parametrize(
    ("given", "right"), [((0.0, 255.0), (0.0, 1.0)), ((0.0, 1.0), (-1.0, 1.0))]
)
def test_a_teacher_that_wants_another_value_range_is_told(given, right):
    """Bright images are class 1: told apart at the middle of the range that it wants."""
    y = np.arange(64) % 2
    x = np.where(y == 1, 224, 32)[:, None, None, None] * np.ones((1, 8, 8, 3), np.float32)
    x[:8] = np.where(y[:8] == 1, 255, 0)[:, None, None, None]

    def seen(value_range):
        mean = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
        model = FineTuner(load_backbone(mean, value_range=value_range), keras.layers.Dense(3))
        model(x)
        kernel = np.broadcast_to([-1.0, 1.0, 0.0], (3, 3))
        model.head.set_weights([kernel, 3 * np.mean(right) * np.array([1.0, -1.0, -9.0])])
        return preflight(made(Teacher(model, "logits", name="x")), data(x, y), TASK, force=True)

    (note,) = seen(given).notes
    assert note.startswith(f"x does better with value_range={right[0]:g},{right[1]:g}: accuracy 0.")
    assert note.endswith("on 64 training examples becomes 1.000")
    assert seen(right).notes == ()


def test_a_weak_teacher_is_noted():
    y = np.where(np.arange(48) < 24, Y, (Y + 1) % 3)
    (note,) = preflight(made(Teacher(seeing(), name="x")), data(y=y), TASK).notes
    assert note.startswith("x is right on 50% of 48 training examples: are labels=FILE and")


def test_better_than_chance_is_told_by_outputs():
    right, rng = np.eye(3)[Y], np.random.default_rng(0)
    assert better_than_chance(right, Y, TASK)
    assert better_than_chance(right + rng.normal(size=right.shape), Y, TASK)
    assert not better_than_chance(np.roll(right, 1, axis=-1), Y, TASK)
    assert not better_than_chance(np.zeros_like(right), Y, TASK)
    assert better_than_chance(np.zeros((19, 3)), Y[:19], TASK), "too few to tell"
    numbers = Task(REGRESSION, NAMES)
    assert better_than_chance(right, right, numbers)
    assert not better_than_chance(right * 0 + right.mean(axis=0), right, numbers)


def trained(outputs: np.ndarray, best_epoch: int) -> Trained:
    phase = PhaseResult(
        "student", 5, best_epoch, 0.1, 0.5, 0.1, "accuracy", 0.5, (), kept=True, seconds=1.0
    )
    model: Any = None
    return Trained(model, phase, outputs, outputs, Y)


def test_students_at_chance_are_no_evidence():
    """Whatever the difference: one always says what is true less often."""
    right = np.eye(3)[Y]
    never = np.roll(right, 1, axis=-1)
    constant = np.broadcast_to(np.eye(3)[0], right.shape)
    found = transfer_card(
        TASK, right, [trained(constant, 5)] * 2, [trained(never, 5), trained(never, 4)], 10
    )
    assert found.verdict.interval is not None and found.verdict.interval[0] > 0
    assert (found.verdict.word, found.verdict_last.word) == (NO_EVIDENCE, NO_EVIDENCE)
    assert (found.distilled.at_chance, found.alone.at_chance) == (True, True)
    assert (found.distilled.unfinished, found.alone.unfinished) == (2, 1)
    taught = transfer_card(TASK, right, [trained(right, 3)], [trained(never, 3)], 10)
    assert (taught.verdict.word, taught.distilled.at_chance) == (HELPED, False)


def test_a_loss_that_hardly_counts_is_noted():
    plain = preflight(made(losses="kd(temperature=4)+logit_mse"), data(), TASK)
    assert plain.notes == ()
    found = preflight(made(losses="kd(temperature=4)+1e-6*logit_mse"), data(), TASK)
    (note,) = found.notes
    strong = max(found.gradients, key=lambda name: found.gradients[name])
    ratio = found.gradients[strong] / found.gradients["1e-06*logit_mse"]
    assert note.startswith(f"the gradient of {strong} is {ratio:.0f} times that of 1e-06*logit_mse")
    weight = float(note.split("; with ")[1].split("*")[0])
    assert 0.4 < weight / (1e-6 * ratio) < 2.5
    assert found.lines()[-1] == f"          {note}"
    even = made(losses=f"kd(temperature=4)+{weight}*logit_mse")
    assert preflight(even, data(), TASK).notes == ()


def test_feature_losses_reach_a_frozen_backbone():
    losses = "kd+hint(student=block1,teacher=block1)"
    learner = student()
    distiller = made(student(2), losses, student=learner)
    found = preflight(distiller, data(), TASK, force=True)
    assert found.gradients[losses.split("+")[1]] > 0
    assert learner.backbone.unfrozen == ()


def test_numbers_are_measured_by_their_variance():
    task = Task(REGRESSION, NAMES)
    y = 10 * X.mean(axis=(1, 2)) / 255
    options: Any = {"loss": "mse", "losses": "logit_mse", "task": REGRESSION}
    found = preflight(made(**options), data(y=y), task)
    assert found.metric == "R2"
    assert found.teacher == pytest.approx(1, abs=1e-4)
    refused("R2 -", made(seeing(order=(1, 2, 0)), **options), task, batches=data(y=y))
    refused("R2 -", made(seeing(scale=100.0), **options), task, batches=data(y=y))


def test_rare_labels_are_no_obstacle():
    """All decisions against is right for 92% of them, and a teacher that knows need not beat it."""
    task, y = Task(MULTI_LABEL, NAMES), np.zeros((48, 3), np.float32)
    y[:12] = np.eye(3)[Y[:12]]
    x = np.where((np.arange(48) < 12)[:, None, None, None], X, 20)
    options: Any = {"loss": BCE, "losses": "multi_label_kd", "task": MULTI_LABEL}
    found = preflight(made(**options), data(x, y), task)
    assert found.teacher is not None and found.teacher < 0.5  # Too sure, and in the right order.
    refused(
        "better than chance", made(seeing(order=(1, 2, 0)), **options), task, batches=data(x, y)
    )


def test_two_devices_measure_the_same(mirrored):
    def new(strategy):
        with strategy.scope():
            return made(Teacher(seeing(), "logits"), student=student())

    alone, both = new(tf.distribute.get_strategy()), new(mirrored)
    both.student.set_weights(alone.student.get_weights())
    both.teachers.teachers[0].model.set_weights(alone.teachers.teachers[0].model.get_weights())
    expected, found = (preflight(each, data(), TASK) for each in (alone, both))
    assert found.gradients == pytest.approx(expected.gradients, rel=1e-4)
    assert (found.teacher, found.student) == (expected.teacher, expected.student)
    assert values(both.student.weights) == values(alone.student.weights)


def test_there_must_be_something_to_look_at():
    with pytest.raises(ValueError, match="at least one batch"):
        preflight(made(), [], TASK)
    without = Distiller(student())
    without.compile(loss=CE)
    with pytest.raises(ValueError, match="and teachers"):
        preflight(without, data(), TASK)
