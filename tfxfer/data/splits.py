"""Which examples train, which validate, which test; nothing is in two of them."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from sklearn.model_selection import train_test_split

from tfxfer.data.base import DataSource
from tfxfer.errors import UserError

_TEST_SHARE = 0.2
_VALIDATION_SHARE = 0.1
_HIDDEN = -1  # The label that TFDS gives where the authors keep the labels of a test split.


@dataclass(frozen=True)
class Part:
    """One part of the data: a split of the source, or some rows of one.

    Attributes:
        dataset: `(id, image, label)` in a stable order.
        examples: How many there are.
        origin: Where they come from, in words.
    """

    dataset: tf.data.Dataset
    examples: int
    origin: str


@dataclass(frozen=True)
class Splits:
    """The three parts of the data that a run uses."""

    train: Part
    validation: Part
    test: Part


def split_data(source: DataSource, seed: int) -> Splits:
    """Uses the splits that the source has and carves the missing ones from train.

    A carved split is stratified by label. Test is the source's `test`, else its `validation`,
    else a fifth of `train`, the same fifth for every seed. Validation is the source's
    `validation` if that is still free, else a tenth of `train`, drawn with `seed`. A split whose
    labels are hidden counts as missing.

    Args:
        source: A dataset with a `train` split.
        seed: Seed of the carved validation split.

    Returns:
        Train, validation and test; no example is in two of them.

    Raises:
        UserError: If there is no `train` split, too few examples of a class to carve from, or a
            label that is none of the classes.
    """
    given = source.info.examples
    if not given.get("train"):
        raise UserError(
            f"Dataset {source.info.name} must have a 'train' split, and has "
            f"{sorted(given) or 'none'}",
            "Choose a dataset with examples to train on.",
        )
    labels = {
        name: source.labels(name) for name in ("train", "test", "validation") if given.get(name)
    }
    labels = {name: values for name, values in labels.items() if (values != _HIDDEN).any()}
    for name, values in labels.items():
        _check_labels(source, name, values)
    free = [name for name in ("test", "validation") if name in labels]
    rows, origin = np.arange(given["train"]), "train"
    parts: dict[str, Part] = {}
    for role, share, role_seed in (
        ("test", _TEST_SHARE, 0),
        ("validation", _VALIDATION_SHARE, seed),
    ):
        if role in free or (role == "test" and free):
            name = free.pop(0)
            parts[role] = Part(source.split(name), given[name], f"split {name!r}")
        else:
            rows, held = _carve(source, rows, labels["train"][rows], share, role_seed)
            parts[role] = Part(source.split("train", held), len(held), f"{share:.0%} of {origin}")
            origin = "rest of train"
    train = source.split("train", None if len(rows) == given["train"] else rows)
    return Splits(Part(train, len(rows), origin), parts["validation"], parts["test"])


def _check_labels(source: DataSource, name: str, labels: np.ndarray) -> None:
    classes = len(source.info.label_names)
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise UserError(
            f"Dataset {source.info.name} must have labels 0 to {classes - 1}, "
            f"and split {name!r} has {wrong}",
            "Choose another version of the dataset, or mend it.",
        )


def _carve(
    source: DataSource, rows: np.ndarray, labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into the rest and the share that is held out, in the order of the source.

    At least one example a class is held out, or the split would not be stratified.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise UserError(
            f"Dataset {source.info.name} needs at least two training examples of each class to "
            f"hold one out, and has one of {source.info.label_names[classes[counts.argmin()]]!r}",
            "Add examples, or leave out the classes that have only one.",
        )
    held_out = max(round(share * len(rows)), len(classes))
    rest, held = train_test_split(rows, test_size=held_out, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(held)
