"""Progressive unfreezing as data: which stages train, for how long, at which rate."""

from collections.abc import Sequence
from dataclasses import dataclass

# Once pretrained weights move, everything learns this much slower than the head did alone, as in
# fastai's `slice(rate)`.
_SLOWER = 10


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of trainable stages.

    Attributes:
        name: Such as `head` or `+block4`.
        stages: The stages that train, input side first; all others are frozen.
        epochs: Most epochs; a phase ends sooner when validation no longer improves.
        learning_rate: The rate of all that trains in it, above 0.
    """

    name: str
    stages: tuple[str, ...]
    epochs: int
    learning_rate: float


def gradual(stages: Sequence[str], epochs: int, learning_rate: float) -> tuple[Phase, ...]:
    """Plans to train the head first, then to unfreeze one stage after the other, downwards.

    Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification",
    section 3.3. The head goes first so that its random start does not spoil what the backbone
    knows.

    Args:
        stages: Names of all stages, input side first, the head last.
        epochs: Most epochs in each phase.
        learning_rate: Rate of the head's phase, above 0; the phases after it take a tenth.

    Returns:
        One phase a stage; the last trains everything.
    """
    *below, head = stages
    phases = [Phase(head, (head,), epochs, learning_rate)]
    for depth in range(len(below) - 1, -1, -1):
        name, trained = f"+{below[depth]}", tuple(stages[depth:])
        phases.append(Phase(name, trained, epochs, learning_rate / _SLOWER))
    return tuple(phases)


def check_plan(plan: Sequence[Phase], stages: Sequence[str], *, whole: bool = True) -> None:
    """Checks that a plan speaks of the stages there are, and trains each of them once at least.

    Args:
        plan: The phases.
        stages: Names of all stages.
        whole: Whether every stage must be in some phase.

    Raises:
        ValueError: If a phase names an unknown stage, one stage twice or none, or if a stage is
            in no phase.
    """
    if not plan:
        raise ValueError("Expected at least one phase, received none.")
    for phase in plan:
        if unknown := sorted(set(phase.stages) - set(stages)):
            raise ValueError(
                f"Phase {phase.name!r}: expected stages among {list(stages)}, received {unknown}."
            )
        if not phase.stages or len(set(phase.stages)) < len(phase.stages):
            raise ValueError(
                f"Phase {phase.name!r}: expected each stage once, received {list(phase.stages)}."
            )
    missing = sorted(set(stages) - {name for phase in plan for name in phase.stages})
    if whole and missing:
        raise ValueError(f"Expected every stage in some phase, missing {missing}.")
