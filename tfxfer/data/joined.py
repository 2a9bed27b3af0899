"""Batches made of other batches: without labels, joined, recut, beside a teacher's outputs.

All of them are functions of the epoch, as those that they are made of: a run that was killed goes
on by `epochs(epoch).skip(step)`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf

from tfxfer.errors import UserError
from tfxfer.task import SINGLE_LABEL, Task

NO_LABEL = -1
"""The class number of an example whose class is not known."""


class Batches(Protocol):
    """What is trained on: batches `(x, y)` or `(x, y, weight)`, epoch after epoch."""

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        ...

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        """Returns epoch `first` and all that come after it, without end."""
        ...


def unlabelled(batches: Batches, task: Task, *, one_hot: bool = False) -> Batches:
    """Leaves out what batches say of their labels.

    Their weights go too, since they may follow from the labels.

    Args:
        batches: Batches of any task.
        task: Of the labels that are made, the one of the examples that these will be joined to.
        one_hot: Whether classes are given as float32 `[batch, classes]`; single labels only.

    Returns:
        Batches `(x, y)` with the same inputs. `y` is `NO_LABEL`, int64 `[batch]`, for single
        labels; zeros, float32 `[batch, classes]`, of which cross-entropy makes 0, if they are
        one-hot; NaN, float32 `[batch, units]`, for other tasks.

    Raises:
        ValueError: If other labels than single ones are to be one-hot.
    """
    if one_hot and task.kind != SINGLE_LABEL:
        raise ValueError(f"Expected one class an example for one_hot, received {task}.")
    return _Unlabelled(batches, task, one_hot)


@dataclass(frozen=True)
class _Unlabelled:
    batches: Batches
    task: Task
    one_hot: bool

    @property
    def steps(self) -> int:
        return self.batches.steps

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        return self.batches.epochs(first).map(lambda x, *_: (x, self._none(_size(x))))

    def _none(self, examples: tf.Tensor) -> tf.Tensor:
        if self.task.kind != SINGLE_LABEL:
            return tf.fill([examples, self.task.units], float("nan"))
        if self.one_hot:
            return tf.zeros([examples, self.task.units])
        return tf.fill([examples], tf.constant(NO_LABEL, tf.int64))


def same_steps(batches: Batches, steps: int) -> Batches:
    """Cuts the same endless batches into epochs of another length.

    Args:
        batches: Any.
        steps: Batches in an epoch, at least 1.

    Returns:
        The batches of `batches.epochs()`; epoch `i` is `steps` of them from number `i * steps` on.
        Those of the epochs of `batches` before that are not read.

    Raises:
        ValueError: If `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"Expected at least 1 step an epoch, received {steps}.")
    return _SameSteps(batches, steps)


@dataclass(frozen=True)
class _SameSteps:
    batches: Batches
    steps: int

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        epoch, step = divmod(first * self.steps, self.batches.steps)
        dataset = self.batches.epochs(epoch)
        return dataset.skip(step) if step else dataset


def joined(labelled: Batches, unlabelled: Batches, *, replicas: int = 1) -> Batches:
    """Joins batches to batches: each step is one of each, the labelled examples first.

    An epoch is one pass over the longer of the two, by its steps. The shorter one meanwhile goes
    through its own epochs again and again, each in an order of its own, and goes on in the next
    epoch where it was.

    Args:
        labelled: Batches `(x, y)` or `(x, y, weight)`; `x` may be nested.
        unlabelled: Batches like them, as `unlabelled` makes them.
        replicas: Devices that share a batch. Each gets its share of both: of every consecutive
            `1 / replicas` of a batch, the labelled examples come first. Both must have batches
            whose sizes are multiples of it, as `train_batches` gives them.

    Returns:
        Batches `(x, y)`, or `(x, y, weight)` if one of the two has weights; those of the other are
        then 1. Inputs that are numbers of two dtypes become float32.

    Raises:
        UserError: If the inputs have other shapes, or are numbers here and texts there.
        ValueError: If the labels are of two kinds, or the inputs nested in two ways.
    """
    _check(labelled.epochs().element_spec, unlabelled.epochs().element_spec)
    return _Joined(labelled, unlabelled, replicas)


@dataclass(frozen=True)
class _Joined:
    labelled: Batches
    unlabelled: Batches
    replicas: int

    @property
    def steps(self) -> int:
        return max(self.labelled.steps, self.unlabelled.steps)

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        both = (self.labelled, self.unlabelled)
        pairs = tf.data.Dataset.zip(*(same_steps(each, self.steps).epochs(first) for each in both))
        return pairs.map(self._join).prefetch(tf.data.AUTOTUNE)

    def _join(self, *pair: tuple[Any, ...]) -> tuple[Any, ...]:
        if len({len(batch) for batch in pair}) > 1:
            pair = tuple((*batch[:2], *(batch[2:] or [tf.ones(_size(batch[0]))])) for batch in pair)
        return tf.nest.map_structure(self._concatenate, *pair)

    def _concatenate(self, one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        if one.dtype != other.dtype:
            one, other = tf.cast(one, tf.float32), tf.cast(other, tf.float32)
        # `tf.distribute` hands out consecutive parts.
        shares = zip(tf.split(one, self.replicas), tf.split(other, self.replicas), strict=True)
        return tf.concat([share for pair in shares for share in pair], axis=0)


def _check(labelled: tuple[Any, ...], unlabelled: tuple[Any, ...]) -> None:
    """Checks the element specs of batches that are to be joined."""
    one, other = (spec[1] for spec in (labelled, unlabelled))
    if (one.dtype, one.shape[1:]) != (other.dtype, other.shape[1:]):
        raise ValueError(f"Expected labels like {one}, received {other}.")
    tf.nest.assert_same_structure(labelled[0], unlabelled[0])
    inputs = (tf.nest.flatten(spec[0]) for spec in (labelled, unlabelled))
    for one, other in zip(*inputs, strict=True):
        alike = one.dtype == other.dtype or (_is_number(one) and _is_number(other))
        if not alike or one.shape[1:].as_list() != other.shape[1:].as_list():
            raise UserError(
                f"Unlabelled inputs must be like the labelled ones, {_words(one)}, and are "
                f"{_words(other)}",
                "Bring them to the same size and number of channels, or choose other data.",
            )


def _is_number(spec: tf.TensorSpec) -> bool:
    return spec.dtype.is_integer or spec.dtype.is_floating


def _words(spec: tf.TensorSpec) -> str:
    sizes = " x ".join("any" if size is None else str(size) for size in spec.shape[1:])
    return f"{sizes} {spec.dtype.name}".strip()


def taught(batches: Batches, answers: Batches) -> Batches:
    """Puts what a teacher says of inputs beside them.

    Args:
        batches: Batches `(x, y)` or `(x, y, weight)` of inputs.
        answers: The teacher's outputs in place of the inputs, in the same order: those that
            `feature_batches` gives for the same part, batch size, seed and options. Where images
            are augmented, both have the same number of views; where they are mixed, the outputs
            cannot be known before.

    Returns:
        Batches `({"inputs": x, "teacher": outputs}, y)`, or with the weights of `batches`. The
        labels of both are compared at every step, so that outputs in another order end a run by
        `tf.errors.InvalidArgumentError`. Hence labels are left out after this, not before.

    Raises:
        ValueError: If the numbers of steps differ.
    """
    if answers.steps != batches.steps:
        raise ValueError(
            f"Expected a teacher's outputs for {batches.steps} steps an epoch, received "
            f"{answers.steps}."
        )
    return _Taught(batches, answers)


@dataclass(frozen=True)
class _Taught:
    batches: Batches
    answers: Batches

    @property
    def steps(self) -> int:
        return self.batches.steps

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        pairs = tf.data.Dataset.zip(self.batches.epochs(first), self.answers.epochs(first))
        return pairs.map(_put_beside)


def _put_beside(batch: tuple[Any, ...], answer: tuple[Any, ...]) -> tuple[Any, ...]:
    (x, y, *weight), (outputs, expected, *_) = batch, answer
    tf.debugging.assert_equal(tf.shape(y), tf.shape(expected), "Batches of two sizes.")
    same = (y == expected) | (y != y)  # What is not known is NaN.
    tf.debugging.Assert(tf.reduce_all(same), ["The teacher's outputs are of other examples."])
    return {"inputs": x, "teacher": outputs}, y, *weight


def _size(x: Any) -> tf.Tensor:
    return tf.shape(tf.nest.flatten(x)[0])[0]
