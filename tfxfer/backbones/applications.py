"""`keras:NAME`: every network of `keras.applications`, with its own preprocessing."""

import difflib
import inspect
from pathlib import Path
from typing import Any

import h5py
import keras

from tfxfer.backbones.contracts import ImageContract
from tfxfer.backbones.network import KerasBackbone, cut
from tfxfer.errors import UserError, first_line
from tfxfer.spec import Spec

# Height and width of the images that the published weights were trained on, and the least that a
# network takes, where they are not 224 and 32. Keras tells neither without building the network.
_SIZES = {
    "EfficientNetB1": 240,
    "EfficientNetB2": 260,
    "EfficientNetB3": 300,
    "EfficientNetB4": 380,
    "EfficientNetB5": 456,
    "EfficientNetB6": 528,
    "EfficientNetB7": 600,
    "EfficientNetV2B1": 240,
    "EfficientNetV2B2": 260,
    "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384,
    "EfficientNetV2M": 480,
    "EfficientNetV2L": 480,
    "InceptionResNetV2": 299,
    "InceptionV3": 299,
    "NASNetLarge": 331,
    "Xception": 299,
}
_LEAST = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}

# What this file sets, or what would make the preprocessing another one.
_OURS = {
    "include_top",
    "input_tensor",
    "input_shape",
    "pooling",
    "classes",
    "classifier_activation",
    "include_preprocessing",
    "name",
}


def load_application(
    spec: Spec,
    image_size: tuple[int, int] | None = None,
    data_size: tuple[int, int] | None = None,
    pattern: str = "",
    bn: str = "freeze",
) -> KerasBackbone:
    """Builds a network of `keras.applications` without its classifier.

    Args:
        spec: `keras:NAME`, with `weights=imagenet`, `none` or the path of a weights file,
            `layer=NAME` to cut at, and what the network's own function takes, such as `alpha`.
        image_size: Height and width; those of the published weights if `None`.
        data_size: Height and width of the user's images, which replace those of the published
            weights where there are no weights.
        pattern: Regular expressions of the stages, between semicolons; found if empty.
        bn: Where batch normalization goes by the statistics of the batch while training.

    Returns:
        The backbone, frozen.

    Raises:
        UserError: If there is no such network, option or weights.
    """
    name = spec.name.partition(":")[2]
    make = _function(name)
    spec.only({"layer", *inspect.signature(make).parameters} - _OURS)
    options = {key: value for key, value in spec.options.items() if key != "layer"}
    weights = options.pop("weights", "imagenet")
    usual, least = _SIZES.get(name, 224), _LEAST.get(name, 32)
    size = image_size or (usual, usual)
    if image_size is None and weights is None and data_size:
        size = max(data_size[0], least), max(data_size[1], least)
    if min(size) < least:
        raise UserError(
            f"{spec.name!r} takes images of at least {least}x{least} pixels, "
            f"not of --image_size={size[0]}x{size[1]}",
            "Give a larger one.",
        )
    network = _network(make, spec.text, weights, {**options, "input_shape": (*size, 3)})
    return KerasBackbone(
        cut(network, spec.text, str(spec.options.get("layer") or ""), top=True),
        ImageContract(size, channels=3, value_range=(0.0, 255.0)),
        family=family_of(name),
        source=spec.text,
        pattern=pattern,
        bn=bn,
    )


def application_names() -> list[str]:
    """Returns the names of all networks of `keras.applications`."""
    return [n for n in dir(keras.applications) if inspect.isfunction(_get(n))]


def family_of(name: str) -> str:
    """Returns the module of `keras.applications` that has a network and its `preprocess_input`."""
    return _get(name).__module__.rpartition(".")[2]


def _get(name: str) -> Any:
    return getattr(keras.applications, name)


def _function(name: str) -> Any:
    names = application_names()
    if "(" in name:
        raise UserError(
            f"A backbone's options must stand in parentheses, and {name!r} has no ')' at its end",
            "Close them, and quote the whole for the shell.",
        )
    if name not in names:
        lower = {n.lower(): n for n in names}
        near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.4)
        raise UserError(
            f"keras.applications has no network {name!r}",
            f"Did you mean {' or '.join(lower[n] for n in near)}?"
            if near
            else f"It has {', '.join(names)}.",
        )
    return _get(name)


def _network(make: Any, source: str, weights: str | None, options: dict[str, Any]) -> keras.Model:
    if weights not in (None, "imagenet") and not Path(str(weights)).expanduser().is_file():
        raise UserError(
            f"The weights of {source!r} must be imagenet, none or a file, "
            f"and {str(weights)!r} is no file",
            "Check the path.",
        )
    try:
        if weights in (None, "imagenet"):
            return make(include_top=False, pooling="avg", weights=weights, **options)
        network = make(include_top=False, pooling="avg", weights=None, **options)
        return _load_weights(network, make, str(Path(weights).expanduser()), options)
    except Exception as error:  # Downloads and files fail in whichever layer meets it first.
        raise UserError(
            f"{source!r} could not be made with weights={weights}: {first_line(error)}",
            "Without a network, give weights=FILE, or weights=none for random ones."
            if weights == "imagenet"
            else "Check options and file.",
        ) from error


def _as_saved(weights: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of the network with the classifier that a file was saved from.

    Its dense layers depend on the size of the images, which was the usual one, and on the classes.
    """
    options = {key: value for key, value in options.items() if key != "input_shape"}
    with h5py.File(weights) as file:
        names: Any = file.attrs.get("layer_names")
        if names is None:  # The format of Keras 3, in which layers find their weights by shape.
            return options
        layers: list[Any] = [file[name] for name in names]
        sizes = [layer[name].shape for layer in layers for name in layer.attrs["weight_names"]]
    return {**options, "classes": int(sizes[-1][-1])} if sizes else options


def _load_weights(
    network: keras.Model, make: Any, weights: str, options: dict[str, Any]
) -> keras.Model:
    """Loads weights into a network without its classifier, from a file with or without it."""
    try:
        network.load_weights(weights)
    except ValueError as without:
        try:
            whole = make(include_top=True, weights=None, **_as_saved(weights, options))
            whole.load_weights(weights)
        except ValueError:
            raise without from None  # It speaks of the network that was asked for.
        for ours, theirs in zip(network.weights, whole.weights, strict=False):
            ours.assign(theirs)
    return network
