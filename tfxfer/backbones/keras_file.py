"""Whole Keras models in files: `.keras`, and `.h5` of Keras 2 and 3."""

import hashlib
import inspect
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from tfxfer.backbones.base import Backbone
from tfxfer.backbones.keras_model import load_keras_model
from tfxfer.backbones.saved_model import SavedModelBackbone
from tfxfer.errors import UserError, first_line
from tfxfer.spec import Spec

SUFFIXES = (".keras", ".h5", ".hdf5")
_OPTIONS = ("layer", "include_top", "preprocessing", "safe_mode")


def load_keras_file(
    spec: Spec,
    image_size: tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    pattern: str = "",
    bn: str = "freeze",
) -> Backbone:
    """Loads a whole Keras model from a file, without its classifier.

    A `.h5` file that Keras 3 refuses is read by Keras 2 (`tf_keras`) and goes on as a SavedModel.

    Args:
        spec: Path of the file, with `layer=NAME` to cut at, `include_top=true` to keep a dense
            layer at the end, `preprocessing=FAMILY` of `keras.applications`, and
            `safe_mode=false` to trust a file that holds code.
        image_size: Height and width, if the network leaves them open.
        value_range: Values of black and of white; found out if `None`.
        pattern: Regular expressions of the stages, between semicolons; found if empty.
        bn: Where batch normalization goes by the statistics of the batch while training.

    Returns:
        The backbone, frozen. Of a file that holds a model with a backbone of ours, that backbone.

    Raises:
        UserError: If the file cannot be read, or the model cannot be used.
    """
    spec.only(_OPTIONS)
    path = Path(spec.name).expanduser()
    if not path.is_file():
        raise UserError(f"There is no file {spec.name!r}", "Check the path.")
    options = {key: value for key, value in spec.options.items() if value is not None}
    safe_mode = bool(options.pop("safe_mode", True))
    options |= {"image_size": image_size, "value_range": value_range, "pattern": pattern, "bn": bn}
    _check_whole(path, spec.name)
    try:
        network = keras.models.load_model(
            path,
            custom_objects=_KERAS_2 if path.suffix != ".keras" else None,
            compile=False,
            safe_mode=safe_mode,
        )
    except Exception as error:  # A broken file fails in whichever layer meets it first.
        if path.suffix != ".keras" and (not safe_mode or not _has_code(path)):
            return _through_keras_2(path, spec.text, error, **options)
        raise UserError(
            f"Backbone {spec.name!r} must hold a Keras model: {first_line(error)}",
            "Save it again; add (safe_mode=false) if it holds code that you trust.",
        ) from error
    ours = getattr(network, "backbone", None)
    if isinstance(ours, Backbone):
        return _taken_over(ours, spec, image_size, value_range, pattern, bn)
    return load_keras_model(network, spec.text, **options)


def _taken_over(
    ours: Backbone,
    spec: Spec,
    image_size: tuple[int, int] | None,
    value_range: tuple[float, float] | None,
    pattern: str,
    bn: str,
) -> Backbone:
    """Takes the backbone out of a model of ours, with its contract and its present weights."""
    if image_size or value_range or set(spec.options) - {"safe_mode"}:
        raise UserError(
            f"Backbone {spec.text!r} is that of a model that this program made, which is taken as "
            "it is",
            "Leave --image_size, --value_range and options other than safe_mode out.",
        )
    digest = hashlib.sha256(ours.fingerprint.encode())
    for weight in ours.get_weights():
        digest.update(weight.tobytes())
    ours.source, ours.fingerprint = spec.text, digest.hexdigest()
    ours.regroup(pattern or ours.pattern, bn)
    return ours


def _has_code(path: Path) -> bool:
    """Whether a `.h5` file holds a `Lambda` layer, whose Python code Keras 2 would run unasked."""

    def found(value: Any) -> bool:
        if isinstance(value, dict):
            named = value.get("class_name") in ("Lambda", "__lambda__")
            return named or any(map(found, value.values()))
        return isinstance(value, list) and any(map(found, value))

    with h5py.File(path) as file:
        return found(json.loads(str(file.attrs["model_config"])))


def _check_whole(path: Path, source: str) -> None:
    """Tells a file of weights alone from a model."""
    if path.suffix == ".keras":
        return
    try:
        with h5py.File(path) as file:
            whole = "model_config" in file.attrs
    except OSError as error:
        raise UserError(
            f"Backbone {source!r} must be an HDF5 file, and is none", "Download or save it again."
        ) from error
    if not whole:
        raise UserError(
            f"Backbone {source!r} must hold a whole model, and holds weights alone",
            f"Name their network, such as keras:MobileNetV2(weights={source}).",
        )


class _FromKeras2:
    """Reads the config of a layer of Keras 2, which holds settings that mean nothing for it.

    They stand there because its class inherits them, and Keras 3 refuses them.
    """

    layer: Any

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.layers.Layer:
        known = inspect.signature(cls.layer).parameters
        idle = {name for name in _INHERITED if name not in known}
        if config.get("groups", 1) != 1:
            idle.discard("groups")
        return cls.layer.from_config({k: v for k, v in config.items() if k not in idle})


_INHERITED = ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint")
_KERAS_2 = {
    name: type(name, (_FromKeras2,), {"layer": getattr(keras.layers, name)})
    for name in (
        "DepthwiseConv1D",
        "DepthwiseConv2D",
        "SeparableConv1D",
        "SeparableConv2D",
        "Conv1DTranspose",
        "Conv2DTranspose",
    )
}


def _through_keras_2(
    path: Path,
    source: str,
    refused: Exception,
    *,
    layer: str = "",
    include_top: bool = False,
    preprocessing: str = "",
    **options: Any,
) -> Backbone:
    """Reads a file with Keras 2, and makes a SavedModel of it, which any Keras can train."""
    problem = UserError(
        f"Backbone {source!r} must hold a Keras model: {first_line(refused)}",
        "Save it again, as .keras.",
    )
    if preprocessing:
        raise problem from refused
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import tf_keras

            whole: Any = tf_keras.models.load_model(path, compile=False)
            whole.trainable = True  # Else what was frozen in the file is none to train for ever.
        except Exception:  # Neither Keras can read it; the first to try says why.
            raise problem from refused
        options["value_range"] = options["value_range"] or _keras_2_range(whole)
        last = next((each for each in reversed(whole.layers) if each.weights), None)
        if layer:
            names = [each.name for each in whole.layers]
            if layer not in names:
                raise UserError(
                    f"Backbone {source!r} has no layer {layer!r}",
                    f"Its last are {', '.join(names[-4:])}.",
                ) from refused
            whole = tf_keras.Model(whole.inputs, whole.get_layer(layer).output)
        elif isinstance(last, tf_keras.layers.Dense) and not include_top:
            whole = tf_keras.Model(whole.inputs, last.input)
        with tempfile.TemporaryDirectory() as folder:
            whole.save(folder, save_format="tf")
            backbone = SavedModelBackbone(folder, source, **options)
    # Of the file: Keras 2 writes a SavedModel differently every time.
    backbone.fingerprint = hashlib.sha256(
        f"{layer} {include_top}".encode() + path.read_bytes()
    ).hexdigest()
    return backbone


_OPERATIONS = ("truediv", "divide", "subtract", "sub", "multiply", "mul", "add")


def _keras_2_range(network: Any) -> tuple[float, float] | None:
    """Reads the value range off layers that scale, as for Keras 3; `None` if there are none."""
    for layer in network.layers:
        kind = type(layer).__name__
        if kind == "Rescaling":
            return (0.0, 255.0) if np.max(np.abs(layer.scale)) < 1 / 50 else (0.0, 1.0)
        if kind == "Normalization":
            return (0.0, 255.0) if np.max(np.abs(np.asarray(layer.mean))) > 2 else (0.0, 1.0)
        if kind == "Lambda":
            return 0.0, 255.0
        if kind == "TFOpLambda":
            if layer.get_config()["function"].rpartition(".")[2] in _OPERATIONS:
                return 0.0, 255.0
            continue
        inner = _keras_2_range(layer) if hasattr(layer, "layers") else None
        if inner or layer.weights:
            return inner
    return None
