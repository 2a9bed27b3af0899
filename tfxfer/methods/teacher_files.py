"""What the spec of a teacher names: a run, a file of Keras, or a SavedModel."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import keras
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from tfxfer.backbones import KerasBackbone, SavedModelBackbone
from tfxfer.backbones.bert import PREPROCESSING, load_tokenizer
from tfxfer.backbones.hashed import BAG, TRANSFORMER
from tfxfer.backbones.hub import EMBEDDED, NO_BACKBONE, exists, path_advice, resolve
from tfxfer.backbones.keras_file import SUFFIXES, load_keras_file
from tfxfer.backbones.network import cut
from tfxfer.backbones.tiny import TINY
from tfxfer.config import RunConfig
from tfxfer.errors import UserError, first_line
from tfxfer.models import FineTuner, Teacher, load_model
from tfxfer.models.base import BackboneModel
from tfxfer.models.teachers import LOGITS, SIGMOID, SOFTMAX
from tfxfer.report.workdir import KERAS_MODEL, RESULTS, SAVED_MODEL
from tfxfer.spec import Spec
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL

# What exported predictors give, and of which task they are then; see `tfxfer.export`.
_SERVED: dict[tuple[str, ...], tuple[str, str]] = {
    ("labels", "probabilities"): (SINGLE_LABEL, SOFTMAX),
    ("names", "probabilities"): (MULTI_LABEL, SIGMOID),
    ("names", "values"): (REGRESSION, LOGITS),
}
_FEATURES = (*EMBEDDED, TINY, BAG, TRANSFORMER)
_SERVING, _SIDE = "serving_default", 64
_NO_TEACHER = "A teacher must be a run, a file, a folder or a handle"


@dataclass(frozen=True)
class Found:
    """What a spec of a teacher names.

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


def read_teacher(spec: Spec, told: Mapping[str, str]) -> Found:
    """Loads what a spec names, whatever it is.

    Args:
        spec: As for `load_teacher`, without what `told` holds.
        told: `image_size` and `value_range`, if they are given.

    Returns:
        The network, and what it tells of itself.

    Raises:
        UserError: If there is no such teacher, or it cannot be loaded.
    """
    try:
        return _read(spec, told)
    except UserError as error:
        # Networks are loaded as backbones, and messages speak of such.
        text = str(error).replace(NO_BACKBONE, _NO_TEACHER).replace("Backbone", "Teacher", 1)
        error.args = (text,)
        raise


def check_teacher(spec: Spec) -> None:
    """Checks that there is what a spec names, before anything is loaded; handles are not tried.

    Raises:
        UserError: If it is a path, and leads nowhere.
    """
    if "://" not in spec.name and not exists(spec.name):
        _check_classifies(spec)
        raise UserError(f"There is no teacher {spec.name!r}", path_advice(spec.name))


def _check_classifies(spec: Spec) -> None:
    if spec.name.startswith(("keras:", "keras_hub:")) or spec.name in _FEATURES:
        raise UserError(
            f"A teacher must classify, and {spec.name!r} gives features alone",
            "Fine-tune it first, and give the workdir of that run; or give it as --backbone, which "
            "is fine-tuned first where there is no --teacher.",
        )


def _read(spec: Spec, told: Mapping[str, str]) -> Found:
    path = Path(spec.name).expanduser()
    run = run_of(path)
    if run is not None:
        return _of_run(spec, path, run, told)
    _check_classifies(spec)
    if spec.name.endswith(SUFFIXES):
        return _of_our_file(spec, path) if _is_ours(path) else _of_keras_file(spec, told)
    return _of_saved_model(spec, spec.name, told)


def run_of(path: Path) -> Path | None:
    """Returns the workdir that a path is, or is a model of; `None` if there is none."""
    folder = path
    if path.name == KERAS_MODEL:
        folder = path.parent
    elif path.parts[-2:] == (SAVED_MODEL, "1"):
        folder = path.parent.parent
    return folder if (folder / RESULTS).is_file() else None


def _of_run(spec: Spec, path: Path, run: Path, told: Mapping[str, str]) -> Found:
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
    return Found(found.model, found.units, found.outputs, kind, names)


def _is_ours(path: Path) -> bool:
    """Whether a Keras file holds a model of this package, whose backbone prepares the images."""
    try:
        with ZipFile(path) as file:
            config = json.loads(file.read("config.json"))
        return str(config.get("registered_name")).startswith("tfxfer>")
    except (OSError, BadZipFile, KeyError, ValueError):
        return False


def _of_our_file(spec: Spec, path: Path) -> Found:
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
    return Found(model, answers.shape[-1])


def _of_keras_file(spec: Spec, told: Mapping[str, str]) -> Found:
    settings = _settings(told)
    whole = load_keras_file(
        Spec(spec.name, {**spec.options, "include_top": True}, spec.text),
        settings.image_pixels,
        settings.image_values,
    )
    if not isinstance(whole, KerasBackbone):  # Read by Keras 2, and a SavedModel now.
        return Found(whole, whole.units)
    return Found(_with_head(whole), whole.units, Teacher(whole.network).outputs)


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


def _of_saved_model(spec: Spec, place: str | Path, told: Mapping[str, str]) -> Found:
    spec.only(["output", *PREPROCESSING])
    settings = _settings(told)
    folder = resolve(str(place))
    backbone = SavedModelBackbone(
        folder,
        source=spec.text,
        output=str(spec.options.get("output") or ""),
        image_size=settings.image_pixels,
        value_range=settings.image_values,
        tokenizer=load_tokenizer(spec),
    )
    kind, outputs, names = ("", "", ()) if spec.options else _served(folder)
    return Found(backbone, backbone.units, outputs, kind, names)


def _served(folder: Path) -> tuple[str, str, tuple[str, ...]]:
    """Tells task, outputs and names of a predictor that was exported here; empty for others."""
    saved = SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def[_SERVING]
    told = tuple(sorted(signature.outputs))
    if set(signature.inputs) not in ({"images"}, {"texts"}) or told not in _SERVED:
        return "", "", ()
    if "names" not in told:
        return (*_SERVED[told], ())
    serve = tf.saved_model.load(str(folder)).signatures[_SERVING]
    ((name, taken),) = signature.inputs.items()
    sides = [each.size for each in taken.tensor_shape.dim[1:]]
    shape = [1, *(_SIDE if side < 0 else side for side in sides)]
    example = tf.fill(shape, "") if name == "texts" else tf.zeros(shape, tf.uint8)
    strategy = tf.distribute.get_strategy()  # What was loaded in its scope runs on its replicas.
    answers: Any = strategy.run(serve, kwargs={name: example})
    (names, *_) = strategy.experimental_local_results(answers["names"])
    return (*_SERVED[told], tuple(name.decode() for name in names.numpy()))
