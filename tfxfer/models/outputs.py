"""What models return: how many numbers, and whether these are logits or probabilities."""

from typing import Any

import keras

from tfxfer.models.base import BackboneModel
from tfxfer.models.taps import graph_of

LOGITS, SOFTMAX, SIGMOID = "logits", "softmax", "sigmoid"
"""What a teacher returns: logits (or the numbers of a regression), or probabilities of a kind."""

_KINDS = {"softmax": SOFTMAX, "softmax_v2": SOFTMAX, "sigmoid": SIGMOID}  # v2: tf.nn.softmax.
_ACTIVATED = (
    *(keras.layers.Activation, keras.layers.Dense, keras.layers.EinsumDense),
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
)
_OF_SHAPE = ("reshape", "flatten", "squeeze", "identity", "cast")  # Values stay as they are.


def units_of(model: Any) -> int | None:
    """Returns how many outputs a model has; `None` if it does not tell."""
    if isinstance(model, BackboneModel):
        return model.head.compute_output_shape((None, model.backbone.units))[-1]
    shape = getattr(model, "output_shape", None) if getattr(model, "built", False) else None
    if isinstance(shape, list) and len(shape) == 1:
        (shape,) = shape
    return shape[-1] if isinstance(shape, tuple) and shape else None


def activation_of(model: Any, guess: bool = False, index: int = 0) -> str:
    """Tells what a model returns from the operation that its output comes from.

    Args:
        model: Any model or layer.
        guess: Whether the last layer of a model stands for it where that shows no graph, as a
            subclass of `keras.Model` does not.
        index: Of the output, where there are several.

    Returns:
        `logits`, where nothing tells of probabilities; or `softmax` or `sigmoid`.
    """
    if isinstance(model, BackboneModel):
        return activation_of(model.head, guess)
    if (graph := graph_of(model)) is not None:
        operation, node, place = graph.outputs[index]._keras_history
        while _is_of_shape(operation):
            below = operation._inbound_nodes[node].input_tensors[0]
            operation, node, place = below._keras_history
        return activation_of(operation, guess, place)
    if guess and isinstance(model, keras.Model) and model.layers:
        return activation_of(model.layers[-1], guess)
    return _KINDS.get(_name(model), LOGITS)


def check_logits(student: Any) -> None:
    """Checks that a student does not return probabilities, as far as its graph tells.

    Raises:
        ValueError: If it does.
    """
    if (found := activation_of(student)) != LOGITS:
        raise ValueError(
            f"Expected a student that returns logits, received one that ends in a {found}: leave "
            "it out, and say from_logits=True to the loss of labels."
        )


def _is_of_shape(operation: Any) -> bool:
    name = _name(operation)
    linear = isinstance(operation, keras.layers.Activation) and name == "linear"
    return linear or name in _OF_SHAPE


def _name(operation: Any) -> str:
    """Names what is done last: of `Dense(3, "softmax")` and `keras.ops.softmax` it is the same."""
    last = operation.activation if isinstance(operation, _ACTIVATED) else operation
    return getattr(last, "__name__", type(last).__name__).lower()
