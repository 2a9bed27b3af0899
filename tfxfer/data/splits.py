"""Which examples train, which validate, which test; nothing is in two of them."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from sklearn.model_selection import train_test_split

from tfxfer.data.base import DataSource
from tfxfer.errors import UserError

_TEST_SHARE = 0.2
_VALIDATION_SHARE = 0.1


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
    `validation` if that is still free, else a tenth of `train`, drawn with `seed`.

    Args:
        source: A dataset with a `train` split.
        seed: Seed of the carved validation split.

    Returns:
        Train, validation and test; no example is in two of them.

    Raises:
        UserError: If there is no `train` split, or too few examples of a class to carve from.
    """
    given = source.info.examples
    if not given.get("train"):
        raise UserError(
            f"{source.info.name} must have a 'train' split, and has {sorted(given) or 'none'}",
            "Choose a dataset with examples to train on.",
        )
    rows = np.arange(given["train"])
    carved_from = "train"
    names = [name for name in ("test", "validation") if given.get(name)]
    parts: dict[str, Part] = {}
    for role, share, split_seed in (
        ("test", _TEST_SHARE, 0),
        ("validation", _VALIDATION_SHARE, seed),
    ):
        if role in names or (role == "test" and names):
            name = names.pop(0)
            parts[role] = Part(source.split(name), given[name], f"split {name!r}")
            continue
        labels = _labels(source)
        rows, chosen = _carve(source.info.name, rows, labels[rows], share, split_seed)
        parts[role] = Part(_rows(source, chosen), len(chosen), f"{share:.0%} of train")
        carved_from = "rest of train"
    train = source.split("train") if len(rows) == given["train"] else _rows(source, rows)
    return Splits(Part(train, len(rows), carved_from), parts["validation"], parts["test"])


def _labels(source: DataSource) -> np.ndarray:
    return np.concatenate([batch.numpy() for batch in source.labels("train").batch(10_000)])


def _carve(
    name: str, rows: np.ndarray, labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into the rest and the share that is held out, in the order of the source."""
    try:
        rest, held = train_test_split(rows, test_size=share, stratify=labels, random_state=seed)
        return np.sort(rest), np.sort(held)
    except ValueError as error:
        raise UserError(
            f"{name} needs at least two training examples of each class to hold some out: {error}",
            "Add examples, or leave out the classes that have only one.",
        ) from error


def _rows(source: DataSource, rows: np.ndarray) -> tf.data.Dataset:
    """Keeps the rows of train that are named, in their order; streams, never holds images."""
    mask = np.zeros(source.info.examples["train"], bool)
    mask[rows] = True
    mask = tf.constant(mask)
    chosen = tf.data.Dataset.from_tensor_slices(mask)
    paired = tf.data.Dataset.zip(source.split("train"), chosen)
    return paired.filter(lambda example, keep: keep).map(lambda example, keep: example)
