"""Batches made of other batches: which examples stand where, and what is known of them."""

from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf

from tests.memory import Memory
from tfxfer.data.base import BadExample
from tfxfer.data.joined import NO_LABEL, joined, same_steps, taught, unlabelled
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import train_batches, view_batches
from tfxfer.data.rest import rest_of
from tfxfer.data.splits import given_parts, split_data
from tfxfer.errors import UserError
from tfxfer.feature_data import feature_batches
from tfxfer.features import Features
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

LETTERS = Task(SINGLE_LABEL, ("a", "b", "c"))
TAGS = Task(MULTI_LABEL, ("red", "round"))
NUMBERS = Task(REGRESSION, ("y",))
LABELS = {LETTERS: np.arange(11) % 3, TAGS: np.ones((11, 2), "f"), NUMBERS: np.ones((11, 1), "f")}


@dataclass(frozen=True)
class Given:
    """Batches of one epoch, again and again."""

    dataset: tf.data.Dataset

    @property
    def steps(self):
        return int(self.dataset.cardinality())

    def epochs(self, first=0):
        return self.dataset.repeat()


def given(*columns) -> Given:
    return Given(tf.data.Dataset.from_tensor_slices(columns).batch(2))


def part(count: int, task=LETTERS, split="train", start=0, **options) -> Part:
    """Images of the values `start` and on; its labels are those values, modulo the classes."""
    labels = LABELS[task][np.arange(start + count) % 11]
    source = Memory(task, **options, **{split: labels})
    return Part(source, split, np.arange(start, start + count), split)


def data(count: int, batch_size: int = 4, *, task=LETTERS, start=0, seed=3, side=4, **options):
    return train_batches(
        part(count, task, start=start, side=side), batch_size, seed=seed, **options
    )


def listed(dataset: tf.data.Dataset, count: int) -> list:
    return list(dataset.take(count).as_numpy_iterator())


def values(batch) -> list[int]:
    return batch[0][:, 0, 0, 0].astype(int).tolist()


def assert_same(some, others) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        tf.nest.assert_same_structure(one, other)
        for ours, theirs in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


def pair(**options):
    """Few labelled examples, 0 to 5, and many others, 100 to 118."""
    labelled = data(6, 4, **options)
    others = unlabelled(data(19, 8, start=100, seed=8, **options), LETTERS)
    return labelled, others


@pytest.mark.parametrize(
    ("task", "one_hot", "shape", "dtype", "value"),
    [
        (LETTERS, False, [None], tf.int64, NO_LABEL),
        (LETTERS, True, [None, 3], tf.float32, 0),
        (TAGS, False, [None, 2], tf.float32, np.nan),
        (NUMBERS, False, [None, 1], tf.float32, np.nan),
    ],
)
def test_no_label_is_left_and_the_inputs_stay(task, one_hot, shape, dtype, value):
    labelled = data(7, task=task, one_hot=one_hot)
    others = unlabelled(labelled, task, one_hot=one_hot)
    images, labels = others.epochs().element_spec
    assert images == labelled.epochs().element_spec[0]
    assert (labels.shape.as_list(), labels.dtype) == (shape, dtype)
    assert others.steps == labelled.steps
    assert others.epochs().cardinality() == tf.data.INFINITE_CARDINALITY
    for (x, y), (before, was) in zip(
        listed(others.epochs(1), 3), listed(labelled.epochs(1), 3), strict=True
    ):
        np.testing.assert_array_equal(x, before)
        np.testing.assert_array_equal(y, np.full(was.shape, value, was.dtype))


def test_labels_are_made_for_the_task_of_the_others_and_weights_that_tell_of_them_go():
    weighted = data(7, balance="class_weights")
    assert len(weighted.epochs().element_spec) == 3
    assert len(unlabelled(weighted, LETTERS).epochs().element_spec) == 2
    numbers = data(7, task=NUMBERS)
    ((_, y),) = listed(unlabelled(numbers, LETTERS).epochs(), 1)
    assert y.tolist() == [NO_LABEL] * 4
    with pytest.raises(ValueError, match="one class an example"):
        unlabelled(numbers, NUMBERS, one_hot=True)


def test_labels_that_are_none_cost_nothing_in_cross_entropy():
    ((_, y),) = listed(unlabelled(data(4), LETTERS, one_hot=True).epochs(), 1)
    logits = tf.constant([[50.0, -50, 3]] * 4)
    assert (tf.nn.softmax_cross_entropy_with_logits(y, logits).numpy() == 0).all()


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_epochs_of_another_length_are_the_same_stream(steps):
    base = data(11)
    assert base.steps == 3
    cut = same_steps(base, steps)
    assert cut.steps == steps
    assert cut.epochs().element_spec == base.epochs().element_spec
    assert cut.epochs().cardinality() == tf.data.INFINITE_CARDINALITY
    stream = listed(base.epochs(), 3 * steps + 3)
    for first in (0, 1, 3):
        assert_same(listed(cut.epochs(first), 3), stream[first * steps :][:3])


def test_epochs_before_are_not_read():
    asked = []

    class Base:
        steps = 5

        def epochs(self, first=0):
            asked.append(first)
            return tf.data.Dataset.range(first * 5, 2**40)

    got = listed(same_steps(Base(), 7).epochs(10**6), 2)
    assert (asked, got) == ([1_400_000], [7_000_000, 7_000_001])
    with pytest.raises(ValueError, match="at least 1 step"):
        same_steps(Base(), 0)


def test_a_step_is_a_batch_of_each_and_an_epoch_one_pass_over_the_longer():
    labelled, others = pair()
    assert (labelled.steps, others.steps) == (2, 3)
    both = joined(labelled, others)
    assert both.steps == 3
    assert both.epochs().cardinality() == tf.data.INFINITE_CARDINALITY
    stream, few, many = (listed(each.epochs(), 6) for each in (both, labelled, others))
    for batch, one, other in zip(stream, few, many, strict=True):
        assert values(batch) == values(one) + values(other)
        assert batch[1].tolist() == one[1].tolist() + [NO_LABEL] * len(other[1])
        assert batch[0].dtype == np.uint8
    # Each pass over either has each example once, also where it crosses an epoch.
    shown = np.concatenate([values(batch) for batch in stream])
    passes = shown[shown < 100].reshape(3, 6)
    assert (np.sort(passes) == np.arange(6)).all()
    assert len({each.tobytes() for each in passes}) > 1
    assert (np.sort(shown[shown >= 100].reshape(2, 19)) == np.arange(100, 119)).all()


def test_either_may_be_the_longer():
    labelled, others = pair()
    swapped = joined(unlabelled(others, LETTERS), labelled)
    assert swapped.steps == 3
    assert [values(batch) for batch in listed(swapped.epochs(2), 3)] == [
        values(other) + values(one)
        for one, other in zip(
            listed(labelled.epochs(3), 3), listed(others.epochs(2), 3), strict=True
        )
    ]


def test_a_run_goes_on_where_it_was():
    made = [joined(*pair(augment="light")) for _ in range(2)]
    stream = listed(made[0].epochs(), 12)
    assert_same(listed(made[1].epochs(), 12), stream)
    for epoch, step in ((0, 2), (1, 0), (3, 2)):
        assert_same(listed(made[1].epochs(epoch).skip(step), 1), stream[3 * epoch + step :][:1])


def test_specs_keep_an_open_batch_and_everything_else():
    for task in (LETTERS, TAGS, NUMBERS):
        labelled = data(6, task=task, augment="light")
        both = joined(labelled, unlabelled(data(9, task=task), task), replicas=2)
        images, labels = both.epochs().element_spec
        assert images == tf.TensorSpec([None, 4, 4, 1], tf.float32)
        assert labels == labelled.epochs().element_spec[1]


def test_weights_of_the_one_are_ones_of_the_other():
    labelled = data(6, 3, balance="class_weights")
    others = unlabelled(data(8, start=100), LETTERS)
    (weighted,) = listed(labelled.epochs(), 1)
    ((_, _, weight),) = listed(joined(labelled, others).epochs(), 1)
    assert weight.tolist() == [*weighted[2], 1, 1, 1, 1]
    ((_, _, weight),) = listed(joined(others, labelled).epochs(), 1)
    assert weight.tolist() == [1, 1, 1, 1, *weighted[2]]
    ((_, _, weight),) = listed(joined(labelled, labelled).epochs(), 1)
    assert weight.tolist() == [*weighted[2], *weighted[2]]
    assert weight.dtype == np.float32


def test_nested_inputs_are_joined_by_name():
    labelled = given({"image": np.zeros((2, 2), np.uint8), "text": ["a", "a"]}, [0, 1])
    others = given({"image": np.ones((2, 2), np.float32), "text": ["b", "b"]}, [-1, -1])
    ((x, y),) = listed(joined(labelled, others).epochs(), 1)
    assert x["image"].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert x["image"].dtype == np.float32
    assert x["text"].tolist() == [b"a", b"a", b"b", b"b"]
    assert y.tolist() == [0, 1, -1, -1]


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ((4, 4, 1), (4, 4, 3), r"labelled ones, 4 x 4 x 1 uint8, and are 4 x 4 x 3 uint8\."),
        ((4, 4, 1), (5, 4, 1), "5 x 4 x 1 uint8"),
        ((3,), (4,), "3 uint8, and are 4 uint8"),
        ((), (3,), "like the labelled ones, uint8, and are 3 uint8"),
    ],
)
def test_inputs_of_other_shapes_are_refused(one, other, message):
    batches = [given(np.zeros((2, *shape), np.uint8), [0, 1]) for shape in (one, other)]
    with pytest.raises(UserError, match=message) as error:
        joined(*batches)
    assert "\n" not in str(error.value)


def test_texts_and_numbers_are_refused_and_so_are_labels_of_two_kinds():
    with pytest.raises(UserError, match="string, and are uint8"):
        joined(given(["a"], [0]), given(np.zeros(1, np.uint8), [0]))
    with pytest.raises(ValueError, match="Expected labels like"):
        joined(data(4, one_hot=True), unlabelled(data(4), LETTERS))
    with pytest.raises(ValueError, match="structure"):
        joined(given({"x": [1.0]}, [0]), given([1.0], [0]))


@pytest.mark.parametrize("replicas", [2, 3])
def test_every_replica_gets_its_share_of_both(replicas):
    labelled = data(13, 6, replicas=replicas)
    others = unlabelled(data(31, 12, start=100, replicas=replicas), LETTERS)
    both = joined(labelled, others, replicas=replicas)
    alone = joined(labelled, others)
    sizes = set()
    for batch, plain, one, other in zip(
        *(listed(each.epochs(), 12) for each in (both, alone, labelled, others)), strict=True
    ):
        shares = np.split(np.array(values(batch)), replicas)
        few, many = (np.split(np.array(values(each)), replicas) for each in (one, other))
        for share, *expected in zip(shares, few, many, strict=True):
            assert share.tolist() == np.concatenate(expected).tolist()
        np.testing.assert_array_equal(batch[1] == NO_LABEL, np.array(values(batch)) >= 100)
        assert sorted(values(batch)) == sorted(values(plain))
        sizes.add(len(batch[1]))
    assert len(sizes) > 1  # The last batches of epochs are smaller, and shared as well.


def test_a_strategy_hands_out_these_shares(mirrored):
    few, many = data(7, 4, replicas=2), data(22, 8, start=100, replicas=2)
    both = joined(few, unlabelled(many, LETTERS), replicas=2)
    shared = iter(mirrored.experimental_distribute_dataset(both.epochs()))
    for batch in listed(both.epochs(), 6):
        images, labels = (mirrored.experimental_local_results(each) for each in next(shared))
        halves = np.split(np.array(values(batch)), 2)
        assert [values([share.numpy()]) for share in images] == [half.tolist() for half in halves]
        known = [int((share.numpy() != NO_LABEL).sum()) for share in labels]
        assert known[0] == known[1] > 0


def answers_of(images: Part, x=None) -> Features:
    """A teacher that says the value of an image and its square."""
    value = np.arange(images.examples, dtype=np.float32)
    packed = np.stack([value, value**2], axis=-1)[None] if x is None else x
    return Features(packed, images.labels, images)


@pytest.mark.parametrize("options", [{}, {"one_hot": True}, {"balance": "class_weights"}])
def test_answers_stand_beside_their_images(options):
    images = part(19)
    answers = feature_batches(answers_of(images), images, 4, seed=3, **options)
    batches = train_batches(images, 4, seed=3, **options)
    both = taught(batches, answers)
    assert both.steps == 5
    assert both.epochs().cardinality() == tf.data.INFINITE_CARDINALITY
    assert both.epochs().element_spec == (
        {"inputs": batches.epochs().element_spec[0], "teacher": tf.TensorSpec([None, 2])},
        *batches.epochs().element_spec[1:],
    )
    for epoch in (0, 2):
        got, plain = (listed(each.epochs(epoch), 6) for each in (both, batches))
        assert_same([(x["inputs"], *rest) for x, *rest in got], plain)
        for x, *_ in got:
            shown = x["inputs"][:, 0, 0, 0].astype(np.float32)
            np.testing.assert_array_equal(x["teacher"], np.stack([shown, shown**2], axis=-1))


class Noise(Memory):
    """Images that augmentation changes, each apart."""

    def image(self, row):
        return np.random.default_rng(row).integers(0, 256, (4, 4, 1), np.uint8)


def test_answers_to_views_stand_beside_the_views():
    source = Noise(LETTERS, train=LABELS[LETTERS])
    images = Part(source, "train", np.arange(11), "train")
    views = [x for x, _ in view_batches(images, 11, 2, seed=3, augment="light")]
    sums = np.stack([tf.reshape(x, [11, -1]) for x in views])
    assert (sums[0] != sums[1]).any()
    answers = feature_batches(answers_of(images, sums), images, 4, seed=3)
    both = taught(train_batches(images, 4, seed=3, augment="light", views=2), answers)
    for epoch in range(3):
        for x, _ in listed(both.epochs(epoch), 4):
            np.testing.assert_array_equal(x["teacher"], x["inputs"].reshape(len(x["inputs"]), -1))


def test_answers_in_another_order_end_the_run():
    images = part(11)
    batches = train_batches(images, 4, seed=3)
    for batch_size, seed in ((4, 4), (5, 3)):
        answers = feature_batches(answers_of(images), images, batch_size, seed=seed)
        assert answers.steps == batches.steps
        with pytest.raises(tf.errors.InvalidArgumentError):
            listed(taught(batches, answers).epochs(), 3)
    with pytest.raises(ValueError, match="for 3 steps an epoch, received 6"):
        taught(batches, feature_batches(answers_of(images), images, 2, seed=3))


def test_unknown_labels_do_not_hide_the_order():
    nothing = unlabelled(given(np.zeros((4, 2)), np.zeros((4, 1), "f")), NUMBERS)
    ((x, y),) = listed(taught(nothing, nothing).epochs(), 1)
    assert x["teacher"].shape == (2, 2)
    assert np.isnan(y).all()


def test_taught_batches_are_joined_without_their_labels():
    images, pool = part(6), part(10, start=0)
    few, many = (
        taught(
            train_batches(each, size, seed=1), feature_batches(answers_of(each), each, size, seed=1)
        )
        for each, size in ((images, 2), (pool, 4))
    )
    both = joined(few, unlabelled(many, LETTERS), replicas=2)
    for x, y in listed(both.epochs(1), 3):
        shown = x["inputs"][:, 0, 0, 0].astype(np.float32)
        np.testing.assert_array_equal(x["teacher"][:, 0], shown)
        known = y != NO_LABEL
        np.testing.assert_array_equal(y[known], shown[known] % 3)
        assert known.sum() == 2


def test_the_rest_is_what_no_part_takes():
    bad = [BadExample("x", "y", "train", 7)]
    source = Memory(LETTERS, train=90, test=12)
    splits = split_data(source, 1, shots=2, bad=bad)
    taken = [splits.train, splits.validation, splits.test]
    rest = rest_of(given_parts(source, bad)["train"], taken)
    assert (rest.split, rest.origin) == ("train", "rest of train")
    used = np.concatenate([splits.train.rows, splits.validation.rows, [7]])
    assert sorted([*rest.rows, *used]) == list(range(90))
    assert rest.rows.tolist() == sorted(rest.rows)
    # The rows of test are those of another split.
    assert rest_of(splits.train, [splits.test]).examples == 6


def test_a_rest_of_nothing_is_refused():
    splits = split_data(Memory(LETTERS, train=30, test=9))
    with pytest.raises(UserError, match=r"no example of rest of train left .* --shots"):
        rest_of(splits.train, [splits.train])
