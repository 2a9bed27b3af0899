"""A training step of `FineTuner` against a bare one, written by hand.

    python examples/benchmarks/step.py

The bare step is what one would write in a script: a `tf.function` with the forward pass, the loss,
the gradients and Keras' Adam, over the same MobileNetV2 (96x96 pixels) with the same weights
unfrozen, on the same batches. `FineTuner` takes its own in the loop that trains it: with its
metrics, a learning rate for each stage, a schedule, callbacks and checkpoints. Both are traced
before they are timed, and take turns, step by step: what else the machine does hits both.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from tfxfer import FineTuner, load_backbone
from tfxfer.intervals import bootstrap_interval
from tfxfer.plan import Phase
from tfxfer.task import SINGLE_LABEL, Task
from tfxfer.training.checkpoints import Checkpoints
from tfxfer.training.epochs import Data
from tfxfer.training.loop import train
from tfxfer.training.objective import objective

BATCH = flags.DEFINE_integer("batch_size", 32, "Images a step.")
STEPS = flags.DEFINE_integer("steps", 50, "Steps of an epoch.")
EPOCHS = flags.DEFINE_integer("epochs", 4, "How many of these.")
ALPHA = flags.DEFINE_float("alpha", 1.0, "Width of the MobileNetV2.")
CHECKPOINT_SECONDS = flags.DEFINE_float("checkpoint_seconds", 30, "As --checkpoint_seconds.")
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
    """Has a bare step taken before each of the model's, and notes how long both took.

    The model's own is all from the end of a bare step to the beginning of the next: batch, rate,
    step, callbacks and checkpoint, and after an epoch its end.
    """

    def __init__(self, bare: Callable[[], None]):
        super().__init__()
        self.ours: list[float] = []
        self.bare: list[float] = []
        self._bare, self._since = bare, None

    def on_train_batch_begin(self, batch, logs=None):
        """Stops the clock of the model's step, times a bare one, and starts it again."""
        last = self.model.trainable_weights[-1]
        last.numpy()  # On a GPU, steps are not done when they return.
        start = time.perf_counter()
        if self._since is not None:
            self.ours.append(start - self._since)
        self._bare()
        self._since = time.perf_counter()
        self.bare.append(self._since - start)


def fine_tuner() -> FineTuner:
    """Makes the same model every time."""
    keras.utils.set_random_seed(0)
    backbone = load_backbone(
        f"keras:MobileNetV2(alpha={ALPHA.value:g}, weights=none)", image_size=SIZE
    )
    return FineTuner(backbone, keras.layers.Dense(CLASSES))


def bare(data: Repeated) -> Callable[[], None]:
    """Returns a function that takes a step by hand."""
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

    def take() -> None:
        step(*next(batches))
        weights[-1].numpy()

    take()
    return take


def compare() -> None:
    """Times both; prints the ratio of the medians with its 95% bootstrap interval."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH.value, SIZE, SIZE, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, BATCH.value)
    data = Repeated(images, labels, STEPS.value)
    turns = Turns(bare(data))
    model = fine_tuner()
    task = Task(SINGLE_LABEL, tuple(map(str, range(CLASSES))))
    plan = [Phase("all", model.stage_names, EPOCHS.value, 1e-4, schedule="cosine", patience=0)]
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            plan,
            Data(data, None),
            objective(task, labels),
            checkpoints=Checkpoints(Path(folder) / "run", {}, CHECKPOINT_SECONDS.value),
            callbacks=lambda _: [turns],
        )
    # The first steps hold what is set up once.
    ours, theirs = np.array(turns.ours[2:]), np.array(turns.bare[2:-1])
    low, high = bootstrap_interval((ours, theirs), ratio)
    by_hand, by_tuner = 1000 * np.median(theirs), 1000 * np.median(ours)
    print(f"bare {by_hand:.1f} ms, FineTuner {by_tuner:.1f} ms, medians of {len(ours)} steps")
    print(f"ratio {ratio(ours, theirs):.3f} ({low:.3f} to {high:.3f})")
    print(f"of all time, with checkpoints and ends of epochs, {ours.sum() / theirs.sum():.3f}")


def ratio(ours: np.ndarray, theirs: np.ndarray, axis: int = -1) -> np.ndarray:
    """Returns the ratio of the medians."""
    return np.median(ours, axis=axis) / np.median(theirs, axis=axis)


def main(argv) -> None:
    """Compares."""
    del argv
    logging.set_verbosity(logging.ERROR)
    compare()


if __name__ == "__main__":
    app.run(main)
