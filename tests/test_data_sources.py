"""What every kind of source must keep to, whatever it reads."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.image_files import picture, save
from tfxfer.data.arrays import open_arrays
from tfxfer.data.base import IMAGE, TABLE, TEXT, DataSource
from tfxfer.data.folder import open_folder
from tfxfer.data.sklearn_tables import open_sklearn
from tfxfer.data.table import open_table
from tfxfer.spec import parse_spec
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL

# What is changed about the data between two openings.
NOTHING, LABEL, INPUT = "nothing", "label", "input"


def folder(home: Path, change: str) -> DataSource:
    for seed in range(8):
        split, label = ("train", "val")[seed // 6], "ab"[seed % 2]
        moved = change == LABEL and seed == 3
        seen = 99 if change == INPUT and seed == 3 else seed
        name = f"{split}/{'a' if moved else label}/{seed}.png"
        save(home / name, picture(seen, (20 + seed % 2, 30)))
    return open_folder(parse_spec(f"folder:{home}"))


def texts(home: Path, change: str) -> DataSource:
    lines = [f"text {row}, long\t{'ab'[row % 2]}\tg{row // 3}" for row in range(9)]
    if change == LABEL:
        lines[3] = lines[3].replace("\tb", "\ta")
    if change == INPUT:
        lines[3] = lines[3].replace("long", "lone")
    (home / "t.tsv").write_text("\n".join(["text\tlabel\twho", *lines[:6]]))
    (home / "test.tsv").write_text("\n".join(["text\tlabel\twho", *lines[6:]]))
    spec = parse_spec(f"tsv:{home / 't.tsv'}(test={home / 'test.tsv'})")
    return open_table(spec, group_column="who")


def images(home: Path, change: str) -> DataSource:
    rows = ["file,a,b,split"]
    for seed in range(8):
        save(home / f"{seed}.jpg", picture(99 if change == INPUT and seed == 3 else seed))
        a = 1 - seed % 2 if change == LABEL and seed == 3 else seed % 2
        rows.append(f"{seed}.jpg,{a},1,{('train', 'dev')[seed % 3 == 1]}")
    (home / "t.csv").write_text("\n".join(rows))
    return open_table(parse_spec(f"csv:{home / 't.csv'}(labels='a;b', split=split)"))


def numbers(home: Path, change: str) -> DataSource:
    rows = [f'{{"text": "text {row}", "y": {row / 4}}}' for row in range(8)]
    if change == LABEL:
        rows[3] = rows[3].replace("0.75", "0.5")
    if change == INPUT:
        rows[3] = rows[3].replace("text 3", "text 4")
    (home / "t.jsonl").write_text("\n".join(rows))
    return open_table(parse_spec(f"jsonl:{home / 't.jsonl'}"))


def _changed(change: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = x.copy(), y.copy()
    if change == LABEL:
        y[3] = 1 - y[3]
    if change == INPUT:
        x[3, 0] = x[3, 0] + 1
    return x, y


def arrays(home: Path, change: str) -> DataSource:
    del home
    x, y = np.stack([picture(row, (9, 7)) for row in range(8)]), np.arange(8) % 2
    return open_arrays({"train": _changed(change, x, y), "test": (x[:3], y[:3])})


def targets(home: Path, change: str) -> DataSource:
    del home
    x = np.arange(24, dtype=np.float64).reshape(8, 3)
    return open_arrays(_changed(change, x, np.stack([x[:, 0] / 7, x[:, 1]], axis=1)))


def tf_data(home: Path, change: str) -> DataSource:
    del home
    x, y = np.stack([picture(row, (9, 7)) for row in range(8)]), np.arange(8) % 2
    return open_arrays(
        {
            "train": tf.data.Dataset.from_tensor_slices(_changed(change, x, y)),
            "test": tf.data.Dataset.from_tensor_slices((x[:3], y[:3])),
        }
    )


def scikit_learn(home: Path, change: str) -> DataSource:
    del home
    if change == NOTHING:
        return open_sklearn("linnerud")
    # The tables do not change; one like it does.
    return open_sklearn("diabetes" if change == LABEL else "iris")


def digits(home: Path, change: str) -> DataSource:
    from tfxfer.data.tfds_source import open_tfds

    # Preparing takes a while, and the folder of the fixture is new each time.
    shared = home.parent / f"digits-{change}"
    with pytest.MonkeyPatch.context() as patch:
        if change != NOTHING:
            from sklearn.datasets import load_digits

            given = load_digits(return_X_y=True)
            x, y = given[0].copy(), given[1].copy()
            if change == LABEL:
                y[3] = (y[3] + 1) % 10
            else:
                x[3, 0] = 16
            patch.setattr("sklearn.datasets.load_digits", lambda **_: (x, y))
        return open_tfds(parse_spec("digits"), data_dir=str(shared))


@dataclass(frozen=True)
class Kind:
    make: Callable[[Path, str], DataSource]
    inputs: str
    task: str
    splits: tuple[str, ...]
    groups: bool = False


KINDS = [
    Kind(folder, IMAGE, SINGLE_LABEL, ("train", "validation")),
    Kind(texts, TEXT, SINGLE_LABEL, ("train", "test"), groups=True),
    Kind(images, IMAGE, MULTI_LABEL, ("train", "validation")),
    Kind(numbers, TEXT, REGRESSION, ("train",)),
    Kind(arrays, IMAGE, SINGLE_LABEL, ("train", "test")),
    Kind(targets, TABLE, REGRESSION, ("train",)),
    Kind(tf_data, IMAGE, SINGLE_LABEL, ("train", "test")),
    Kind(scikit_learn, TABLE, REGRESSION, ("train",)),
    Kind(digits, IMAGE, SINGLE_LABEL, ("train", "test")),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.make.__name__)
def kind(request) -> Kind:
    return request.param


@pytest.fixture(scope="module")
def source(kind, tmp_path_factory) -> DataSource:
    return kind.make(tmp_path_factory.mktemp(kind.make.__name__), NOTHING)


def rows(dataset: tf.data.Dataset) -> list[tuple]:
    return list(dataset.as_numpy_iterator())


def same(one: object, other: object) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_info(kind, source):
    assert source.info.inputs == kind.inputs
    assert source.info.task.kind == kind.task
    assert tuple(source.info.examples) == kind.splits
    assert all(len(rows(source.read(name))) == n for name, n in source.info.examples.items())
    assert source.info.name
    assert source.raw_bytes > 0
    assert source.bad == ()


def test_order_is_always_the_same(source):
    for name in source.info.examples:
        first, again = rows(source.split(name)), rows(source.split(name))
        assert len(first) == len(again)
        assert all(
            same(a, b)
            for one, other in zip(first, again, strict=True)
            for a, b in zip(one, other, strict=True)
        )


def test_ids_are_unique_over_all_splits(source):
    ids = [row[0] for name in source.info.examples for row in rows(source.read(name))]
    assert all(isinstance(example_id, bytes) and example_id for example_id in ids)
    assert len(set(ids)) == len(ids) == sum(source.info.examples.values())


def test_labels_are_those_of_the_examples(kind, source):
    for name, count in source.info.examples.items():
        labels = source.labels(name)
        assert same(labels, [row[2] for row in rows(source.read(name))])
        if kind.task == SINGLE_LABEL:
            assert (labels.dtype, labels.shape) == (np.int64, (count,))
            assert labels.min() >= 0
            assert labels.max() < source.info.task.units
        else:
            assert (labels.dtype, labels.shape) == (np.float32, (count, source.info.task.units))
            assert np.isfinite(labels).all()


def test_chosen_rows_are_those_rows(source):
    for name, count in source.info.examples.items():
        everything = rows(source.split(name))
        for chosen in ([0], [count - 1], sorted({0, 1, count - 1}), list(range(count)), []):
            got = rows(source.split(name, np.array(chosen, np.int64)))
            assert [row[0] for row in got] == [everything[row][0] for row in chosen]
            for row, example in zip(chosen, got, strict=True):
                assert same(example[1], everything[row][1])
                assert same(example[2], everything[row][2])


def test_decoded_inputs_are_what_info_says(kind, source):
    for name in source.info.examples:
        for _, x, _ in rows(source.split(name)):
            if kind.inputs == TEXT:
                assert isinstance(x, bytes)
                x.decode("utf-8")
                continue
            assert x.dtype == (np.uint8 if kind.inputs == IMAGE else np.float32)
            assert len(x.shape) == len(source.info.shape)
            assert all(
                wanted in (None, got)
                for wanted, got in zip(source.info.shape, x.shape, strict=True)
            )


def test_types_and_shapes_are_known_before_anything_is_read(kind, source):
    for name in source.info.examples:
        for dataset in (source.split(name), source.split(name, np.array([0]))):
            example_id, x, y = dataset.element_spec
            assert example_id == tf.TensorSpec((), tf.string)
            assert x.dtype == {IMAGE: tf.uint8, TEXT: tf.string, TABLE: tf.float32}[kind.inputs]
            assert x.shape.as_list() == list(source.info.shape)
            single = kind.task == SINGLE_LABEL
            assert y.dtype == (tf.int64 if single else tf.float32)
            assert y.shape.as_list() == ([] if single else [source.info.task.units])
            raw = source.read(name).element_spec[1]
            assert raw.shape.rank is not None


def test_length_is_known_before_anything_is_read(source):
    for name, count in source.info.examples.items():
        assert int(source.read(name).cardinality()) == count


def test_groups_are_as_many_as_examples(kind, source):
    for name, count in source.info.examples.items():
        groups = source.groups(name)
        if kind.groups:
            assert len(groups) == count
        else:
            assert groups is None


def test_every_example_can_be_named(source):
    places = [
        source.where(name, row)
        for name, count in source.info.examples.items()
        for row in sorted({0, 1, count - 1})
    ]
    assert all(isinstance(place, str) and place for place in places)
    assert len(set(places)) == sum(min(3, n) for n in source.info.examples.values())


def test_fingerprint_is_that_of_the_data(kind, source, tmp_path):
    found = {}
    for change in (NOTHING, LABEL, INPUT):
        home = tmp_path / change / "data"
        home.mkdir(parents=True)
        found[change] = kind.make(home, change).fingerprint
        shutil.rmtree(home)
    assert isinstance(source.fingerprint, str) and len(source.fingerprint) >= 16
    assert found[NOTHING] == source.fingerprint
    assert len(set(found.values())) == 3


def test_damage_after_opening_is_not_silent(tmp_path):
    """A file that goes away while it is read ends the reading, with its name in the error."""
    source = folder(tmp_path, NOTHING)
    (tmp_path / "train" / "a" / "2.png").unlink()
    with pytest.raises(tf.errors.NotFoundError, match=r"train/a/2\.png"):
        rows(source.split("train"))
