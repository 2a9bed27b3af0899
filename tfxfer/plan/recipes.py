"""Ways to fine-tune, as functions from the stages of a model to phases.

All take the names of all stages, input side first and the head last; the most epochs of each
phase; and the rate at which the head learns on a frozen backbone. A stage that is in no phase stays
as it was pretrained.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from tfxfer.plan.base import Phase

# Once pretrained weights move, everything learns this much slower than the head did alone, as in
# fastai's `slice(rate)`.
_SLOWER = 10


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
    phases = [*head(stages, epochs, learning_rate)]
    for depth in range(len(stages) - 2, -1, -1):
        name, trained = f"+{stages[depth]}", tuple(stages[depth:])
        phases.append(Phase(name, trained, epochs, learning_rate / _SLOWER))
    return tuple(phases)


def lp_ft(stages: Sequence[str], epochs: int, learning_rate: float) -> tuple[Phase, ...]:
    """Plans to solve the head on frozen features, and to train everything from there.

    Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution", section 3.4: the head's optimum leaves the features little to undo.

    Args:
        stages: Names of all stages, input side first, the head last.
        epochs: Most epochs once everything trains.
        learning_rate: Rate of the head alone, above 0; everything trains at a tenth.

    Returns:
        Two phases; the first alone if there is nothing but a head.
    """
    solved = Phase(stages[-1], (stages[-1],), 0, learning_rate, solved=True)
    return (solved, *full(stages, epochs, learning_rate)) if len(stages) > 1 else (solved,)


def full(stages: Sequence[str], epochs: int, learning_rate: float) -> tuple[Phase, ...]:
    """Plans to train everything from the start.

    Args:
        stages: Names of all stages, input side first, the head last.
        epochs: Most epochs.
        learning_rate: Rate of the head alone, above 0; everything trains at a tenth.

    Returns:
        One phase.
    """
    if len(stages) == 1:
        return head(stages, epochs, learning_rate)
    return (Phase("all", tuple(stages), epochs, learning_rate / _SLOWER),)


def head(stages: Sequence[str], epochs: int, learning_rate: float) -> tuple[Phase, ...]:
    """Plans to train the head alone.

    Args:
        stages: Names of all stages, input side first, the head last.
        epochs: Most epochs.
        learning_rate: Above 0.

    Returns:
        One phase.
    """
    return (Phase(stages[-1], (stages[-1],), epochs, learning_rate),)


def last_k(
    stages: Sequence[str], epochs: int, learning_rate: float, k: int = 1
) -> tuple[Phase, ...]:
    """Plans to train the head, and then it and the stages of the backbone next to it.

    Args:
        stages: Names of all stages, input side first, the head last.
        epochs: Most epochs in each phase.
        learning_rate: Rate of the head's phase, above 0; the other takes a tenth.
        k: Number of stages of the backbone, at least 1.

    Returns:
        Two phases.

    Raises:
        ValueError: If the backbone does not have so many stages.
    """
    if not 1 <= k < len(stages):
        raise ValueError(f"Expected k from 1 to {len(stages) - 1}, received {k}.")
    trained = tuple(stages[-1 - k :])
    slower = Phase(f"+{trained[0]}", trained, epochs, learning_rate / _SLOWER)
    return (*head(stages, epochs, learning_rate), slower)


def surgical(
    stages: Sequence[str], epochs: int, learning_rate: float, chosen: Collection[str]
) -> tuple[Phase, ...]:
    """Plans to train the head, and then it and some stages of the backbone.

    Lee et al. 2023, "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts", section 2:
    stages by the input where images look otherwise, by the output where labels mean something else.
    `training.gradient_norms` chooses them.

    Args:
        stages: Names of all stages, input side first, the head last.
        epochs: Most epochs in each phase.
        learning_rate: Rate of the head's phase, above 0; the other takes a tenth.
        chosen: Stages of the backbone, at least one; the head trains in any case.

    Returns:
        Two phases.

    Raises:
        ValueError: If `chosen` names none, or a stage that there is not.
    """
    if unknown := sorted(set(chosen) - set(stages)):
        raise ValueError(f"Expected stages among {list(stages[:-1])}, received {unknown}.")
    trained = tuple(name for name in stages[:-1] if name in chosen)
    if not trained:
        raise ValueError(f"Expected a stage among {list(stages[:-1])}, received {list(chosen)}.")
    name, together = f"+{'+'.join(trained)}", (*trained, stages[-1])
    slower = Phase(name, together, epochs, learning_rate / _SLOWER)
    return (*head(stages, epochs, learning_rate), slower)


def fastai(stages: Sequence[str], epochs: int, learning_rate: float) -> tuple[Phase, ...]:
    """Plans as fastai's `fine_tune`: an epoch of the head, then everything, slower to the input.

    Howard and Gugger 2020, "fastai: A Layered API for Deep Learning", section 2. The head's rate
    rises almost to the end of its epoch. Then the rate is halved, and falls evenly on a logarithmic
    scale from the head to a hundredth at the input. Both run to the end of their cycle.

    Args:
        stages: Names of all stages, input side first, the head last.
        epochs: Epochs once everything trains.
        learning_rate: Highest rate of the head's epoch, above 0; fastai has 2e-3.

    Returns:
        Two phases.
    """
    highest = learning_rate / 2
    rates = np.geomspace(highest / 100, highest, len(stages)) if len(stages) > 1 else [highest]
    first = Phase(stages[-1], (stages[-1],), 1, learning_rate, warmup=0.99)
    second = Phase("all", tuple(stages), epochs, tuple(map(float, rates)), warmup=0.3)
    return tuple(replace(p, schedule="one_cycle", patience=0) for p in (first, second))
