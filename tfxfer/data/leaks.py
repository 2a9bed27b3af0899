"""Examples that stand almost alike in two parts of the data, such as frames of one video."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tfxfer.data.scan import duplicate_distance, near_duplicates
from tfxfer.data.splits import Splits


@dataclass(frozen=True)
class Leaks:
    """How many examples of one part have a near-identical one in another.

    Attributes:
        train_in_test: Training examples that stand almost alike in test.
        train_in_validation: Training examples that stand almost alike in validation.
        validation_in_test: Examples of validation that stand almost alike in test.
        dropped: Training examples that were left out for it.
    """

    train_in_test: int
    train_in_validation: int
    validation_in_test: int
    dropped: int = 0

    @property
    def found(self) -> bool:
        """Whether there are any."""
        return bool(self.train_in_test or self.train_in_validation or self.validation_in_test)


def find_leaks(
    splits: Splits, hashes: Mapping[str, np.ndarray], *, drop: bool = False
) -> tuple[Splits, Leaks]:
    """Counts near-identical examples across the parts of the data.

    Args:
        splits: The parts.
        hashes: A hash of each example, uint64, by split of the source, as `scan` gives them.
        drop: Whether to leave those out of train that stand almost alike in validation or test.

    Returns:
        The parts, and what was found.
    """
    train, validation, test = (
        hashes[part.split][part.rows] for part in (splits.train, splits.validation, splits.test)
    )
    distance = duplicate_distance(splits.train.source.info.inputs)
    in_test = near_duplicates(train, test, distance)
    in_validation = near_duplicates(train, validation, distance)
    leaks = Leaks(
        train_in_test=int(in_test.sum()),
        train_in_validation=int(in_validation.sum()),
        validation_in_test=int(near_duplicates(validation, test, distance).sum()),
    )
    leaking = in_test | in_validation
    if not drop or not leaking.any():
        return splits, leaks
    origin = f"{splits.train.origin} without {leaking.sum()} leaks"
    kept = splits.train.keep(~leaking, origin)
    return replace(splits, train=kept), replace(leaks, dropped=int(leaking.sum()))
