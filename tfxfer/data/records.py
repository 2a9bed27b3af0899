"""CSV, TSV and JSON lines as records with line numbers, and what is wrong with some."""

import csv
import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfxfer.data.kinds import check_path
from tfxfer.errors import UserError

_LONGEST = 2**27  # Characters of one cell; Python's own limit of 2**17 is less than a long text.
_NAME_THEM = "name them by columns='a;b' if the first line of the file is not their names"


@dataclass(frozen=True)
class Record:
    """A line, or several with line breaks in quotes.

    Attributes:
        line: Number of its first line, from 1.
        cells: By column; empty if it cannot be read.
        reason: Why it cannot.
    """

    line: int
    cells: Mapping[str, Any]
    reason: str = ""


class RecordFile:
    """A file of records; iterating over it reads it from its beginning, without empty lines.

    Files are UTF-8. In CSV files cells may stand in double quotes, and then hold commas and line
    breaks. In TSV files quotes are characters like others: texts have unbalanced ones. Each line
    of a JSONL file is an object.

    Args:
        kind: `csv`, `tsv` or `jsonl`.
        path: Of the file.
        delimiter: Of the cells of a CSV file; a comma if empty.
        names: Of all columns, if the file does not begin with them.

    Attributes:
        path: Of the file.
        columns: Names of its columns, in order; of a JSONL file those of its first object.

    Raises:
        UserError: If there is no such file, or no columns in it, or a quote in it does not end.
    """

    def __init__(self, kind: str, path: Path, delimiter: str = "", names: Sequence[str] = ()):
        check_path(kind, path)
        if not path.stat().st_size:
            raise UserError(f"'{kind}:{path}' must hold rows, and is empty", "Check the file.")
        if delimiter and (kind != "csv" or len(delimiter) > 1 or delimiter in '"\r\n'):
            raise UserError(
                f"delimiter= must be one character between the cells of a csv: file, and is "
                f"{delimiter!r} for {kind}:{path.name}",
                "Write delimiter=';'; cells between tabs are those of tsv:.",
            )
        self.path = path
        self._kind, self._delimiter, self._named = kind, delimiter or ",", bool(names)
        self.columns = self._json_columns(names) if kind == "jsonl" else self._columns(names)

    def __iter__(self) -> Iterator[Record]:
        if self._kind == "jsonl":
            yield from self._objects()
            return
        for line, cells in itertools.islice(self._lines(), 0 if self._named else 1, None):
            reason = cells if isinstance(cells, str) else ""
            if not reason and len(cells) != len(self.columns):
                reason = f"has {len(cells)} cells, and there are {len(self.columns)} columns"
            elif not reason and not encodable("".join(cells)):
                reason = "is not UTF-8"
            found = {} if reason else dict(zip(self.columns, cells, strict=True))
            yield Record(line, found, reason)

    def check_columns(self, wanted: Sequence[str]) -> None:
        """Checks that the file has columns, each once.

        Raises:
            UserError: If not.
        """
        for column in wanted:
            if column not in self.columns:
                raise UserError(f"{self.path.name} has no column {column!r}", self.advice(column))
            if self.columns.count(column) > 1:
                raise UserError(f"{self.path.name} has the column {column!r} twice", self.advice())

    def advice(self, wanted: str = "") -> str:
        """Says what to do where a column is missing."""
        spelled = {column.lower(): column for column in self.columns}
        close = difflib.get_close_matches(wanted.lower(), spelled, 1)
        meant = f"Did you mean {spelled[close[0]]!r}? " if close else ""
        listing = f"{meant}Its columns are {_listed(self.columns)}; {_NAME_THEM}."
        return self._other_form(self.columns) or listing

    def _other_form(self, first: Sequence[str]) -> str:
        """Guesses of a first line that is one cell how its cells are divided."""
        forms = {mark: f"delimiter='{mark}'" for mark in ";|"}
        forms |= {"\t": f"tsv:{self.path}", ",": f"csv:{self.path}"}
        marks = [mark for mark in forms if len(first) == 1 and mark in first[0]]
        if not marks or self._kind == "jsonl":
            return ""
        return f"Its first line is one cell with {marks[0]!r} in it: say {forms[marks[0]]}."

    def _json_columns(self, names: Sequence[str]) -> list[str]:
        if names:
            raise UserError(
                f"{self.path.name} names its columns in every line, and columns= is given too",
                "Leave columns= out.",
            )
        found = next((list(record.cells) for record in self._objects() if record.cells), None)
        if found is None:
            raise UserError(
                f"{self.path} must hold a JSON object a line, and has none", "Check it."
            )
        return found

    def _columns(self, names: Sequence[str]) -> list[str]:
        _, first = next(self._lines(), (0, "is empty"))
        if isinstance(first, str):
            raise UserError(
                f"{self.path} must begin with a row of cells, and {first}", "Check the file."
            )
        if not names and not encodable("".join(first)):
            raise UserError(
                f"{self.path} must be UTF-8, and its first line is not", "Save it as UTF-8."
            )
        if names and len(first) != len(names):
            raise UserError(
                f"{self.path.name} must have the {len(names)} columns of columns=, "
                f"and its first line has {len(first)} cells",
                self._other_form(first)
                or f"Name all columns, in order; the cells are {_listed(first)}.",
            )
        return list(names) or [cell.strip() for cell in first]

    def _lines(self) -> Iterator[tuple[int, list[str] | str]]:
        """Gives the first line of each row, and its cells or what is wrong with it."""
        # Bytes that are not UTF-8 become lone surrogates, so that their line can be named.
        newline = "" if self._kind == "csv" else "\n"
        with self.path.open(
            encoding="utf-8-sig", errors="surrogateescape", newline=newline
        ) as file:
            if self._kind == "csv":
                yield from self._csv_lines(file)
                return
            for line, text in enumerate(file, 1):
                if text := text.rstrip("\r\n"):
                    yield line, text.split("\t")

    def _csv_lines(self, file: Iterator[str]) -> Iterator[tuple[int, list[str] | str]]:
        csv.field_size_limit(_LONGEST)
        reader = csv.reader(file, delimiter=self._delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                if cells := next(reader):
                    yield line, cells
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):
                    # All rows after it are in that cell, which is more than one bad row.
                    raise UserError(
                        f"{self.path.name}: a quote opened on line {line} is never closed",
                        "Close it, and write a quote inside quotes twice.",
                    ) from error
                last = f" up to line {reader.line_num}" if reader.line_num > line else ""
                yield line, f"is not CSV{last}: {error}"

    def _objects(self) -> Iterator[Record]:
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield _json_record(line, text)


def _json_record(line: int, text: str) -> Record:
    if not encodable(text):
        return Record(line, {}, "is not UTF-8")
    try:
        cells = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Record(line, {}, f"is not JSON: {error}")
    return Record(line, cells) if isinstance(cells, dict) else Record(line, {}, "is no JSON object")


def encodable(text: str) -> bool:
    """Says whether a text can be written as UTF-8."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _listed(columns: Sequence[str]) -> str:
    shown = [repr(c if len(c) <= 40 else f"{c[:37]}...") for c in columns[:20]]
    return ", ".join(shown) + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")
