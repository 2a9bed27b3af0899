"""What the phases of a training did, as a table for the screen and lines below it."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Column, Table

from tfxfer.training.loop import PhaseResult

_LARGE = 1e4  # A loss of which nobody wants to read all digits.


def phase_table(phases: Sequence[PhaseResult]) -> Table:
    """Draws how long phases trained, what losses came of it, and which of them stand.

    Args:
        phases: In order, of one model after the other; at least one.
    """
    table = Table(Column("phase", overflow="fold"), box=box.SIMPLE)
    metric = phases[0].metric
    for name in ("epochs", "best", "loss", "val loss", f"val {metric}", "kept", "seconds"):
        table.add_column(name, justify="right")
    for phase in phases:
        table.add_row(
            phase.name,
            str(phase.epochs) if phase.epochs else "solved",
            str(phase.best_epoch) if phase.epochs else "",
            *map(_decimals, (phase.loss, phase.val_loss, phase.val_metric)),
            "yes" if phase.kept else "undone",
            f"{phase.seconds:.1f}",
        )
    return table


def phase_lines(phases: Sequence[PhaseResult]) -> Iterator[str]:
    """Says how far training and validation are apart, and what went wrong.

    Args:
        phases: As `phase_table` takes them.
    """
    for phase in _last_of_each(phases):
        if phase.val_loss is not None and phase.val_metric is not None:
            ran = f"as the best epoch of {phase.name} ran" if phase.epochs else "head solved"
            yield (
                f"train against validation, {ran}: "
                f"loss {_decimals(phase.loss)} and {_decimals(phase.val_loss)}, "
                f"{phase.metric} {_decimals(phase.train_metric)} and "
                f"{_decimals(phase.val_metric)}"
            )
    for phase in phases:
        if phase.epochs and not phase.best_epoch:
            yield (
                f"phase {phase.name} diverged in epoch {phase.epochs} and was undone: with a "
                "smaller learning rate it may be of use"
            )
        if phase.unmoved:
            yield (
                f"phase {phase.name}: {', '.join(phase.unmoved)} did not move: no gradient "
                "reaches there; is the backbone trained?"
            )


def _last_of_each(phases: Sequence[PhaseResult]) -> list[PhaseResult]:
    """Returns the last phase that stands of each model, such as those of folds."""
    last: list[PhaseResult] = []
    for phase in phases:
        if not last or phase.name == phases[0].name:
            last.append(phase)  # As the first phase stands in any case.
        elif phase.kept:
            last[-1] = phase
    return last


def _decimals(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < _LARGE else f"{value:.3e}"
