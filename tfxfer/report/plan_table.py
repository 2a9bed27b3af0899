"""The table of a plan: what trains in each phase, how, for how long, and what that will cost."""

from collections.abc import Mapping, Sequence
from itertools import compress, groupby

import keras
from rich import box
from rich.table import Table

from tfxfer.models import FineTuner
from tfxfer.plan import Phase

# A gradient costs about as much again as the forward pass for the inputs of a layer, and once more
# for its weights.
_BACKWARD = 2

# Said once, below the table, where it is the same in all phases that train.
_OFTEN_COMMON = ("patience", "schedule", "batch norm")
_WORDS = ("phase", "trains", "schedule", "batch norm")


def plan_table(
    plan: Sequence[Phase],
    model: FineTuner,
    *,
    epoch_seconds: float | None = None,
    cached: Mapping[str, str] | None = None,
) -> Table:
    """Draws the phases of a plan, for a console of 100 columns.

    Args:
        plan: The phases.
        model: What they train.
        epoch_seconds: What the backbone alone takes, forward, for all examples of an epoch; what
            each phase will take is estimated from it, and is not shown if `None`.
        cached: By name of a phase, what it trains on if not on images: `features` or `block3`.

    Returns:
        The table.
    """
    cached = cached or {}
    cells: dict[str, list[str]] = {
        "phase": [phase.name for phase in plan],
        "trains": [
            span(phase.stages, model.stage_names) + _source(cached.get(phase.name))
            for phase in plan
        ],
        "weights": [str(len(_trained(phase, model))) for phase in plan],
        "share": [f"{_share(phase, model):.1%}" for phase in plan],
        "rate": [_rates(phase) for phase in plan],
        "epochs": [_length(phase) for phase in plan],
        "patience": [_patience(phase) for phase in plan],
        "schedule": ["" if phase.solved else _schedule(phase) for phase in plan],
        "batch norm": [phase.bn or model.backbone.bn for phase in plan],
    }
    if epoch_seconds is not None:
        costs = [
            epoch_seconds * relative_cost(p, model.stage_names, cached=p.name in cached)
            for p in plan
        ]
        cells["s/epoch"] = [_seconds(cost) for cost in costs]
    trains = [not phase.solved for phase in plan]
    common = {
        name: values.pop()
        for name in _OFTEN_COMMON
        if len(values := set(compress(cells[name], trains))) == 1
    }
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown = [name for name in cells if name not in common]
    for name in shown:
        if name in _WORDS:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for row in zip(*(cells[name] for name in shown), strict=True):
        table.add_row(*row)
    said = ", ".join(f"{name} {value}" for name, value in common.items() if value)
    if said:
        table.caption, table.caption_justify = f"{said} throughout", "left"
    return table


def relative_cost(phase: Phase, stages: Sequence[str], *, cached: bool = False) -> float:
    """Estimates what an epoch costs, over the cost of the backbone's forward pass.

    Frozen stages on the input side cost that pass, or nothing where what they make of the images
    is kept. From the first stage that trains to the output it costs three times as much: gradients
    of inputs and of weights come to it. Stages are taken to cost the same, as those of residual
    networks about do (He et al. 2016, "Deep Residual Learning for Image Recognition", section
    3.3); the head costs nothing. Validation, data and the optimizer are left out.

    Args:
        phase: The phase.
        stages: Names of all stages, input side first, the head last.
        cached: Whether the frozen stages on the input side do not run.

    Returns:
        A number from 0 to 3; 1 if the head is trained or solved on images.
    """
    below = stages[:-1]
    if not below:  # A backbone that cannot be trained, in one piece.
        return 0.0 if cached else 1.0
    frozen = min(map(stages.index, phase.stages))
    trained = (len(below) - frozen) / len(below)
    return (0.0 if cached else 1.0 - trained) + trained * (1 + _BACKWARD)


def span(stages: Sequence[str], names: Sequence[str]) -> str:
    """Names stages in runs of neighbours, such as `stem, block3 to head`.

    Args:
        stages: Some of `names`, in their order.
        names: All stages, input side first.
    """
    places = sorted(map(names.index, stages))
    runs = [
        [place for _, place in run]
        for _, run in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(
        names[run[0]] if len(run) == 1 else f"{names[run[0]]} to {names[run[-1]]}" for run in runs
    )


def _source(cached: str | None) -> str:
    return f" (from {cached})" if cached else ""


def _trained(phase: Phase, model: FineTuner) -> list[keras.Variable]:
    return [w for stage in model.stages if stage.name in phase.stages for w in stage.learned]


def _share(phase: Phase, model: FineTuner) -> float:
    """How much of all parameters trains."""
    trained = sum(weight.shape.num_elements() for weight in _trained(phase, model))
    return trained / model.count_params()


def _rates(phase: Phase) -> str:
    """Says the rates from the input side to the output side."""
    if phase.solved:
        return ""
    low, high = min(phase.rates), max(phase.rates)
    return f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"


def _schedule(phase: Phase) -> str:
    words = [phase.schedule]
    if phase.warmup:
        words.append(f"rises for {phase.warmup:.0%}")
    if phase.milestones:
        shares = ", ".join(f"{share:.0%}" for share in phase.milestones)
        words.append(f"a tenth at {shares}")
    return ", ".join(words)


def _length(phase: Phase) -> str:
    if phase.solved:
        return "solved"
    if phase.steps:
        return f"{phase.steps} steps"
    return f"<= {phase.epochs}" if phase.patience else str(phase.epochs)


def _patience(phase: Phase) -> str:
    return "" if phase.solved or not phase.patience else str(phase.patience)


def _seconds(seconds: float) -> str:
    """Rounds as roughly as it was estimated."""
    return "< 0.1" if seconds < 0.1 else f"{seconds:.2g}" if seconds < 100 else f"{seconds:,.0f}"
