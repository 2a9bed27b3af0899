"""`tiny`: a small convolutional network without pretrained weights, for students from scratch."""

import math
from typing import Any

import keras

from tfxfer.backbones.contracts import ImageContract
from tfxfer.backbones.network import KerasBackbone
from tfxfer.errors import UserError
from tfxfer.spec import Spec

TINY = "tiny"

_CHANNELS = (16, 24, 40, 64)
_USUAL = 32  # Height and width that the network is made for where nobody tells them.
_MAP = 4  # About what is left of them after the last block.


def load_tiny(
    spec: Spec,
    image_size: tuple[int, int] | None = None,
    data_size: tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    pattern: str = "",
    bn: str = "freeze",
) -> KerasBackbone:
    """Builds four blocks of convolution, batch normalization and ReLU, with random weights.

    The convolution of the last block, where a plain one would hold most of the weights, is
    depthwise separable (Howard et al. 2017, "MobileNets"). Only as many blocks halve the map, the
    last ones first, as leave about 4x4 of it. There are 16,024 weights and 64 features, for images
    of any size.

    Args:
        spec: `tiny`, with `width=FACTOR` of the channels, above 0.
        image_size: Height and width that images are brought to.
        data_size: Those of the user's images, if there is no `image_size`. If that is `None` too,
            the network takes any size, and halves as if for 32x32.
        value_range: Values of black and of white; 0 to 1 if `None`.
        pattern: Regular expressions of the stages, between semicolons; `block1` to `block4` if
            empty.
        bn: Where batch normalization goes by the statistics of the batch while training.

    Returns:
        The backbone, frozen as all are, with weights drawn by Keras' global seed.

    Raises:
        UserError: If there is another option, or the width is no number above 0.
    """
    spec.only(["width"])
    width = spec.options.get("width", 1.0)
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < math.inf:
        raise UserError(
            f"The width of {spec.text!r} must be a number above 0, not {width!r}",
            "Give tiny(width=0.5) or the like.",
        )
    size = image_size or data_size
    channels = [max(4, round(width * each)) for each in _CHANNELS]
    return KerasBackbone(
        _network(size, channels),
        ImageContract(size, channels=3, value_range=value_range or (0.0, 1.0)),
        source=spec.text,
        pattern=pattern,
        bn=bn,
    )


def _network(size: tuple[int, int] | None, channels: list[int]) -> keras.Model:
    """Ends in maps: a backbone averages them, and losses may want them as they are."""
    halved = math.log2(min(size or (_USUAL, _USUAL)) / _MAP)
    halved = min(max(round(halved), 1), len(channels))
    inputs = x = keras.Input((*(size or (None, None)), 3))
    for number, filters in enumerate(channels, start=1):
        last = number == len(channels)
        options: dict[str, Any] = {
            "strides": 2 if number > len(channels) - halved else 1,
            "padding": "same",
            "use_bias": False,
        }
        if last:
            convolution = keras.layers.SeparableConv2D(
                filters,
                3,
                depthwise_initializer="he_normal",
                pointwise_initializer="he_normal",
                name=f"block{number}_conv",
                **options,
            )
        else:
            convolution = keras.layers.Conv2D(
                filters, 3, kernel_initializer="he_normal", name=f"block{number}_conv", **options
            )
        x = convolution(x)
        # Its averages follow quickly: students may train for a few hundred steps.
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"block{number}_bn")(x)
        x = keras.layers.ReLU(name=f"block{number}_relu")(x)
    return keras.Model(inputs, x, name=TINY)
