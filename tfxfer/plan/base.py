"""What a plan is: phases, each with the stages that train in it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tfxfer.config import BATCH_NORM, SCHEDULES


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of trainable stages.

    It is as long as one of `epochs`, `steps` and `solved` says.

    Attributes:
        name: Such as `head` or `+block4`.
        stages: The stages that train, input side first; all others are frozen.
        epochs: Most epochs; a phase ends sooner when validation no longer improves.
        learning_rate: Of all that trains in it, or one a stage in the order of `stages`; above 0.
        schedule: How the rate goes: `constant`, `cosine`, `linear`, `one_cycle` or `step`.
        warmup: Share of the steps in which the rate rises, in [0, 1).
        milestones: With the schedule `step`: shares of the steps, rising and after the warm-up,
            each of which leaves a tenth of the rate.
        patience: Epochs without a better validation loss before it stops; 0 runs to its end.
        bn: Where batch normalization goes by the batch: `stage`, `freeze` or `train`; as the
            backbone has it if empty.
        solved: Whether the head is solved in closed form, from features, instead of trained.
        steps: Exact number of steps.

    Raises:
        ValueError: If a value is out of its range.
    """

    name: str
    stages: tuple[str, ...]
    epochs: int
    learning_rate: float | tuple[float, ...]
    schedule: str = "constant"
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()
    patience: int = 3
    bn: str = ""
    solved: bool = False
    steps: int = 0

    def __post_init__(self):
        for holds, expected, received in self._rules():
            if not holds:
                raise ValueError(f"Phase {self.name!r}: expected {expected}, received {received}.")

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of each of `stages`."""
        if isinstance(self.learning_rate, tuple):
            return self.learning_rate
        return (self.learning_rate,) * len(self.stages)

    def _rules(self) -> Iterator[tuple[bool, str, Any]]:
        """What must hold, in words, and what there is."""
        stages, rates = list(self.stages), list(self.rates)
        marks = (self.warmup, *self.milestones, 1.0)
        after_warmup = all(low < high for low, high in pairwise(marks))
        lengths = {"epochs": self.epochs, "steps": self.steps, "solved": self.solved}
        yield bool(self.name), "a name", repr(self.name)
        yield 0 < len(stages) == len(set(stages)), "each stage once, and one at least", stages
        yield len(rates) == len(stages), f"one learning rate, or one for each of {stages}", rates
        yield (
            all(rate > 0 and math.isfinite(rate) for rate in rates),
            "learning rates above 0 and finite",
            rates if isinstance(self.learning_rate, tuple) else self.learning_rate,
        )
        yield self.schedule in SCHEDULES, f"a schedule among {list(SCHEDULES)}", self.schedule
        yield 0 <= self.warmup < 1, "a warmup in [0, 1)", self.warmup
        yield after_warmup, "milestones that rise from the warmup to 1", list(self.milestones)
        yield (
            (self.schedule == "step") == bool(self.milestones),
            "milestones where the schedule is 'step', and only there",
            f"{self.schedule!r} and {list(self.milestones)}",
        )
        yield self.patience >= 0, "a patience of at least 0", self.patience
        yield self.bn in ("", *BATCH_NORM), f"bn among {list(BATCH_NORM)} or empty", repr(self.bn)
        yield (
            min(self.epochs, self.steps) >= 0 and sum(map(bool, lengths.values())) == 1,
            "either epochs, or steps, or solved",
            lengths,
        )


@dataclass(frozen=True)
class Plan:
    """What trains in which order, and what stays frozen throughout.

    Attributes:
        phases: In their order.
        frozen: The stages that no phase trains, named so that none is forgotten.
    """

    phases: tuple[Phase, ...]
    frozen: tuple[str, ...] = ()

    def check(self, stages: Sequence[str]) -> None:
        """Checks that the plan fits a model.

        Args:
            stages: Names of all stages, input side first, the head last.

        Raises:
            ValueError: As `check_plan`.
        """
        check_plan(self.phases, stages, frozen=self.frozen)


def check_plan(
    plan: Sequence[Phase],
    stages: Sequence[str],
    *,
    whole: bool = True,
    frozen: Sequence[str] = (),
) -> None:
    """Checks that a plan speaks of the stages there are, and leaves none uncovered.

    Args:
        plan: The phases.
        stages: Names of all stages, input side first, the head last.
        whole: Whether every stage must be in some phase or among `frozen`.
        frozen: Stages that no phase trains, on purpose.

    Raises:
        ValueError: If a phase names an unknown stage or solves another than the head, two phases
            have one name, a frozen stage is unknown or in a phase, or a stage is uncovered.
    """
    if not plan:
        raise ValueError("Expected at least one phase, received none.")
    seen: set[str] = set()
    for phase in plan:
        if unknown := sorted(set(phase.stages) - set(stages)):
            raise ValueError(
                f"Phase {phase.name!r}: expected stages among {list(stages)}, received {unknown}."
            )
        if phase.solved and phase.stages != (stages[-1],):
            raise ValueError(
                f"Phase {phase.name!r}: expected to solve {stages[-1]!r} alone, received "
                f"{list(phase.stages)}."
            )
        if phase.name in seen:
            raise ValueError(
                f"Phase {phase.name!r}: expected a name of its own, received it twice."
            )
        seen.add(phase.name)
    if unknown := sorted(set(frozen) - set(stages)):
        raise ValueError(f"Expected frozen stages among {list(stages)}, received {unknown}.")
    trained = {name for phase in plan for name in phase.stages}
    if both := sorted(trained & set(frozen)):
        raise ValueError(f"Expected stages that train or stay frozen, received {both} as both.")
    if whole and (missing := [name for name in stages if name not in trained | set(frozen)]):
        raise ValueError(
            f"Expected every stage in some phase or named as frozen, missing {missing}."
        )
