"""A step of `Distiller` against one of Keras' own, and against the student's.

    python examples/benchmarks/distillation.py

First the teacher is asked in each step, and its forward pass takes about twice the student's. Both
distillers have the same networks, batch, optimizer, label loss, loss on logits and loss on the
last maps. `keras.distillation.Distiller` gets an instance of `KLDivergence`, without
which it compares logits as they are. Then the teacher's outputs are kept, as runs keep them, and
the teacher is one whose forward pass takes ten times the student's: the other side is the training
step of the student alone, on labels. All are traced before they are timed, and take turns.
"""

import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from tfxfer import Distiller

BATCH = flags.DEFINE_integer("batch_size", 64, "Images a step.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps each, before the other's turn.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each.")
SIZE, CLASSES, WIDTH = 32, 10, 24
DEPTHS = {"student": 2, "teacher of twice the cost": 4, "teacher of ten times the cost": 23}
LAST = f"block{DEPTHS['student'] - 1}"
"""The student's last layer with maps, which learns what the teacher's last one says."""


def network(depth: int, seed: int) -> keras.Model:
    """Makes a convolutional network of so many blocks at full resolution."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(WIDTH, 3, padding="same", activation="relu")(inputs)
    for block in range(depth):
        x = keras.layers.Conv2D(WIDTH, 3, padding="same", name=f"conv{block}")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU(name=f"block{block}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def label_loss() -> keras.losses.Loss:
    """Returns the loss on labels."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def keras_distiller(student: keras.Model, teacher: keras.Model, last: str) -> keras.Model:
    """Makes Keras' own."""
    model = keras.distillation.Distiller(
        teacher=teacher,
        student=student,
        distillation_losses=[
            keras.distillation.LogitsDistillation(
                temperature=4.0, loss=keras.losses.KLDivergence()
            ),
            keras.distillation.FeatureDistillation(
                loss="mse", teacher_layer_name=last, student_layer_name=LAST
            ),
        ],
        distillation_loss_weights=[0.9, 0.5],
        student_loss_weight=0.1,
    )
    model.compile(keras.optimizers.Adam(1e-3), loss=label_loss(), jit_compile=False)
    return model


def our_distiller(student: keras.Model, teacher: keras.Model, last: str = "") -> Distiller:
    """Makes ours; with a loss on features if their layer is named."""
    hint = f"+0.5*hint(student={LAST},teacher={last})" if last else ""
    model = Distiller(student, teacher, f"0.9*kd(temperature=4){hint}", alpha=0.1)
    model.compile(keras.optimizers.Adam(1e-3), loss=label_loss(), jit_compile=False)
    return model


def turn(call: Callable[[], tf.Tensor | dict]) -> Callable[[], float]:
    """Returns a function that makes some calls, and says how many seconds one takes."""
    tf.nest.map_structure(lambda each: each.numpy(), call())

    def timed() -> float:
        start = time.perf_counter()
        results = [call() for _ in range(STEPS.value)]
        tf.nest.map_structure(lambda each: each.numpy(), results[-1])
        return (time.perf_counter() - start) / STEPS.value

    return timed


def step(model: keras.Model, batch: tuple) -> Callable[[], float]:
    """Returns turns of training steps on a batch."""
    traced = tf.function(lambda: model.train_step(batch))
    return turn(traced)


def forward(model: keras.Model, images: tf.Tensor) -> Callable[[], float]:
    """Returns turns of forward passes."""
    return turn(tf.function(lambda: model(images, training=False)))


def medians(**sides: Callable[[], float]) -> dict[str, float]:
    """Times sides in turn; returns the median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS.value):
        for name, side in sides.items():
            seconds[name].append(side())
    return {name: float(np.median(each)) for name, each in seconds.items()}


def batch() -> tuple[tf.Tensor, tf.Tensor]:
    """Makes a batch of noise."""
    rng = np.random.default_rng(0)
    images = rng.random((BATCH.value, SIZE, SIZE, 3), np.float32)
    return tf.constant(images), tf.constant(rng.integers(0, CLASSES, BATCH.value))


def online() -> float:
    """Compares the two distillers; returns the ratio of their steps."""
    images, labels = batch()
    depth = DEPTHS["teacher of twice the cost"]
    teacher, last = network(depth, 1), f"block{depth - 1}"
    found = medians(
        student=forward(network(DEPTHS["student"], 0), images),
        teacher=forward(teacher, images),
        keras=step(keras_distiller(network(DEPTHS["student"], 0), teacher, last), (images, labels)),
        ours=step(
            our_distiller(network(DEPTHS["student"], 0), network(depth, 1), last), (images, labels)
        ),
    )
    ratio = found["ours"] / found["keras"]
    print(f"forward pass: teacher {found['teacher'] / found['student']:.2f} times the student's")
    print(f"a step of Keras' distiller {1000 * found['keras']:.1f} ms, here", end=" ")
    print(f"{1000 * found['ours']:.1f} ms; ratio {ratio:.3f}")
    return ratio


def kept() -> float:
    """Compares a step with kept outputs to the student's own; returns the ratio."""
    images, labels = batch()
    teacher = network(DEPTHS["teacher of ten times the cost"], 1)
    ours = our_distiller(network(DEPTHS["student"], 0), teacher)
    assert ours.teachers is not None
    packed = ours.teachers.packed(images)
    student = network(DEPTHS["student"], 0)
    student.compile(keras.optimizers.Adam(1e-3), loss=label_loss(), jit_compile=False)
    found = medians(
        student=forward(network(DEPTHS["student"], 0), images),
        teacher=forward(teacher, images),
        own=step(student, (images, labels)),
        ours=step(ours, ({"inputs": images, "teacher": packed}, labels)),
    )
    ratio = found["ours"] / found["own"]
    print(f"forward pass: teacher {found['teacher'] / found['student']:.2f} times the student's")
    print(f"the student's own step {1000 * found['own']:.1f} ms, distilled", end=" ")
    print(f"{1000 * found['ours']:.1f} ms; ratio {ratio:.3f}")
    return ratio


def main(argv) -> None:
    """Compares."""
    del argv
    logging.set_verbosity(logging.ERROR)
    online()
    kept()


if __name__ == "__main__":
    app.run(main)
