"""What a model costs, as columns of a table."""

from rich import box
from rich.table import Table

from tfxfer.costs import ModelCost

COST_COLUMNS = ("parameters", "GFLOPs", "ms", "MB memory", "MB disk")
COST_CAPTION = (
    "for one example, memory for 32; front: none is better and about as fast, or faster and as good"
)
_MEGA, _GIGA = 1e6, 1e9


def plain_table(*names: str) -> Table:
    """Returns a table without rows, the first column for names and the others for figures.

    Args:
        names: Of the columns.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.caption_justify = "left"
    table.add_column(names[0], overflow="fold")
    for name in names[1:]:
        table.add_column(name, justify="right")
    return table


def cost_cells(cost: ModelCost) -> tuple[str, ...]:
    """Returns the cells of `COST_COLUMNS`; memory is empty where it could not be measured."""
    memory = "" if cost.memory_bytes is None else f"{cost.memory_bytes / _MEGA:.1f}"
    return (
        f"{cost.parameters / _MEGA:.2f}M",
        f"{cost.flops / _GIGA:.3f}",
        f"{cost.latency_ms:.2f}",
        memory,
        f"{cost.disk_bytes / _MEGA:.1f}",
    )
