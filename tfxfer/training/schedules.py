"""How the learning rate goes within a phase."""

import math

from tfxfer.plan import Phase

_START, _END = 1 / 25, 1e-5  # Of the peak, as in fastai's one-cycle.


def factor(phase: Phase, step: int, steps: int) -> float:
    """Returns what the rates of a phase are multiplied by in a step.

    `constant`; `cosine`, to 0 (Loshchilov and Hutter 2017, "SGDR", equation 5, one period);
    `linear`, to 0, as BERT is fine-tuned (Devlin et al. 2019, section A.2);
    `one_cycle`, from 1/25 up to 1 in the warm-up and down to 1e-5, both as cosines (Smith 2018, as
    fastai has it); `step`, a tenth after each milestone. All but `one_cycle` rise linearly in the
    warm-up, and cosine and line begin after it.

    Args:
        phase: The phase.
        step: Number of the step in the phase, from 0.
        steps: Steps of the whole phase.

    Returns:
        A number in (0, 1].

    Raises:
        ValueError: If the schedule is not known.
    """
    rise = phase.warmup * steps
    if phase.schedule == "one_cycle":
        if step < rise:
            return _between(_START, 1.0, step / rise)
        return _between(1.0, _END, _share(step, rise, steps))
    # The first step learns too.
    warm = min((step + 1) / rise, 1.0) if rise else 1.0
    if phase.schedule == "constant":
        return warm
    if phase.schedule == "cosine":
        return warm * _between(1.0, 0.0, _share(step, rise, steps))
    if phase.schedule == "linear":
        return warm * (1.0 - _share(step, rise, steps))
    if phase.schedule == "step":
        return warm * 0.1 ** sum(step >= share * steps for share in phase.milestones)
    raise ValueError(f"Phase {phase.name!r}: unknown schedule {phase.schedule!r}.")


def _share(step: int, rise: float, steps: int) -> float:
    """How much of the phase after the warm-up is done, below 1 in the last step."""
    return min(max((step - rise) / max(steps - rise, 1), 0.0), 1.0)


def _between(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
