"""A dataset in words: what it holds, where its parts come from, and what is wrong with them."""

from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Column, Table

from tfxfer.config import RunConfig
from tfxfer.data.base import TABLE, TEXT, BadExample, DataInfo
from tfxfer.data.leaks import Leaks
from tfxfer.data.parts import Part, Splits
from tfxfer.data.ready import ReadyData
from tfxfer.task import REGRESSION


def opening_lines(config: RunConfig, data: ReadyData) -> Iterator[str]:
    """Says what begins, and on which data."""
    info = data.source.info
    yield f"tfxfer {config.mode}, seed {config.seed}"
    yield f"data      {info.name}, {info.task}"
    for line in part_lines(data):
        yield f"          {line}"


def part_lines(data: ReadyData) -> Iterator[str]:
    """Says where the parts of the data come from, and what is wrong with them."""
    several = len(data.splits) > 1
    for number, splits in enumerate(data.splits, start=1):
        yield f"fold {number}: {_origins(splits)}" if several else _origins(splits)
    yield from left_out_lines(data.bad)
    if cut := {name: count for name, count in data.cut.items() if count}:
        said = ", ".join(f"{count} of {name}" for name, count in cut.items())
        yield f"texts longer than the backbone reads, which are cut: {said}"
    for number, leaks in enumerate(data.leaks, start=1):
        if leaks.found:
            yield f"fold {number}: {_leaks(leaks)}" if several else _leaks(leaks)
    if data.leaks and not data.bad and not any(leaks.found for leaks in data.leaks):
        yield "every example looked at: none bad, none near-identical"


def left_out_lines(bad: Sequence[BadExample]) -> Iterator[str]:
    """Says how many examples cannot be used, if there are any, and names one."""
    if bad:
        yield f"{counted(len(bad), 'example')} left out, such as {_bad(bad[0])}"


def label_table(data: ReadyData, shown: int) -> Table:
    """Draws how often each class occurs in each part, or what the numbers are like.

    Args:
        data: The data.
        shown: Most classes.
    """
    return _numbers(data) if data.source.info.task.kind == REGRESSION else _classes(data, shown)


def _classes(data: ReadyData, shown: int) -> Table:
    names, counts = data.source.info.task.names, []
    table = Table(Column("class", overflow="fold"))
    for part_name, part in _named(data.splits[0]):
        table.add_column(part_name, justify="right")
        labels = part.labels
        one_hot = labels.ndim == 2
        counts.append(
            labels.sum(axis=0).astype(int) if one_hot else np.bincount(labels, minlength=len(names))
        )
    for i, name in enumerate(names[:shown]):
        table.add_row(name, *(f"{count[i]:,}" for count in counts))
    return table


def _numbers(data: ReadyData) -> Table:
    table = Table(Column("target", overflow="fold"))
    for column in ("part", "mean", "deviation", "least", "most"):
        table.add_column(column, justify="right")
    for part_name, part in _named(data.splits[0]):
        for i, name in enumerate(data.source.info.task.names):
            values = part.labels[:, i]
            told = values.mean(), values.std(), values.min(), values.max()
            table.add_row(name, part_name, *(f"{value:.4g}" for value in told))
    return table


def counted(number: int, noun: str, plural: str = "") -> str:
    """Says a number of things, `1 phase` or `2 phases`."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def inputs(info: DataInfo) -> str:
    """Says what goes into a model."""
    if info.inputs == TEXT:
        return "pairs of texts" if info.shape else "texts"
    if info.inputs == TABLE:
        return f"rows of {info.shape[0]} numbers"
    height, width, channels = info.shape
    size = f"{height}x{width}" if height and width else "any size"
    return f"images of {size}, {counted(channels or 0, 'channel')}"


def _named(splits: Splits) -> tuple[tuple[str, Part], ...]:
    return ("train", splits.train), ("validation", splits.validation), ("test", splits.test)


def _origins(splits: Splits) -> str:
    return ", ".join(f"{p.examples} {name} ({p.origin})" for name, p in _named(splits))


def _bad(bad: BadExample) -> str:
    return f"{bad.where}: {bad.reason}"


def _leaks(leaks: Leaks) -> str:
    found = [
        f"{count} of {part} almost as in {other}"
        for count, part, other in (
            (leaks.train_in_test, "train", "test"),
            (leaks.train_in_validation, "train", "validation"),
            (leaks.validation_in_test, "validation", "test"),
        )
        if count
    ]
    mend = (
        f"{leaks.dropped} left out" if leaks.dropped else "--drop_leaks leaves those of train out"
    )
    such_as = f", such as {leaks.such_as[0]}" if leaks.such_as else ""
    return f"near-identical: {', '.join(found)}{such_as}; {mend}"
