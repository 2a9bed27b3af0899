"""Which examples train, validate and test."""

import numpy as np
import pytest

from tests.memory import Memory
from tfxfer.data.base import BadExample
from tfxfer.data.leaks import find_leaks
from tfxfer.data.parts import Part
from tfxfer.data.splits import fold_data, split_data
from tfxfer.errors import UserError
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task


def ids(part: Part) -> list[str]:
    return [row[0].decode() for row in part.dataset.as_numpy_iterator()]


def parts(splits) -> tuple[Part, Part, Part]:
    return splits.train, splits.validation, splits.test


def classes(count: int) -> Task:
    return Task(SINGLE_LABEL, tuple(map(str, range(count))))


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
    splits = split_data(Memory(**sizes))
    assert tuple(part.origin for part in parts(splits)) == origins
    found = [set(ids(part)) for part in parts(splits)]
    assert sum(map(len, found)) == len(set.union(*found)) == sum(sizes.values())
    assert [len(f) for f in found] == [part.examples for part in parts(splits)]


def test_validation_follows_the_seed_and_test_does_not():
    one, same, other = (split_data(Memory(train=200), seed) for seed in (1, 1, 2))
    assert ids(one.validation) == ids(same.validation) != ids(other.validation)
    assert ids(one.test) == ids(other.test)


def test_carved_splits_are_stratified():
    labels = np.repeat([0, 1], [180, 20])
    splits = split_data(Memory(train=np.random.default_rng(0).permutation(labels)))
    assert [np.bincount(part.labels).tolist() for part in parts(splits)] == [
        [130, 14],
        [14, 2],
        [36, 4],
    ]


def test_source_without_train_is_refused():
    with pytest.raises(UserError, match="'train'"):
        split_data(Memory(test=5))


def test_class_with_one_example_is_refused():
    with pytest.raises(UserError, match=r"at least 2 .* 1 of 'b'"):
        split_data(Memory(train=[0, 0, 0, 1]))


def test_many_classes_of_few_examples_are_split():
    splits = split_data(Memory(classes(100), train=500))
    assert [part.examples for part in parts(splits)] == [300, 100, 100]
    assert all(len(set(part.labels)) == 100 for part in parts(splits))


def test_split_with_hidden_labels_counts_as_missing():
    assert split_data(Memory(train=100, test=[-1] * 20)).test.origin == "20% of train"


def test_bad_examples_are_in_no_part():
    bad = [BadExample("x", "y", "train", row) for row in (3, 50)]
    bad += [BadExample("x", "y", "test", 0), BadExample("folder", "empty")]
    splits = split_data(Memory(train=100, test=10), bad=bad)
    found = {each for part in parts(splits) for each in ids(part)}
    assert len(found) == 107
    assert not found & {"train3", "train50", "test0"}


def test_nothing_but_bad_examples_is_refused():
    with pytest.raises(UserError, match="all 2 are bad"):
        split_data(Memory(train=2), bad=[BadExample("x", "y", "train", row) for row in (0, 1)])


def test_shots_are_drawn_of_each_class():
    one, same, other = (split_data(Memory(classes(5), train=200), s, shots=3) for s in (1, 1, 2))
    assert np.bincount(one.train.labels).tolist() == [3] * 5
    assert ids(one.train) == ids(same.train) != ids(other.train)
    assert one.train.origin == "3 a class of rest of train"
    assert not set(ids(one.train)) & set(ids(one.validation) + ids(one.test))
    with pytest.raises(UserError, match="--shots=50"):
        split_data(Memory(classes(5), train=200), shots=50)
    with pytest.raises(UserError, match="--max_examples"):
        split_data(Memory(Task(REGRESSION, ("y",)), train=np.zeros((9, 1), "f")), shots=1)


def test_max_examples_keeps_the_shares():
    labels = np.repeat([0, 1], [900, 100])
    splits = split_data(Memory(train=labels, test=4), max_examples=100)
    assert np.bincount(splits.train.labels).tolist() == [90, 10]
    assert split_data(Memory(train=labels, test=4), max_examples=9999).train.examples == 900


def test_vtab_draws_800_and_200():
    splits = split_data(Memory(classes(10), train=1500, test=50), vtab=True)
    assert [part.examples for part in parts(splits)] == [800, 200, 50]
    assert not set(ids(splits.train)) & set(ids(splits.validation))
    with pytest.raises(UserError, match="1000 examples"):
        split_data(Memory(train=900, test=50), vtab=True)


@pytest.mark.parametrize(
    "given", [{}, {"validation": 20}, {"test": 20}, {"validation": 20, "test": 20}]
)
def test_folds_test_every_example_once(given):
    folds = fold_data(Memory(classes(3), train=99, **given), 5)
    tested = [each for fold in folds for each in ids(fold.test)]
    assert sorted(tested) == sorted(f"train{row}" for row in range(99))
    for fold in folds:
        assert not set(ids(fold.test)) & set(ids(fold.train) + ids(fold.validation))
        assert not set(ids(fold.train)) & set(ids(fold.validation))
        assert set(fold.test.labels) == {0, 1, 2}
        # Without a test split, validation is what other runs test on.
        assert (fold.validation.split == "validation") == (len(given) == 2)
    again = fold_data(Memory(classes(3), train=99, **given), 5)
    assert [ids(fold.train) for fold in folds] == [ids(fold.train) for fold in again]


def test_folds_need_as_many_of_each_class():
    with pytest.raises(UserError, match=r"at least 5 .* 2 of 'b'"):
        fold_data(Memory(train=[0] * 20 + [1] * 2), 5)


def test_groups_stay_together():
    groups = {"train": np.repeat([f"person {i}" for i in range(20)], 6)}
    source = Memory(train=120, groups=groups)

    def people(part):
        return set(groups["train"][part.rows])

    for splits in (split_data(source), *fold_data(source, 4)):
        train, validation, test = map(people, parts(splits))
        assert train and validation and test
        assert not train & test and not train & validation and not validation & test
    with pytest.raises(UserError, match="group for each of 4 folds"):
        fold_data(Memory(train=9, groups={"train": np.array(list("aaabbbccc"))}), 4)
    with pytest.raises(UserError, match="two groups"):
        split_data(Memory(train=9, groups={"train": np.array(list("aaaaaaaaa"))}))


def test_regression_is_stratified_by_tenths():
    y = np.random.default_rng(0).exponential(size=(400, 1)).astype(np.float32)
    splits = split_data(Memory(Task(REGRESSION, ("y",)), train=y))
    tenth = np.quantile(y, 0.9)
    for part in parts(splits):
        assert np.mean(part.labels > tenth) == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("rows", [12, 400])
def test_several_labels_are_split(rows):
    y = np.random.default_rng(0).integers(0, 2, (rows, 6)).astype(np.float32)
    splits = split_data(Memory(Task(MULTI_LABEL, tuple("abcdef")), train=y))
    assert sum(part.examples for part in parts(splits)) == rows
    assert len(fold_data(Memory(Task(MULTI_LABEL, tuple("abcdef")), train=y), 3)) == 3


def test_leaks_are_counted_and_dropped():
    source = Memory(train=40, validation=4, test=4)
    rng = np.random.default_rng(0)
    hashes = {
        name: rng.integers(0, 2**63, count, dtype=np.uint64)
        for name, count in source.info.examples.items()
    }
    hashes["test"][1] = hashes["train"][7]
    hashes["validation"][2] = hashes["train"][9]
    hashes["validation"][3] = hashes["test"][0]
    splits = split_data(source)
    same, leaks = find_leaks(splits, hashes)
    assert same is splits
    assert (leaks.train_in_test, leaks.train_in_validation, leaks.validation_in_test) == (1, 1, 1)
    assert leaks.found
    assert leaks.dropped == 0
    without, leaks = find_leaks(splits, hashes, drop=True)
    assert leaks.dropped == 2
    assert set(ids(splits.train)) - set(ids(without.train)) == {"train7", "train9"}
    assert ids(without.test) == ids(splits.test)
    _, none = find_leaks(without, hashes)
    assert none.train_in_test == none.train_in_validation == 0
