"""Which features of a TFDS dataset go in, and which is to be learned."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tfxfer.data.base import IMAGE, TABLE, TEXT
from tfxfer.data.labels import no_labels
from tfxfer.data.roles import PAIR, check_pair
from tfxfer.errors import UserError
from tfxfer.spec import Spec
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

INPUTS = (IMAGE, TEXT, TABLE)
_PAIRS = (  # Usual keys of two texts that belong together.
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("text_a", "text_b")),
)
LABELS = {"label": SINGLE_LABEL, "labels": MULTI_LABEL, "target": REGRESSION}


@dataclass(frozen=True)
class Input:
    """What goes in: the feature of an image, a text or a row of numbers, or those of two texts.

    Attributes:
        key: Of the feature; of a pair, of the first.
        feature: Itself.
        inputs: `image`, `text` or `table`.
        shape: Of one input; see `DataInfo`.
        pair: The key of the second text of a pair; empty if there is none.
    """

    key: str
    feature: Any
    inputs: str
    shape: tuple[int | None, ...]
    pair: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all features that go in."""
        return (self.key, self.pair) if self.pair else (self.key,)

    def raw(self, example: Mapping[str, Any]) -> Any:
        """Returns what goes in, as it is stored; of a pair string `[2]`."""
        return tf.stack([example[key] for key in self.keys]) if self.pair else example[self.key]

    def with_pair(self, key: str) -> "Input":
        """Returns this text as the first of a pair."""
        return replace(self, shape=(2,), pair=key)


@dataclass(frozen=True)
class Label:
    """The feature that is to be learned.

    Attributes:
        key: Of the feature.
        kind: One of `task.KINDS`.
        names: Of the classes or targets; `None` where the largest label tells how many there are.
        counted: Whether it is a list of the classes that are there, rather than a value for each.
    """

    key: str
    kind: str
    names: tuple[str, ...] | None
    counted: bool = False

    def y(self, raw: tf.Tensor) -> tf.Tensor:
        """Returns the label as the task has it; -1 or NaN where it is out of range."""
        units = len(self.names) if self.names is not None else None
        if self.kind == SINGLE_LABEL:
            label = tf.cast(raw, tf.int64)
            known = (label >= 0) & (label < (units if units is not None else tf.int64.max))
            return tf.where(known, label, tf.constant(-1, tf.int64))
        if self.counted:
            known = tf.reduce_all((raw >= 0) & (raw < units))
            values = tf.cast(tf.reduce_any(tf.one_hot(raw, units, True, False), 0), tf.float32)
        else:
            values = tf.reshape(tf.cast(raw, tf.float32), [units])
            known = tf.math.is_finite(values)
            if self.kind == MULTI_LABEL:
                known = (values == 0) | (values == 1)
            known = tf.reduce_all(known)
        return tf.where(known, values, np.nan)

    def complaint(self, raw: np.ndarray) -> str:
        """Says what is wrong with a label that is out of range."""
        if self.kind == REGRESSION:
            return f"target {raw.tolist()} where finite numbers were expected"
        if self.kind == MULTI_LABEL and not self.counted:
            return f"labels {raw.tolist()} where each must be 0 or 1"
        last = f" to {len(self.names) - 1}" if self.names else " or more"
        return f"label {raw.tolist()} where 0{last} was expected"


class NoLabel(Label):
    """What stands for a label that nobody is to look at; its key is that of the input."""

    def y(self, raw: tf.Tensor) -> tf.Tensor:
        """Returns -1 or NaN, whatever there is."""
        del raw
        return tf.constant(no_labels(Task(self.kind, self.names or ()), 1)[0])


def find_features(
    info: tfds.core.DatasetInfo, spec: Spec, task: str, unlabelled: Task | None = None
) -> tuple[Input, Label]:
    """Returns what goes in and what is to be learned.

    As the options say, else as the dataset's supervised keys do, else the only image (or text, or
    row of numbers) and the only class label (or list of these, or number, or row of numbers). Of
    several texts, two that usually are a pair, such as `premise` and `hypothesis`.

    Args:
        info: Of the dataset; it need not be prepared.
        spec: Options `image`, `text` or `table`, and `label`, `labels` or `target` name features;
            `pair`, beside `text`, that of a second text.
        task: One of `task.KINDS`; by the feature if empty.
        unlabelled: What the labels would be, if nobody is to look at them: there need be none.

    Returns:
        The two.

    Raises:
        UserError: If there are no such features, or several that may be meant.
    """
    features = dict(info.features or {})
    check_pair(spec.options, repr(spec.text))
    inputs, x_key = _named(spec, INPUTS)
    _, pair_key = _named(spec, (PAIR,))
    option, y_key = _named(spec, LABELS)
    if option and task not in ("", LABELS[option]):
        raise UserError(
            f"{spec.text!r} has {option}=, which is for {LABELS[option]}, and the task is {task}",
            f"Use {next(o for o, kind in LABELS.items() if kind == task)}= instead.",
        )
    task = task or (LABELS[option] if option else "")
    for key in filter(None, (x_key, pair_key, y_key)):
        if key not in features:
            raise UserError(
                f"Dataset {info.full_name} has no feature {key!r}",
                f"Its features are {', '.join(sorted(features))}.",
            )
    keys = info.supervised_keys
    if keys is not None:
        if len(keys) == 2 and all(isinstance(key, str) for key in keys):
            x_key, y_key = x_key or keys[0], y_key or ("" if unlabelled else keys[1])
        elif not (x_key and (y_key or unlabelled)):
            raise _unusable(info, spec, task)
    xs = [_input(key, features[key], inputs) for key in ([x_key] if x_key else features)]
    ranked = [[x for x in xs if x and x.inputs == kind and x.key != y_key] for kind in INPUTS]
    x = _only(ranked) or _usual_pair(ranked)
    if x and pair_key:
        second = pair_key != y_key and _input(pair_key, features[pair_key], TEXT)
        x = x.with_pair(pair_key) if second else None
    if unlabelled and x:
        return x, NoLabel(x.key, unlabelled.kind, unlabelled.names)
    ys: list[Callable[[str, Any, str], Label | None]] = [_class, _classes, _number, _numbers]
    taken = x.keys if x else ()
    label = _only(
        [
            [
                label
                for key in ([y_key] if y_key else features)
                if key not in taken and (label := make(key, features[key], task))
            ]
            for make in ys
        ]
    )
    if not (x and label):
        raise _unusable(info, spec, task)
    return x, label


def _named(spec: Spec, options: Iterable[str]) -> tuple[str, str]:
    """Returns the option that is given of some that exclude each other, and its value."""
    given = [option for option in options if spec.options.get(option) is not None]
    if len(given) > 1:
        raise UserError(f"{spec.text!r} has both {given[0]}= and {given[1]}=", "Give one of them.")
    return (given[0], str(spec.options[given[0]])) if given else ("", "")


def _only(ranked: list[list[Any]]) -> Any:
    """Returns the only member of the first list that has any; `None` if it has several."""
    first = next(filter(None, ranked), [])
    return first[0] if len(first) == 1 else None


def _usual_pair(ranked: list[list[Input]]) -> Input | None:
    """Returns two texts of the first list that has any, by their usual names; `None` if not two."""
    texts = {x.key: x for x in next(filter(None, ranked), []) if x.inputs == TEXT}
    pairs = (texts[a].with_pair(b) for a, b in _PAIRS if a in texts and b in texts)
    return next(pairs, None)


def _unusable(info: tfds.core.DatasetInfo, spec: Spec, task: str) -> UserError:
    features = dict(info.features or {})
    texts = sorted(key for key, feature in features.items() if _is_text(feature))
    such_as = "text={},pair={}".format(*texts) if len(texts) > 1 else "image=KEY"
    listed = ", ".join(f"{key} ({type(f).__name__})" for key, f in sorted(features.items()))
    return UserError(
        f"Dataset {info.full_name} must hold one 8-bit image of 1 or 3 channels, text, pair of "
        f"texts or row of numbers an example, and one class label, list of labels, number or row "
        f"of numbers"
        f"{f' that is of use for {task}' if task else ''}; its features are {listed or 'unknown'}, "
        f"with supervised keys {info.supervised_keys}",
        f"Name those that are meant, such as {spec.name}({such_as},label=KEY), or choose another "
        "dataset.",
    )


def _input(key: str, feature: Any, inputs: str) -> Input | None:
    """Returns a feature as an input of a kind, any if empty; `None` if it is none."""
    found = None
    if isinstance(feature, tfds.features.Image):
        if feature.np_dtype == np.uint8 and feature.shape[-1] in (1, 3):
            found = Input(key, feature, IMAGE, tuple(feature.shape))
    elif _is_text(feature):
        found = Input(key, feature, TEXT, ())
    else:
        shape, kind = _array(feature)
        if kind in "fiub" and len(shape) == 1 and shape[0]:
            found = Input(key, feature, TABLE, shape)
    return found if found and inputs in ("", found.inputs) else None


def _class(key: str, feature: Any, task: str) -> Label | None:
    if not _has_names(feature) or task not in ("", SINGLE_LABEL):
        return None
    return Label(key, SINGLE_LABEL, tuple(feature.names))


def _classes(key: str, feature: Any, task: str) -> Label | None:
    inner: Any = feature.feature if isinstance(feature, tfds.features.Sequence) else None
    if not _has_names(inner) or task not in ("", MULTI_LABEL):
        return None
    return Label(key, MULTI_LABEL, tuple(inner.names), counted=True)


def _number(key: str, feature: Any, task: str) -> Label | None:
    shape, kind = _array(feature)
    if shape != () or kind not in "fiub" or _has_names(feature):
        return None
    task = task or (REGRESSION if kind == "f" else SINGLE_LABEL)
    if task == REGRESSION:
        return Label(key, task, (key,))
    return Label(key, task, None) if task == SINGLE_LABEL and kind != "f" else None


def _numbers(key: str, feature: Any, task: str) -> Label | None:
    shape, kind = _array(feature)
    if len(shape) != 1 or not shape[0] or kind not in "fiub":
        return None
    task = task or (REGRESSION if kind == "f" else MULTI_LABEL)
    names = [str(i) for i in range(shape[0])]
    if task == REGRESSION:
        return Label(key, task, tuple(f"{key}_{name}" for name in names))
    return Label(key, task, tuple(names)) if task == MULTI_LABEL else None


def _has_names(feature: Any) -> bool:
    return isinstance(feature, tfds.features.ClassLabel) and bool(feature.num_classes)


def _is_text(feature: Any) -> bool:
    shape, kind = _array(feature)
    return shape == () and kind in "OSU"


def _array(feature: Any) -> tuple[tuple[int | None, ...], str]:
    """Returns the shape of a feature and the kind of its dtype, as NumPy has it; else a space."""
    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    if not isinstance(inner, tfds.features.Tensor):
        return (), " "
    if inner is not feature and isinstance(inner, tfds.features.ClassLabel):
        return (), " "
    return tuple(feature.shape), np.dtype(inner.np_dtype).kind
