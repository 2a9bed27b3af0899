"""A source in memory, with the splits and labels that a test wants."""

import numpy as np
import tensorflow as tf

from tfxfer.data.base import IMAGE, DataInfo, DataSource
from tfxfer.task import SINGLE_LABEL, Task


class Memory(DataSource):
    """Images of one pixel value each, told apart by it.

    Args:
        task: What the labels are; a class each of `a` and `b` if `None`.
        groups: By split, what keeps examples together.
        side: Height and width of the images; `None` if `image` makes them of several.
        **labels: By split: `y`, or a number of examples of alternating classes.
    """

    fingerprint = "0"

    def __init__(self, task=None, groups=None, side: int | None = 4, **labels):
        task = task or Task(SINGLE_LABEL, ("a", "b"))
        self._labels = {
            name: np.arange(value) % task.units if isinstance(value, int) else np.array(value)
            for name, value in labels.items()
        }
        self._groups = groups or {}
        self._side = side
        sizes = {name: len(values) for name, values in self._labels.items()}
        self.info = DataInfo("memory/1", task, IMAGE, (side, side, 1), sizes)

    def labels(self, name):
        return self._labels[name]

    def groups(self, name):
        return self._groups.get(name)

    def image(self, row):
        assert self._side is not None
        return np.full((self._side, self._side, 1), row % 256, np.uint8)

    def read(self, name, rows=None):
        rows = np.arange(self.info.examples[name]) if rows is None else rows

        def examples():
            for row in rows:
                yield f"{name}{row}", self.image(row), self._labels[name][row]

        y = self._labels[name]
        spec = (
            tf.TensorSpec((), tf.string),
            tf.TensorSpec(self.info.shape, tf.uint8),
            tf.TensorSpec(y.shape[1:], y.dtype),
        )
        return tf.data.Dataset.from_generator(examples, output_signature=spec)
