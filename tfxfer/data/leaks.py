"""Examples that stand almost alike in two parts of the data, such as frames of one video."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tfxfer.data.parts import Splits
from tfxfer.data.scan import duplicate_distance, near_duplicates
from tfxfer.data.splits import check_classes

_NAMED = 5


@dataclass(frozen=True)
class Leaks:
    """How many examples of one part have a near-identical one in another.

    Attributes:
        train_in_test: Training examples that stand almost alike in test.
        train_in_validation: Training examples that stand almost alike in validation.
        validation_in_test: Examples of validation that stand almost alike in test.
        dropped: Training examples that were left out for it.
        such_as: The first of the training examples, by file or row.
    """

    train_in_test: int
    train_in_validation: int
    validation_in_test: int
    dropped: int = 0
    such_as: tuple[str, ...] = ()

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

    Raises:
        UserError: If nothing, or nothing of a class, is left to train on.
    """
    train, validation, test = (
        hashes[part.split][part.rows] for part in (splits.train, splits.validation, splits.test)
    )
    distance = duplicate_distance(splits.train.source.info.inputs)
    in_test = near_duplicates(train, test, distance)
    in_validation = near_duplicates(train, validation, distance)
    leaking = in_test | in_validation
    part = splits.train
    leaks = Leaks(
        train_in_test=int(in_test.sum()),
        train_in_validation=int(in_validation.sum()),
        validation_in_test=int(near_duplicates(validation, test, distance).sum()),
        such_as=tuple(
            part.source.where(part.split, int(row)) for row in part.rows[leaking][:_NAMED]
        ),
    )
    if not drop or not leaking.any():
        return splits, leaks
    origin = f"{splits.train.origin} without {leaking.sum()} leaks"
    kept = replace(splits, train=splits.train.keep(~leaking, origin))
    check_classes(kept)
    return kept, replace(leaks, dropped=int(leaking.sum()))
