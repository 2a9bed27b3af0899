"""The result of a run; everything shown to a person is drawn from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfxfer.evaluate import Evaluation
from tfxfer.training.loop import PhaseResult


@dataclasses.dataclass(frozen=True)
class ExportCheck:
    """How the exported model answered after it was loaded again, on images as they are.

    Attributes:
        max_difference: Largest difference of a probability from the trained model's.
        tolerance: The largest that passes.
        examples: Test examples that was measured on.
    """

    max_difference: float
    tolerance: float
    examples: int

    @property
    def passed(self) -> bool:
        """Whether the exported model is the trained one."""
        return self.max_difference <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run found out.

    Attributes:
        label_names: Names of the classes, in the order of the logits.
        metrics: Evaluations by part of the data; the same for the same seed, data and machine.
        phases: What each phase of training did.
        export: How the exported model compares with the trained one.
        parameters: Numbers of scalars, by part of the model.
        timings: Wall seconds, by part of the run.
        fingerprints: Hashes of the data and of the backbone.
    """

    label_names: tuple[str, ...]
    metrics: Mapping[str, Evaluation]
    phases: tuple[PhaseResult, ...]
    export: ExportCheck
    parameters: Mapping[str, int]
    timings: Mapping[str, float]
    fingerprints: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether the exported model may be served."""
        return self.export.passed

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict that JSON can hold."""
        return dataclasses.asdict(self)
