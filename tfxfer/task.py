"""What is to be learned: a class, several classes, or numbers."""

from dataclasses import dataclass

SINGLE_LABEL = "single_label"
MULTI_LABEL = "multi_label"
REGRESSION = "regression"

KINDS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


@dataclass(frozen=True)
class Task:
    """What stands in the labels of a dataset.

    Attributes:
        kind: `single_label`, one class of several an example: int64 scalars from 0;
            `multi_label`, each class or not: float32 `[classes]` of 0 and 1;
            `regression`, numbers: float32 `[targets]`.
        names: Of the classes, in the order of the integers, or of the targets.
    """

    kind: str
    names: tuple[str, ...]

    @property
    def units(self) -> int:
        """Number of classes or of targets: what a head gives."""
        return len(self.names)

    def __str__(self) -> str:
        if self.kind == REGRESSION:
            return f"regression of {', '.join(self.names)}"
        several = "one of" if self.kind == SINGLE_LABEL else "any of"
        return f"{several} {self.units} classes"
