"""Labels as they come, strings, numbers, lists or arrays, made into what a task has for `y`."""

import math
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfxfer.data.base import BadExample
from tfxfer.errors import UserError
from tfxfer.task import KINDS, MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

Reasons = Mapping[str, dict[int, str]]  # By split and row, why an example cannot be used.


@dataclass(frozen=True)
class Labels:
    """Labels of a dataset.

    Attributes:
        task: What they are.
        y: By split, as the task has it; -1 or NaN where a label is bad.
        bad: What is wrong with those.
    """

    task: Task
    y: Mapping[str, np.ndarray]
    bad: Reasons


def no_labels(task: Task, examples: int) -> np.ndarray:
    """Returns the `y` of examples whose labels are not known: -1 for a class, NaN else.

    Args:
        task: What the labels would be.
        examples: How many.
    """
    if task.kind == SINGLE_LABEL:
        return np.full(examples, -1, np.int64)
    return np.full((examples, task.units), np.nan, np.float32)


def check_task(task: str) -> None:
    """Checks that a task is one of `KINDS` or empty.

    Raises:
        UserError: If not.
    """
    if task not in ("", *KINDS):
        raise UserError(f"The task must be one of {', '.join(KINDS)}, not {task!r}", "Choose one.")


def check_usable(
    name: str, task: Task, train: np.ndarray, bad: Sequence[BadExample], fix: str
) -> None:
    """Checks that there is something to learn from.

    Args:
        name: Of the data.
        task: What it is.
        train: `y` of the training split.
        bad: Of all splits.
        fix: What to do if there is not.

    Raises:
        UserError: If no example of train is good, or all are of one class; it shows the first bad.
    """
    own = [example for example in bad if example.split in ("train", "")]
    good = np.ones(len(train), bool)
    good[[example.row for example in own if example.row >= 0]] = False
    first = f"; {own[0].where} {own[0].reason}" if own else ""
    if task.kind == SINGLE_LABEL:
        classes = np.unique(train[good])
        if len(classes) < 2:
            found = f"only {task.names[classes[0]]!r}" if len(classes) else "none"
            raise UserError(
                f"{name} must have usable examples of at least two classes for training, and has "
                f"{found}{first}",
                fix,
            )
    elif not good.any() or not task.names:
        raise UserError(f"{name} must have usable examples for training, and has none{first}", fix)


def list_bad(where: Callable[[str, int], str], *found: Reasons) -> tuple[BadExample, ...]:
    """Lists bad examples by split and row, each once: the first reason is given."""
    return tuple(
        BadExample(where(split, row), rows[row], split, row)
        for split in found[0]
        for rows in [ChainMap(*(reasons[split] for reasons in found))]
        for row in sorted(rows)
    )


def array_labels(
    given: Mapping[str, np.ndarray], names: Sequence[str] | None, task: str, name: str
) -> Labels:
    """Makes labels of arrays.

    Args:
        given: By split, `[n]` or `[n, k]`: integers, 0 and 1, numbers, or `[n]` strings.
        names: Of the classes, in the order of the integers, or of the targets.
        task: One of `KINDS`; by the type and shape if empty.
        name: Of the data.

    Raises:
        UserError: If shapes and types are none of these.
    """
    if len({(y.dtype.kind in "iub", y.dtype.kind == "f", y.shape[1:]) for y in given.values()}) > 1:
        described = ", ".join(f"{y.dtype} {list(y.shape)} in {s}" for s, y in given.items())
        raise UserError(
            f"y of {name} must have one type and shape in every split, and has {described}",
            "Give all splits in the same form.",
        )
    y = given["train"]
    text = y.dtype.kind in "USOT"
    if y.ndim > 2 or (y.dtype.kind not in "iubf" and not (text and y.ndim == 1)):
        raise UserError(
            f"y of {name} must be [n] or [n, k] of integers, of 0 and 1 or of numbers, "
            f"or [n] of strings, not {y.dtype} {list(y.shape)}",
            "Bring it to one of these shapes.",
        )
    names = None if names is None else tuple(map(str, names))
    units = 1 if y.ndim == 1 else y.shape[1]
    kind = task or _array_task(y, units, name)
    if kind == SINGLE_LABEL:
        if units > 1:
            raise UserError(
                f"y of {name} must be one class an example, [n], not {list(y.shape)}",
                "Give the index of the class, such as y.argmax(1).",
            )
        return _array_classes(given, names, text, name)
    if text:
        raise UserError(f"y of {name} must be numbers for {kind}, not strings", "Convert it.")
    if names is None:
        names = ("target",) if kind == REGRESSION and units == 1 else tuple(map(str, range(units)))
    if len(names) != units:
        raise UserError(
            f"y of {name} must have one column for each of the {len(names)} names, and has {units}",
            "Give as many names as columns.",
        )
    checked: dict[str, np.ndarray] = {}
    bad: dict[str, dict[int, str]] = {}
    for split, values in given.items():
        rows = values.reshape(len(values), units)
        checked[split], bad[split] = _numbers(rows, rows, kind)
    return Labels(Task(kind, names), checked, bad)


def cell_labels(
    distinct: Sequence[tuple[Any, ...]],
    codes: Mapping[str, np.ndarray],
    trained: Collection[int],
    columns: tuple[str, ...],
    *,
    task: str,
    named: bool,
    separator: str,
) -> Labels:
    """Makes labels of the cells of a table.

    Args:
        distinct: All labels that there are, each a cell a column: a string, or a tuple of strings
            where the cell is a list.
        codes: By split, which of them each row has; -1 for none.
        trained: Those that usable rows of train have.
        columns: Names of the columns.
        task: One of `KINDS`; if empty, `single_label`, or `multi_label` if there are lists, or
            `regression` if most are numbers and some are not whole.
        named: Whether a cell is the name of a class, or several, not a value for each column.
        separator: Of the names of several classes in a cell.
    """
    cells = [label[0] for label in distinct]
    lists = any(isinstance(cell, tuple) for cell in cells)
    numbers = list(map(_number, cells))
    counts = np.bincount(codes["train"][np.isin(codes["train"], list(trained))])
    words = {
        code for code in trained if math.isnan(numbers[code]) and str(cells[code]).lower() != "nan"
    }
    numeric = 2 * sum(counts[code] for code in words) < counts.sum()
    kind = task or (MULTI_LABEL if lists else SINGLE_LABEL)
    if not task and numeric and any(math.isfinite(n) and n % 1 for n in numbers):
        kind = REGRESSION
    if kind == MULTI_LABEL and (named or (lists and len(columns) == 1)):
        return _cell_sets(cells, codes, trained, separator)
    if kind != SINGLE_LABEL:
        truths = {"true": 1.0, "false": 0.0} if kind == MULTI_LABEL else {}
        table = [[truths.get(str(c).lower(), _number(c)) for c in label] for label in distinct]
        shape = (len(distinct), len(columns))
        values, reasons = _numbers(np.array(table, float).reshape(shape), distinct, kind)
        return _by_codes(Task(kind, columns), values, reasons, codes)
    return _cell_classes(cells, codes, trained, numbers if numeric and not task else None)


def _array_task(y: np.ndarray, units: int, name: str) -> str:
    if y.dtype.kind != "f":
        return SINGLE_LABEL if units == 1 else MULTI_LABEL
    known = y[np.isfinite(y.reshape(len(y), units)).all(axis=1)]
    if units == 1 or not np.isin(known, (0, 1)).all():
        return REGRESSION
    if len(known) and (known.sum(axis=1) == 1).all():
        raise UserError(
            f"y of {name} is one-hot, one class an example or any of several",
            "Give classes by y.argmax(1), or say task='multi_label'.",
        )
    return MULTI_LABEL


def _array_classes(
    given: Mapping[str, np.ndarray], names: tuple[str, ...] | None, text: bool, name: str
) -> Labels:
    index: dict[str, int] = {}
    codes = {
        split: np.array(
            [index.setdefault(_class_name(value), len(index)) for value in y.ravel().tolist()],
            np.int64,
        )
        for split, y in given.items()
    }
    distinct = list(index)
    trained = {distinct[code] for code in np.unique(codes["train"])}
    if text:
        order = names or tuple(sorted(trained))
        outside = "is none of the names that are given"
    else:
        count = len(names) if names else _count_classes(trained, name)
        order = tuple(map(str, range(count)))
        outside = f"is not in 0 to {count - 1}" if count else "is no whole number from 0 on"
    known = set(distinct if text and not names else order)
    reasons = {
        code: f"has the label {label[:40]}, which {outside}"
        for label, code in index.items()
        if label not in known
    }
    return _classes(distinct, order, trained, reasons, codes, names or order)


def _class_name(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value)


def _count_classes(trained: Iterable[str], name: str) -> int:
    known = sorted(int(label) for label in trained if label.isdecimal())
    missing = next((i for i, label in enumerate(known) if label != i), None)
    if missing is not None:
        raise UserError(
            f"y of {name} must be the integers from 0 on, or label_names must be given; "
            f"train has {len(known)} classes up to {known[-1]}, and none is {missing}",
            "Give label_names, or np.unique(y, return_inverse=True)[1] for y.",
        )
    return len(known)


def _cell_classes(
    cells: Sequence[Any],
    codes: Mapping[str, np.ndarray],
    trained: Collection[int],
    numbers: Sequence[float] | None,
) -> Labels:
    """Takes cells for names of classes; in the order of the numbers that they are, if given."""
    reasons: dict[int, str] = {}
    for code, cell in enumerate(cells):
        if isinstance(cell, tuple):
            reasons[code] = f"has {_shown(cell)} for its label, which must be one"
        elif numbers and not math.isfinite(numbers[code]):
            reasons[code] = (
                f"has the label {_shown(cell)}, which is no number as others are; "
                "the task single_label takes all for names"
            )
    good = {cells[code] for code in trained if code not in reasons}
    order = tuple(sorted(good, key=(lambda cell: (float(cell), cell)) if numbers else None))
    return _classes(cells, order, good, reasons, codes, order)


def _classes(
    labels: Sequence[Any],
    order: Sequence[str],
    trained: Collection[str],
    reasons: dict[int, str],
    codes: Mapping[str, np.ndarray],
    names: tuple[str, ...],
) -> Labels:
    index = {label: position for position, label in enumerate(order)}
    for code, label in enumerate(labels):
        if code not in reasons and label not in trained:
            reasons[code] = _untrained(label)
    values = np.array([index.get(label, -1) for label in labels], np.int64)
    return _by_codes(Task(SINGLE_LABEL, names), values, reasons, codes)


def _cell_sets(
    cells: Sequence[Any],
    codes: Mapping[str, np.ndarray],
    trained: Collection[int],
    separator: str,
) -> Labels:
    """Takes cells for names of any number of classes."""

    def parts(cell: Any) -> list[str]:
        if isinstance(cell, str):
            cell = cell.split(separator) if separator else [cell]
        return [name.strip() for name in cell if name.strip()]

    sets = list(map(parts, cells))
    names = tuple(sorted({part for code in trained for part in sets[code]}))
    index = {label: position for position, label in enumerate(names)}
    values = np.zeros((len(sets), len(names)), np.float32)
    reasons: dict[int, str] = {}
    for code, found in enumerate(sets):
        for part in found:
            if part in index:
                values[code, index[part]] = 1
            else:
                reasons[code] = _untrained(part)
    return _by_codes(Task(MULTI_LABEL, names), values, reasons, codes)


def _numbers(
    values: np.ndarray, cells: Sequence[Sequence[Any]] | np.ndarray, kind: str
) -> tuple[np.ndarray, dict[int, str]]:
    """Returns `[n, k]` as float32, rows that are wrong as NaN, and what is wrong with them."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    multi = kind == MULTI_LABEL
    good = np.isin(values, (0, 1)) if multi else np.isfinite(values)
    said = "for a label, which is not 0 or 1" if multi else "for a number"
    wrong = np.flatnonzero(~good.all(axis=1)).tolist()
    reasons = {row: f"has {_shown(cells[row][good[row].argmin()])} {said}" for row in wrong}
    values[wrong] = np.nan
    return values, reasons


def _by_codes(
    task: Task, values: np.ndarray, reasons: Mapping[int, str], codes: Mapping[str, np.ndarray]
) -> Labels:
    """Gives each row the value that its code stands for, and what is wrong with it."""
    # One more for the code -1 of rows that have no label.
    table = np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])
    wrong = np.zeros(len(table), bool)
    wrong[list(reasons)] = True
    table[wrong] = table[-1:] = -1 if task.kind == SINGLE_LABEL else np.nan
    return Labels(
        task,
        {split: table[code] for split, code in codes.items()},
        {
            split: {row: reasons[code[row]] for row in np.flatnonzero(wrong[code]).tolist()}
            for split, code in codes.items()
        },
    )


def _number(text: Any) -> float:
    """Reads a number; one that is none is NaN."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _untrained(label: str) -> str:
    return f"has the class {_shown(label)}, which has no example in train"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value[:5])) or "nothing"
    return repr(value[:40]) if isinstance(value, str) else str(value)
