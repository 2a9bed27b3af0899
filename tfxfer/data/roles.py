"""Which columns of a table are what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfxfer.data.base import IMAGE, TEXT
from tfxfer.data.labels import check_task
from tfxfer.data.records import RecordFile
from tfxfer.errors import UserError
from tfxfer.task import MULTI_LABEL, REGRESSION

_USUAL = {
    IMAGE: ("image", "image_path", "path", "file", "filename", "filepath"),
    TEXT: ("text", "sentence", "review", "message", "content", "document"),
    "label": ("label", "class", "category", "target", "sentiment", "y"),
}
PAIR = "pair"  # The option of the second text of a pair.
_TASKS = {"label": "", "labels": MULTI_LABEL, "target": REGRESSION, "targets": REGRESSION}


@dataclass(frozen=True)
class Roles:
    """Which columns are what.

    Attributes:
        inputs: `image` or `text`.
        columns: Of the input; several texts are joined.
        pair: Of the second text of a pair, likewise; empty if there is none.
        labels: Of what is to be learned; none if nobody looks at them.
        named: Whether a label is the name of a class, or several, not a value for each.
        task: Its kind; empty if the labels say it.
        separator: Of several classes in a cell; empty if there are none.
        split: That says the split, or empty.
        group: That keeps rows together, or empty.
    """

    inputs: str
    columns: tuple[str, ...]
    pair: tuple[str, ...]
    labels: tuple[str, ...]
    named: bool
    task: str
    separator: str
    split: str
    group: str

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """The columns of each part of an input: of a pair two, else one."""
        return (self.columns, self.pair) if self.pair else (self.columns,)

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are read."""
        taken = (*self.columns, *self.pair, *self.labels)
        return (*taken, *filter(None, (self.split, self.group)))


def find_roles(
    file: RecordFile,
    options: Mapping[str, str],
    task: str,
    group: str,
    name: str,
    *,
    labelled: bool = True,
) -> Roles:
    """Finds the columns by the options, and by usual names.

    Args:
        file: The table.
        options: As `open_table` takes them.
        task: One of `task.KINDS`, or empty.
        group: The column that keeps rows together, or empty.
        name: Of the table, for errors.
        labelled: Whether labels are looked at; else their columns need not be there.

    Raises:
        UserError: If there are no such columns, or the options contradict each other.
    """
    check_task(task)
    inputs = _only_one(options, (TEXT, IMAGE), name)
    check_pair(options, name)
    key = _only_one(options, tuple(_TASKS), name)
    labels, split = listed(options.get(key, "")), options.get("split", "")
    separator = options.get("separator", "")
    if "separator" in options and (
        not separator or key not in ("", "label", "labels") or len(labels) > 1
    ):
        raise UserError(
            f"separator= of {name} needs label= or labels= of one column, and a character",
            "Write such as labels=tags,separator=|.",
        )
    kind = MULTI_LABEL if separator else _TASKS.get(key, "")
    if task and kind and task != kind:
        raise UserError(
            f"{'separator' if separator else key}= of {name} says {kind}, and the task is {task}",
            "Give label=COLUMN for one class, labels= for several, target= for numbers.",
        )
    single = key in ("label", "target")
    if key and (not labels or len(set(labels)) < len(labels) or (single and labels[1:])):
        raise UserError(
            f"{key}= of {name} must name {'a column' if single else 'columns'}, each once, "
            f"not {options[key]!r}",
            "Use labels='a;b' or targets='a;b' for several.",
        )
    columns, pair = listed(options.get(inputs, "")), listed(options.get(PAIR, ""))
    if not inputs:
        inputs = IMAGE if not _usual(file.columns, TEXT, (*labels, split, group)) else TEXT
        columns = _usual(file.columns, inputs, (*labels, split, group))[:1]
    if inputs == IMAGE and len(columns) > 1:
        raise UserError(f"image= of {name} must be one column", "Name one.")
    if not columns:
        raise UserError(
            f"{name} must have a column of texts or of paths of images with a usual name, and "
            "has none",
            f"Say text=COLUMN or image=COLUMN. {file.advice()}",
        )
    labels = labels or _usual(file.columns, "label", (*columns, *pair, split, group))[:1]
    if not labels and labelled:
        raise UserError(
            f"{name} must have a column of labels with a usual name, and has none",
            f"Say label=COLUMN, labels='a;b' or target=COLUMN. {file.advice()}",
        )
    labels = labels if labelled else ()
    named = key in ("", "label") or bool(separator)
    return Roles(inputs, columns, pair, labels, named, task or kind, separator, split, group)


def check_pair(options: Mapping[str, Any], name: str) -> None:
    """Checks that `pair=`, if there, names another text than `text=`.

    Args:
        options: Of a dataset.
        name: Of it, for the error.

    Raises:
        UserError: If not.
    """
    second = options.get(PAIR)
    if PAIR in options and (not second or options.get(TEXT) in (None, "", second)):
        raise UserError(
            f"pair= of {name} must name the second of two texts, and text= the first",
            "Write such as text=sentence1,pair=sentence2.",
        )


def listed(option: str) -> tuple[str, ...]:
    """Returns what an option lists between semicolons."""
    return tuple(part.strip() for part in option.split(";") if part.strip())


def _only_one(options: Mapping[str, str], keys: Sequence[str], name: str) -> str:
    """Returns the option that is given of some that exclude each other; empty if none is."""
    given = [key for key in keys if key in options]
    if len(given) > 1:
        raise UserError(f"{name} takes {given[0]}= or {given[1]}=, not both", "Leave one out.")
    return given[0] if given else ""


def _usual(columns: Sequence[str], role: str, taken: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        column
        for usual in _USUAL[role]
        for column in columns
        if column.lower() == usual and column not in taken
    )
