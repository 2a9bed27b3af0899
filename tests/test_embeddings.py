"""Embeddings as files: what is written reads back, and appears whole or not at all."""

import collections
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.memory import Memory
from tfxfer import embeddings
from tfxfer.data.parts import Part
from tfxfer.embeddings import NPZ, PARQUET, part_ids, write_embeddings
from tfxfer.errors import UserError
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

N, D = 50, 6
IDS = np.array([f"männer/写真\t{row}\n.jpg" for row in range(N)])
TASKS = {
    SINGLE_LABEL: Task(SINGLE_LABEL, ("cat", "großer\tHund", "x" * 40)),
    MULTI_LABEL: Task(MULTI_LABEL, ("red", "green", "blue")),
    REGRESSION: Task(REGRESSION, ("width", "height")),
}


def labels(kind: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    if kind == SINGLE_LABEL:
        return rng.integers(0, 3, N)
    if kind == MULTI_LABEL:
        return rng.integers(0, 2, (N, 3)).astype(np.float32)
    return rng.normal(size=(N, 2)).astype(np.float32)


@pytest.fixture
def features(tmp_path) -> np.ndarray:
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (N, D))
    mapped[:] = np.random.default_rng(0).normal(size=(N, D))
    return mapped


@pytest.fixture(params=[7, 1000])
def chunks(request, monkeypatch):
    """Rows a chunk: so that there are several, the last one smaller, or just one."""
    monkeypatch.setattr(embeddings, "_CHUNK_BYTES", request.param * D * 4)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kind", TASKS)
def test_npz_reads_back(tmp_path, features, kind):
    task, y = TASKS[kind], labels(kind)
    write_embeddings(tmp_path / "out", features, IDS, y, task, format=NPZ)
    with np.load(tmp_path / "out" / "embeddings.npz", allow_pickle=False) as found:
        assert sorted(found) == ["features", "ids", "labels", "names"]
        assert found["features"].dtype == np.float32
        assert (found["features"] == features).all()
        assert found["ids"].tolist() == IDS.tolist()
        assert found["names"].tolist() == list(task.names)
        expected = y if kind != SINGLE_LABEL else np.array(task.names)[y]
        assert found["labels"].tolist() == expected.tolist()


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kind", TASKS)
def test_parquet_reads_back(tmp_path, features, kind):
    parquet = pytest.importorskip("pyarrow.parquet")
    task, y = TASKS[kind], labels(kind)
    write_embeddings(tmp_path / "out", features, IDS, y, task, format=PARQUET)
    found = parquet.read_table(tmp_path / "out" / "embeddings.parquet")
    assert found.column_names == ["id", "label", "features"]
    assert str(found.schema.field("features").type) == f"fixed_size_list<element: float>[{D}]"
    assert np.array(found["features"].to_pylist(), np.float32).tolist() == features.tolist()
    assert found["id"].to_pylist() == IDS.tolist()
    assert json.loads(found.schema.metadata[b"names"]) == list(task.names)
    names = np.array(task.names)
    expected = {
        SINGLE_LABEL: lambda: names[y].tolist(),
        MULTI_LABEL: lambda: [names[row > 0].tolist() for row in y],
        REGRESSION: lambda: y.tolist(),
    }[kind]()
    assert found["label"].to_pylist() == expected


def test_parquet_is_written_in_row_groups(tmp_path, features, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(embeddings, "_CHUNK_BYTES", 7 * D * 4)
    y = labels(SINGLE_LABEL)
    write_embeddings(tmp_path / "out", features, IDS, y, TASKS[SINGLE_LABEL], format=PARQUET)
    meta = parquet.ParquetFile(tmp_path / "out" / "embeddings.parquet").metadata
    sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
    assert sizes == [7] * 7 + [1]


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, features, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'tfxfer\[parquet\]'"):
        write_embeddings(
            tmp_path / "out",
            features,
            IDS,
            labels(SINGLE_LABEL),
            TASKS[SINGLE_LABEL],
            format=PARQUET,
        )
    assert inside(tmp_path) == ["x.npy"]


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def unescaped(text: str) -> str:
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")


def projector(folder: Path) -> tuple[np.ndarray, list[list[str]]]:
    """Reads the files of the projector as TensorBoard's plugin does."""
    config = (folder / "projector_config.pbtxt").read_text()
    fields = collections.defaultdict(str)
    for line in config.splitlines()[1:-1]:
        name, value = line.strip().split(": ")
        fields[name] += f"{value} "
    shape = tuple(map(int, fields["tensor_shape"].split()))
    file = folder / json.loads(fields["tensor_path"])
    # It takes the file for numbers as text if the first line can be read as text at all.
    with pytest.raises(UnicodeDecodeError):
        file.read_bytes().split(b"\n")[0].decode()
    lines = (folder / json.loads(fields["metadata_path"])).read_bytes().decode().split("\n")
    assert lines.pop() == ""
    return np.fromfile(file, np.float32).reshape(shape), [line.split("\t") for line in lines]


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kind", TASKS)
def test_projector_reads_back(tmp_path, features, kind):
    task, y = TASKS[kind], labels(kind)
    write_embeddings(tmp_path / "out", features, IDS, y, task)
    tensors, (header, *rows) = projector(tmp_path / "out" / "projector")
    np.testing.assert_allclose(tensors, features, rtol=2**-15)
    assert (tensors.ravel()[1:] == features.ravel()[1:]).all()
    assert len(rows) == N
    assert [unescaped(row[0]) for row in rows] == IDS.tolist()
    said = [[unescaped(text) for text in row[1:]] for row in rows]
    names = np.array(task.names)
    if kind == SINGLE_LABEL:
        assert said == [[name] for name in names[y]]
    elif kind == MULTI_LABEL:
        assert said == [[", ".join(names[row > 0])] for row in y]
    else:
        assert np.array(said, np.float32).tolist() == y.tolist()
    assert header == ["id", *(task.names if kind == REGRESSION else ["label"])]


def test_features_of_zeros_are_no_text_either(tmp_path):
    zeros = np.zeros((N, D), np.float32)
    write_embeddings(tmp_path / "out", zeros, IDS, labels(SINGLE_LABEL), TASKS[SINGLE_LABEL])
    tensors, _ = projector(tmp_path / "out" / "projector")
    assert np.abs(tensors).max() < 1e-40


def test_projector_shows_what_tensorboard_takes(tmp_path, features, monkeypatch):
    monkeypatch.setattr(embeddings, "_SHOWN", 10)
    monkeypatch.setattr(embeddings, "_CHUNK_BYTES", 7 * D * 4)
    write_embeddings(tmp_path / "out", features, IDS, labels(SINGLE_LABEL), TASKS[SINGLE_LABEL])
    tensors, (_, *rows) = projector(tmp_path / "out" / "projector")
    np.testing.assert_allclose(tensors, features[::5], rtol=2**-15)
    assert [unescaped(row[0]) for row in rows] == IDS[::5].tolist()
    with np.load(tmp_path / "out" / "embeddings.npz") as found:
        assert len(found["features"]) == N


@pytest.mark.parametrize("format", [NPZ, PARQUET])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_interrupted_leaves_things_as_they_were(
    tmp_path, features, monkeypatch, format, error
):
    if format == PARQUET:
        pytest.importorskip("pyarrow")
    y, task = labels(SINGLE_LABEL), TASKS[SINGLE_LABEL]

    def stop(*args):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(embeddings, "_texts", stop)
        with pytest.raises((KeyboardInterrupt, UserError), match=r"No space|^$"):
            write_embeddings(tmp_path / "out", features, IDS, y, task, format=format)
        assert inside(tmp_path) == ["x.npy"]
    write_embeddings(tmp_path / "out", features, IDS, y, task)
    before = (tmp_path / "out" / "embeddings.npz").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(embeddings, "_texts", stop)
        with pytest.raises((KeyboardInterrupt, UserError)):
            write_embeddings(tmp_path / "out", features * 2, IDS, y, task, format=format)
    assert inside(tmp_path) == ["out", "x.npy"]
    assert (tmp_path / "out" / "embeddings.npz").read_bytes() == before


def test_earlier_embeddings_are_replaced(tmp_path, features):
    pytest.importorskip("pyarrow")
    y, task = labels(SINGLE_LABEL), TASKS[SINGLE_LABEL]
    write_embeddings(tmp_path / "out", features, IDS, y, task)
    write_embeddings(tmp_path / "out", features, IDS, y, task, format=PARQUET)
    assert inside(tmp_path / "out") == ["embeddings.parquet", "projector"]
    assert inside(tmp_path) == ["out", "x.npy"]


def test_what_is_no_embedding_is_not_replaced(tmp_path, features):
    with pytest.raises(UserError, match=r"free for embeddings, and has x\.npy"):
        write_embeddings(tmp_path, features, IDS, labels(SINGLE_LABEL), TASKS[SINGLE_LABEL])
    assert inside(tmp_path) == ["x.npy"]


def test_a_file_is_no_folder(tmp_path, features):
    with pytest.raises(UserError, match="Not a directory"):
        write_embeddings(
            tmp_path / "x.npy", features, IDS, labels(SINGLE_LABEL), TASKS[SINGLE_LABEL]
        )


@pytest.mark.parametrize(
    ("rows", "format", "says"), [(N - 1, NPZ, "49, 50 and 50"), (N, "csv", "received 'csv'")]
)
def test_what_does_not_fit_is_refused(tmp_path, features, rows, format, says):
    y, task = labels(SINGLE_LABEL), TASKS[SINGLE_LABEL]
    with pytest.raises(ValueError, match=says):
        write_embeddings(tmp_path / "out", features[:rows], IDS, y, task, format=format)


class Named(Memory):
    """Gives ids that are not ASCII, one not even UTF-8."""

    def read(self, name, rows=None):
        rows = np.arange(self.info.examples[name]) if rows is None else rows
        names = {0: "é".encode(), 3: b"\xff.jpg"}
        ids = tf.constant([names.get(int(row), f"train{row}".encode()) for row in rows])
        others = super().read(name, rows)
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(ids), others).map(
            lambda example_id, example: (example_id, *example[1:])
        )


def test_ids_are_read_in_order():
    source = Named(train=2000)
    rows = np.r_[0, 3, 10:1990]
    found = part_ids(Part(source, "train", rows, "given"))
    assert found.dtype.kind == "U"
    assert found.tolist() == ["é", r"\xff.jpg", *(f"train{row}" for row in range(10, 1990))]


def test_ids_cost_no_decoding(monkeypatch):
    source = Memory(train=5)
    monkeypatch.setattr(source, "decode", lambda raw: pytest.fail("decoded"))
    part = Part(source, "train", np.arange(5), "given")
    assert part_ids(part).tolist() == [f"train{row}" for row in range(5)]
