"""Parts of the data: some rows of a split of a source."""

from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from tfxfer.data.base import DataSource
from tfxfer.task import REGRESSION, SINGLE_LABEL

_BINS = 10  # Regression is stratified by tenths of the first target.


@dataclass(frozen=True)
class Part:
    """Some rows of a split of a source.

    Attributes:
        source: Where the examples stand.
        split: Name of the split of the source.
        rows: Positions in that split, increasing.
        origin: Where they come from, in words.
    """

    source: DataSource
    split: str
    rows: np.ndarray
    origin: str

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """`y` of each, in order."""
        return self.source.labels(self.split)[self.rows]

    def read(self) -> tf.data.Dataset:
        """Returns `(id, raw, y)` in a stable order; see `DataSource.read`."""
        whole = self.examples == self.source.info.examples[self.split]
        return self.source.read(self.split, None if whole else self.rows)

    @property
    def dataset(self) -> tf.data.Dataset:
        """`(id, x, y)`, decoded, in a stable order."""
        whole = self.examples == self.source.info.examples[self.split]
        return self.source.split(self.split, None if whole else self.rows)

    def keep(self, mask: np.ndarray, origin: str = "") -> "Part":
        """Returns the rows where `mask`, bool `[examples]`, is true."""
        return replace(self, rows=self.rows[mask], origin=origin or self.origin)

    def pick(self, places: np.ndarray, origin: str = "") -> "Part":
        """Returns the examples at some places of this part, int `[...]`, in any order."""
        return replace(self, rows=np.sort(self.rows[places]), origin=origin or self.origin)

    @property
    def groups(self) -> np.ndarray | None:
        """What keeps examples together, `[examples]`; `None` if nothing does."""
        groups = self.source.groups(self.split)
        return None if groups is None else groups[self.rows]

    @property
    def strata(self) -> np.ndarray | None:
        """What a split keeps the shares of, int `[examples]`; `None` if that is nothing.

        The class; of several classes an example, the combination, the rare ones taken together;
        of numbers, the tenth in which the first lies.
        """
        labels, kind = self.labels, self.source.info.task.kind
        if kind == SINGLE_LABEL:
            return labels
        if kind == REGRESSION:
            edges = np.unique(np.quantile(labels[:, 0], np.linspace(0, 1, _BINS + 1)[1:-1]))
            strata = np.searchsorted(edges, labels[:, 0], side="right")
        else:
            _, strata = np.unique(labels, axis=0, return_inverse=True)
        counts = np.bincount(strata)
        rare = counts[strata] < 2 * _BINS
        strata = np.where(rare, len(counts), strata)
        counts = np.bincount(strata)
        return strata if counts[counts > 0].min() >= _BINS else None


@dataclass(frozen=True)
class Splits:
    """The three parts of the data that a run uses."""

    train: Part
    validation: Part
    test: Part
