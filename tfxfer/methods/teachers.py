"""Teachers by name: what `--teacher` takes, seen as logits of the classes of the data."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import keras
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from tfxfer.backbones import Backbone, KerasBackbone, SavedModelBackbone
from tfxfer.backbones.hub import exists, resolve
from tfxfer.backbones.keras_file import SUFFIXES, load_keras_file
from tfxfer.backbones.network import cut
from tfxfer.config import RunConfig
from tfxfer.errors import UserError, first_line
from tfxfer.features import weights_digest
from tfxfer.models import FineTuner, Teacher, load_model
from tfxfer.models.base import BackboneModel
from tfxfer.models.teachers import LOGITS, SIGMOID, SOFTMAX, Teachers
from tfxfer.report.workdir import KERAS_MODEL, RESULTS, SAVED_MODEL
from tfxfer.spec import Spec, parse_spec
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

_OUTPUTS = (LOGITS, SOFTMAX, SIGMOID)
_OWN = ("outputs", "labels", "image_size", "value_range")
_NAMED = 5  # Classes that a message names.
_KINDS = {
    SINGLE_LABEL: "one class an example",
    MULTI_LABEL: "several classes an example",
    REGRESSION: "numbers",
}
# What exported predictors give, and of which task they are then; see `tfxfer.export`.
_SERVED: dict[tuple[str, ...], tuple[str, str]] = {
    ("labels", "probabilities"): (SINGLE_LABEL, SOFTMAX),
    ("names", "probabilities"): (MULTI_LABEL, SIGMOID),
    ("names", "values"): (REGRESSION, LOGITS),
}
_SERVING, _SIDE = "serving_default", 64
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


@dataclass(frozen=True)
class _Found:
    """What a spec names.

    Attributes:
        model: From images to `[batch, units]`.
        units: Number of its outputs.
        outputs: What they are, as for `Teacher`.
        kind: Of its task; empty if it does not tell.
        names: Of its outputs; none if it does not tell.
    """

    model: Any
    units: int
    outputs: str = ""
    kind: str = ""
    names: tuple[str, ...] = ()


def load_teacher(spec: str, task: Task) -> Teacher:
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
            takes `safe_mode=false`.
        task: What the student is to learn. Its classes are found by their names; those of a
            teacher that tells no names must be as many, in the same order.

    Returns:
        The teacher.

    Raises:
        UserError: If it cannot be loaded, is of another kind of task, or lacks a class.
    """
    # A path may hold anything, parentheses too.
    asked = Spec(spec, text=spec) if exists(spec) else parse_spec(spec)
    told = {key: str(asked.options[key]) for key in _OWN if asked.options.get(key) is not None}
    rest = {key: value for key, value in asked.options.items() if key not in _OWN}
    found = _read(Spec(asked.name, rest, spec), told)
    if found.kind and found.kind != task.kind:
        raise UserError(
            f"Teacher {spec!r} tells {_KINDS.get(found.kind, found.kind)}, and the data has "
            f"{_KINDS[task.kind]}",
            "Choose another teacher.",
        )
    names = _names_in(told["labels"]) if "labels" in told else found.names
    columns = _columns(spec, found.units, names, task)
    outputs = _outputs(spec, told.get("outputs", ""), task) or found.outputs
    return Teacher(found.model, outputs, columns, name=f"teacher {spec!r}")


def _outputs(spec: str, given: str, task: Task) -> str:
    """Checks what somebody says that a teacher returns; of a regression there is one answer."""
    if given and (given not in _OUTPUTS or task.kind == REGRESSION):
        raise UserError(
            f"Teacher {spec!r} has outputs={given}, which must be {', '.join(_OUTPUTS)}, and is "
            "for classes",
            "Choose one, or leave it out for numbers.",
        )
    return LOGITS if task.kind == REGRESSION else given


def _read(spec: Spec, told: Mapping[str, str]) -> _Found:
    """Loads what a spec names, whatever it is."""
    path = Path(spec.name).expanduser()
    run = _run_of(path)
    if run is not None:
        return _of_run(spec, path, run, told)
    if spec.name.startswith(("keras:", "keras_hub:")) or spec.name in ("glyphs", "tiny"):
        raise UserError(
            f"A teacher must classify, and {spec.name!r} gives features alone",
            "Fine-tune it first, and give the workdir of that run.",
        )
    if spec.name.endswith(SUFFIXES):
        return _of_our_file(spec, path) if _is_ours(path) else _of_keras_file(spec, told)
    return _of_saved_model(spec, spec.name, told)


def _run_of(path: Path) -> Path | None:
    """Returns the workdir that a path is, or is a model of; `None` if there is none."""
    folder = path
    if path.name == KERAS_MODEL:
        folder = path.parent
    elif path.parts[-2:] == (SAVED_MODEL, "1"):
        folder = path.parent.parent
    return folder if (folder / RESULTS).is_file() else None


def _of_run(spec: Spec, path: Path, run: Path, told: Mapping[str, str]) -> _Found:
    """Loads the model of an earlier run, whose results tell its task and the names."""
    try:
        results = json.loads((run / RESULTS).read_text(encoding="utf-8"))
        kind, names = str(results["task"]), tuple(map(str, results["label_names"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Teacher {spec.name!r} must be a run that trained a model, and its {RESULTS} is of "
            "none",
            "Give the workdir of --mode=finetune, extract or distill.",
        ) from error
    model, served = run / KERAS_MODEL, run / SAVED_MODEL / "1"
    place = path if path != run else model if model.is_file() else served
    if not place.exists():
        raise UserError(
            f"Teacher {spec.name!r} must be a run that exported a model, and has no "
            f"{KERAS_MODEL} or {SAVED_MODEL}/1",
            "A cross-validation exports none: run it again without --folds.",
        )
    found = _of_our_file(spec, place) if place.is_file() else _of_saved_model(spec, place, told)
    return _Found(found.model, found.units, found.outputs, kind, names)


def _is_ours(path: Path) -> bool:
    """Whether a Keras file holds a model of this package, whose backbone prepares the images."""
    try:
        with ZipFile(path) as file:
            config = json.loads(file.read("config.json"))
        return str(config.get("registered_name")).startswith("tfxfer>")
    except (OSError, BadZipFile, KeyError, ValueError):
        return False


def _of_our_file(spec: Spec, path: Path) -> _Found:
    spec.only(["safe_mode"])
    safe = bool(spec.options.get("safe_mode", True))
    try:
        model: Any = load_model(path, compile=False, safe_mode=safe)
    except Exception as error:  # A broken file fails in whichever layer meets it first.
        raise UserError(
            f"Teacher {spec.name!r} must hold a model that can be loaded: {first_line(error)}",
            "Add (safe_mode=false) if it runs a SavedModel that you trust.",
        ) from error
    if not isinstance(model, BackboneModel):
        raise UserError(
            f"Teacher {spec.name!r} must be a model on a backbone, and is a {type(model).__name__}",
            "Save its student, and give that.",
        )
    answers: Any = model.head(keras.KerasTensor((1, model.backbone.units), "float32"))
    return _Found(model, answers.shape[-1])


def _of_keras_file(spec: Spec, told: Mapping[str, str]) -> _Found:
    settings = _settings(told)
    whole = load_keras_file(
        Spec(spec.name, {**spec.options, "include_top": True}, spec.text),
        settings.image_pixels,
        settings.image_values,
    )
    if not isinstance(whole, KerasBackbone):  # Read by Keras 2, and a SavedModel now.
        return _Found(whole, whole.units)
    return _Found(_with_head(whole), whole.units, Teacher(whole.network).outputs)


def _with_head(whole: KerasBackbone) -> FineTuner:
    """Takes a classifier apart, so that its `features` are what goes into the last dense layer."""
    network = whole.network
    below = cut(network, whole.source)
    if below.output is network.output or len(below.output_shape) != 2:
        return FineTuner(whole, keras.layers.Identity(name="head"))
    last = next(layer for layer in reversed(network.layers) if layer.weights)
    # On the way to this output: a layer may have been called on others before.
    nodes = chain.from_iterable(network._nodes_by_depth.values())
    features = next(node.input_tensors[0] for node in nodes if node.operation is last)
    below = keras.Model(network.inputs[0], features)
    head = keras.Model(features, network.output, name="head")
    return FineTuner(KerasBackbone(below, whole.contract, whole.family, whole.source), head)


def _settings(told: Mapping[str, str]) -> RunConfig:
    """Reads image size and value range as the settings of these names are read."""
    return RunConfig(
        image_size=told.get("image_size", ""), value_range=told.get("value_range", "").strip()
    )


def _of_saved_model(spec: Spec, place: str | Path, told: Mapping[str, str]) -> _Found:
    spec.only(["output"])
    settings = _settings(told)
    folder = resolve(str(place))
    backbone = SavedModelBackbone(
        folder,
        source=spec.text,
        output=str(spec.options.get("output") or ""),
        image_size=settings.image_pixels,
        value_range=settings.image_values,
    )
    kind, outputs, names = ("", "", ()) if spec.options else _served(folder)
    return _Found(backbone, backbone.units, outputs, kind, names)


def _served(folder: Path) -> tuple[str, str, tuple[str, ...]]:
    """Tells task, outputs and names of a predictor that was exported here; empty for others."""
    saved = SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def[_SERVING]
    told = tuple(sorted(signature.outputs))
    if set(signature.inputs) != {"images"} or told not in _SERVED:
        return "", "", ()
    if "names" not in told:
        return (*_SERVED[told], ())
    serve = tf.saved_model.load(str(folder)).signatures[_SERVING]
    channels = signature.inputs["images"].tensor_shape.dim[-1].size
    images = tf.zeros((1, _SIDE, _SIDE, channels), tf.uint8)
    strategy = tf.distribute.get_strategy()  # What was loaded in its scope runs on its replicas.
    answers: Any = strategy.run(serve, kwargs={"images": images})
    (names, *_) = strategy.experimental_local_results(answers["names"])
    return (*_SERVED[told], tuple(name.decode() for name in names.numpy()))


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
            f"Teacher {spec!r} must have a name for each of its {units} outputs, each another, and "
            f"has {len(set(names))}",
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
    return {
        "graph": hashlib.sha256(f"{backbone.fingerprint}\n{head}".encode()).hexdigest(),
        "weights": weights_digest(model),
        "images": f"{backbone.contract!r}, then {backbone.preprocessing or 'nothing'}",
        "precision": backbone.dtype_policy.name,
        "outputs": teacher.outputs,
        "columns": "all" if teacher.columns is None else str(teacher.columns),
    }


def _layers(head: keras.layers.Layer) -> str:
    """Tells the layers of a head without their names, which Keras counts up."""
    found = []
    for layer in head._flatten_layers():
        if not isinstance(layer, keras.Model | keras.layers.InputLayer):
            config = {key: value for key, value in layer.get_config().items() if key != "name"}
            found.append([type(layer).__name__, config])
    return json.dumps(found, sort_keys=True, default=str)
