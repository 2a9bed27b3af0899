"""Students that were distilled beside those of labels alone: what the comparison says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tfxfer.methods.preflight import better_than_chance
from tfxfer.models import FineTuner
from tfxfer.task import REGRESSION, Task
from tfxfer.training.loop import PhaseResult
from tfxfer.transfer import (
    NO_EVIDENCE,
    Arm,
    StudentScores,
    TransferCard,
    Verdict,
    headline_scores,
    headline_unit,
    model_scores,
    student_scores,
    verdict,
)

DISTILLED, ALONE = "distilled", "labels alone"


@dataclass(frozen=True)
class Trained:
    """A student that was trained.

    Attributes:
        model: The student, with the weights of its best epoch.
        phase: How its training went.
        best: What it says of the test examples.
        last: The same with the weights of its last epoch.
        y: What is true of them.
    """

    model: FineTuner
    phase: PhaseResult
    best: np.ndarray
    last: np.ndarray
    y: np.ndarray


def transfer_card(
    task: Task,
    told: np.ndarray,
    distilled: Sequence[Trained],
    alone: Sequence[Trained],
    steps: int,
) -> TransferCard:
    """Compares students, seed by seed.

    Where none of them is better than chance there is no evidence, whatever the difference.

    Args:
        task: What they learned.
        told: What the teacher says of the test examples, `[examples, units]`.
        distilled: Those that it taught, one a seed.
        alone: Those of labels alone, of the same seeds.
        steps: That each of them was trained.

    Returns:
        The card, without costs.
    """
    y = distilled[0].y

    def at_chance(students: Sequence[Trained], moment: str) -> bool:
        return not any(better_than_chance(getattr(each, moment), y, task) for each in students)

    def arm(name: str, students: Sequence[Trained]) -> Arm:
        def scores(moment: str) -> tuple[StudentScores, ...]:
            return tuple(student_scores(task, getattr(each, moment), told, y) for each in students)

        seconds = float(np.mean([each.phase.seconds for each in students]))
        return Arm(
            name,
            scores("best"),
            scores("last"),
            steps,
            seconds,
            unfinished=sum(each.phase.best_epoch == each.phase.epochs for each in students),
            at_chance=at_chance(students, "best"),
        )

    arms = arm(DISTILLED, distilled), arm(ALONE, alone)

    def judged(moment: str) -> Verdict:
        made = verdict(
            *([each.headline for each in getattr(found, moment)] for found in arms),
            *(
                np.mean([headline_scores(task, getattr(each, moment), y) for each in students], 0)
                for students in (distilled, alone)
            ),
            higher_is_better=task.kind != REGRESSION,
            unit=headline_unit(task) / len(distilled),
        )
        nothing = at_chance(distilled, moment) and at_chance(alone, moment)
        return replace(made, word=NO_EVIDENCE) if nothing else made

    return TransferCard(
        teacher=model_scores(task, told, y),
        distilled=arms[0],
        alone=arms[1],
        verdict=judged("best"),
        verdict_last=judged("last"),
        costs={},
    )
