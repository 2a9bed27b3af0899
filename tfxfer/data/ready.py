"""Data that was opened, checked and split: what a method starts from."""

from dataclasses import dataclass

from tfxfer.data.base import BadExample, DataSource
from tfxfer.data.leaks import Leaks
from tfxfer.data.parts import Part, Splits


@dataclass(frozen=True)
class ReadyData:
    """Data that is ready to train on.

    Attributes:
        source: Where it comes from.
        splits: Train, validation and test; of each fold in a cross-validation.
        bad: Examples that were left out because they cannot be used.
        leaks: Near-identical examples across the parts, for each of `splits`; empty if nothing
            was scanned.
        drawn_from: What train was drawn from, for each of `splits`: the same but where fewer
            examples were asked for.
    """

    source: DataSource
    splits: tuple[Splits, ...]
    bad: tuple[BadExample, ...]
    leaks: tuple[Leaks, ...]
    drawn_from: tuple[Part, ...] = ()
