"""Teachers by name: what `--teacher` takes, seen as logits of the classes of the data."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones import Backbone
from tfxfer.backbones.hub import parsed
from tfxfer.errors import UserError, first_line
from tfxfer.features import weights_digest
from tfxfer.methods.teacher_files import read_teacher
from tfxfer.models import Teacher
from tfxfer.models.base import BackboneModel
from tfxfer.models.teachers import LOGITS, SIGMOID, SOFTMAX, Teachers
from tfxfer.spec import Spec
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

_OUTPUTS = (LOGITS, SOFTMAX, SIGMOID)
_OWN = ("outputs", "labels", "image_size", "value_range")
_NAMED = 5  # Classes that a message names.
_KINDS = {
    SINGLE_LABEL: "one class an example",
    MULTI_LABEL: "several classes an example",
    REGRESSION: "numbers",
}
# Semicolons between quotes belong to a path.
_SPECS = re.compile(r"""(?:"[^"]*"|'[^']*'|[^;])+""")
_WEIGHTED = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*\*\s*(.+)", re.DOTALL)


def split_teachers(text: str) -> tuple[tuple[str, ...], list[float] | None]:
    """Reads several teachers, such as `0.7*runs/a;0.3*b.keras`.

    Args:
        text: Specs between semicolons, each with its weight and `*` in front or without.

    Returns:
        The specs, and their weights, 1 where none is given; `None` if none is given at all.

    Raises:
        UserError: If a weight is not above 0.
    """
    specs, weights = [], []
    for each in filter(None, map(str.strip, _SPECS.findall(text))):
        found = _WEIGHTED.fullmatch(each)
        specs.append(found[2] if found else each)
        weights.append(_weight(found[1], each) if found else None)
    if not any(weights):
        return tuple(specs), None
    return tuple(specs), [1.0 if weight is None else weight for weight in weights]


def _weight(text: str, spec: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(
            f"The weight of a teacher must be a number above 0, and --teacher has {spec!r}",
            "Write it as 0.7*runs/a;0.3*b.keras.",
        )
    return weight


def load_teacher(spec: str, task: Task, *, trusted: bool = False) -> Teacher:
    """Loads a network that classifies, or tells numbers, and finds the classes of the data in it.

    Under a strategy, load it in its scope, and call it outside or on the replicas.

    Args:
        spec: One of

            *   the workdir of an earlier run, or `model.keras` or `saved_model/1` in it;
            *   a folder, a `.tar.gz` or a handle of a SavedModel, as for `load_backbone`, with
                `output=NAME`; of one that was exported here, nothing more need be told;
            *   a `.keras` or `.h5` file of a whole classifier, with `preprocessing=FAMILY`.

            Options stand in parentheses. Where a teacher does not tell by itself: `outputs=logits`,
            `softmax` or `sigmoid`; `labels=FILE`, a text file with the names of the outputs, one a
            line, in their order; `image_size=96`; `value_range="-1,1"`. A Keras file that runs code
            takes `safe_mode=false`. One output for two classes is the logit or the probability of
            the second of them.
        task: What the student is to learn. Its classes are found by their names; those of a
            teacher that tells no names must be as many, in the same order.
        trusted: Whether a Keras file may run code without `safe_mode=false`, as one may that this
            run has written itself.

    Returns:
        The teacher.

    Raises:
        UserError: If it cannot be loaded, is of another kind of task, or lacks a class.
    """
    asked = parsed(spec)
    told = {key: str(asked.options[key]) for key in _OWN if asked.options.get(key) is not None}
    rest = {key: value for key, value in asked.options.items() if key not in _OWN}
    rest |= {"safe_mode": False} if trusted else {}
    found = read_teacher(Spec(asked.name, rest, spec), told)
    if found.kind and found.kind != task.kind:
        raise UserError(
            f"Teacher {spec!r} tells {_KINDS.get(found.kind, found.kind)}, and the data has "
            f"{_KINDS[task.kind]}",
            "Choose another teacher.",
        )
    names = _names_in(told["labels"]) if "labels" in told else found.names
    one_output = found.units == 1 and task.kind == SINGLE_LABEL and task.units == 2
    columns = _columns(spec, 2 if one_output else found.units, names, task)
    outputs = _outputs(spec, told.get("outputs", ""), task) or found.outputs
    kind = _OneOutput if one_output else Teacher
    return kind(found.model, outputs, columns, name=f"teacher {spec!r}")


class _OneOutput(Teacher):
    """A teacher of two classes with one output, which is for the second of them."""

    def __init__(self, model: Any, outputs: str, order: tuple[int, ...] | None, name: str):
        super().__init__(model, outputs, name=name)
        self.units, self.order = 2, order

    def logits(self, outputs: tf.Tensor) -> tf.Tensor:
        """Makes two logits of one, `z`: the softmax of 0 and `z` is its sigmoid."""
        z = super().logits(outputs)
        both = tf.concat([tf.zeros_like(z), z], axis=-1)
        return both if self.order is None else tf.gather(both, self.order, axis=-1)


def _outputs(spec: str, given: str, task: Task) -> str:
    """Checks what somebody says that a teacher returns; of a regression there is one answer."""
    if given and (given not in _OUTPUTS or task.kind == REGRESSION):
        raise UserError(
            f"Teacher {spec!r} has outputs={given}, which must be {', '.join(_OUTPUTS)}, and is "
            "for classes",
            "Choose one, or leave it out for numbers.",
        )
    return LOGITS if task.kind == REGRESSION else given


def _names_in(file: str) -> tuple[str, ...]:
    """Reads the names of outputs, one a line."""
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"labels={file} must be a text file: {first_line(error)}", "Check the path."
        ) from error
    return tuple(filter(None, map(str.strip, lines)))


def _columns(spec: str, units: int, names: tuple[str, ...], task: Task) -> tuple[int, ...] | None:
    """Finds the classes of the data among the outputs; `None` if they are these, in this order."""
    if not names:
        if units == task.units:
            return None
        raise UserError(
            f"Teacher {spec!r} has {units} outputs without names, which must be the {task.units} "
            "of the data",
            f"Give labels=FILE, with {units} names, one a line, in the order of its outputs.",
        )
    if len(names) != units or len(set(names)) != units:
        raise UserError(
            f"Teacher {spec!r} must have {units} names of classes, each another, and has "
            f"{len(set(names))}",
            "Correct the file of labels=FILE.",
        )
    if missing := [name for name in task.names if name not in names]:
        such = " such as" if missing[_NAMED:] else ":"
        shown = ", ".join(map(repr, missing[:_NAMED]))
        raise UserError(
            f"Teacher {spec!r} must know all {task.units} classes of the data, and lacks "
            f"{len(missing)}{such} {shown}",
            "If it names them otherwise, give labels=FILE with the names as the data has them.",
        )
    columns = tuple(map(names.index, task.names))
    return None if columns == tuple(range(units)) else columns


def teacher_parts(teachers: Teachers) -> dict[str, str]:
    """Says what the answers of teachers depend on, for the key of what is kept of them.

    Args:
        teachers: On backbones, as `load_teacher` returns them, or trained here.

    Returns:
        For each teacher hashes of its graph and of its weights, how its images are prepared, what
        it returns and of which classes; and the shares of several in their average.

    Raises:
        ValueError: If a teacher is on no backbone.
    """
    parts: dict[str, str] = {}
    for number, teacher in enumerate(teachers.teachers, start=1):
        described = _described(teacher)
        parts |= {f"teacher {number} {name}": value for name, value in described.items()}
    if len(teachers.teachers) > 1:
        parts["average"] = f"{teachers.shares.tolist()}, {teachers.task}"
    return parts


def _described(teacher: Teacher) -> dict[str, str]:
    model = teacher.model
    backbone = model.backbone if isinstance(model, BackboneModel) else model
    if not isinstance(backbone, Backbone):
        raise ValueError(f"Expected a teacher on a backbone, received {model!r}.")
    head = _layers(model.head) if isinstance(model, BackboneModel) else ""
    columns = teacher.order if isinstance(teacher, _OneOutput) else teacher.columns
    return {
        "graph": hashlib.sha256(f"{backbone.fingerprint}\n{head}".encode()).hexdigest(),
        "weights": weights_digest(model),
        "images": f"{backbone.contract!r}, then {backbone.preprocessing or 'nothing'}",
        "precision": backbone.dtype_policy.name,
        "outputs": teacher.outputs,
        "columns": "all" if columns is None else str(columns),
    }


def _layers(head: keras.layers.Layer) -> str:
    """Tells the layers of a head without their names, which Keras counts up."""
    found = []
    for layer in head._flatten_layers():
        if not isinstance(layer, keras.Model | keras.layers.InputLayer):
            config = {key: value for key, value in layer.get_config().items() if key != "name"}
            found.append([type(layer).__name__, config])
    return json.dumps(found, sort_keys=True, default=str)
