"""How much the tokens of a text attend to one another, in Keras' attention layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfxfer.errors import UserError


def attention_of(
    layers: Sequence[keras.layers.Layer], name: str, source: str
) -> keras.layers.MultiHeadAttention:
    """Finds the last attention among layers.

    Args:
        layers: Any.
        name: What is asked for, for messages.
        source: The model, for messages.

    Raises:
        UserError: If there is none.
    """
    found = [each for each in layers if isinstance(each, keras.layers.MultiHeadAttention)]
    if not found:
        raise UserError(
            f"{source} has no attention in {name.rpartition('.')[0]!r}, and is asked for {name!r}",
            "Name a block of a transformer.",
        )
    return found[-1]


@contextmanager
def recorded(
    attention: Mapping[str, keras.layers.MultiHeadAttention], found: dict[str, tf.Tensor]
) -> Iterator[None]:
    """Keeps, of each layer that runs in the block, what its tokens attend to.

    Args:
        attention: Layers by name.
        found: Gets by name `[batch, n, n]`: how much each token attends to each, averaged over
            heads; a row sums to 1.
    """
    with ExitStack() as stack:
        for name, layer in attention.items():
            stack.enter_context(_recorded(layer, name, found))
        yield


@contextmanager
def _recorded(
    layer: keras.layers.MultiHeadAttention, name: str, found: dict[str, tf.Tensor]
) -> Iterator[None]:
    plain: Callable[..., Any] = layer._compute_attention

    # The layer computes scores anyway, and shows them only to who calls it by himself.
    def compute(*args: Any, **kwargs: Any) -> Any:
        names = ("query", "key", "value", "attention_mask", "training", "return_attention_scores")
        given = {**dict(zip(names, args, strict=False)), **kwargs, "return_attention_scores": True}
        outputs, scores = plain(**given)
        found[name] = tf.reduce_mean(scores, axis=1)
        return outputs, scores

    # Past Keras, which would take the function for state of the layer.
    object.__setattr__(layer, "_compute_attention", compute)
    try:
        yield
    finally:
        object.__delattr__(layer, "_compute_attention")
