"""Which columns of a table are what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfxfer.data.base import IMAGE, TEXT
from tfxfer.data.labels import check_task
from tfxfer.data.records import RecordFile
from tfxfer.errors import UserError
from tfxfer.task import MULTI_LABEL, REGRESSION

_USUAL = {
    IMAGE: ("image", "image_path", "path", "file", "filename", "filepath"),
    TEXT: ("text", "sentence", "review", "message", "content", "document"),
    "label": ("label", "class", "category", "target", "y"),
}
_TASKS = {"label": "", "labels": MULTI_LABEL, "target": REGRESSION, "targets": REGRESSION}


@dataclass(frozen=True)
class Roles:
    """Which columns are what.

    Attributes:
        inputs: `image` or `text`.
        columns: Of the input; several texts are joined.
        labels: Of what is to be learned.
        named: Whether a label is the name of a class, or several, not a value for each.
        task: Its kind; empty if the labels say it.
        separator: Of several classes in a cell; empty if there are none.
        split: That says the split, or empty.
        group: That keeps rows together, or empty.
    """

    inputs: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    named: bool
    task: str
    separator: str
    split: str
    group: str

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.columns, *self.labels, *filter(None, (self.split, self.group)))


def find_roles(
    file: RecordFile, options: Mapping[str, str], task: str, group: str, name: str
) -> Roles:
    """Finds the columns by the options, and by usual names.

    Args:
        file: The table.
        options: As `open_table` takes them.
        task: One of `task.KINDS`, or empty.
        group: The column that keeps rows together, or empty.
        name: Of the table, for errors.

    Raises:
        UserError: If there are no such columns, or the options contradict each other.
    """
    check_task(task)
    inputs = _only_one(options, (TEXT, IMAGE), name)
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
    columns = listed(options.get(inputs, ""))
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
    labels = labels or _usual(file.columns, "label", (*columns, split, group))[:1]
    if not labels:
        raise UserError(
            f"{name} must have a column of labels with a usual name, and has none",
            f"Say label=COLUMN, labels='a;b' or target=COLUMN. {file.advice()}",
        )
    named = key in ("", "label") or bool(separator)
    return Roles(inputs, columns, labels, named, task or kind, separator, split, group)


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
