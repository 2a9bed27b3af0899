"""A training step on two logical devices of a CPU against one, at the same global batch.

    python examples/benchmarks/replicas.py

Both train the same MobileNetV2 (96x96 pixels), whole, in the loop that fine-tunes, and take turns.
Two devices share the cores that one has to itself, so that nothing can be won: what is measured is
what `tf.distribute` and the loop cost on top.
"""

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from tfxfer import FineTuner, load_backbone
from tfxfer.distribute import pick_strategy
from tfxfer.plan import Phase
from tfxfer.task import SINGLE_LABEL, Task
from tfxfer.training.epochs import Data
from tfxfer.training.loop import train
from tfxfer.training.objective import objective

BATCH = flags.DEFINE_integer("batch_size", 32, "Images a step, on all devices together.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps each, before the other's turn.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.")
ALPHA = flags.DEFINE_float("alpha", 1.0, "Width of the MobileNetV2.")
SIZE, CLASSES = 96, 10


class Steps:
    """The same batches again and again: epochs of a few steps."""

    def __init__(self, steps: int):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (BATCH.value, SIZE, SIZE, 3), np.uint8)
        self._batch = images, rng.integers(0, CLASSES, BATCH.value)
        self.steps = steps

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        """Returns batches without end."""
        del first
        images, labels = self._batch
        return tf.data.Dataset.from_tensors((images, labels)).repeat()


class Times(keras.callbacks.Callback):
    """Notes when each epoch began and ended."""

    def __init__(self):
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stops it; metrics were read, so that all steps are done."""
        self.seconds.append(time.perf_counter() - self._start)


def run(strategy: tf.distribute.Strategy) -> list[float]:
    """Returns the milliseconds of a step, of each epoch but the first."""
    with strategy.scope():
        backbone = load_backbone(
            f"keras:MobileNetV2(alpha={ALPHA.value},weights=none)", image_size=(SIZE, SIZE)
        )
        model = FineTuner(backbone, keras.layers.Dense(CLASSES))
    names = tuple(map(str, range(CLASSES)))
    aim = objective(Task(SINGLE_LABEL, names), np.arange(CLASSES))
    phase = Phase("all", model.stage_names, 3, (1e-3,) * len(model.stage_names))
    times = Times()
    train(model, [phase], Data(Steps(STEPS.value), None), aim, callbacks=lambda phase: [times])
    return [1000 * each / STEPS.value for each in times.seconds[1:]]


def main(argv) -> None:
    """Prints the times and their ratio."""
    del argv
    logging.set_verbosity(logging.ERROR)
    two = pick_strategy("mirrored", 2)
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    ratios = []
    for _ in range(ROUNDS.value):
        alone, shared = (float(np.median(run(strategy))) for strategy in (one, two))
        ratios.append(shared / alone)
        print(f"one device {alone:.1f} ms, two {shared:.1f} ms, ratio {ratios[-1]:.3f}")
    print(f"median ratio {np.median(ratios):.3f}")


if __name__ == "__main__":
    app.run(main)
