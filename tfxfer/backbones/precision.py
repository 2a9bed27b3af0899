"""In which precision a backbone computes."""

import keras

from tfxfer.backbones.base import Backbone
from tfxfer.backbones.network import KerasBackbone
from tfxfer.config import PRECISIONS
from tfxfer.errors import UserError

# They bring images to the network's range: cheap, and rounding goes into everything after them.
_SCALING = (keras.layers.Rescaling, keras.layers.Normalization)


def set_precision(backbone: Backbone, policy: str) -> None:
    """Lets a backbone compute in another precision; its weights and features stay float32.

    Micikevicius et al. 2018, "Mixed precision training". The layers of the network get the policy;
    those that have another one than the backbone keep it, as do layers that scale images, and
    batch normalization computes in float32 in any case. Gradients are those of the float32
    weights; with `mixed_float16` small ones vanish unless the loss is scaled
    (`keras.optimizers.LossScaleOptimizer`). Models on the backbone must be compiled again.

    Args:
        backbone: A Keras network, for any policy but the one it has.
        policy: `float32`, `mixed_bfloat16` or `mixed_float16`.

    Raises:
        UserError: If the backbone is a SavedModel, whose graph has its own precision, or if a
            layer is quantized.
        ValueError: If there is no such policy.
    """
    if policy not in PRECISIONS:
        raise ValueError(f"Expected a precision among {list(PRECISIONS)}, received {policy!r}.")
    before = backbone.dtype_policy.name
    if policy == before:
        return
    if not isinstance(backbone, KerasBackbone):
        raise UserError(
            f"--precision={policy} needs a backbone of Keras layers, and {backbone.source!r} is a "
            "SavedModel, whose graph has its own precision",
            "Leave it out, or choose a Keras backbone.",
        )
    layers = list(backbone.network._flatten_layers())
    if quantized := [layer.name for layer in layers if layer.quantization_mode is not None]:
        raise UserError(
            f"--precision={policy} needs a backbone that is not quantized, and layer "
            f"{quantized[0]!r} of {backbone.source!r} is",
            "Leave it out.",
        )
    for layer in layers:
        if layer.dtype_policy.name == before and _computes(layer):
            layer.dtype_policy = policy
    backbone.dtype_policy = policy
    backbone.retrace()


def _computes(layer: keras.layers.Layer) -> bool:
    """Whether the precision of a layer is a matter of speed.

    A functional or Sequential model leaves computing to its layers, but casts what goes in.
    """
    if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
        return False
    return not isinstance(layer, (keras.layers.InputLayer, *_SCALING))
