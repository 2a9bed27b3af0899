"""What every source of data gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.task import Task

IMAGE = "image"
TEXT = "text"
TABLE = "table"


@dataclass(frozen=True)
class DataInfo:
    """What is known of a dataset before it is read.

    Attributes:
        name: Such as `digits/1.0.0` or `folder:photos`.
        task: What its labels are.
        inputs: `image`, `text` or `table`.
        shape: Of one input. Of an image height, width and channels, `None` where it varies; of a
            text `()`, of a pair of texts `(2,)`; of a row of numbers its length.
        examples: Number of examples per split.
    """

    name: str
    task: Task
    inputs: str
    shape: tuple[int | None, ...]
    examples: Mapping[str, int]


@dataclass(frozen=True)
class BadExample:
    """An example, or a place where one should be, that cannot be used.

    Attributes:
        where: The file, or file and line, in words.
        reason: What is wrong with it.
        split: The split that it is in.
        row: Its position in the split; -1 if it is none of the examples, such as an empty folder.
    """

    where: str
    reason: str
    split: str = ""
    row: int = -1


class DataSource:
    """A labelled dataset as it stands on disk or in memory: no batches, no order but its own.

    A subclass sets the attributes, and writes `read`, `labels` and, where examples are stored in
    another form than models take them in, `decode`.

    Attributes:
        info: What is known of it.
        fingerprint: A hash of the data, inputs and labels; the source says how much is read for it.
        bad: Examples that are known to be unusable without decoding their inputs, such as those
            with labels that are missing or out of range.
        raw_bytes: About how many bytes an example takes in memory before it is decoded.
    """

    info: DataInfo
    fingerprint: str
    bad: tuple[BadExample, ...] = ()
    raw_bytes: int = 1000

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {count}" for name, count in self.info.examples.items())
        return f"<{type(self).__name__} {self.info.name}: {self.info.task}; {sizes}>"

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns a split as `(id, raw, y)`, always in the same order.

        Args:
            name: Of the split.
            rows: Positions to keep, increasing; all if `None`.

        Returns:
            The id, a string scalar that no other example of the dataset has; the input as it is
            stored: a path, encoded bytes, an array, a text; `y` as the task has it.
        """
        raise NotImplementedError

    def decode(self, raw: Any) -> tf.Tensor:
        """Makes of a stored input what models take; a TensorFlow function of one example.

        Returns:
            An image, uint8 `[height, width, channels]`; a text, string scalar; the first and the
            second text of a pair, string `[2]`; numbers, float32.
        """
        return raw

    def labels(self, name: str) -> np.ndarray:
        """Returns `y` of a split in its order, int64 `[n]` or float32 `[n, units]`."""
        raise NotImplementedError

    def groups(self, name: str) -> np.ndarray | None:
        """Returns what keeps examples together, such as the person, `[n]`; `None` if nothing."""
        return None

    def where(self, name: str, row: int) -> str:
        """Names an example for a person, such as its file or its line."""
        return f"row {row} of split {name!r} of {self.info.name}"

    def places(self, name: str, rows: Sequence[int]) -> list[str]:
        """Names several examples, at increasing positions, as `where` does."""
        return [self.where(name, row) for row in rows]

    def split(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns a split as `(id, x, y)`, decoded, in the order of `read`."""
        return self.read(name, rows).map(
            lambda example_id, raw, y: (example_id, self.decode(raw), y),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
