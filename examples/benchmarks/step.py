"""A training step of `FineTuner` against a bare one, written by hand.

    python examples/benchmarks/step.py

The bare step is what one would write in a script: a `tf.function` with the forward pass, the loss,
the gradients and Keras' Adam, over the same MobileNetV2 (96x96 pixels) with the same weights
unfrozen, on the same batches. `FineTuner` takes its own in the loop that trains it: with its
metrics, a learning rate for each stage, a schedule, callbacks and checkpoints. Both are traced
before they are timed, and take turns.
"""

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from tfxfer import FineTuner, load_backbone
from tfxfer.plan import Phase
from tfxfer.task import SINGLE_LABEL, Task
from tfxfer.training.epochs import Data
from tfxfer.training.loop import train
from tfxfer.training.objective import objective

BATCH = flags.DEFINE_integer("batch_size", 32, "Images a step.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps each, before the other's turn.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.")
ALPHA = flags.DEFINE_float("alpha", 1.0, "Width of the MobileNetV2.")
SIZE, CLASSES = 96, 10


class Repeated:
    """The same batch, which is in memory: what is timed is the step alone."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, steps: int):
        self._data = tf.data.Dataset.from_tensors((images, labels)).cache().repeat()
        self.steps = steps

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        """Returns the batch without end."""
        del first
        return self._data


class Turns(keras.callbacks.Callback):
    """Gives the other its turn after each epoch, and notes how long this one took."""

    def __init__(self, other):
        super().__init__()
        self.seconds: list[float] = []
        self.others: list[float] = []
        self._other = other

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Stops it; the metrics of the epoch were read, so all steps are done."""
        self.seconds.append(time.perf_counter() - self._start)
        self.others.append(self._other())


def fine_tuner() -> FineTuner:
    """Makes the same model every time."""
    keras.utils.set_random_seed(0)
    backbone = load_backbone(
        f"keras:MobileNetV2(alpha={ALPHA.value:g}, weights=none)", image_size=SIZE
    )
    return FineTuner(backbone, keras.layers.Dense(CLASSES))


def bare(data: Repeated) -> Any:
    """Returns a function that takes some steps by hand, and says how long they took."""
    model = fine_tuner()
    model.unfreeze(model.stage_names)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(1e-4)
    weights = model.trainable_weights
    optimizer.build(weights)

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            value = loss(labels, model(images, training=True))
        optimizer.apply(tape.gradient(value, weights), weights)
        return value

    batches = iter(data.epochs())
    step(*next(batches)).numpy()

    def turn() -> float:
        start = time.perf_counter()
        losses = [step(*next(batches)) for _ in range(STEPS.value)]
        losses[-1].numpy()
        return time.perf_counter() - start

    return turn


def compare() -> float:
    """Times both; returns the ratio of the medians."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH.value, SIZE, SIZE, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, BATCH.value)
    data = Repeated(images, labels, STEPS.value)
    turns = Turns(bare(data))
    model = fine_tuner()
    task = Task(SINGLE_LABEL, tuple(map(str, range(CLASSES))))
    plan = [Phase("all", model.stage_names, ROUNDS.value + 1, 1e-4, schedule="cosine", patience=0)]
    train(model, plan, Data(data, None), objective(task, labels), callbacks=lambda _: [turns])
    # The first turn holds what the first step of all sets up.
    ours, theirs = (np.median(each[1:]) / STEPS.value for each in (turns.seconds, turns.others))
    print(f"a bare step {1000 * theirs:.1f} ms, FineTuner's {1000 * ours:.1f} ms")
    print(f"ratio {ours / theirs:.3f}")
    return float(ours / theirs)


def main(argv) -> None:
    """Compares."""
    del argv
    logging.set_verbosity(logging.ERROR)
    compare()


if __name__ == "__main__":
    app.run(main)
