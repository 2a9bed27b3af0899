"""Changes to the phases of a plan, whatever made it."""

from collections.abc import Sequence
from dataclasses import replace

from tfxfer.checks import MILESTONES
from tfxfer.plan.base import Phase

# As fastai's one-cycle has it.
_RISE = 0.25


def with_layer_decay(
    phases: Sequence[Phase], stages: Sequence[str], decay: float
) -> tuple[Phase, ...]:
    """Lets stages learn the slower, the farther they are from the head.

    The head keeps its rate, the stage next to it has `decay` times as much, and so on: by the
    distance in the list of all stages, whichever of them a phase trains. As in ELECTRA (Clark et
    al. 2020) and BEiT (Bao et al. 2021).

    Args:
        phases: The phases.
        stages: Names of all stages, input side first, the head last.
        decay: Rate of a stage over that of the next one towards the head, in (0, 1].

    Returns:
        The phases with a rate for each stage.

    Raises:
        ValueError: If `decay` is out of range.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"Expected a decay in (0, 1], received {decay}.")
    if decay == 1:
        return tuple(phases)
    scale = {name: decay**distance for distance, name in enumerate(reversed(stages))}
    return tuple(
        replace(
            phase,
            learning_rate=tuple(
                rate * scale[name] for name, rate in zip(phase.stages, phase.rates, strict=True)
            ),
        )
        for phase in phases
    )


def with_schedule(
    phases: Sequence[Phase],
    schedule: str,
    warmup: float = 0.0,
    milestones: Sequence[float] = MILESTONES,
) -> tuple[Phase, ...]:
    """Gives every phase that trains this schedule.

    Args:
        phases: The phases.
        schedule: `constant`, `cosine`, `linear`, `one_cycle` or `step`.
        warmup: Share of each phase in which the rate rises, in [0, 1). The schedule `one_cycle`
            cannot do without, and takes a quarter if 0.
        milestones: For the schedule `step`: shares of each phase that leave a tenth of the rate.

    Returns:
        The phases; those that are solved stay as they are.

    Raises:
        ValueError: If a value is out of range.
    """
    return tuple(
        phase
        if phase.solved
        else replace(
            phase,
            schedule=schedule,
            warmup=_RISE if schedule == "one_cycle" and not warmup else warmup,
            milestones=tuple(milestones) if schedule == "step" else (),
        )
        for phase in phases
    )


def with_patience(phases: Sequence[Phase], patience: int) -> tuple[Phase, ...]:
    """Gives this patience to every phase that may stop early.

    Args:
        phases: The phases.
        patience: Epochs without a better validation loss before a phase stops; never if 0.

    Returns:
        The phases; those that run to their end, as their schedule wants it, still do.
    """
    return tuple(replace(p, patience=patience) if p.patience else p for p in phases)
