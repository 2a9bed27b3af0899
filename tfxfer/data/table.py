"""Tables in files: CSV, TSV and JSON lines, with texts or paths of images and their labels."""

import csv
import hashlib
import itertools
import json
import math
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.data.base import IMAGE, TEXT, BadExample, DataInfo, DataSource
from tfxfer.data.images import (
    Header,
    common_shape,
    decode_image_file,
    hash_files,
    read_headers,
    split_named,
)
from tfxfer.errors import UserError
from tfxfer.spec import Spec
from tfxfer.task import KINDS, MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

PREFIXES = ("csv:", "tsv:", "jsonl:")

_OPTIONS = (
    "text",
    "image",
    "root",
    "label",
    "labels",
    "separator",
    "target",
    "targets",
    "columns",
    "split",
    "validation",
    "test",
)
_PLACES = ("root", "validation", "test")  # These say where data is, not what it is.
_USUAL = {
    "image": ("image", "image_path", "path", "file", "filename", "filepath"),
    "text": ("text", "sentence", "review", "message", "content", "document"),
    "label": ("label", "class", "category", "target", "y"),
}
_TRUTH = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0}
_LONGEST = 2**27  # Characters of one cell; Python's own limit of 2**17 is less than a long text.
_BLOCK = 256  # Texts handed to TensorFlow at a time.


def open_table(spec: Spec, *, task: str = "", group_column: str = "") -> "TableSource":
    """Opens `csv:PATH`, `tsv:PATH` or `jsonl:PATH`.

    Files are UTF-8. In CSV files cells may stand in double quotes, and then hold commas and line
    breaks. In TSV files quotes are characters like others: texts have unbalanced ones. Each line
    of a JSONL file is an object. Empty lines are passed over.

    Args:
        spec: The file, and these options, all of which may be left out:
            `text=COLUMN` or `image=COLUMN`: the inputs; several texts, `a;b`, are joined. Paths
            of images are relative to `root=FOLDER`, or else to the folder of the table.
            `label=COLUMN`: the class; with `separator=|` the classes between such, and in JSON a
            list of them. `labels=a;b;c`: columns of 0 and 1, one a class. `target=COLUMN`,
            `targets=a;b`: numbers. Columns that are not named are found by usual names.
            `columns=a;b;c`: the names of all columns, of a file that does not begin with them.
            `split=COLUMN`: says `train`, `validation` or `test`, or what else they are called.
            `validation=FILE`, `test=FILE`: other files of the same form.
        task: `single_label`, `multi_label` or `regression`. If empty, what the options say; a
            `label` of numbers is a class if all are whole, else a target.
        group_column: A column whose value keeps examples together.

    Returns:
        The table. `bad` lists the lines that cannot be used, and missing and unreadable images.

    Raises:
        UserError: If a file or column is missing, or there is nothing to learn from.
    """
    spec.only(_OPTIONS)
    kind, _, path = spec.name.partition(":")
    options = {key: _option_text(spec, key) for key in spec.options}
    return TableSource(kind, Path(path).expanduser(), options, task, group_column)


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
    """

    def __init__(
        self, kind: str, path: Path, options: Mapping[str, str], task: str, group_column: str
    ):
        name = f"{kind}:{path.name}"
        if "split" in options and ("validation" in options or "test" in options):
            raise UserError(
                f"{name} has its splits in a column or in files, and both are given",
                "Give split=, or validation= and test=.",
            )
        self._files = {"train": path}
        for split in ("validation", "test"):
            if split in options:
                self._files[split] = Path(options[split]).expanduser()
        for file in self._files.values():
            _check_file(file, kind)
        self._names = _short_names(self._files, name)
        names = [column for column in options.get("columns", "").split(";") if column]
        self._open = lambda file: _records(file, kind, names)
        columns = {file: _columns(file, kind, names) for file in self._files.values()}
        self._roles = _find_roles(columns[path], options, task, group_column, name)
        for file, found in columns.items():
            for column in self._roles.used():
                _check_column(column, found, file)
        scan = _Scan(self._roles)
        for split, file in self._files.items():
            for record in self._open(file):
                scan.add(record, split, self._names[file])
        self._rows = scan.rows
        if "train" not in self._rows:
            raise UserError(
                f"{name} must have rows of split 'train', and has none",
                f"The splits found are {', '.join(map(repr, self._rows)) or 'none'}.",
            )
        root = Path(options.get("root", path.parent)).expanduser().absolute()
        headers: list[Header | str] = []
        for rows in self._rows.values():
            rows.paths = [file and os.path.normpath(root / file) for file in rows.paths]
            found = read_headers([file for file in rows.paths if file])
            at = [row for row, file in enumerate(rows.paths) if file]
            for row, header in zip(at, found, strict=True):
                if isinstance(header, str):
                    rows.bad.setdefault(row, f"names the image {rows.paths[row]}, which {header}")
            headers += found
        task_found, self._labels = _make_labels(self._rows, self._roles, name)
        image = self._roles.inputs == IMAGE
        self.bad = (
            *scan.lost,
            *(
                BadExample(self.where(split, row), rows.bad[row], split, row)
                for split, rows in self._rows.items()
                for row in sorted(rows.bad)
            ),
        )
        self.info = DataInfo(
            name=name,
            task=task_found,
            inputs=self._roles.inputs,
            shape=common_shape(headers) if image else (),
            examples={split: len(rows.lines) for split, rows in self._rows.items()},
        )
        count = sum(self.info.examples.values())
        size = sum(file.stat().st_size for file in self._files.values())
        self.raw_bytes = 200 if image else max(1, size // count)
        said = sorted((key, value) for key, value in options.items() if key not in _PLACES)
        digest = hashlib.sha256(repr((kind, said, task_found, group_column)).encode())
        for split, file in self._files.items():
            with file.open("rb") as opened:
                digest.update(f"{split} {self._names[file]} ".encode())
                digest.update(hashlib.file_digest(opened, hashlib.sha256).digest())
        if image:
            paths = [p for rows in self._rows.values() for p in rows.paths if p]
            digest.update(hash_files(paths).encode())
        self.fingerprint = digest.hexdigest()

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(id, text or path, y)`; what is bad has an empty text."""
        labels, kept = self._labels[name], self._rows[name]
        chosen = np.arange(len(labels)) if rows is None else np.asarray(rows)

        def texts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            found = self._texts(name, chosen)
            for start in range(0, len(chosen), _BLOCK):
                at = chosen[start : start + _BLOCK]
                block = list(itertools.islice(found, len(at)))
                if len(block) < len(at):
                    raise ValueError(f"{self._file(name)} is shorter than it was when opened")
                yield np.array(self._ids(name, at), object), np.array(block, object), labels[at]

        def paths() -> tuple[tf.Tensor, tf.Tensor, np.ndarray]:
            found = [os.fsencode(kept.paths[row]) for row in chosen]
            shape = [len(chosen)]
            ids = self._ids(name, chosen)
            return (
                tf.constant(ids, tf.string, shape),
                tf.constant(found, tf.string, shape),
                labels[chosen],
            )

        if self.info.inputs == IMAGE:
            return tf.data.Dataset.from_tensor_slices(paths())
        signature = (
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None, *labels.shape[1:]], labels.dtype),
        )
        return (
            tf.data.Dataset.from_generator(texts, output_signature=signature)
            .unbatch()
            .apply(tf.data.experimental.assert_cardinality(len(chosen)))
        )

    def _file(self, split: str) -> Path:
        return self._files.get(split, self._files["train"])

    def _ids(self, split: str, rows: np.ndarray) -> list[bytes]:
        lines, file = self._rows[split].lines, os.fsencode(self._names[self._file(split)])
        return [b"%s:%d" % (file, lines[row]) for row in rows]

    def _texts(self, split: str, chosen: np.ndarray) -> Iterator[bytes]:
        lines, bad = self._rows[split].lines, self._rows[split].bad
        wanted = iter(chosen.tolist())
        row = next(wanted, None)
        for record in self._open(self._file(split)):
            if row is None:
                return
            if record.line == lines[row]:
                yield b"" if row in bad else self._roles.text_of(record.cells).encode()
                row = next(wanted, None)

    def decode(self, raw: tf.Tensor) -> tf.Tensor:
        """Decodes an image file; a text stays as it is."""
        return decode_image_file(raw, self.info.shape) if self.info.inputs == IMAGE else raw

    def labels(self, name: str) -> np.ndarray:
        """Returns `y` of a split."""
        return self._labels[name]

    def groups(self, name: str) -> np.ndarray | None:
        """Returns a number for each value of the group column, the same in every split."""
        return np.array(self._rows[name].groups, np.int64) if self._roles.group else None

    def where(self, name: str, row: int) -> str:
        """Names the file and line."""
        return f"{self._names[self._file(name)]} line {self._rows[name].lines[row]}"


@dataclass(frozen=True)
class _Record:
    """A line, or several with line breaks in quotes.

    Attributes:
        line: Number of its first line, from 1.
        cells: By column; empty if it cannot be read.
        reason: Why it cannot.
    """

    line: int
    cells: Mapping[str, Any]
    reason: str = ""


@dataclass(frozen=True)
class _Roles:
    """Which columns are what."""

    inputs: str
    columns: tuple[str, ...]  # Of the input.
    labels: tuple[str, ...]
    named: bool  # Whether a label is the name of a class, or several, not a value for each.
    kind: str  # Of the task; empty if the labels say it.
    separator: str
    split: str
    group: str

    def used(self) -> list[str]:
        more = (self.split, self.group)
        return [*self.columns, *self.labels, *(column for column in more if column)]

    def text_of(self, cells: Mapping[str, Any]) -> str:
        return " ".join(cells[column] for column in self.columns)


@dataclass
class _Rows:
    """One split: what is kept of each row."""

    lines: array = field(default_factory=lambda: array("q"))
    codes: array = field(default_factory=lambda: array("q"))
    groups: array = field(default_factory=lambda: array("q"))
    paths: list[str] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    # Distinct labels, by which `codes` refers to them: the same dict in every split.
    distinct: dict[Any, int] = field(default_factory=dict)


class _Scan:
    """Goes over the records once, and keeps what is small."""

    def __init__(self, roles: _Roles):
        self.rows: dict[str, _Rows] = {}
        self.lost: list[BadExample] = []
        self._roles = roles
        self._labels: dict[Any, int] = {}
        self._groups: dict[str, int] = {}

    def add(self, record: _Record, split: str, file: str) -> None:
        roles, cells, reason = self._roles, record.cells, record.reason
        if roles.split:
            given = "" if reason else _cell_text(cells.get(roles.split))
            split = split_named(given) or ""
            if not split:
                reason = reason or (
                    f"has {given[:40]!r} for its split, not train, validation or test"
                )
                self.lost.append(BadExample(f"{file} line {record.line}", reason))
                return
        rows = self.rows.setdefault(split, _Rows(distinct=self._labels))
        path, code, group = "", -1, -1
        if not reason:
            missing = [column for column in roles.used() if cells.get(column) is None]
            label = tuple(_plain(cells.get(column)) for column in roles.labels)
            if missing:
                reason = f"has nothing for {missing[0]!r}"
            elif not all(isinstance(cells[column], str) for column in roles.columns):
                reason = f"has no string for {roles.columns[0]!r}"
            elif not _encodable("".join(cells[column] for column in roles.columns)):
                reason = "is not UTF-8"
            elif None in label:
                reason = "has an object for its label"
            elif "" in label and not roles.separator:
                reason = f"has an empty {roles.labels[label.index('')]!r}"
            elif roles.group and not _cell_text(cells[roles.group]):
                reason = f"has an empty {roles.group!r}"
            elif roles.inputs == IMAGE and not cells[roles.columns[0]].strip():
                reason = f"has an empty {roles.columns[0]!r}"
            else:
                code = self._labels.setdefault(label, len(self._labels))
                if roles.inputs == IMAGE:
                    path = cells[roles.columns[0]].strip()
                if roles.group:
                    value = _cell_text(cells[roles.group])
                    group = self._groups.setdefault(value, len(self._groups))
        if reason:
            rows.bad[len(rows.lines)] = reason
        rows.lines.append(record.line)
        rows.codes.append(code)
        if roles.group:
            rows.groups.append(group)
        if roles.inputs == IMAGE:
            rows.paths.append(path)


def _option_text(spec: Spec, key: str) -> str:
    value = spec.options[key]
    if isinstance(value, bool) or value is None:
        raise UserError(
            f"{key}= of {spec.name!r} must be a name, not {value}",
            f"Put it in quotes if that is its name: {key}='{value}'.",
        )
    return str(value)


def _short_names(files: Mapping[str, Path], name: str) -> dict[Path, str]:
    """Returns the path of each file inside the folder that they have in common."""
    paths = {file: os.path.abspath(file) for file in files.values()}  # noqa: PTH100
    if len(set(paths.values())) < len(files):
        raise UserError(f"The splits of {name} must be different files", "Check the paths.")
    folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()])  # noqa: PTH120
    return {file: Path(path).relative_to(folder).as_posix() for file, path in paths.items()}


def _check_file(file: Path, kind: str) -> None:
    try:
        size = file.stat().st_size if file.is_file() else -1
    except OSError:
        size = -1
    if size < 0:
        raise UserError(f"'{kind}:{file}' must name a file, and there is none", "Check the path.")
    if not size:
        raise UserError(f"'{kind}:{file}' must hold rows, and is empty", "Check the file.")


def _records(file: Path, kind: str, names: Sequence[str]) -> Iterator[_Record]:
    """Reads a file from its beginning, leaving out empty lines and the names of the columns."""
    if kind == "jsonl":
        yield from _json_records(file)
        return
    lines = _csv_lines(file) if kind == "csv" else _tsv_lines(file)
    if not names:
        first = next(lines, None)
        names = _header(first[1]) if first and not isinstance(first[1], str) else ()
    for line, cells in lines:
        if isinstance(cells, str):
            yield _Record(line, {}, cells)
        elif len(cells) != len(names):
            yield _Record(line, {}, f"has {len(cells)} cells, and there are {len(names)} columns")
        elif not all(map(_encodable, cells)):
            yield _Record(line, {}, "is not UTF-8")
        else:
            yield _Record(line, dict(zip(names, cells, strict=True)))


def _header(cells: Sequence[str]) -> list[str]:
    return [cell.strip() for cell in cells]


# Bytes that are not UTF-8 are kept as lone surrogates, so that the line that has them can be named.
def _csv_lines(file: Path) -> Iterator[tuple[int, list[str] | str]]:
    csv.field_size_limit(_LONGEST)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        reader = csv.reader(opened, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, f"is not CSV: {error}"
                continue
            if cells:
                yield line, cells


def _tsv_lines(file: Path) -> Iterator[tuple[int, list[str] | str]]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as opened:
        for line, text in enumerate(opened, 1):
            if text := text.rstrip("\r\n"):
                yield line, text.split("\t")


def _json_records(file: Path) -> Iterator[_Record]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as opened:
        for line, text in enumerate(opened, 1):
            if not text.strip():
                continue
            if not _encodable(text):
                yield _Record(line, {}, "is not UTF-8")
                continue
            try:
                cells = json.loads(text)
            except (ValueError, RecursionError) as error:
                yield _Record(line, {}, f"is not JSON: {error}")
                continue
            if isinstance(cells, dict):
                yield _Record(line, cells)
            else:
                yield _Record(line, {}, "is no JSON object")


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _columns(file: Path, kind: str, names: Sequence[str]) -> list[str]:
    """Finds the columns of a file: those given, those of its first line, or of its first object."""
    if kind == "jsonl":
        if names:
            raise UserError(
                f"{file.name} names its columns in every line, and columns= is given too",
                "Leave columns= out.",
            )
        found = next((list(record.cells) for record in _json_records(file) if record.cells), None)
        if found is None:
            raise UserError(f"{file} must hold a JSON object a line, and has none", "Check it.")
        return found
    _, first = next(_csv_lines(file) if kind == "csv" else _tsv_lines(file), (0, "is empty"))
    if isinstance(first, str):
        raise UserError(f"{file} must begin with a row of cells, and {first}", "Check the file.")
    if not names and not all(map(_encodable, first)):
        raise UserError(f"{file} must be UTF-8, and its first line is not", "Save it as UTF-8.")
    if names and len(first) != len(names):
        raise UserError(
            f"{file.name} must have the {len(names)} columns of columns=, "
            f"and its first line has {len(first)} cells",
            f"The cells are {_listed(first)}.",
        )
    return list(names) or _header(first)


def _check_column(column: str, columns: Sequence[str], file: Path) -> None:
    if columns.count(column) != 1:
        found = "twice or more" if column in columns else "not"
        raise UserError(
            f"{file.name} must have a column {column!r} once, and has it {found}",
            f"Its columns are {_listed(columns)}; name them by columns='a;b' if its first line "
            "is not their names.",
        )


def _listed(columns: Sequence[str]) -> str:
    shown = [repr(c if len(c) <= 40 else f"{c[:37]}...") for c in columns[:20]]
    return ", ".join(shown) + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")


def _find_roles(
    columns: Sequence[str], options: Mapping[str, str], task: str, group: str, name: str
) -> _Roles:
    if task and task not in KINDS:
        raise UserError(f"The task must be one of {', '.join(KINDS)}, not {task!r}", "Choose one.")
    for one, other in (("text", "image"), ("separator", "labels")):
        if one in options and other in options:
            raise UserError(f"{name} takes {one}= or {other}=, not both", "Leave one out.")
    said = [key for key in ("label", "labels", "target", "targets") if key in options]
    if len(said) > 1:
        raise UserError(f"{name} takes {said[0]}= or {said[1]}=, not both", "Leave one out.")
    key = said[0] if said else "label"
    kind = {"labels": MULTI_LABEL, "target": REGRESSION, "targets": REGRESSION}.get(key, "")
    if "separator" in options:
        if key != "label" or not options["separator"]:
            raise UserError(f"{name} needs label= and a character for separator=", "Correct it.")
        kind = MULTI_LABEL
    if task and kind and task != kind:
        cause = "separator" if "separator" in options else key
        raise UserError(
            f"{cause}= of {name} says {kind}, and the task is {task}",
            "Give label=COLUMN for one class, labels= for several, target= for numbers.",
        )
    taken = {part for k in (*said, "split") for part in options.get(k, "").split(";")} | {group}
    inputs, source = (TEXT, "text") if "image" not in options else (IMAGE, "image")
    if "text" not in options and "image" not in options:
        inputs, source = next(
            (
                (kind_, column)
                for kind_ in (TEXT, IMAGE)
                for column in _usual(columns, kind_, taken)
            ),
            (TEXT, ""),
        )
        if not source:
            raise UserError(
                f"{name} must have a column of texts or of paths of images with a usual name, "
                f"and its columns are {_listed(columns)}",
                "Say text=COLUMN or image=COLUMN; name the columns by columns='a;b' if the first "
                "line of the file is not their names.",
            )
        taken_inputs = (source,)
    else:
        taken_inputs = tuple(options[source].split(";"))
    if inputs == IMAGE and len(taken_inputs) > 1:
        raise UserError(f"image= of {name} must be one column", "Name one.")
    if said:
        labels = tuple(part for part in options[key].split(";") if part)
    else:
        labels = tuple(_usual(columns, "label", {*taken, *taken_inputs})[:1])
        if not labels:
            raise UserError(
                f"{name} must have a column of labels with a usual name, "
                f"and its columns are {_listed(columns)}",
                "Say label=COLUMN, labels='a;b' or target=COLUMN; name the columns by "
                "columns='a;b' if the first line of the file is not their names.",
            )
    if not labels or len(set(labels)) < len(labels) or (key in ("label", "target") and labels[1:]):
        raise UserError(
            f"{key}= of {name} must name {'a column' if key in ('label', 'target') else 'columns'}"
            f", each once, not {options[key]!r}",
            "Use labels='a;b' or targets='a;b' for several.",
        )
    return _Roles(
        inputs,
        taken_inputs,
        labels,
        key == "label",
        task or kind,
        options.get("separator", ""),
        options.get("split", ""),
        group,
    )


def _usual(columns: Sequence[str], role: str, taken: set[str]) -> list[str]:
    return [
        column
        for usual in _USUAL[role]
        for column in columns
        if column.lower() == usual and column not in taken
    ]


def _plain(value: Any) -> Any:
    """Returns a label as a string, or a tuple of them for a list; `None` for anything else."""
    if isinstance(value, str):
        return value.strip() if _encodable(value) else None
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


def _make_labels(
    splits: Mapping[str, _Rows], roles: _Roles, name: str
) -> tuple[Task, dict[str, np.ndarray]]:
    """Makes `y` of the distinct labels; rows whose label is wrong are added to `bad`."""
    distinct = list(splits["train"].distinct)
    train = splits["train"]
    good = np.ones(len(train.lines), bool)
    good[list(train.bad)] = False
    codes = np.array(train.codes, np.int64)[good]
    counts = np.bincount(codes, minlength=len(distinct))
    kind = roles.kind or _infer(distinct, counts)
    if kind == MULTI_LABEL and roles.named:
        names, parse = _name_sets(distinct, counts, roles, name)
    elif kind == MULTI_LABEL:
        names, parse = roles.labels, _truths
    elif kind == REGRESSION:
        names, parse = roles.labels, _numbers
    else:
        names, parse = _classes(distinct, counts, bool(roles.kind), name)
    values = [parse(label) for label in distinct]
    single = kind == SINGLE_LABEL
    # One row more for the code -1 of rows that have no label.
    table = np.full((len(values) + 1, len(names)), np.nan, np.float32)
    if single:
        table = np.full(len(values) + 1, -1, np.int64)
    for code, value in enumerate(values):
        if not isinstance(value, str):
            table[code] = value
    y: dict[str, np.ndarray] = {}
    for split, rows in splits.items():
        for row, code in enumerate(rows.codes):
            if code >= 0 and isinstance(reason := values[code], str):
                rows.bad.setdefault(row, reason)
        y[split] = table[np.array(rows.codes, np.int64)]
    return Task(kind, tuple(names)), y


def _infer(distinct: Sequence[Any], counts: np.ndarray) -> str:
    if any(isinstance(label[0], tuple) for label in distinct):
        return MULTI_LABEL
    whole = [_number(label[0]) for label in distinct]
    fractions = any(
        value is not None and math.isfinite(value) and value != round(value) for value in whole
    )
    return REGRESSION if fractions and _mostly_numbers(whole, counts) else SINGLE_LABEL


def _mostly_numbers(numbers: Sequence[float | None], counts: np.ndarray) -> bool:
    known = np.array([number is not None for number in numbers], bool)
    return 2 * counts[known].sum() > counts.sum()


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _classes(
    distinct: Sequence[Any], counts: np.ndarray, forced: bool, name: str
) -> tuple[tuple[str, ...], Callable[[Any], Any]]:
    numbers = [_number(label[0]) for label in distinct]
    numeric = _mostly_numbers(numbers, counts) and not forced
    wrong: dict[Any, str] = {}
    for (label, *_), number in zip(distinct, numbers, strict=True):
        if isinstance(label, tuple):
            wrong[label] = f"has the list {list(label)} for its one label"
        elif numeric and (number is None or not math.isfinite(number)):
            wrong[label] = (
                f"has the label {label[:40]!r}, which is no number as others are; "
                "the task single_label takes all for names"
            )
    trained = [
        label
        for (label, *_), count in zip(distinct, counts, strict=True)
        if count and label not in wrong
    ]
    if numeric:
        trained.sort(key=lambda label: (float(label), label))
    else:
        trained.sort()
    if len(trained) < 2:
        raise UserError(
            f"{name} must have usable rows of at least two classes for training, and has "
            f"{', '.join(map(repr, trained)) or 'none'}",
            "Add rows of another class, or name another column by label=.",
        )
    index = {label: position for position, label in enumerate(trained)}

    def parse(label: Any) -> int | str:
        if label[0] in wrong:
            return wrong[label[0]]
        lacking = f"has the class {label[0][:40]!r}, which has no row in train"
        return index.get(label[0], lacking)

    return tuple(trained), parse


def _name_sets(
    distinct: Sequence[Any], counts: np.ndarray, roles: _Roles, name: str
) -> tuple[tuple[str, ...], Callable[[Any], Any]]:
    def parts(label: Any) -> tuple[str, ...]:
        if isinstance(label[0], tuple):
            return label[0]
        cells = label[0].split(roles.separator) if roles.separator else [label[0]]
        return tuple(cell.strip() for cell in cells if cell.strip())

    names = tuple(
        sorted(
            {
                part
                for label, count in zip(distinct, counts, strict=True)
                if count
                for part in parts(label)
            }
        )
    )
    if not names:
        raise UserError(
            f"{name} must have usable rows with a class for training, and has none",
            f"Look into column {roles.labels[0]!r}.",
        )
    index = {label: position for position, label in enumerate(names)}

    def parse(label: Any) -> np.ndarray | str:
        value = np.zeros(len(names), np.float32)
        for part in parts(label):
            if part not in index:
                return f"has the class {part[:40]!r}, which has no row in train"
            value[index[part]] = 1
        return value

    return names, parse


def _truths(label: Any) -> list[float] | str:
    value = [
        _TRUTH.get(part.lower(), math.nan) if isinstance(part, str) else math.nan for part in label
    ]
    wrong = [part for part, number in zip(label, value, strict=True) if math.isnan(number)]
    return f"has {str(wrong[0])[:40]!r} for a label, which is not 0 or 1" if wrong else value


def _numbers(label: Any) -> np.ndarray | str:
    parsed = [_number(part) for part in label]
    with np.errstate(over="ignore"):
        value = np.array([math.nan if n is None else n for n in parsed]).astype(np.float32)
    wrong = [part for part, good in zip(label, np.isfinite(value), strict=True) if not good]
    return f"has {str(wrong[0])[:40]!r} for a number" if wrong else value
