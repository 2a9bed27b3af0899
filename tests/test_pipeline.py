"""Batches: every example once, equal shares, and epochs that a seed and a number decide."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_sample_weight

from tfxfer.data.base import IMAGE, TABLE, TEXT, DataInfo, DataSource
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import batches, train_batches, view_batches
from tfxfer.errors import UserError
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

ROOT = Path(__file__).parents[1]


class Memory(DataSource):
    """A source in memory; images of several sizes wait as PNG."""

    fingerprint = "0"

    def __init__(self, x, y, *, kind=SINGLE_LABEL, inputs=IMAGE, shape=None):
        self._y = np.asarray(y, np.int64 if kind == SINGLE_LABEL else np.float32)
        units = self._y.max() + 1 if kind == SINGLE_LABEL else self._y.shape[1]
        self._encoded = isinstance(x, list)
        self._x = np.array([tf.io.encode_png(i).numpy() for i in x]) if self._encoded else x
        self.info = DataInfo(
            "memory/1",
            Task(kind, tuple(f"unit{unit}" for unit in range(units))),
            inputs,
            shape or ((None, None, x[0].shape[-1]) if self._encoded else x.shape[1:]),
            {"train": len(self._y)},
        )

    def read(self, name, rows=None):
        rows = np.arange(self.info.examples[name]) if rows is None else rows
        ids = [f"{name}{row}" for row in rows]
        return tf.data.Dataset.from_tensor_slices((ids, self._x[rows], self._y[rows]))

    def decode(self, raw):
        return tf.io.decode_png(raw, self.info.shape[-1]) if self._encoded else raw

    def labels(self, name):
        return self._y


def part(x, y=None, rows=None, **options) -> Part:
    source = Memory(x, np.arange(len(x)) if y is None else y, **options)
    rows = np.arange(len(x)) if rows is None else np.array(rows)
    return Part(source, "train", rows, "made")


def numbered(count: int, size: int = 2) -> np.ndarray:
    """Images that are their own number."""
    numbers = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(numbers, (count, size, size, 1)).copy()


def noise(count: int, size: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), np.uint8)


def rows(dataset: tf.data.Dataset) -> list[tuple]:
    return list(dataset.as_numpy_iterator())


def order(dataset: tf.data.Dataset) -> list[int]:
    return np.concatenate([batch[1] for batch in rows(dataset)]).tolist()


def digest(dataset: tf.data.Dataset) -> str:
    """A hash of every bit of every batch."""
    total = hashlib.sha256()
    for batch in rows(dataset):
        for values in batch:
            total.update(f"{values.shape}{values.dtype}".encode() + values.tobytes())
    return total.hexdigest()


def test_every_example_is_in_a_batch():
    got = rows(batches(part(numbered(10)), 4))
    assert [len(labels) for _, labels in got] == [4, 4, 2]
    assert np.concatenate([labels for _, labels in got]).tolist() == list(range(10))
    for images, labels in got:
        assert images.dtype == np.uint8
        assert images[:, 0, 0, 0].tolist() == labels.tolist()
    assert len(batches(part(numbered(10)), 4)) == 3


def test_images_of_many_sizes_meet_in_one_batch():
    sized = [np.full((size, size + 1, 1), row, np.uint8) for row, size in enumerate((4, 6, 9))]
    ((images, labels),) = rows(batches(part(sized), 3, image_size=(5, 5)))
    assert images.shape == (3, 5, 5, 1)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images.max(axis=(1, 2, 3)), labels, rtol=1e-5)
    data = train_batches(part(sized), 3, seed=0, image_size=(5, 5))
    ((images, labels),) = rows(data.epoch(0))
    np.testing.assert_allclose(images.max(axis=(1, 2, 3)), labels, rtol=1e-5)


def test_images_are_resized_as_backbones_resize():
    photos = [noise(1, 30)[0], noise(1, 20)[0]]
    ((images, _),) = rows(batches(part(photos), 2, image_size=(7, 9)))
    expected = [tf.image.resize(photo, (7, 9), antialias=True) for photo in photos]
    np.testing.assert_array_equal(images, expected)


def test_images_of_many_sizes_need_a_size():
    sized = [np.zeros((size, 4, 1), np.uint8) for size in (4, 6)]
    for make in (batches, lambda *args: train_batches(*args, seed=0)):
        with pytest.raises(UserError, match="fixed input size"):
            make(part(sized), 2)


def test_images_of_one_size_keep_it():
    ((images, _),) = rows(batches(part(numbered(3, 4)), 3, image_size=(9, 9)))
    assert images.shape == (3, 4, 4, 1)
    data = train_batches(part(numbered(3, 4)), 3, seed=0, image_size=(9, 9), augment="light")
    assert rows(data.epoch(0))[0][0].shape == (3, 4, 4, 1)


def test_classes_come_one_hot_if_asked():
    labels = [2, 0, 1]
    ((_, y),) = rows(batches(part(numbered(3), labels), 3, one_hot=True))
    np.testing.assert_array_equal(y, np.eye(3, dtype=np.float32)[labels])
    data = train_batches(part(numbered(3), labels), 3, seed=0, one_hot=True)
    ((images, y),) = rows(data.epoch(0))
    np.testing.assert_array_equal(y.argmax(axis=1), np.array(labels)[images[:, 0, 0, 0]])


def texts() -> Part:
    return part(np.array(["Grüße", "", "c"]), [0, 1, 0], inputs=TEXT, shape=())


def table() -> Part:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    return part(values, values[:, :2] * 10, kind=REGRESSION, inputs=TABLE)


def test_texts_and_tables_pass_as_they_are():
    ((x, y),) = rows(batches(texts(), 5, image_size=(4, 4)))
    assert [text.decode() for text in x] == ["Grüße", "", "c"]
    assert y.tolist() == [0, 1, 0]
    ((x, y),) = rows(train_batches(table(), 5, seed=0).epoch(0))
    assert x.dtype == y.dtype == np.float32
    np.testing.assert_array_equal(y, x[:, :2] * 10)
    assert sorted(x[:, 0].tolist()) == [0, 3, 6, 9]


@pytest.mark.parametrize("replicas", [2, 3, 8])
@pytest.mark.parametrize("examples", [9, 33, 65])
def test_replicas_get_equal_shares_of_every_batch(replicas, examples):
    data = train_batches(part(numbered(examples)), 32, seed=0, replicas=replicas)
    epochs = [[labels for _, labels in rows(data.epoch(number))] for number in range(3)]
    still = [labels for _, labels in rows(batches(part(numbered(examples)), 32, replicas=replicas))]
    for labels in (*epochs, still):
        assert all(len(batch) % replicas == 0 for batch in labels)
        assert sum(map(len, labels)) == examples // replicas * replicas
    if examples % replicas:
        assert len({tuple(sorted(np.concatenate(labels))) for labels in epochs}) > 1


def test_replicas_see_what_one_device_sees():
    one, two = (
        train_batches(
            part(noise(24)), 8, seed=3, augment="light", mix="mixup", one_hot=True, replicas=count
        )
        for count in (1, 2)
    )
    assert digest(one.epoch(1)) == digest(two.epoch(1))


def test_a_strategy_splits_every_batch_of_endless_epochs(mirrored):
    data = train_batches(part(numbered(27)), 8, seed=0, replicas=2)
    shared = iter(mirrored.experimental_distribute_dataset(data.epochs()))
    for labels in [labels for number in range(2) for _, labels in rows(data.epoch(number))]:
        _, got = next(shared)
        shares = [share.numpy().tolist() for share in mirrored.experimental_local_results(got)]
        assert [len(share) for share in shares] == [len(labels) // 2] * 2
        assert np.concatenate(shares).tolist() == labels.tolist()


def test_more_replicas_than_examples_are_refused():
    with pytest.raises(UserError, match="4 devices need 4 examples"):
        batches(part(numbered(3)), 2, replicas=4)
    with pytest.raises(UserError, match="4 devices need 4 examples"):
        train_batches(part(numbered(3)), 2, seed=0, replicas=4)


def test_epochs_have_every_example_once_in_orders_of_their_own():
    orders = {
        (seed, number): tuple(order(train_batches(part(numbered(32)), 5, seed=seed).epoch(number)))
        for seed in (0, 1, 2**32 - 1)
        for number in (0, 1, 7)
    }
    assert all(sorted(found) == list(range(32)) for found in orders.values())
    assert len(set(orders.values())) == len(orders)


def test_epochs_follow_one_another_without_end():
    data = train_batches(part(noise(11), np.arange(11) % 2), 4, seed=5, augment="light")
    assert data.steps == len(data.epoch(0)) == 3
    single = [digest(data.epoch(number)) for number in range(5)]
    assert len(set(single)) == 5
    assert digest(data.epochs().skip(9).take(3)) == single[3]
    assert digest(data.epochs(first=4).take(3)) == single[4]
    assert digest(data.epochs().take(9)) == digest(
        data.epoch(0).concatenate(data.epoch(1)).concatenate(data.epoch(2))
    )


def everything_random():
    """Order, sampling, augmentation and mixture at once."""
    return train_batches(
        part(noise(20), np.arange(20) % 7 // 5),
        6,
        seed=1,
        augment="light",
        mix="cutmix",
        balance="sampling",
        one_hot=True,
    )


def test_threads_generators_and_earlier_iterators_do_not_matter():
    expected = digest(everything_random().epoch(2))
    data = everything_random()
    next(iter(data.epoch(2)))
    assert digest(data.epoch(2)) == digest(data.epoch(2)) == expected
    for threads in (1, 2, 16):
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        options.autotune.enabled = threads == 2
        options.deterministic = False
        assert digest(everything_random().epoch(2).with_options(options)) == expected
    for seed in (0, 1, 99):
        keras.utils.set_random_seed(seed)
        assert digest(everything_random().epoch(2)) == expected


def test_another_process_sees_the_same():
    code = "from tests.test_pipeline import *; print(digest(everything_random().epoch(2)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "12", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest(everything_random().epoch(2))


@pytest.mark.parametrize("augment", ["light", "randaugment"])
def test_augmentation_of_an_example_does_not_depend_on_its_neighbours(augment):
    def images(rows_of_part, batch_size):
        data = train_batches(
            part(noise(20), rows=rows_of_part), batch_size, seed=4, augment=augment
        )
        return {
            int(label): image.tobytes()
            for batch in rows(data.epoch(1))
            for image, label in zip(*batch, strict=True)
        }

    whole, some = images(range(20), 8), images([1, 4, 13, 19], 3)
    assert {label: whole[label] for label in some} == some


def test_equal_images_are_augmented_apart_and_anew_in_every_epoch():
    same = np.repeat(noise(1), 12, axis=0)
    data = train_batches(part(same), 12, seed=0, augment="light")
    seen = [{image.tobytes() for image in rows(data.epoch(number))[0][0]} for number in range(2)]
    # Mirrored or not, at 2 x 2 places: 8 variants.
    assert all(2 < len(images) <= 8 for images in seen)
    first, second = (dict(zip(*reversed(rows(data.epoch(n))[0]), strict=True)) for n in (0, 1))
    assert any((first[label] != second[label]).any() for label in first)


def test_shuffling_in_a_window_loses_nothing():
    whole = part(numbered(50))
    whole.source.raw_bytes = 2**30
    found = order(train_batches(whole, 4, seed=0).epoch(0))
    assert sorted(found) == list(range(50))
    assert found != list(range(50))
    # A window of one batch: nothing comes more than its length too early.
    assert all(label - place < 4 for place, label in enumerate(found))


UNEVEN = np.repeat([0, 1, 2], [41, 10, 3])


def test_sampling_gives_every_class_the_same_share():
    data = train_batches(part(numbered(54), UNEVEN), 8, seed=0, balance="sampling")
    seen = []
    for number in range(6):
        got = rows(data.epoch(number))
        found = np.concatenate([images[:, 0, 0, 0] for images, _ in got])
        np.testing.assert_array_equal(UNEVEN[found], np.concatenate([y for _, y in got]))
        assert np.bincount(UNEVEN[found]).tolist() == [18, 18, 18]
        times = np.bincount(found, minlength=54)
        assert [set(times[label == UNEVEN]) for label in range(3)] == [{0, 1}, {1, 2}, {6}]
        seen.append(times)
    assert len({times.tobytes() for times in seen}) == 6
    assert (np.sum(seen, axis=0) > 0).sum() > 50


def test_sampling_shares_out_what_does_not_divide():
    labels = np.array([5, 5, 5, 5, 5, 2, 0])
    data = train_batches(part(numbered(7), labels), 7, seed=0, balance="sampling")
    assert data.steps == 1
    counts = [np.bincount(y, minlength=6) for _, y in rows(data.epochs().take(12))]
    assert all(count.sum() == 7 and set(count[[0, 2, 5]]) == {2, 3} for count in counts)
    assert {int(count.argmax()) for count in counts} == {0, 2, 5}


def test_repeats_are_augmented_apart():
    labels = np.array([0] * 15 + [1])
    data = train_batches(part(noise(16), labels), 16, seed=0, balance="sampling", augment="light")
    ((images, y),) = rows(data.epoch(0))
    assert (y == 1).sum() == 8
    assert len({image.tobytes() for image in images[y == 1]}) > 2


def test_class_weights_are_scikit_learns():
    data = train_batches(part(numbered(54), UNEVEN), 8, seed=0, balance="class_weights")
    got = rows(data.epoch(0))
    found, weights = (np.concatenate([batch[i] for batch in got]) for i in (1, 2))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, compute_sample_weight("balanced", found), rtol=1e-6)


def test_class_weights_count_the_part_and_its_classes():
    some = part(numbered(54), UNEVEN, rows=[0, 1, 2, 53])
    ((_, y, weights),) = rows(train_batches(some, 4, seed=0, balance="class_weights").epoch(0))
    assert sorted(y) == [0, 0, 0, 2]
    np.testing.assert_allclose(weights, np.where(y == 0, 4 / (2 * 3), 4 / (2 * 1)), rtol=1e-6)


def test_weights_of_mixed_examples_are_mixed():
    data = train_batches(
        part(noise(54), UNEVEN), 54, seed=0, mix="mixup", balance="class_weights", one_hot=True
    )
    ((_, y, weights),) = rows(data.epoch(0))
    assert (y.max(axis=1) < 0.99).any()
    np.testing.assert_allclose(weights, y @ (18 / np.array([41, 10, 3])), rtol=1e-5)


def test_mixed_labels_sum_to_one_in_every_batch():
    # A class for each: the weights of a step, then, show in its labels, whatever is in it.
    for mix in ("mixup", "cutmix"):
        data = train_batches(part(noise(9)), 4, seed=0, mix=mix, one_hot=True)
        got = rows(data.epoch(0))
        assert [len(y) for _, y in got] == [4, 4, 1]
        for images, y in got:
            assert images.dtype == y.dtype == np.float32
            np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)
        largest = [y.max(axis=1).round(4).tolist() for _, y in (*got[:2], rows(data.epoch(1))[0])]
        assert largest[0] != largest[1] != largest[2] != largest[0]


def test_mixup_mixes_several_labels_and_numbers():
    y = np.random.default_rng(0).normal(size=(6, 2))
    data = train_batches(part(noise(6), y, kind=REGRESSION), 6, seed=0, mix="mixup")
    ((_, mixed),) = rows(data.epoch(0))
    plain = train_batches(part(noise(6), y, kind=REGRESSION), 6, seed=0)
    ((_, before),) = rows(plain.epoch(0))
    assert not np.allclose(mixed, before)
    several = part(noise(6), y > 0, kind=MULTI_LABEL)
    ((_, mixed),) = rows(train_batches(several, 6, seed=0, mix="cutmix").epoch(0))
    assert mixed.min() >= 0
    assert mixed.max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "blur"}, "augmentation must be one of none, light, randaugment"),
        ({"mix": "blend"}, "mixture must be one of none, mixup, cutmix"),
        ({"balance": "smote"}, "balance must be one of none, class_weights, sampling"),
        ({"mix": "mixup"}, "'mixup' needs labels that can be mixed"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        train_batches(part(noise(4)), 2, seed=0, **options)


@pytest.mark.parametrize("options", [{"augment": "light"}, {"mix": "mixup", "one_hot": True}])
def test_only_images_are_augmented_and_mixed(options):
    with pytest.raises(UserError, match="memory/1 holds text inputs"):
        train_batches(texts(), 2, seed=0, **options)


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
@pytest.mark.parametrize("balance", ["class_weights", "sampling"])
def test_only_single_labels_are_balanced(kind, balance):
    several = part(noise(4), np.eye(4), kind=kind)
    with pytest.raises(UserError, match="one class an example"):
        train_batches(several, 2, seed=0, balance=balance)


def test_only_single_labels_are_made_one_hot_and_no_numbers_are_cut():
    numbers = part(noise(4), np.eye(4), kind=REGRESSION)
    with pytest.raises(UserError, match="One-hot labels"):
        batches(numbers, 2, one_hot=True)
    with pytest.raises(UserError, match="'cutmix' needs labels that add up by area"):
        train_batches(numbers, 2, seed=0, mix="cutmix")


def test_keras_trains_on_endless_epochs():
    data = train_batches(
        part(noise(10), np.arange(10) % 2), 4, seed=0, balance="class_weights", augment="light"
    )
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    history = model.fit(
        data.epochs(), steps_per_epoch=data.steps, epochs=3, shuffle=False, verbose=0
    )
    assert len(history.history["loss"]) == 3
    assert int(model.optimizer.iterations) == 9


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.parametrize(("what", "least", "most"), [("throughput", 0.85, 9), ("memory", 0, 1.15)])
def test_benchmark_keeps_its_bounds(what, least, most):
    done = subprocess.run(
        [sys.executable, "examples/benchmarks/pipeline.py", f"--what={what}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    print(done.stdout)
    ratios = [float(ratio) for ratio in re.findall(r"^ratio ([\d.]+)", done.stdout, re.MULTILINE)]
    assert ratios
    assert least <= min(ratios)
    assert max(ratios) <= most


def test_views_are_the_epochs_in_the_order_of_the_part():
    made = part(noise(12))
    data = train_batches(made, 5, seed=3, augment="light")
    views = rows(view_batches(made, 5, 2, seed=3, augment="light"))
    assert [y.tolist() for _, y in views] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]] * 2
    for view in range(2):
        ordered = np.concatenate([x for x, _ in views[3 * view : 3 * view + 3]])
        epoch = rows(data.epoch(view))
        images, labels = (np.concatenate(column) for column in zip(*epoch, strict=True))
        np.testing.assert_array_equal(ordered, images[np.argsort(labels)])
    assert (views[0][0] != views[3][0]).any()


@pytest.mark.parametrize("options", [{}, {"augment": "light"}, {"balance": "sampling"}])
def test_shares_of_workers_make_up_the_batches(options):
    """Of 22 examples in batches of 8: two workers take 4, 4 and 3 of them each."""
    images = np.random.default_rng(0).integers(0, 256, (22, 8, 8, 3), np.uint8)
    examples = part(images, np.arange(22) % 3)
    whole = train_batches(examples, 8, seed=3, replicas=2, **options)
    own = [whole.of_worker(index, 2) for index in (0, 1)]
    assert [each and each.steps for each in own] == [3, 3]
    epochs = [each.epoch(1) for each in (whole, *own) if each]
    for together, *shares in zip(*epochs, strict=True):
        for array, *parts in zip(together, *shares, strict=True):
            assert len({len(each) for each in parts}) == 1
            np.testing.assert_array_equal(array, np.concatenate(parts))
    mixed = train_batches(examples, 8, seed=3, mix="mixup", one_hot=True)
    assert mixed.of_worker(0, 2) is None
