"""Features as files: with ids and labels for other programs, and for TensorBoard's projector."""

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tfxfer.config import FORMATS
from tfxfer.data.parts import Part
from tfxfer.errors import UserError
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

NPZ, PARQUET = FORMATS

_FILE = "embeddings"
_PROJECTOR = "projector"
_WRITTEN = {_PROJECTOR, *(f"{_FILE}.{each}" for each in FORMATS)}
_CHUNK_BYTES = 16 * 2**20
_SHOWN = 100_000  # TensorBoard asks for no more points than these.
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

_CONFIG = """\
embeddings {{
  tensor_name: "features"
  tensor_shape: {points}
  tensor_shape: {units}
  tensor_path: "tensors.bytes"
  metadata_path: "metadata.tsv"
}}
"""


def part_ids(part: Part) -> np.ndarray:
    """Reads the ids of a part of the data; inputs are not decoded.

    Args:
        part: The examples.

    Returns:
        The id of each, in order, str `[examples]`; bytes that are no UTF-8 are escaped.
    """
    batches = part.read().map(lambda example_id, raw, y: example_id).batch(1024)
    found = [
        example_id.decode("utf-8", "backslashreplace")
        for batch in batches.as_numpy_iterator()
        for example_id in batch
    ]
    return np.array(found, str)


def write_embeddings(
    folder: str | os.PathLike,
    features: np.ndarray,
    ids: np.ndarray,
    y: np.ndarray,
    task: Task,
    *,
    format: str = NPZ,
) -> None:
    r"""Writes features with ids and labels, a few at a time.

    The folder gets one of

    *   `embeddings.npz`: `features`, float32 `[n, d]`; `ids`, str `[n]`; `names`, str `[units]`;
        `labels`, for one class an example its name, str `[n]`, for several whether each applies,
        uint8 `[n, units]` of 0 and 1, for a regression the numbers, float32 `[n, units]`;
    *   `embeddings.parquet`: `id`, string; `label`, for one class its name, for several the list
        of the names of those that apply, for a regression a fixed-size list of float32;
        `features`, a fixed-size list of float32; `names`, a JSON list, in the schema's metadata;

    and `projector`, which `tensorboard --logdir=FOLDER/projector` shows: as many points as
    TensorBoard takes, 100,000, evenly spaced if there are more. In its `metadata.tsv`, backslashes,
    tabs and line breaks stand as `\\`, `\t`, `\n` and `\r`.

    Args:
        folder: What to write, which appears whole or not at all; one already there is replaced if
            it has nothing but what this function writes.
        features: Of each example, `[n, d]`; may be memory-mapped.
        ids: Of each example, str `[n]`.
        y: Of each example, as the task has it.
        task: What `y` is.
        format: `npz` or `parquet`.

    Raises:
        UserError: If `folder` has something else or cannot be written, or the library for Parquet
            is not installed.
        ValueError: If the arrays are not of one length of at least 1, or the format is unknown.
    """
    if format not in FORMATS:
        raise ValueError(f"Expected a format of {FORMATS}, received {format!r}.")
    if not len(features) == len(ids) == len(y) > 0:
        raise ValueError(
            "Expected as many features as ids and labels, at least 1, received "
            f"{len(features)}, {len(ids)} and {len(y)}."
        )
    ids = np.asarray(ids, str)
    write = _write_npz if format == NPZ else _write_parquet
    with _replacing(Path(folder)) as unfinished:
        write(unfinished / f"{_FILE}.{format}", features, ids, y, task)
        _write_projector(unfinished / _PROJECTOR, features, ids, y, task)


def _write_npz(file: Path, features: np.ndarray, ids: np.ndarray, y: np.ndarray, task: Task):
    # Not np.savez, which wants arrays whole, and the name of each label in memory.
    names = np.array(task.names, str)
    chunks = list(_chunks(features))
    labels = (_npz_labels(y[chunk], names, task) for chunk in chunks)
    dtype, shape = {
        SINGLE_LABEL: (names.dtype, (len(y),)),
        MULTI_LABEL: (np.dtype("u1"), y.shape),
        REGRESSION: (np.dtype("<f4"), y.shape),
    }[task.kind]
    with zipfile.ZipFile(file, "w") as archive:
        _write_array(archive, "features", np.dtype("<f4"), features.shape, _cut(features, chunks))
        _write_array(archive, "ids", ids.dtype, ids.shape, _cut(ids, chunks))
        _write_array(archive, "labels", dtype, shape, labels)
        _write_array(archive, "names", names.dtype, names.shape, [names])


def _npz_labels(y: np.ndarray, names: np.ndarray, task: Task) -> np.ndarray:
    if task.kind == SINGLE_LABEL:
        return names[y]
    return y > 0.5 if task.kind == MULTI_LABEL else y


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    chunks: Iterable[np.ndarray],
):
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for chunk in chunks:
            member.write(chunk.astype(dtype).tobytes())


def _write_parquet(file: Path, features: np.ndarray, ids: np.ndarray, y: np.ndarray, task: Task):
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError(
            "Parquet files must be written with the library pyarrow, which is not installed",
            "Install it with: pip install 'tfxfer[parquet]'; or write npz.",
        ) from error

    def numbers(rows: np.ndarray) -> pa.Array:
        flat = pa.array(np.asarray(rows, np.float32).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])

    def labels(y: np.ndarray) -> pa.Array:
        if task.kind == REGRESSION:
            return numbers(y)
        if task.kind == MULTI_LABEL:
            return pa.array([list(names[row > 0.5]) for row in y], pa.list_(pa.string()))
        return pa.array(names[y], pa.string())

    names = np.array(task.names, object)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("label", labels(y[:0]).type),
            ("features", pa.list_(pa.float32(), features.shape[1])),
        ],
        metadata={"names": json.dumps(task.names)},
    )
    with parquet.ParquetWriter(file, schema) as writer:
        for chunk in _chunks(features):
            columns = [
                pa.array(ids[chunk], pa.string()),
                labels(y[chunk]),
                numbers(features[chunk]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _write_projector(
    folder: Path, features: np.ndarray, ids: np.ndarray, y: np.ndarray, task: Task
):
    """Writes the files that the guide and the plugin of TensorBoard 2.21 describe.

    https://www.tensorflow.org/tensorboard/tensorboard_projector_plugin
    """
    folder.mkdir()
    count, (total, units) = min(len(features), _SHOWN), features.shape
    columns = ("label",) if task.kind != REGRESSION else task.names
    names = np.array(task.names, object)
    with (
        (folder / "tensors.bytes").open("wb") as tensors,
        (folder / "metadata.tsv").open("w", encoding="utf-8", newline="\n") as metadata,
    ):
        metadata.write(_line(["id", *columns]))
        for chunk in _chunks(features[:count]):
            rows = np.arange(count)[chunk] * total // count
            values = bytearray(features[rows].astype("<f4").tobytes())
            if not tensors.tell():
                # TensorBoard reads the file as text if it can, zeros for one, and fails. This byte
                # is in no text; it is the least significant one of the first number.
                values[0] = 0xFF
            tensors.write(values)
            for example_id, label in zip(ids[rows], y[rows], strict=True):
                metadata.write(_line([example_id, *_texts(label, names, task)]))
    (folder / "projector_config.pbtxt").write_text(_CONFIG.format(points=count, units=units))


def _texts(label: np.ndarray, names: np.ndarray, task: Task) -> list[str]:
    """Says a label in the columns of the projector."""
    if task.kind == REGRESSION:
        return [str(number) for number in label]
    return [", ".join(names[label > 0.5])] if task.kind == MULTI_LABEL else [str(names[label])]


def _line(texts: Iterable[str]) -> str:
    return "\t".join(text.translate(_ESCAPES) for text in texts) + "\n"


def _chunks(features: np.ndarray) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES // (4 * features.shape[1]))
    return (slice(start, start + step) for start in range(0, len(features), step))


def _cut(array: np.ndarray, chunks: Iterable[slice]) -> Iterator[np.ndarray]:
    return (array[chunk] for chunk in chunks)


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, which takes the place of `folder` once all is written."""
    folder = folder.expanduser().resolve()
    try:
        present = {each.name for each in folder.iterdir()} if folder.exists() else set()
        if others := present - _WRITTEN:
            raise UserError(
                f"The folder {folder} must be free for embeddings, and has "
                f"{', '.join(sorted(others))}",
                "Name another one.",
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".unfinished-{folder.name}-", dir=folder.parent
        ) as beside:
            unfinished = Path(beside, "new")
            unfinished.mkdir()
            yield unfinished
            if folder.exists():
                folder.rename(Path(beside, "old"))
            unfinished.rename(folder)
    except OSError as error:
        raise UserError(
            f"The folder {folder} must be one that can be written: {error.strerror or error}",
            "Name another one, or make room.",
        ) from error
