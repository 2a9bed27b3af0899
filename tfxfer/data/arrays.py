"""Data that Python code holds: NumPy arrays and tf.data datasets."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.data.array_inputs import (
    InputForm,
    check_inputs,
    common_form,
    encoded,
    input_form,
    item_bytes,
)
from tfxfer.data.base import TEXT, DataInfo, DataSource
from tfxfer.data.blocks import Block, from_blocks
from tfxfer.data.labels import array_labels, check_task, check_usable, list_bad
from tfxfer.data.split_names import split_named
from tfxfer.errors import UserError

_BLOCK = 2**22  # Bytes of inputs that are looked at, or handed to TensorFlow, at a time.
_PROBE = 256  # Examples of a tf.data dataset that are read twice, to see whether it shuffles.


def open_arrays(
    source: Any,
    *,
    label_names: Sequence[str] | None = None,
    task: str = "",
    name: str = "arrays",
) -> DataSource:
    """Opens arrays, or tf.data datasets.

    Args:
        source: `(x, y)`, arrays of equal length; or a `tf.data.Dataset` of unbatched pairs
            `(x, y)`, finite and always in the same order; or a mapping of the names of splits to
            such. Without a mapping everything is `train`.
            `x` are images, uint8 or float in [0, 255], `[n, h, w]` or `[n, h, w, 1 or 3]`; texts,
            strings `[n]`, or pairs of texts `[n, 2]`; or numbers `[n, d]`. `y` are classes,
            integers from 0 or strings, `[n]` or `[n, 1]`; classes that apply or not, 0 or 1,
            `[n, classes]`; or numbers, float `[n]` or `[n, targets]`. Arrays are not copied.
        label_names: Of the classes, in the order of the integers, or of the targets.
        task: `single_label`, `multi_label` or `regression`; by the type and shape of `y` if empty.
        name: What to call the data.

    Returns:
        The data. Examples whose label is NaN, infinite or out of range, inputs that are not finite,
        and texts that are no strings, are listed as bad.

    Raises:
        UserError: If shapes, types or ranges are none of these.
    """
    check_task(task)
    given = dict(source) if isinstance(source, Mapping) else {"train": source}
    parts = {split_named(str(split)) or str(split): part for split, part in given.items()}
    if len(parts) < len(given):
        raise UserError(
            f"{name} must have each split once, and has {', '.join(map(repr, given))}",
            "Merge or rename them.",
        )
    if unknown := [split for split in parts if not split_named(split)]:
        raise UserError(
            f"{name} must have splits train, validation and test, and has {unknown[0]!r}",
            "Rename it or leave it out.",
        )
    if "train" not in parts:
        raise UserError(
            f"{name} must have a split 'train', and has {', '.join(map(repr, parts)) or 'none'}",
            "Give {'train': (x, y), 'test': (x, y)}, or (x, y) alone.",
        )
    if all(isinstance(part, tf.data.Dataset) for part in parts.values()):
        return DatasetSource(parts, label_names, task, name)
    return ArraySource(parts, label_names, task, name)


def open_inputs(inputs: Any, *, name: str = "inputs") -> DataSource:
    """Opens inputs whose labels nobody knows, as one split `train` where each has the target 0.

    Args:
        inputs: What `open_arrays` takes for `x`, or a `tf.data.Dataset` of single ones.
        name: What to call them.

    Raises:
        UserError: If they are none.
    """
    if isinstance(inputs, tf.data.Dataset):
        if isinstance(inputs.element_spec, tf.TensorSpec):
            return open_arrays(inputs.map(lambda x: (x, 0.0)), name=name)
    elif inputs is not None and not isinstance(inputs, tuple | Mapping):
        x = inputs if isinstance(inputs, np.ndarray) else _array(inputs, f"x of {name}")
        if x.ndim and len(x):
            return open_arrays((x, np.zeros(len(x), np.float32)), name=name)
    raise UserError(
        f"{name} must be an array of inputs or a tf.data dataset of single ones, without labels, "
        f"and are {getattr(inputs, 'element_spec', type(inputs).__name__)}",
        "Give x alone.",
    )


class _HeldSource(DataSource):
    """What arrays and tf.data datasets have in common; ids are the split and the position.

    The fingerprint covers all values.

    Args:
        forms: Of the inputs, by split.
        parts: By split, the inputs in blocks, and the labels; these may come as the inputs do.
        label_names, task, name: As for `open_arrays`.
    """

    def __init__(
        self,
        forms: Mapping[str, InputForm],
        parts: Mapping[str, tuple[Iterator[tuple[int, np.ndarray]], Any]],
        label_names: Sequence[str] | None,
        task: str,
        name: str,
    ):
        form = common_form(forms, name)
        digest: Any = hashlib.sha256()
        given: dict[str, np.ndarray] = {}
        bad: dict[str, dict[int, str]] = {}
        for split, (blocks, y) in parts.items():
            bad[split] = check_inputs(form, blocks, digest, f"x of {name} {split!r}")
            given[split] = _array(y, f"y of {name} {split!r}")
            if not len(given[split]):
                raise UserError(f"{name} {split!r} must hold examples, and is empty", "Check it.")
        labels = array_labels(given, label_names, task, name)
        examples = {split: len(y) for split, y in given.items()}
        self._form, self._labels = form, labels.y
        self.bad = list_bad(self.where, bad, labels.bad)
        check_usable(name, labels.task, labels.y["train"], self.bad, "Correct or add examples.")
        self.info = DataInfo(name, labels.task, form.inputs, form.shape, examples)
        digest.update(repr((form, labels.task, examples)).encode())
        for y in labels.y.values():
            digest.update(np.ascontiguousarray(y))
        self.fingerprint = digest.hexdigest()

    def decode(self, raw: tf.Tensor) -> tf.Tensor:
        """Brings an input to the type and shape that models take."""
        return self._form.decode(raw)

    def labels(self, name: str) -> np.ndarray:
        """Returns `y` of a split."""
        return self._labels[name]

    def where(self, name: str, row: int) -> str:
        """Names the row."""
        return f"row {row} of {name}"


class ArraySource(_HeldSource):
    """Arrays; see `open_arrays`.

    Args:
        parts: `(x, y)` by split.
        label_names, task, name: As for `open_arrays`.
    """

    def __init__(
        self, parts: Mapping[str, Any], label_names: Sequence[str] | None, task: str, name: str
    ):
        pairs = {split: _pair(part, f"{name} {split!r}") for split, part in parts.items()}
        self._inputs = {split: x for split, (x, _) in pairs.items()}
        forms = {
            split: input_form(x.dtype, x.shape[1:], f"x of {name} {split!r}")
            for split, x in self._inputs.items()
        }
        blocks = {split: (_blocks(x), y) for split, (x, y) in pairs.items()}
        super().__init__(forms, blocks, label_names, task, name)
        self.raw_bytes = item_bytes(self._inputs["train"])

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(id, value as it is in the array, y)`."""
        inputs, labels = self._inputs[name], self._labels[name]
        chosen = np.arange(len(inputs)) if rows is None else np.asarray(rows)

        def blocks() -> Iterator[Block]:
            for start in range(0, len(chosen), _step(inputs)):
                at = chosen[start : start + _step(inputs)]
                ids = np.array([f"{name}/{row}" for row in at], object)
                yield ids, encoded(inputs[at]), labels[at]

        dtype = tf.string if self.info.inputs == TEXT else inputs.dtype
        return from_blocks(blocks, tf.TensorSpec(inputs.shape[1:], dtype), labels, len(chosen))


class DatasetSource(_HeldSource):
    """tf.data datasets of `(x, y)`; see `open_arrays`.

    Opening reads every example once, for the labels and the fingerprint.

    Args:
        parts: A dataset by split.
        label_names, task, name: As for `open_arrays`.
    """

    def __init__(
        self,
        parts: Mapping[str, tf.data.Dataset],
        label_names: Sequence[str] | None,
        task: str,
        name: str,
    ):
        options = tf.data.Options()
        options.deterministic = True
        self._datasets = {split: data.with_options(options) for split, data in parts.items()}
        forms = {
            split: _dataset_form(data, f"{name} {split!r}")
            for split, data in self._datasets.items()
        }
        for split, data in self._datasets.items():
            _check_order(data, f"{name} {split!r}")
        taken = {split: ([], data) for split, data in self._datasets.items()}
        blocks = {split: (_inputs_of(data, y), y) for split, (y, data) in taken.items()}
        super().__init__(forms, blocks, label_names, task, name)
        if self.info.inputs != TEXT:
            self.raw_bytes = int(np.prod([dim or 256 for dim in self.info.shape])) * 4

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(id, x as the dataset gives it, y)`."""
        labels = self._labels[name]
        data = self._datasets[name].map(lambda x, _: x).enumerate()
        count = len(labels)
        if rows is not None:
            keep = np.zeros(count, bool)
            keep[rows] = True
            kept = tf.constant(keep)
            data = data.filter(lambda row, _: kept[row])
            count = len(rows)
        values = tf.constant(labels)
        return data.map(
            lambda row, x: (tf.strings.join([name, "/", tf.strings.as_string(row)]), x, values[row])
        ).apply(tf.data.experimental.assert_cardinality(count))


def _pair(part: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(part, tf.data.Dataset):
        raise UserError(
            f"{name} is a tf.data dataset, and another split is arrays",
            "Give all splits in the same form.",
        )
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise UserError(
            f"{name} must be a pair (x, y), not {type(part).__name__}",
            "Give arrays of inputs and of labels.",
        )
    x = part[0] if isinstance(part[0], np.ndarray) else _array(part[0], f"x of {name}")
    y = _array(part[1], f"y of {name}")
    if not x.ndim or not y.ndim or len(x) != len(y) or not len(x):
        raise UserError(
            f"x and y of {name} must have the same length, above 0, "
            f"and have the shapes {x.shape} and {y.shape}",
            "Give one label for each input.",
        )
    return x, y


def _array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:  # Rows of different lengths.
        raise UserError(f"{name} must be an array: {error}", "Give rows of one shape.") from error


def _dataset_form(data: tf.data.Dataset, name: str) -> InputForm:
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise UserError(
            f"{name} must give pairs (x, y), and gives {spec}",
            "Map it to (input, label).",
        )
    x, y = spec
    if not all(isinstance(part, tf.TensorSpec) and part.shape.rank is not None for part in spec):
        raise UserError(
            f"{name} must give tensors of known rank, and gives {spec}",
            "Set the shapes, such as with tf.ensure_shape.",
        )
    if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise UserError(f"{name} must end, and repeats for ever", "Leave out repeat().")
    batched = y.shape.rank == 2 or (y.shape.rank == 1 and y.shape[0] is None)
    texts = x.dtype == tf.string and x.shape.as_list() not in ([], [2])
    if batched or x.shape.rank == 4 or texts:
        raise UserError(
            f"{name} must give one example at a time, and gives batches: {x.shape}, {y.shape}",
            "Add .unbatch().",
        )
    dtype = np.dtype(object) if x.dtype == tf.string else np.dtype(x.dtype.as_numpy_dtype)
    return input_form(dtype, tuple(x.shape.as_list()), f"x of {name}")


def _check_order(data: tf.data.Dataset, name: str) -> None:
    first, again = (data.take(_PROBE).as_numpy_iterator() for _ in range(2))
    for one, other in itertools.zip_longest(first, again, fillvalue=()):
        if list(map(_content, one)) != list(map(_content, other)):
            raise UserError(
                f"{name} must give its examples always in the same order, and does not",
                "Leave out shuffle() and anything random; training shuffles.",
            )


def _content(value: Any) -> Any:
    """Returns what two values can be told apart by; arrays of texts hold mere references."""
    value = np.asarray(value)
    return value.tolist() if value.dtype == object else value.tobytes()


def _inputs_of(data: tf.data.Dataset, labels: list[Any]) -> Iterator[tuple[int, np.ndarray]]:
    """Gives the inputs one by one, and adds the labels to a list."""
    for row, (value, label) in enumerate(data.as_numpy_iterator()):
        labels.append(label)
        # As it is: NumPy's own type of bytes drops zeros at the end.
        yield row, np.array([value], object) if isinstance(value, bytes) else value[None]


def _blocks(x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    return ((start, x[start : start + _step(x)]) for start in range(0, len(x), _step(x)))


def _step(x: np.ndarray) -> int:
    return max(1, _BLOCK // item_bytes(x))
