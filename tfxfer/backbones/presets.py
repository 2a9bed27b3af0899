"""`keras_hub:PRESET`: backbones of KerasHub, from a folder or a handle."""

from typing import Any

import keras
import numpy as np

from tfxfer.backbones.bert import PREPROCESSING, sequence_length
from tfxfer.backbones.contracts import check_no_images
from tfxfer.backbones.keras_model import load_keras_model
from tfxfer.backbones.network import KerasBackbone, cut
from tfxfer.backbones.preset_texts import load_encoder
from tfxfer.errors import UserError, first_line
from tfxfer.spec import Spec

_LAYER, _LENGTH = "layer", PREPROCESSING[1]


def load_preset(
    spec: Spec,
    image_size: tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    pattern: str = "",
    bn: str = "freeze",
) -> KerasBackbone:
    """Loads a backbone for images or texts through KerasHub's `from_preset`.

    Args:
        spec: `keras_hub:PRESET`, a folder or a handle such as `resnet_50_imagenet`; of images with
            `layer=NAME` to cut at, of texts with `seq_length=N` tokens.
        image_size: Height and width; those of the preset if `None`.
        value_range: Values of black and of white; the preset's own scaling if `None`.
        pattern: Regular expressions of the stages, between semicolons; found if empty.
        bn: Where batch normalization goes by the statistics of the batch while training.

    Returns:
        The backbone, frozen.

    Raises:
        UserError: If KerasHub is not installed, or the preset cannot be used.
    """
    spec.only([_LAYER, _LENGTH])
    preset = spec.name.partition(":")[2]
    keras_hub = _keras_hub()
    try:
        network = keras_hub.models.Backbone.from_preset(preset)
    except Exception as error:  # Downloads and files fail in whichever layer meets it first.
        raise UserError(
            f"Backbone {spec.name!r} could not be loaded by KerasHub: {first_line(error)}",
            "Check the preset and the network, or give the path of a downloaded folder.",
        ) from error
    if isinstance(network.input, dict):
        check_no_images(spec.text, image_size, value_range)
        spec.only([_LENGTH])
        length = sequence_length(spec)
        return load_encoder(keras_hub, network, preset, spec.text, length, pattern=pattern, bn=bn)
    spec.only([_LAYER])
    # Before the scaling goes in front, in whose model the layers would be hidden.
    network = cut(network, spec.text, str(spec.options.get(_LAYER) or ""), top=True)
    converter = _converter(keras_hub, preset)
    if converter is not None:
        image_size = image_size or _size(converter) or _size_of(network)
        if value_range is None:
            network, value_range = _scaled(network, converter, image_size), (0.0, 255.0)
    return load_keras_model(
        network,
        spec.text,
        include_top=True,
        image_size=image_size,
        value_range=value_range,
        pattern=pattern,
        bn=bn,
    )


def _keras_hub() -> Any:
    try:
        import keras_hub
    except ImportError as error:
        raise UserError(
            "A keras_hub: backbone needs the package keras-hub, which is not installed",
            "Install it with pip install 'tfxfer[keras-hub]'.",
        ) from error
    return keras_hub


def _converter(keras_hub: Any, preset: str) -> Any:
    """Reads how the preset scales its images; `None` if it does not tell."""
    try:
        return keras_hub.layers.ImageConverter.from_preset(preset)
    except (ValueError, FileNotFoundError):
        return None


def _size(converter: Any) -> tuple[int, int] | None:
    size = converter.image_size
    return tuple(size) if size and None not in size else None


def _size_of(network: keras.Model) -> tuple[int, int] | None:
    size = tuple(network.input.shape[1:3])
    return size if None not in size else None


def _scaled(
    network: keras.Model, converter: Any, image_size: tuple[int, int] | None
) -> keras.Model:
    """Puts the scaling of a preset in front of its network."""
    scale, offset = (
        default if value is None else np.asarray(value, np.float32).tolist()
        for value, default in ((converter.scale, 1.0), (converter.offset, 0.0))
    )
    images = keras.Input((*(image_size or (None, None)), network.input.shape[-1]))
    return keras.Model(images, network(keras.layers.Rescaling(scale, offset)(images)))
