"""Data that was opened, checked and split: what a method starts from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
        cut: How many texts of each part of the first of `splits` are longer than the backbone
            reads; empty for other inputs.
    """

    source: DataSource
    splits: tuple[Splits, ...]
    bad: tuple[BadExample, ...]
    leaks: tuple[Leaks, ...]
    drawn_from: tuple[Part, ...] = ()
    cut: Mapping[str, int] = field(default_factory=dict)
