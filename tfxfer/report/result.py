"""The result of a run; everything shown to a person is drawn from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfxfer.data.base import BadExample
from tfxfer.data.leaks import Leaks
from tfxfer.evaluate import AnyEvaluation, FoldSummary
from tfxfer.ladder import Ladder
from tfxfer.selection import Selection
from tfxfer.training.averaging import Averaged
from tfxfer.training.loop import PhaseResult
from tfxfer.training.lr_finder import LrCurve
from tfxfer.transfer import TransferCard
from tfxfer.verification import Retrieval, Verification


@dataclasses.dataclass(frozen=True)
class ExportCheck:
    """How the exported model answered after it was loaded again, on images as they are.

    Attributes:
        max_difference: Largest difference of a probability from the trained model's; of a
            regression, over the largest number that the trained one told.
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
class HeadResult:
    """How a head was fitted on features.

    Attributes:
        name: Such as `logistic`.
        strength: What was chosen on validation: of the regularization, or the neighbours; `None`
            if there is nothing to choose.
        sweep: What was tried, strengths or epochs, each with its validation loss.
    """

    name: str
    strength: float | None
    sweep: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run found out.

    Attributes:
        task: `single_label`, `multi_label` or `regression`.
        label_names: Names of the classes or targets, in the order of the model's outputs.
        metrics: Evaluations by part of the data; the same for the same seed, data and machine.
        phases: What each phase of training did, of all folds one after the other.
        export: How the exported model compares with the trained one; `None` in a cross-validation,
            which exports nothing.
        parameters: Numbers of scalars, by part of the model.
        timings: Wall seconds, by part of the run.
        fingerprints: Hashes of the data and of the backbone.
        skipped: Examples that were left out because they cannot be used.
        leaks: Near-identical examples across the parts of the data; of each fold.
        folds: The scores of a cross-validation taken together.
        head: How the head was fitted, where that was not in phases; of the last fold.
        averages: What averaging weights after training chose, of each model.
        card: What a distillation was worth; `None` for other runs.
        cut: Texts of each part that are longer than the backbone reads; empty for other inputs.
    """

    task: str
    label_names: tuple[str, ...]
    metrics: Mapping[str, AnyEvaluation]
    phases: tuple[PhaseResult, ...]
    export: ExportCheck | None
    parameters: Mapping[str, int]
    timings: Mapping[str, float]
    fingerprints: Mapping[str, str]
    skipped: tuple[BadExample, ...] = ()
    leaks: tuple[Leaks, ...] = ()
    folds: FoldSummary | None = None
    head: HeadResult | None = None
    averages: tuple[Averaged, ...] = ()
    card: TransferCard | None = None
    cut: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the exported model may be served; true if none was exported."""
        return self.export is None or self.export.passed

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict that JSON can hold."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class EmbedResult:
    """What a run that writes features found out.

    Attributes:
        examples: How many features were written, by split.
        units: Size of a feature vector.
        verification: How well features tell pairs of one class from pairs of two, on the split
            `measured`; `None` where labels are no classes, or make no such pairs.
        retrieval: How well they find their like there; `None` likewise.
        measured: The split that was measured on.
        timings: Wall seconds, by part of the run.
        fingerprints: Hashes of the data and of the backbone.
        skipped: Examples that were left out because they cannot be used.
    """

    examples: Mapping[str, int]
    units: int
    verification: Verification | None
    retrieval: Retrieval | None
    measured: str
    timings: Mapping[str, float]
    fingerprints: Mapping[str, str]
    skipped: tuple[BadExample, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether what was exported may be served; features are not checked."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict that JSON can hold."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class LrFindResult:
    """What a run of the learning-rate finder found out.

    Attributes:
        curve: The losses by rate, and the rates suggested.
        recommended: The rate to train with.
        scales: What `--learning_rate` is multiplied with, by stage that trains, as the plan has it.
        timings: Wall seconds, by part of the run.
        fingerprints: Hashes of the data and of the backbone.
        skipped: Examples that were left out because they cannot be used.
    """

    curve: LrCurve
    recommended: float
    scales: Mapping[str, float]
    timings: Mapping[str, float]
    fingerprints: Mapping[str, str]
    skipped: tuple[BadExample, ...] = ()

    @property
    def meaning(self) -> str:
        """What the rates are, and what stages train at, in words."""
        stages, scales = list(self.scales), list(self.scales.values())
        first, last = stages[0], stages[-1]
        if len(stages) == 1:
            span = f"{first} at {scales[0]:.3g}"
        elif len(set(scales)) == 1:
            span = f"{len(stages)} stages from {first} to {last} at {scales[0]:.3g}"
        else:
            span = (
                f"{len(stages)} stages from {first} at {scales[0]:.3g} "
                f"to {last} at {scales[-1]:.3g}"
            )
        return f"--learning_rate ({span} times that)"

    @property
    def passed(self) -> bool:
        """Whether what was exported may be served; nothing is exported."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict that JSON can hold."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class SelectResult:
    """What a run that compares backbones found out.

    Attributes:
        selection: Which suit, and by how much.
        task: `single_label`, `multi_label` or `regression`.
        timings: Wall seconds, by part of the run.
        fingerprints: Hashes of the data, and of each backbone by its name.
        skipped: Examples that were left out because they cannot be used.
    """

    selection: Selection
    task: str
    timings: Mapping[str, float]
    fingerprints: Mapping[str, str]
    skipped: tuple[BadExample, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether what was exported may be served; nothing is exported."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict that JSON can hold."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class CompareResult:
    """What a run that compares ways to use a backbone found out.

    Attributes:
        ladder: The ways, and which one suffices.
        task: `single_label`, `multi_label` or `regression`.
        label_names: Names of the classes or targets, in the order of the models' outputs.
        passed: Whether each exported model answers as the trained one does.
        fingerprints: Hashes of the data and of the backbone.
        skipped: Examples that were left out because they cannot be used.
    """

    ladder: Ladder
    task: str
    label_names: tuple[str, ...]
    passed: bool
    fingerprints: Mapping[str, str]
    skipped: tuple[BadExample, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict that JSON can hold."""
        return dataclasses.asdict(self)
