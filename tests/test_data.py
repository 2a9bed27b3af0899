"""The embedded digits, and how any source is split and batched."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from tfxfer.data import DataInfo, batches, open_dataset, split_data
from tfxfer.data.splits import Part
from tfxfer.errors import UserError


def rows(dataset: tf.data.Dataset) -> list[tuple]:
    return list(dataset.as_numpy_iterator())


def test_digits_are_scikit_learns(digits):
    images, labels = load_digits(return_X_y=True)
    expected = {
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), label)
        for image, label in zip(images, labels, strict=True)
    }
    found = [
        (image.tobytes(), label)
        for name in ("train", "test")
        for _, image, label in rows(digits.split(name))
    ]
    assert len(found) == 1797
    assert set(found) == expected


def test_digits_test_split_is_stratified_and_fixed(digits):
    counts = np.bincount([label for _, _, label in rows(digits.split("test"))])
    assert counts.sum() == 360
    assert counts.min() >= 35
    assert counts.max() <= 37
    first = [example_id for example_id, _, _ in rows(digits.split("test"))]
    again = [example_id for example_id, _, _ in rows(digits.split("test"))]
    assert first == again


def test_digits_is_a_tfds_dataset_like_any_other(digits, data_dir):
    loaded, info = tfds.load("digits", data_dir=data_dir, with_info=True, download=False)
    assert info.splits["train"].num_examples == 1437
    assert len(loaded["test"]) == 360
    assert digits.info == DataInfo(
        "digits/1.0.0", tuple("0123456789"), (8, 8, 1), {"train": 1437, "test": 360}
    )


def test_labels_come_in_the_order_of_the_split(digits):
    labels = [label for _, _, label in rows(digits.split("train"))]
    assert digits.labels("train").tolist() == labels


def test_chosen_rows_are_those_rows(digits):
    everything = rows(digits.split("test"))
    chosen = rows(digits.split("test", np.array([3, 5, 359])))
    assert [row[0] for row in chosen] == [everything[i][0] for i in (3, 5, 359)]
    np.testing.assert_array_equal(chosen[1][1], everything[5][1])


def test_no_image_is_in_two_parts(digits):
    splits = split_data(digits, seed=0)
    parts = [rows(part.dataset) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [1293, 144, 360]
    assert [part.examples for part in (splits.train, splits.validation, splits.test)] == [
        1293,
        144,
        360,
    ]
    for seen in (
        [{row[0] for row in part} for part in parts],
        [{row[1].tobytes() for row in part} for part in parts],
    ):
        assert not seen[0] & seen[1]
        assert not seen[0] & seen[2]
        assert not seen[1] & seen[2]


def test_validation_follows_the_seed_and_test_does_not(digits):
    one, same, other = (split_data(digits, seed=seed) for seed in (1, 1, 2))
    ids = [[row[0] for row in rows(s.validation.dataset)] for s in (one, same, other)]
    assert ids[0] == ids[1] != ids[2]
    labels = np.bincount([row[2] for row in rows(one.validation.dataset)])
    assert labels.min() >= 14
    assert labels.max() <= 15
    assert rows(one.test.dataset)[0][0] == rows(other.test.dataset)[0][0]


class Source:
    """A source in memory, with the splits that a test wants."""

    fingerprint = "0"

    def __init__(self, classes=("a", "b"), **labels):
        self._labels = {
            name: np.arange(value) % len(classes) if isinstance(value, int) else np.array(value)
            for name, value in labels.items()
        }
        sizes = {name: len(values) for name, values in self._labels.items()}
        self.info = DataInfo("memory/1", tuple(classes), (4, 4, 1), sizes)

    def labels(self, name):
        return self._labels[name]

    def split(self, name, rows=None):
        rows = np.arange(self.info.examples[name]) if rows is None else rows
        return tf.data.Dataset.from_tensor_slices(
            (
                [f"{name}{row}" for row in rows],
                np.zeros((len(rows), 4, 4, 1), np.uint8),
                self._labels[name][rows],
            )
        )


@pytest.mark.parametrize(
    ("sizes", "origins"),
    [
        ({"train": 100}, ("rest of train", "10% of rest of train", "20% of train")),
        ({"train": 100, "test": 9}, ("rest of train", "10% of train", "split 'test'")),
        ({"train": 100, "validation": 9}, ("rest of train", "10% of train", "split 'validation'")),
        (
            {"train": 100, "validation": 9, "test": 8},
            ("train", "split 'validation'", "split 'test'"),
        ),
    ],
)
def test_given_splits_are_used_and_missing_ones_carved(sizes, origins):
    splits = split_data(Source(**sizes), seed=0)
    assert (splits.train.origin, splits.validation.origin, splits.test.origin) == origins
    ids = [
        {row[0] for row in rows(p.dataset)} for p in (splits.train, splits.validation, splits.test)
    ]
    assert sum(len(i) for i in ids) == len(set.union(*ids)) == sum(sizes.values())


def test_source_without_train_is_refused():
    with pytest.raises(UserError, match="'train'"):
        split_data(Source(test=5), seed=0)


def test_class_with_one_example_is_refused():
    with pytest.raises(UserError, match=r"at least two .* one of 'b'"):
        split_data(Source(train=[0, 0, 0, 1]), seed=0)


def test_many_classes_of_few_examples_are_split():
    source = Source(classes=[str(c) for c in range(100)], train=500)
    splits = split_data(source, seed=0)
    parts = (splits.train, splits.validation, splits.test)
    assert [part.examples for part in parts] == [300, 100, 100]
    assert all(len({row[2] for row in rows(part.dataset)}) == 100 for part in parts)


def test_split_with_hidden_labels_counts_as_missing():
    splits = split_data(Source(train=100, test=[-1] * 20), seed=0)
    assert splits.test.origin == "20% of train"


@pytest.mark.parametrize("wrong", [-1, 2])
def test_labels_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"labels 0 to 1, and split 'test' has {wrong}"):
        split_data(Source(train=100, test=[0, 1, wrong]), seed=0)


def part(count: int, sizes: list[int]) -> Part:
    def examples():
        for row in range(count):
            size = sizes[row % len(sizes)]
            yield str(row), np.full((size, size, 1), row, np.uint8), row

    side = sizes[0] if len(set(sizes)) == 1 else None
    spec = (
        tf.TensorSpec((), tf.string),
        tf.TensorSpec((side, side, 1), tf.uint8),
        tf.TensorSpec((), tf.int64),
    )
    return Part(tf.data.Dataset.from_generator(examples, output_signature=spec), count, "made")


def test_every_example_is_in_a_batch():
    got = rows(batches(part(10, [4]), 4))
    assert [len(labels) for _, labels in got] == [4, 4, 2]
    assert np.concatenate([labels for _, labels in got]).tolist() == list(range(10))
    assert all(images.dtype == np.uint8 for images, _ in got)


def test_order_is_new_in_every_epoch_and_the_same_for_a_seed():
    def epochs(seed):
        data = batches(part(32, [2]), 8, shuffle_seed=seed)
        return [np.concatenate([labels for _, labels in rows(data)]).tolist() for _ in range(2)]

    one, same, other = epochs(1), epochs(1), epochs(2)
    assert one == same
    assert one[0] != one[1]
    assert one[0] != other[0]
    assert all(sorted(order) == list(range(32)) for order in one + other)


def test_images_of_many_sizes_meet_in_one_batch():
    ((images, labels),) = rows(batches(part(3, [4, 6, 9]), 3, image_size=(5, 5)))
    assert images.shape == (3, 5, 5, 1)
    assert [float(image.max()) for image in images] == labels.tolist()


def test_images_of_many_sizes_need_a_size():
    with pytest.raises(UserError, match="fixed input size"):
        batches(part(3, [4, 6]), 3)


def test_dataset_of_another_kind_is_refused(data_dir, tmp_path):
    class Pairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"x": tf.float32, "y": tf.float32}),
                supervised_keys=("x", "y"),
            )

        def _split_generators(self, dl_manager):
            return {"train": iter([(0, {"x": 1.0, "y": 2.0})])}

        def _generate_examples(self):
            raise NotImplementedError

    with pytest.raises(UserError, match="one class label"):
        open_dataset("pairs", str(tmp_path))


def test_own_images_in_tfds_format_are_read(tmp_path):
    def examples(count):
        return [
            (row, {"photo": np.full((5 + row, 9, 3), row, np.uint8), "kind": row % 2})
            for row in range(count)
        ]

    tfds.dataset_builders.store_as_tfds_dataset(
        name="my_pets",
        version="1.0.0",
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict(
            {
                "photo": tfds.features.Image(shape=(None, None, 3)),
                "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
        ),
        split_datasets={"train": examples(8), "test": examples(4)},
    )
    source = open_dataset("my_pets", str(tmp_path))
    assert source.info == DataInfo(
        "my_pets/1.0.0", ("cat", "dog"), (None, None, 3), {"train": 8, "test": 4}
    )
    found = {(image.shape, label) for _, image, label in rows(source.split("test"))}
    assert found == {((5 + row, 9, 3), row % 2) for row in range(4)}


def fake_digits(monkeypatch, change) -> None:
    images, labels = load_digits(return_X_y=True)
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda **_: change(images, labels))


@pytest.mark.parametrize(
    "change",
    [
        lambda images, labels: (images, np.roll(labels, 1)),
        lambda images, labels: (np.roll(images, 1, axis=0), labels),
    ],
)
def test_fingerprint_tells_datasets_of_equal_size_apart(digits, tmp_path, monkeypatch, change):
    same = open_dataset("digits", str(tmp_path / "same"))
    assert same.fingerprint == digits.fingerprint
    fake_digits(monkeypatch, change)
    other = open_dataset("digits", str(tmp_path / "other"))
    assert other.fingerprint != digits.fingerprint


def test_damaged_file_is_a_user_error(tmp_path):
    open_dataset("digits", str(tmp_path))
    (file,) = (tmp_path / "digits" / "1.0.0").glob("*train*record*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged file.*Delete"):
        open_dataset("digits", str(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["no_such_data", "digits:x", "digits:9.9.9", "digits/other", "huggingface:mnist", "a/b/c"],
)
def test_unknown_names_are_user_errors(name, tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        open_dataset(name, str(tmp_path))


@pytest.mark.parametrize("replicas", [2, 3, 8])
@pytest.mark.parametrize("examples", [9, 33, 65])
def test_replicas_get_equal_shares_of_every_batch(replicas, examples):
    data = batches(part(examples, [2]), 32, shuffle_seed=0, replicas=replicas)
    epochs = [[labels for _, labels in rows(data)] for _ in range(3)]
    for labels in epochs:
        assert all(len(batch) % replicas == 0 for batch in labels)
        assert sum(map(len, labels)) == examples // replicas * replicas
    if examples % replicas:
        assert len({tuple(sorted(np.concatenate(labels))) for labels in epochs}) > 1


def test_more_replicas_than_examples_are_refused():
    with pytest.raises(UserError, match="4 devices need 4 examples"):
        batches(part(3, [2]), 2, replicas=4)
