"""What stands on a backbone's features: small Keras layers from features to logits."""

import keras


def linear(units: int) -> keras.layers.Layer:
    """Returns one dense layer: features `[batch, d]` to logits `[batch, units]`."""
    return keras.layers.Dense(units, name="head")
