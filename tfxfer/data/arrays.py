"""Data that Python code holds: NumPy arrays and tf.data datasets."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.data.base import IMAGE, TABLE, TEXT, BadExample, DataInfo, DataSource
from tfxfer.data.images import split_named
from tfxfer.errors import UserError
from tfxfer.task import KINDS, MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

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
            strings `[n]`; or numbers `[n, d]`. `y` are classes, integers from 0 or strings, `[n]`
            or `[n, 1]`; classes that apply or not, 0 or 1, `[n, classes]`; or numbers, float
            `[n]` or `[n, targets]`. Arrays are not copied.
        label_names: Of the classes, in the order of the integers, or of the targets.
        task: `single_label`, `multi_label` or `regression`; by the type and shape of `y` if empty.
        name: What to call the data.

    Returns:
        The data. Examples whose label is NaN, infinite or out of range, and inputs that are not
        finite, are listed as bad.

    Raises:
        UserError: If shapes, types or ranges are none of these.
    """
    if task and task not in KINDS:
        raise UserError(f"The task must be one of {', '.join(KINDS)}, not {task!r}", "Choose one.")
    given = dict(source) if isinstance(source, Mapping) else {"train": source}
    parts = {split_named(str(split)) or str(split): part for split, part in given.items()}
    if len(parts) < len(given):
        raise UserError(
            f"{name} must have each split once, and has {', '.join(map(repr, given))}",
            "Merge or rename them.",
        )
    if "train" not in parts:
        raise UserError(
            f"{name} must have a split 'train', and has {', '.join(map(repr, parts)) or 'none'}",
            "Give {'train': (x, y), 'test': (x, y)}, or (x, y) alone.",
        )
    if all(isinstance(part, tf.data.Dataset) for part in parts.values()):
        return DatasetSource(parts, label_names, task, name)
    return ArraySource(parts, label_names, task, name)


class ArraySource(DataSource):
    """Arrays; see `open_arrays`. Ids are the split and the position.

    The fingerprint covers all values.

    Args:
        parts: `(x, y)` by split.
        label_names: Of the classes or targets.
        task: Empty or one of `KINDS`.
        name: What to call the data.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        label_names: Sequence[str] | None,
        task: str,
        name: str,
    ):
        self._inputs: dict[str, np.ndarray] = {}
        given: dict[str, np.ndarray] = {}
        for split, part in parts.items():
            self._inputs[split], given[split] = _pair(part, f"{name} {split!r}")
        forms = {
            split: _input_form(x.dtype, x.shape[1:], f"x of {name} {split!r}")
            for split, x in self._inputs.items()
        }
        form = _one_form(forms, name)
        digest = hashlib.sha256()
        bad: list[BadExample] = []
        for split, x in self._inputs.items():
            blocks = ((start, x[start:stop]) for start, stop in _blocks(x))
            wrong = _check_inputs(form, blocks, digest, f"x of {name} {split!r}")
            bad += [
                BadExample(_row(split, row), "has an input that is not finite", split, row)
                for row in wrong
            ]
        labels = _make_labels(given, label_names, task, name)
        digest.update(repr((form, {s: x.shape for s, x in self._inputs.items()})).encode())
        self._form = form
        self._labels = labels.values
        self.bad = tuple(_merged(bad, labels.bad))
        self.info = DataInfo(
            name,
            labels.task,
            form.inputs,
            form.shape,
            {split: len(x) for split, x in self._inputs.items()},
        )
        self.raw_bytes = _item_bytes(self._inputs["train"])
        self.fingerprint = _fingerprint(digest, labels)

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(id, value as it is in the array, y)`."""
        inputs, labels = self._inputs[name], self._labels[name]
        chosen = np.arange(len(inputs)) if rows is None else np.asarray(rows)
        step = max(1, _BLOCK // _item_bytes(inputs))

        # Blocks of rows: a tensor of everything would be a second copy, and one row at a time
        # spends more time in Python than in TensorFlow.
        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for start in range(0, len(chosen), step):
                at = chosen[start : start + step]
                ids = np.array([f"{name}/{row}" for row in at], object)
                yield ids, _encoded(inputs[at]), labels[at]

        text = self.info.inputs == TEXT
        signature = (
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None, *inputs.shape[1:]], tf.string if text else inputs.dtype),
            tf.TensorSpec([None, *labels.shape[1:]], labels.dtype),
        )
        return (
            tf.data.Dataset.from_generator(blocks, output_signature=signature)
            .unbatch()
            .apply(tf.data.experimental.assert_cardinality(len(chosen)))
        )

    def decode(self, raw: tf.Tensor) -> tf.Tensor:
        """Brings an input to the type and shape that models take."""
        return self._form.decode(raw)

    def labels(self, name: str) -> np.ndarray:
        """Returns `y` of a split."""
        return self._labels[name]

    def where(self, name: str, row: int) -> str:
        """Names the row."""
        return _row(name, row)


class DatasetSource(DataSource):
    """tf.data datasets of `(x, y)`; see `open_arrays`. Ids are the split and the position.

    Opening reads every example once, for the labels and the fingerprint, which covers all values.

    Args:
        parts: A dataset by split.
        label_names: Of the classes or targets.
        task: Empty or one of `KINDS`.
        name: What to call the data.
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
        form = _one_form(forms, name)
        digest = hashlib.sha256(repr(form).encode())
        bad: list[BadExample] = []
        given: dict[str, np.ndarray] = {}
        for split, data in self._datasets.items():
            _check_order(data, f"{name} {split!r}")
            y: list[Any] = []

            def blocks(
                data: tf.data.Dataset = data, y: list[Any] = y
            ) -> Iterator[tuple[int, np.ndarray]]:
                for row, (value, label) in enumerate(data.as_numpy_iterator()):
                    y.append(label)
                    yield row, np.asarray(value)[None]

            wrong = _check_inputs(form, blocks(), digest, f"x of {name} {split!r}")
            bad += [
                BadExample(_row(split, row), "has an input that is not finite", split, row)
                for row in wrong
            ]
            given[split] = _label_array(y, f"y of {name} {split!r}")
        labels = _make_labels(given, label_names, task, name)
        self._form = form
        self._labels = labels.values
        self.bad = tuple(_merged(bad, labels.bad))
        self.info = DataInfo(
            name,
            labels.task,
            form.inputs,
            form.shape,
            {split: len(y) for split, y in given.items()},
        )
        dims = [dim or 256 for dim in form.shape]
        self.raw_bytes = int(np.prod(dims)) * 4 if dims else 1000
        self.fingerprint = _fingerprint(digest, labels)

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

    def decode(self, raw: tf.Tensor) -> tf.Tensor:
        """Brings an input to the type and shape that models take."""
        return self._form.decode(raw)

    def labels(self, name: str) -> np.ndarray:
        """Returns `y` of a split."""
        return self._labels[name]

    def where(self, name: str, row: int) -> str:
        """Names the row."""
        return _row(name, row)


@dataclass(frozen=True)
class _Form:
    """What the inputs are, and the shape that models get them in."""

    inputs: str
    shape: tuple[int | None, ...]

    def decode(self, raw: tf.Tensor) -> tf.Tensor:
        if self.inputs == TEXT:
            return raw
        if self.inputs == TABLE:
            return tf.ensure_shape(tf.cast(raw, tf.float32), self.shape)
        image = raw if raw.dtype.is_integer else tf.round(raw)
        image = image if raw.shape.rank == 3 else image[..., None]
        return tf.ensure_shape(tf.cast(image, tf.uint8), self.shape)


@dataclass(frozen=True)
class _Labels:
    task: Task
    values: dict[str, np.ndarray]
    bad: list[BadExample]


def _row(split: str, row: int) -> str:
    return f"row {row} of {split}"


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
    x = part[0] if isinstance(part[0], np.ndarray) else _label_array(part[0], f"x of {name}")
    y = _label_array(part[1], f"y of {name}")
    if not x.ndim or not y.ndim or len(x) != len(y) or not len(x):
        raise UserError(
            f"x and y of {name} must have the same length, above 0, "
            f"and have the shapes {x.shape} and {y.shape}",
            "Give one label for each input.",
        )
    return x, y


def _label_array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:  # Rows of different lengths.
        raise UserError(f"{name} must be an array: {error}", "Give rows of one shape.") from error


def _is_text(dtype: np.dtype) -> bool:
    return dtype.kind in "USOT"


def _input_form(dtype: np.dtype, shape: tuple[int | None, ...], name: str) -> _Form:
    if _is_text(dtype) and not shape:
        return _Form(TEXT, ())
    if dtype.kind in "uif":
        if len(shape) == 1 and shape[0]:
            return _Form(TABLE, shape)
        if len(shape) == 2:
            return _Form(IMAGE, (*shape, 1))
        if len(shape) == 3 and shape[2] in (1, 3):
            return _Form(IMAGE, shape)
    described = ", ".join("?" if dim is None else str(dim) for dim in shape)
    raise UserError(
        f"{name} must be images [h, w] or [h, w, 1 or 3], texts, or rows of numbers; "
        f"each is {dtype} [{described}]",
        "Bring it to one of these shapes.",
    )


def _one_form(forms: Mapping[str, _Form], name: str) -> _Form:
    first = forms["train"]
    for split, form in forms.items():
        if form.inputs != first.inputs or (first.inputs == TABLE and form != first):
            raise UserError(
                f"{name} must have the same inputs in every split, and has "
                f"{first.inputs} {first.shape} in train and {form.inputs} {form.shape} in {split}",
                "Give all splits in the same form.",
            )
        if first.inputs == IMAGE and form.shape[2] != first.shape[2]:
            raise UserError(
                f"Images of {name} must have the same number of channels in every split, and have "
                f"{first.shape[2]} in train and {form.shape[2]} in {split}",
                "Repeat the one channel, or take the mean of three.",
            )
    if first.inputs != IMAGE:
        return first
    height, width = (
        next(iter(sizes))
        if len(sizes := {form.shape[axis] for form in forms.values()}) == 1
        else None
        for axis in (0, 1)
    )
    return _Form(IMAGE, (height, width, first.shape[2]))


def _check_inputs(
    form: _Form, blocks: Iterator[tuple[int, np.ndarray]], digest: Any, name: str
) -> list[int]:
    """Hashes blocks of inputs, and returns the rows with values that are not finite."""
    wrong: list[int] = []
    low, high, whole = np.inf, -np.inf, True
    for start, block in blocks:
        if form.inputs == TEXT:
            for text in _encoded(block):
                digest.update(len(text).to_bytes(8, "little") + text)
            continue
        digest.update(repr((block.dtype.str, block.shape[1:])).encode())
        digest.update(np.ascontiguousarray(block))
        if block.dtype == np.uint8:
            continue
        finite = np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
        wrong += (start + np.flatnonzero(~finite)).tolist()
        if form.inputs == IMAGE and finite.any():
            low, high = min(low, block[finite].min()), max(high, block[finite].max())
            whole = whole and block.dtype.kind in "ui"
    if form.inputs == IMAGE and low <= high:
        if low < 0 or high > 255:
            raise UserError(
                f"{name} must be images of values in [0, 255], and has {low:g} to {high:g}",
                "Bring them to that range; the backbone scales them itself.",
            )
        if high <= 1 and not whole:
            raise UserError(
                f"{name} must be images of values in [0, 255], and has floats of at most 1",
                "Multiply them by 255; the backbone scales them itself.",
            )
    return wrong


def _blocks(x: np.ndarray) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK // _item_bytes(x))
    return ((start, min(start + step, len(x))) for start in range(0, len(x), step))


def _item_bytes(x: np.ndarray) -> int:
    return max(1, x[:1].nbytes) if x.dtype.kind != "O" else 200


def _encoded(block: np.ndarray) -> np.ndarray:
    if not _is_text(block.dtype):
        return block
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in block]
    return np.array(texts, object)


def _dataset_form(data: tf.data.Dataset, name: str) -> _Form:
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
    if batched or x.shape.rank == 4 or (x.dtype == tf.string and x.shape.rank):
        raise UserError(
            f"{name} must give one example at a time, and gives batches: {x.shape}, {y.shape}",
            "Add .unbatch().",
        )
    dtype = np.dtype(object) if x.dtype == tf.string else np.dtype(x.dtype.as_numpy_dtype)
    return _input_form(dtype, tuple(x.shape.as_list()), f"x of {name}")


def _check_order(data: tf.data.Dataset, name: str) -> None:
    first, again = (
        data.take(_PROBE).as_numpy_iterator(),
        data.take(_PROBE).as_numpy_iterator(),
    )
    for one, other in itertools.zip_longest(first, again):
        if (
            one is None
            or other is None
            or any(
                np.asarray(a).tobytes() != np.asarray(b).tobytes()
                if np.asarray(a).dtype != object
                else a != b
                for a, b in zip(one, other, strict=True)
            )
        ):
            raise UserError(
                f"{name} must give its examples always in the same order, and does not",
                "Leave out shuffle() and anything random; training shuffles.",
            )


def _make_labels(
    given: Mapping[str, np.ndarray], names: Sequence[str] | None, task: str, name: str
) -> _Labels:
    if len({(y.dtype.kind in "iub", y.dtype.kind == "f", y.shape[1:]) for y in given.values()}) > 1:
        described = ", ".join(f"{y.dtype} {list(y.shape)} in {s}" for s, y in given.items())
        raise UserError(
            f"y of {name} must have one type and shape in every split, and has {described}",
            "Give all splits in the same form.",
        )
    y = given["train"]
    if y.ndim > 2 or (y.dtype.kind not in "iubf" and not (_is_text(y.dtype) and y.ndim == 1)):
        raise UserError(
            f"y of {name} must be [n] or [n, k] of integers, of 0 and 1 or of numbers, "
            f"or [n] of strings, not {y.dtype} {list(y.shape)}",
            "Bring it to one of these shapes.",
        )
    names = None if names is None else tuple(str(label) for label in names)
    kind = task or _infer(given, name)
    if kind == SINGLE_LABEL:
        return _classes(given, names, name)
    return _numbers(given, names, kind, name)


def _infer(given: Mapping[str, np.ndarray], name: str) -> str:
    y = given["train"]
    column = y.ndim == 1 or y.shape[1] == 1
    if y.dtype.kind != "f":
        return SINGLE_LABEL if column else MULTI_LABEL
    known = y[np.isfinite(y)] if column else y[np.isfinite(y).all(axis=1)]
    if column or not np.isin(known, (0, 1)).all():
        return REGRESSION
    if (known.sum(axis=1) == 1).all():
        raise UserError(
            f"y of {name} is one-hot, one class an example or any of several",
            "Give classes by y.argmax(1), or say task='multi_label'.",
        )
    return MULTI_LABEL


def _classes(given: Mapping[str, np.ndarray], names: tuple[str, ...] | None, name: str) -> _Labels:
    y = {
        split: values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        for split, values in given.items()
    }
    train = y["train"]
    if train.ndim != 1:
        raise UserError(
            f"y of {name} must be one class an example, [n], not {list(train.shape)}",
            "Give the index of the class, such as y.argmax(1).",
        )
    if _is_text(train.dtype):
        texts = {split: _texts(values) for split, values in y.items()}
        names = names or tuple(sorted(set(texts["train"])))
        index = {label: position for position, label in enumerate(names)}
        codes = {s: np.array([index.get(t, -1) for t in v], np.int64) for s, v in texts.items()}
    else:
        codes = {split: _whole(values) for split, values in y.items()}
        if names is None:
            names = tuple(map(str, range(_count_classes(codes["train"], name))))
    bad: list[BadExample] = []
    values: dict[str, np.ndarray] = {}
    within = (codes["train"] >= 0) & (codes["train"] < len(names))
    seen = np.bincount(codes["train"][within], minlength=len(names)) > 0
    if seen.sum() < 2:
        raise UserError(
            f"{name} must have examples of at least two classes for training, and has {seen.sum()}",
            "Add examples of another class.",
        )
    for split, code in codes.items():
        outside = (code < 0) | (code >= len(names))
        lacking = ~outside & ~seen[np.where(outside, 0, code)]
        for row in np.flatnonzero(outside | lacking).tolist():
            label = y[split][row]
            reason = (
                f"has the class {label!s}, which has no example in train"
                if lacking[row] or (_is_text(train.dtype) and split != "train")
                else f"has the label {label!s}, which is not in 0 to {len(names) - 1}"
            )
            bad.append(BadExample(_row(split, row), reason, split, row))
        values[split] = np.where(outside, -1, code)
    return _Labels(Task(SINGLE_LABEL, names), values, bad)


def _count_classes(train: np.ndarray, name: str) -> int:
    known = np.unique(train[train >= 0])
    count = len(known)
    if count and known[-1] != count - 1:
        missing = int(np.flatnonzero(known != np.arange(count))[0])
        raise UserError(
            f"y of {name} must be the integers from 0 on, or label_names must be given; "
            f"train has {count} classes up to {known[-1]}, and none is {missing}",
            "Give label_names, or np.unique(y, return_inverse=True)[1] for y.",
        )
    return count


def _whole(values: np.ndarray) -> np.ndarray:
    """Returns labels as int64; -1 where one is no whole number."""
    if values.dtype.kind != "f":
        large = values > np.iinfo(np.int64).max if values.dtype == np.uint64 else False
        return np.where(large, -1, values.astype(np.int64))
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values) & (values == np.rint(values)), values, -1).astype(
            np.int64
        )


def _texts(values: np.ndarray) -> list[str]:
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]


def _numbers(
    given: Mapping[str, np.ndarray], names: tuple[str, ...] | None, kind: str, name: str
) -> _Labels:
    train = given["train"]
    if _is_text(train.dtype):
        raise UserError(f"y of {name} must be numbers for {kind}, not strings", "Convert it.")
    units = 1 if train.ndim == 1 else train.shape[1]
    if names is None:
        names = ("target",) if kind == REGRESSION and units == 1 else tuple(map(str, range(units)))
    if len(names) != units:
        raise UserError(
            f"y of {name} must have one column for each of the {len(names)} names, and has {units}",
            "Give as many names as columns.",
        )
    bad: list[BadExample] = []
    values: dict[str, np.ndarray] = {}
    for split, y in given.items():
        with np.errstate(over="ignore"):
            value = y.reshape(len(y), units).astype(np.float32)
        good = np.isfinite(value).all(axis=1)
        if kind == MULTI_LABEL:
            good &= np.isin(value, (0, 1)).all(axis=1)
        for row in np.flatnonzero(~good).tolist():
            wanted = "0 and 1" if kind == MULTI_LABEL else "finite numbers"
            reason = f"has the label {np.array2string(y[row], threshold=6)}, which is not {wanted}"
            bad.append(BadExample(_row(split, row), reason, split, row))
        value[~good] = np.nan
        values[split] = value
    return _Labels(Task(kind, names), values, bad)


def _merged(first: Sequence[BadExample], second: Sequence[BadExample]) -> Iterator[BadExample]:
    """Both, each example once."""
    seen = {(example.split, example.row) for example in first}
    yield from first
    yield from (example for example in second if (example.split, example.row) not in seen)


def _fingerprint(digest: Any, labels: _Labels) -> str:
    digest.update(repr((labels.task, list(labels.values))).encode())
    for values in labels.values.values():
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()
