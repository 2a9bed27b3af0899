"""Tables in files: CSV, TSV and JSON lines, with texts or paths of images and their labels."""

import hashlib
import itertools
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.data.base import IMAGE, BadExample, DataInfo, DataSource
from tfxfer.data.blocks import Block, from_blocks
from tfxfer.data.images import Header, common_shape, decode_image_file, hash_files, read_headers
from tfxfer.data.labels import Labels, cell_labels, check_usable, list_bad, no_labels
from tfxfer.data.records import Record, RecordFile, encodable
from tfxfer.data.roles import Roles, find_roles, listed
from tfxfer.data.split_names import SPLIT_NAMES, split_named
from tfxfer.errors import UserError
from tfxfer.spec import Spec
from tfxfer.task import Task

_OPTIONS = (
    *("text", "pair", "image", "root", "label", "labels", "separator", "target", "targets"),
    *("names", "columns", "delimiter", "split", "validation", "test"),
)
_PLACES = ("root", "validation", "test")  # These say where data is, not what it is.
_BLOCK = 256  # Texts handed to TensorFlow at a time.
_FIX = (
    "Name other columns, root= of the images, or separator= of several classes in a cell; or add "
    "rows."
)


def open_table(
    spec: Spec, *, task: str = "", group_column: str = "", unlabelled: Task | None = None
) -> "TableSource":
    """Opens `csv:PATH`, `tsv:PATH` or `jsonl:PATH`; `RecordFile` says how they are read.

    Args:
        spec: The file, and these options, all of which may be left out:
            `text=COLUMN` or `image=COLUMN`: the inputs; several texts, `a;b`, are joined. Paths
            of images are relative to `root=FOLDER`, or else to the folder of the table.
            `pair=COLUMN`: beside `text=`, the second text of a pair.
            `label=COLUMN`: the class. `labels=a;b;c`: columns of 0 and 1, one a class.
            `labels=COLUMN`: a list of classes in JSON, or with `separator=|` those between such.
            `target=COLUMN`, `targets=a;b`: numbers. Columns that are not named are found by usual
            names. `names=a;b;c`: what to call the classes, in the order of the sorted labels.
            `columns=a;b;c`: the names of all columns, of a file that does not begin with them.
            `delimiter=;`: what stands between the cells of a CSV file, if no comma does.
            `split=COLUMN`: says `train`, `validation` or `test`, or what else they are called.
            `validation=FILE`, `test=FILE`: other files of the same form.
        task: `single_label`, `multi_label` or `regression`. If empty, what the options say; a
            `label` of numbers is a class if all are whole, else a target.
        group_column: A column whose value keeps examples together.
        unlabelled: What the labels would be, if nobody is to look at them: the table need not have
            any then, and `y` is -1, or NaN, for each row.

    Returns:
        The table. `bad` lists the lines that cannot be used, such as those with an empty text, and
        missing and unreadable images.

    Raises:
        UserError: If a file or column is missing, or there is nothing to learn from.
    """
    spec.only(_OPTIONS)
    kind, _, path = spec.name.partition(":")
    options = {key: _option_text(spec, key) for key in spec.options}
    return TableSource(kind, Path(path).expanduser(), options, task, group_column, unlabelled)


class TableSource(DataSource):
    """A table in files; see `open_table`. Ids are `file:line`.

    Labels, line numbers and paths of images are kept in memory; texts are read from the file
    every time. The fingerprint covers the files, the options, and the images as `hash_files` says.

    Args:
        kind: `csv`, `tsv` or `jsonl`.
        path: Of the file.
        options: By key, strings.
        task: Empty or one of `KINDS`.
        group_column: Empty or a column.
        unlabelled: What the labels would be, if nobody is to look at them.
    """

    def __init__(
        self,
        kind: str,
        path: Path,
        options: Mapping[str, str],
        task: str,
        group_column: str,
        unlabelled: Task | None = None,
    ):
        name = f"{kind}:{path.name}"
        self._files = _open_files(kind, path, options, name)
        self._names = _short_names(self._files, name)
        self._roles = find_roles(
            self._files["train"], options, task, group_column, name, labelled=unlabelled is None
        )
        scan = _Scan(self._roles)
        for split, file in self._files.items():
            file.check_columns(self._roles.used)
            for record in file:
                scan.add(record, split, self._names[split])
        self._rows = scan.rows
        if "train" not in self._rows:
            raise _no_train(name, scan, self._roles.split)
        headers: list[Header | str] = []
        if self._roles.inputs == IMAGE:
            root = Path(options.get("root", path.parent)).expanduser().absolute()
            headers = _find_images(self._rows, root)
        labels = _none(scan, unlabelled) if unlabelled else _labels(scan, self._roles)
        self._labels = labels.y
        of_lines = {split: rows.bad for split, rows in self._rows.items()}
        self.bad = (*scan.lost, *list_bad(self.where, of_lines, labels.bad))
        if not unlabelled:
            check_usable(name, labels.task, labels.y["train"], self.bad, _FIX)
        self.info = DataInfo(
            name=name,
            task=unlabelled or _renamed(labels.task, listed(options.get("names", "")), name),
            inputs=self._roles.inputs,
            shape=common_shape(headers) if headers else (2,) if self._roles.pair else (),
            examples={split: len(rows.lines) for split, rows in self._rows.items()},
        )
        count = sum(self.info.examples.values())
        size = sum(file.path.stat().st_size for file in self._files.values())
        self.raw_bytes = 200 if headers else max(1, size // count)
        said = sorted((key, value) for key, value in options.items() if key not in _PLACES)
        digest = hashlib.sha256(repr((kind, said, labels.task, group_column)).encode())
        if unlabelled:
            digest.update(b"without labels")
        for split, file in self._files.items():
            with file.path.open("rb") as opened:
                digest.update(f"{split} {self._names[split]} ".encode())
                digest.update(hashlib.file_digest(opened, hashlib.sha256).digest())
        digest.update(hash_files([p for r in self._rows.values() for p in r.paths if p]).encode())
        self.fingerprint = digest.hexdigest()

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(id, text, pair of texts or path, y)`; what is bad has empty texts."""
        labels, kept = self._labels[name], self._rows[name]
        chosen = np.arange(len(labels)) if rows is None else np.asarray(rows)
        if self.info.inputs == IMAGE:
            ids = tf.constant(self._ids(name, chosen), tf.string, [len(chosen)])
            paths = [os.fsencode(kept.paths[row]) for row in chosen]
            return tf.data.Dataset.from_tensor_slices(
                (ids, tf.constant(paths, tf.string, [len(chosen)]), labels[chosen])
            )

        def blocks() -> Iterator[Block]:
            texts = self._texts(name, chosen)
            for start in range(0, len(chosen), _BLOCK):
                at = chosen[start : start + _BLOCK]
                block = list(itertools.islice(texts, len(at)))
                if len(block) < len(at):
                    raise ValueError(f"{self._name(name)} is shorter than it was when opened")
                inputs = np.array(block, object).reshape(len(at), *self.info.shape)
                yield np.array(self._ids(name, at), object), inputs, labels[at]

        return from_blocks(blocks, tf.TensorSpec(self.info.shape, tf.string), labels, len(chosen))

    def _name(self, split: str) -> str:
        return self._names.get(split, self._names["train"])

    def _ids(self, split: str, rows: np.ndarray) -> list[bytes]:
        lines, file = self._rows[split].lines, os.fsencode(self._name(split))
        return [b"%s:%d" % (file, lines[row]) for row in rows]

    def _texts(self, split: str, chosen: np.ndarray) -> Iterator[list[bytes]]:
        rows, wanted = self._rows[split], iter(chosen.tolist())
        row = next(wanted, None)
        for record in self._files.get(split, self._files["train"]):
            if row is None:
                return
            if record.line == rows.lines[row]:
                cells = {} if row in rows.bad else record.cells
                yield [
                    " ".join(cells[column] for column in part if cells).encode()
                    for part in self._roles.parts
                ]
                row = next(wanted, None)

    def decode(self, raw: tf.Tensor) -> tf.Tensor:
        """Decodes an image file; texts stay as they are."""
        return decode_image_file(raw, self.info.shape) if self.info.inputs == IMAGE else raw

    def labels(self, name: str) -> np.ndarray:
        """Returns `y` of a split."""
        return self._labels[name]

    def groups(self, name: str) -> np.ndarray | None:
        """Returns a number for each value of the group column, the same in every split."""
        return np.array(self._rows[name].groups, np.int64) if self._roles.group else None

    def where(self, name: str, row: int) -> str:
        """Names the file and line."""
        return f"{self._name(name)} line {self._rows[name].lines[row]}"


@dataclass
class _Rows:
    """One split: what is kept of each row."""

    lines: array = field(default_factory=lambda: array("q"))
    codes: array = field(default_factory=lambda: array("q"))  # Of the label; -1 for none.
    groups: array = field(default_factory=lambda: array("q"))
    paths: list[str] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)


class _Scan:
    """Goes over the records once, and keeps what is small."""

    def __init__(self, roles: Roles):
        self.rows: dict[str, _Rows] = {}
        self.lost: list[BadExample] = []
        self.splits: dict[str, int] = {}  # Values of the split column, of the group column,
        self.groups: dict[str, int] = {}  # and labels: each with a number of its own.
        self.labels: dict[tuple[Any, ...], int] = {}
        self._roles = roles

    def add(self, record: Record, split: str, file: str) -> None:
        roles, cells = self._roles, record.cells
        reason = record.reason or _complaint(cells, roles)
        if roles.split:
            given = _cell_text(cells.get(roles.split))
            self.splits.setdefault(given[:40], len(self.splits))
            split = split_named(given) or ""
            if not split:
                said = f"has {given[:40]!r} for its split, not train, validation or test"
                self.lost.append(BadExample(f"{file} line {record.line}", record.reason or said))
                return
        rows = self.rows.setdefault(split, _Rows())
        if reason:
            rows.bad[len(rows.lines)] = reason
        rows.lines.append(record.line)
        label = tuple(_plain(cells.get(column)) for column in roles.labels)
        rows.codes.append(-1 if reason else self.labels.setdefault(label, len(self.labels)))
        if roles.group:
            value = _cell_text(cells.get(roles.group))
            rows.groups.append(-1 if reason else self.groups.setdefault(value, len(self.groups)))
        if roles.inputs == IMAGE:
            rows.paths.append("" if reason else cells[roles.columns[0]].strip())


def _complaint(cells: Mapping[str, Any], roles: Roles) -> str:
    """Says what is wrong with a record; empty if nothing is."""
    for column in roles.used:
        if cells.get(column) is None:
            return f"has nothing for {column!r}"
    for column in (*roles.columns, *roles.pair):
        if not isinstance(cells[column], str):
            return f"has no string for {column!r}"
        if not encodable(cells[column]):
            return "is not UTF-8"
    for part in roles.parts:
        if not any(cells[column].strip() for column in part):
            return f"has an empty {';'.join(part)!r}"
    for column in roles.labels:
        label = _plain(cells[column])
        if label is None:
            return "has an object for its label"
        if label == "" and not roles.separator:
            return f"has an empty {column!r}"
    empty = roles.group and not _cell_text(cells[roles.group])
    return f"has an empty {roles.group!r}" if empty else ""


def _plain(value: Any) -> Any:
    """Returns a label as a string, or a tuple of them for a list; `None` for anything else."""
    if isinstance(value, str):
        return value.strip() if encodable(value) else None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        parts = tuple(_plain(part) for part in value)
        return None if any(not isinstance(part, str) or not part for part in parts) else parts
    return None


def _cell_text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _find_images(splits: Mapping[str, _Rows], root: Path) -> list[Header | str]:
    """Completes the paths of images, and adds those that cannot be used to the bad rows."""
    headers = []
    for rows in splits.values():
        rows.paths = [file and os.path.normpath(root / file) for file in rows.paths]
        at = [row for row, file in enumerate(rows.paths) if file]
        found = read_headers([rows.paths[row] for row in at])
        for row, header in zip(at, found, strict=True):
            if isinstance(header, str):
                rows.bad[row] = f"names the image {rows.paths[row]}, which {header}"
        headers += found
    return headers


def _labels(scan: _Scan, roles: Roles) -> Labels:
    codes = {split: np.array(rows.codes, np.int64) for split, rows in scan.rows.items()}
    good = np.ones(len(codes["train"]), bool)
    good[list(scan.rows["train"].bad)] = False
    return cell_labels(
        list(scan.labels),
        codes,
        np.unique(codes["train"][good]).tolist(),
        roles.labels,
        task=roles.task,
        named=roles.named,
        separator=roles.separator,
    )


def _none(scan: _Scan, task: Task) -> Labels:
    y = {split: no_labels(task, len(rows.lines)) for split, rows in scan.rows.items()}
    return Labels(task, y, {split: {} for split in y})


def _renamed(task: Task, names: tuple[str, ...], name: str) -> Task:
    if names and len(names) != task.units:
        raise UserError(
            f"names= of {name} must name the {task.units} classes, and has {len(names)} names",
            f"Name {', '.join(map(repr, task.names[:20]))}, in this order.",
        )
    return replace(task, names=names or task.names)


def _no_train(name: str, scan: _Scan, column: str) -> UserError:
    found = ", ".join(map(repr, list(scan.splits)[:5])) or "no rows"
    more = " and others" if len(scan.splits) > 5 else ""
    return UserError(
        f"{name} must have rows of split 'train', and has none",
        f"Column {column!r} has {found}{more}; understood are {', '.join(SPLIT_NAMES)}."
        if column
        else "Check the file.",
    )


def _open_files(
    kind: str, path: Path, options: Mapping[str, str], name: str
) -> dict[str, RecordFile]:
    others = [split for split in ("validation", "test") if split in options]
    if "split" in options and others:
        raise UserError(
            f"{name} has its splits in a column or in files, and both are given",
            "Give split=, or validation= and test=.",
        )
    paths = {"train": path} | {split: Path(options[split]).expanduser() for split in others}
    columns, delimiter = listed(options.get("columns", "")), options.get("delimiter", "")
    return {split: RecordFile(kind, file, delimiter, columns) for split, file in paths.items()}


def _short_names(files: Mapping[str, RecordFile], name: str) -> dict[str, str]:
    """Returns the path of the file of each split inside the folder that they have in common."""
    paths = {split: os.path.abspath(file.path) for split, file in files.items()}  # noqa: PTH100
    if len(set(paths.values())) < len(files):
        raise UserError(f"The splits of {name} must be different files", "Check the paths.")
    folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()])  # noqa: PTH120
    return {split: Path(path).relative_to(folder).as_posix() for split, path in paths.items()}


def _option_text(spec: Spec, key: str) -> str:
    value = spec.options[key]
    if isinstance(value, bool) or value is None:
        raise UserError(
            f"{key}= of {spec.name!r} must be a name, not {value}",
            f"Put it in quotes if that is its name: {key}='{value}'.",
        )
    return str(value)
