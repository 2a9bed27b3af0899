"""Arrays and tf.data datasets from Python, and the tables of scikit-learn."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

from tfxfer.data.arrays import ArraySource, DatasetSource, open_arrays
from tfxfer.data.base import IMAGE, TABLE, TEXT, BadExample, DataInfo
from tfxfer.data.scan import scan, stop_for_bad
from tfxfer.data.sklearn_tables import open_sklearn
from tfxfer.errors import UserError
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

Y = np.arange(6) % 2


def photos(count: int = 6, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 5, channels), np.uint8)


def inputs(source, name: str = "train") -> list[np.ndarray]:
    return [row[1] for row in source.split(name).as_numpy_iterator()]


def test_images_and_classes():
    x = photos()
    source = open_arrays({"train": (x, Y), "val": (x[:2], Y[:2])}, label_names=["cat", "dog"])
    assert isinstance(source, ArraySource)
    assert source.info == DataInfo(
        "arrays",
        Task(SINGLE_LABEL, ("cat", "dog")),
        IMAGE,
        (4, 5, 3),
        {"train": 6, "validation": 2},
    )
    np.testing.assert_array_equal(inputs(source), x)
    assert [row[0] for row in source.read("validation").as_numpy_iterator()] == [
        b"validation/0",
        b"validation/1",
    ]
    assert source.where("train", 3) == "row 3 of train"
    assert source.bad == ()


@pytest.mark.parametrize(
    ("x", "shape", "expected"),
    [
        (photos()[..., 0], (4, 5, 1), photos()[..., :1]),
        (photos().astype(np.float32) * 0.999, (4, 5, 3), np.rint(photos() * np.float32(0.999))),
        (photos().astype(np.int64), (4, 5, 3), photos()),
        (np.zeros((6, 4, 4, 3), np.float32), None, None),
    ],
)
def test_images_of_other_types_become_bytes(x, shape, expected):
    if shape is None:
        with pytest.raises(UserError, match="Multiply them by 255"):
            open_arrays((x, Y))
        return
    source = open_arrays((x, Y))
    assert source.info.shape == shape
    assert all(image.dtype == np.uint8 for image in inputs(source))
    np.testing.assert_array_equal(inputs(source), expected)


@pytest.mark.parametrize(
    "x", [["a", "b☀", "", "d", "e", "f"], np.array([b"a", b"b", b"c", b"d", b"e", b"f"])]
)
def test_texts(x):
    source = open_arrays((x, Y))
    assert (source.info.inputs, source.info.shape) == (TEXT, ())
    assert inputs(source) == [t if isinstance(t, bytes) else t.encode() for t in x]


TEXT_PAIRS = [["a b", "c"], ["a", "b c"], ["☀", "d"], ["e", "f"], ["g", "h"], ["i", "j"]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: (TEXT_PAIRS, Y),
        lambda: (np.array(TEXT_PAIRS, object), Y),
        lambda: (np.array([[text.encode() for text in pair] for pair in TEXT_PAIRS]), Y),
        lambda: pairs(TEXT_PAIRS),
    ],
)
def test_pairs_of_texts(make):
    source = open_arrays(make())
    assert (source.info.inputs, source.info.shape) == (TEXT, (2,))
    assert source.split("train").element_spec[1] == tf.TensorSpec([2], tf.string)
    found = [[text.decode() for text in pair] for pair in inputs(source)]
    assert found == TEXT_PAIRS
    ((_, batch, _),) = source.split("train", np.array([1, 4])).batch(2).as_numpy_iterator()
    assert batch.tolist() == [[b"a", b"b c"], [b"g", b"h"]]
    assert len(set(scan(source, ["train"]).hashes["train"].tolist())) == 6


def test_fingerprint_tells_where_texts_end():
    given = [
        [["ab", "c"], ["d", "e"]],
        [["a", "bc"], ["d", "e"]],
        [["ab", "c"], ["de", ""]],
        [["c", "ab"], ["d", "e"]],
        ["ab", "c"],
        [b"ab\0", b"c"],
        [b"ab", b"c\0"],
    ]
    for slices in (False, True):
        arrays = [(np.array(x, object), Y[:2]) for x in given]
        opened = [
            open_arrays(tf.data.Dataset.from_tensor_slices(([*x], y)) if slices else (x, y))
            for x, y in arrays
        ]
        assert len({source.fingerprint for source in opened}) == len(given)


def test_texts_that_are_no_strings():
    x = np.array(["a", None, np.nan, "d", "e", 5], object)
    source = open_arrays((x, Y))
    assert [(each.row, each.reason) for each in source.bad] == [
        (row, "has a text that is no string") for row in (1, 2, 5)
    ]
    paired = np.stack([np.array(list("abcdef"), object), x], axis=1)
    assert [each.row for each in open_arrays((paired, Y)).bad] == [1, 2, 5]


def test_rows_of_numbers():
    x = np.random.default_rng(0).normal(size=(6, 3))
    source = open_arrays((x, Y))
    assert (source.info.inputs, source.info.shape) == (TABLE, (3,))
    np.testing.assert_array_equal(inputs(source), x.astype(np.float32))


@pytest.mark.parametrize(
    ("y", "task", "expected"),
    [
        (Y, "", Task(SINGLE_LABEL, ("0", "1"))),
        (Y[:, None].astype(np.uint8), "", Task(SINGLE_LABEL, ("0", "1"))),
        (Y.astype(bool), "", Task(SINGLE_LABEL, ("0", "1"))),
        (["b", "a"] * 3, "", Task(SINGLE_LABEL, ("a", "b"))),
        (Y * 1.0, "", Task(REGRESSION, ("target",))),
        (Y * 1.0, "single_label", Task(SINGLE_LABEL, ("0", "1"))),
        (Y, "regression", Task(REGRESSION, ("target",))),
        (np.ones((6, 2)) * 0.5, "", Task(REGRESSION, ("0", "1"))),
        (np.ones((6, 2), int), "", Task(MULTI_LABEL, ("0", "1"))),
        (np.ones((6, 2)), "", Task(MULTI_LABEL, ("0", "1"))),
        (np.eye(2)[Y], "multi_label", Task(MULTI_LABEL, ("0", "1"))),
        (Y, "multi_label", Task(MULTI_LABEL, ("0",))),
    ],
)
def test_task_of_labels(y, task, expected):
    source = open_arrays((photos(), y), task=task)
    assert source.info.task == expected
    labels = source.labels("train")
    assert labels.dtype == (np.int64 if expected.kind == SINGLE_LABEL else np.float32)
    assert labels.shape == ((6,) if expected.kind == SINGLE_LABEL else (6, expected.units))
    assert source.bad == ()


@pytest.mark.parametrize(
    ("y", "options", "row", "reason"),
    [
        ([0, 1, 2, 0, 1, 0], {"label_names": "ab"}, 2, "has the label 2, which is not in 0 to 1"),
        ([0, 1, -1, 0, 1, 0], {}, 2, "has the label -1, which is not in 0 to 1"),
        (
            [0, 1, np.nan, 0, 1, 0],
            {"task": SINGLE_LABEL},
            2,
            "has the label nan, which is not in 0 to 1",
        ),
        ([0, 1, 2, np.inf, 0.5, 0], {}, 3, "has inf for a number"),
        (
            [[0, 1], [1, 1], [0, 3]] * 2,
            {},
            (2, 5),
            "has 3 for a label, which is not 0 or 1",
        ),
    ],
)
def test_labels_that_cannot_be_used(y, options, row, reason):
    source = open_arrays((photos(), y), **options)
    rows = row if isinstance(row, tuple) else (row,)
    assert source.bad == tuple(BadExample(f"row {at} of train", reason, "train", at) for at in rows)
    labels = source.labels("train")[list(rows)]
    assert (labels == -1).all() if labels.dtype == np.int64 else np.isnan(labels).all()
    good = np.delete(np.arange(6), rows)
    kept = list(source.split("train", good).as_numpy_iterator())
    np.testing.assert_array_equal([row[1] for row in kept], photos()[good])
    with pytest.raises(UserError, match=f"row {rows[0]} of train"):
        stop_for_bad(source.bad, skip_bad=False)


def test_inputs_that_are_not_finite():
    x = np.ones((6, 3), np.float32)
    x[4, 1] = np.nan
    source = open_arrays((x, np.where(np.arange(6) == 4, -1, Y)))
    assert source.bad == (
        BadExample("row 4 of train", "has an input that is not finite", "train", 4),
    )


def test_class_in_test_that_train_lacks():
    parts = {"train": (photos(), Y), "test": (photos(3), [0, 2, 1])}
    (bad,) = open_arrays(parts).bad
    assert (bad.where, bad.reason) == (
        "row 1 of test",
        "has the label 2, which is not in 0 to 1",
    )
    (bad,) = open_arrays(parts, label_names=["a", "b", "c"]).bad
    assert bad.reason == "has the class '2', which has no example in train"
    words = {"train": (photos(), ["a", "b"] * 3), "test": (photos(2), ["a", "c"])}
    (bad,) = open_arrays(words).bad
    assert bad.reason == "has the class 'c', which has no example in train"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ((photos(), Y[:5]), {}, "same length, above 0, .* shapes"),
        ((photos(0), Y[:0]), {}, "same length, above 0"),
        ((photos(), Y * 0), {}, "at least two classes for training, and has only '0'"),
        ((photos(), Y * np.nan), {"task": SINGLE_LABEL}, "none; row 0 of train has the label nan"),
        ((photos(), Y * np.nan), {}, "has none; row 0 of train has nan for a number"),
        ((np.full((6, 3), np.nan), Y), {}, "has none; row 0 of train has an input that is not"),
        ((photos(), np.full((6, 2), np.nan)), {}, "has none; row 0 of train has nan"),
        ((photos(), Y + 1), {}, "integers from 0 on.*none is 0"),
        ((photos(), np.eye(2)[Y]), {}, r"one-hot.*argmax"),
        ((photos(), np.eye(2)[Y]), {"task": SINGLE_LABEL}, "one class an example"),
        ((photos(), np.eye(2)[Y]), {"task": "multi_label", "label_names": "abc"}, "3 names"),
        ((photos(), ["a", "b"] * 3), {"task": REGRESSION}, "must be numbers"),
        ((photos(), np.zeros((6, 2, 2))), {}, r"must be \[n\] or \[n, k\]"),
        ((photos(channels=4), Y), {}, "must be images"),
        ((photos().astype(float) * 2, Y), {}, r"values in \[0, 255\], and has 0 to 5"),
        (([["a"]] * 6, Y), {}, r"pairs of texts \[2\]"),
        (([["a", "b", "c"]] * 6, Y), {}, r"pairs of texts \[2\]"),
        ({"train": ([["a", "b"]] * 6, Y), "test": (["a"] * 6, Y)}, {}, "same inputs in every"),
        (([[1, 2], [3]], [0, 1]), {}, "must be an array"),
        (photos(), {}, "must be a pair"),
        ({"test": (photos(), Y)}, {}, "must have a split 'train'"),
        ({"train": (photos(), Y), "val": (photos(), Y), "dev": (photos(), Y)}, {}, "once"),
        ({"train": (photos(), Y), "test": (["a"] * 6, Y)}, {}, "same inputs in every split"),
        ({"train": (photos(), Y), "test": (photos(channels=1), Y)}, {}, "number of channels"),
        ({"train": (photos(), Y), "test": (photos(), Y * 1.0)}, {}, "one type and shape"),
        ((photos(), Y), {"task": "ranking"}, "must be one of"),
    ],
)
def test_arrays_that_cannot_be_used(source, options, message):
    with pytest.raises(UserError, match=message):
        open_arrays(source, **options)


def test_arrays_are_not_copied():
    x = np.zeros((2000, 64, 64, 3), np.uint8)
    x[:, 0, 0, 0] = np.arange(2000) % 200
    y = np.arange(2000) % 2
    tracemalloc.start()
    source = open_arrays((x, y))
    count = sum(1 for _ in source.split("train"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2000
    assert peak < x.nbytes / 2


def pairs(x: Any = None, y: Any = Y) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((photos() if x is None else x, y))


def test_tf_data():
    source = open_arrays({"train": pairs(), "test": pairs().take(2)}, label_names=["a", "b"])
    assert isinstance(source, DatasetSource)
    assert source.info == DataInfo(
        "arrays", Task(SINGLE_LABEL, ("a", "b")), IMAGE, (4, 5, 3), {"train": 6, "test": 2}
    )
    np.testing.assert_array_equal(inputs(source), photos())
    assert source.labels("train").tolist() == Y.tolist()
    kept = list(source.split("train", np.array([1, 4])).as_numpy_iterator())
    assert [row[0] for row in kept] == [b"train/1", b"train/4"]
    np.testing.assert_array_equal([row[1] for row in kept], photos()[[1, 4]])


def test_tf_data_of_unknown_length_and_sizes():
    def examples():
        for row in range(5):
            yield np.full((3 + row, 4, 1), row, np.float32) * 50, float(row) / 2

    data = tf.data.Dataset.from_generator(
        examples,
        output_signature=(
            tf.TensorSpec((None, 4, 1), tf.float32),
            tf.TensorSpec((), tf.float32),
        ),
    )
    source = open_arrays(data)
    assert source.info.shape == (None, 4, 1)
    assert source.info.examples == {"train": 5}
    assert source.info.task == Task(REGRESSION, ("target",))
    assert [image.shape for image in inputs(source)] == [(3 + row, 4, 1) for row in range(5)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pairs().batch(2), r"one example at a time.*unbatch"),
        (lambda: pairs(["a"] * 6).batch(2), r"one example at a time.*unbatch"),
        (lambda: pairs(TEXT_PAIRS).batch(2), r"one example at a time.*unbatch"),
        (lambda: pairs(TEXT_PAIRS).shuffle(6, seed=1), r"same order.*shuffle"),
        (lambda: pairs(np.ones((6, 3)), np.ones((6, 2))).batch(2), r"one example at a time"),
        (lambda: pairs().repeat(), "must end"),
        (lambda: pairs().shuffle(6, seed=1), r"same order.*shuffle"),
        (lambda: pairs().map(lambda x, _: x), "must give pairs"),
        (lambda: pairs(photos().astype(np.float32) / 255), "Multiply them by 255"),
        (lambda: pairs(photos(channels=4)), "must be images"),
        (lambda: {"train": pairs(), "test": (photos(), Y)}, "same form"),
    ],
)
def test_tf_data_that_cannot_be_used(make, message):
    with pytest.raises(UserError, match=message):
        open_arrays(make())


def test_tf_data_with_bad_labels():
    source = open_arrays(pairs(y=np.array([0, 1, 0, 1, 5, -1])), label_names="ab")
    assert [example.row for example in source.bad] == [4, 5]
    assert source.labels("train").tolist() == [0, 1, 0, 1, -1, -1]


@pytest.mark.parametrize(
    ("name", "examples", "columns", "task"),
    [
        ("diabetes", 442, 10, Task(REGRESSION, ("progression",))),
        ("linnerud", 20, 3, Task(REGRESSION, ("Weight", "Waist", "Pulse"))),
        ("iris", 150, 4, Task(SINGLE_LABEL, ("setosa", "versicolor", "virginica"))),
        ("sklearn:wine", 178, 13, Task(SINGLE_LABEL, ("class_0", "class_1", "class_2"))),
        ("breast_cancer", 569, 30, Task(SINGLE_LABEL, ("malignant", "benign"))),
    ],
)
def test_tables_of_scikit_learn(name, examples, columns, task):
    source = open_sklearn(name)
    short = name.removeprefix("sklearn:")
    assert source.info == DataInfo(f"sklearn:{short}", task, TABLE, (columns,), {"train": examples})
    data = getattr(sklearn.datasets, f"load_{short}")()
    np.testing.assert_array_equal(inputs(source), data.data.astype(np.float32))
    np.testing.assert_array_equal(
        source.labels("train").reshape(data.target.shape),
        data.target.astype(source.labels("train").dtype),
    )
    assert source.bad == ()


def test_unknown_table_of_scikit_learn():
    with pytest.raises(UserError, match="not 'california_housing'"):
        open_sklearn("california_housing")
