"""A Keras model as a backbone: where to cut it, and what it wants of its images."""

import keras
import numpy as np

from tfxfer.backbones.applications import application_names, family_of
from tfxfer.backbones.contracts import contract_of
from tfxfer.backbones.network import KerasBackbone, cut
from tfxfer.errors import UserError, first_line

_BYTES = (0.0, 255.0)
_UNIT = (0.0, 1.0)


def load_keras_model(
    network: keras.Model,
    source: str = "",
    *,
    layer: str = "",
    include_top: bool = False,
    preprocessing: str = "",
    image_size: tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    pattern: str = "",
    bn: str = "freeze",
) -> KerasBackbone:
    """Makes a backbone of a Keras model, which keeps its weights: they are shared, not copied.

    Args:
        network: From images, or from strings `[batch]`, to features or to classes.
        source: What it was loaded from.
        layer: Name of the layer to cut at; see `cut`.
        include_top: Whether to keep a dense layer at the end.
        preprocessing: Module of `keras.applications` whose `preprocess_input` the network wants.
        image_size: Height and width, if the network leaves them open.
        value_range: Values of black and of white. If `None`, they are 0 and 255 where the network
            begins with layers that scale those, or is one of `keras.applications` by its name,
            whose preprocessing it then gets, and else 0 and 1.
        pattern: Regular expressions of the stages, between semicolons; found if empty.
        bn: Where batch normalization goes by the statistics of the batch while training.

    Returns:
        The backbone, frozen.

    Raises:
        UserError: If the model cannot be used.
    """
    source = source or f"Keras model {network.name}"
    whole = functional(network, source, image_size)
    if whole.inputs[0].dtype == "string":
        if preprocessing:
            raise UserError(
                f"preprocessing={preprocessing} is of images, and backbone {source!r} takes texts",
                "Leave it out.",
            )
        return KerasBackbone(
            cut(whole, source, layer, include_top),
            contract_of(whole.inputs[0], source, image_size, value_range),
            source=source,
            pattern=pattern,
            bn=bn,
        )
    family = preprocessing
    if value_range is None and not family:
        scaled = _scaled_range(whole)
        family = "" if scaled else _known_family(whole)
        value_range = scaled or _UNIT
    if family and whole.inputs[0].shape[-1] != 3:
        if preprocessing:
            raise UserError(
                f"preprocessing={preprocessing} is for three channels, and backbone {source!r} "
                f"takes {whole.inputs[0].shape[-1]}",
                "Give --value_range instead.",
            )
        family = ""  # It has the name of a family, and not its weights.
    if preprocessing and value_range not in (None, _BYTES):
        raise UserError(
            f"preprocessing={preprocessing} takes values from 0 to 255",
            "Leave --value_range or preprocessing out.",
        )
    if family:
        value_range = _BYTES
    assert value_range is not None
    return KerasBackbone(
        cut(whole, source, layer, include_top),
        contract_of(whole.inputs[0], source, image_size, value_range),
        family=family,
        source=source,
        pattern=pattern,
        bn=bn,
    )


def functional(
    network: keras.Model, source: str, image_size: tuple[int, int] | None
) -> keras.Model:
    """Makes a functional model of a subclassed one, which knows no inputs.

    Args:
        network: Any Keras model.
        source: What it was loaded from.
        image_size: Height and width of the images that it takes.

    Returns:
        `network` itself if it is functional, or else a model of that one layer.

    Raises:
        UserError: If the network cannot be called on colour images of that size.
    """
    if getattr(network, "inputs", None) and getattr(network, "outputs", None):
        return network
    if not image_size:
        raise UserError(
            f"Backbone {source!r} is a subclassed model, which does not tell its image size",
            "Give it with --image_size, in Python with image_size=(height, width).",
        )
    inputs = keras.Input((*image_size, 3))
    try:
        return keras.Model(inputs, network(inputs))
    except Exception as error:  # The model's own code may raise anything.
        raise UserError(
            f"Backbone {source!r} must take images [batch, {image_size[0]}, {image_size[1]}, 3], "
            f"and failed on them: {first_line(error)}",
            "Give another --image_size, or a functional model.",
        ) from error


def _scaled_range(network: keras.Model) -> tuple[float, float] | None:
    """Reads the value range off layers that scale, if the network begins with any."""
    for layer in getattr(network, "operations", network.layers):
        if isinstance(layer, keras.layers.Rescaling):
            return _BYTES if np.max(np.abs(layer.scale)) < 1 / 50 else _UNIT
        if isinstance(layer, keras.layers.Normalization):
            return _BYTES if np.max(np.abs(np.asarray(layer.mean))) > 2 else _UNIT
        if isinstance(layer, keras.layers.Lambda):
            return _BYTES
        if not isinstance(layer, keras.layers.Layer):
            # An operation such as `images / 127.5` stands in the graph by itself.
            if type(layer).__name__ in _ARITHMETIC:
                return _BYTES if _scales_bytes(layer) else _UNIT
            continue
        # A model without weights may be augmentation, after which scaling comes.
        if isinstance(layer, keras.Model) and (found := _scaled_range(layer)):
            return found
        if layer.weights:
            return None
    return None


_ARITHMETIC = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide")


def _scales_bytes(operation: keras.Operation) -> bool:
    """Whether `images / 127.5`, `images - 104` or the like expects values up to 255."""
    node = operation._inbound_nodes[0]
    constants = [
        np.max(np.abs(np.asarray(value, np.float64)))
        for value in (*node.arguments.args, *node.arguments.kwargs.values())
        if value is not None and not keras.utils.is_keras_tensor(value)
    ]
    if type(operation).__name__ == "Multiply":
        return any(value < 1 / 50 for value in constants)
    return any(value > 2 for value in constants)


def _known_family(network: keras.Model) -> str:
    """Finds the module of `keras.applications` that the name of a network speaks of."""
    inner = (layer.name for layer in network.layers if isinstance(layer, keras.Model))
    known = {name.lower(): name for name in application_names()}
    for name in (network.name, *inner):
        plain = name.lower().replace("_", "")
        found = [each for each in known if plain.startswith(each)]
        if found:
            return family_of(known[max(found, key=len)])
    return ""
