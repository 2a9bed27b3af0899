"""`random=`: weights drawn anew, to see what pretraining is worth."""

import dataclasses
import hashlib
import math
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones.base import Backbone, is_kernel
from tfxfer.errors import UserError
from tfxfer.spec import Spec

_ALL, _RANDOM = "all", "random"
_ONES = ("gamma", "scale", "variance")
# What Keras' `Normalization` has of its data: preprocessing, and it holds a copy that would stay.
_KEPT = ("mean", "variance")


def without_random(spec: Spec) -> tuple[Spec, str | None]:
    """Takes `random` off a spec.

    Args:
        spec: What `load_backbone` takes.

    Returns:
        What a loader takes, whose `text` is still the whole, and what is to be drawn anew, `None`
        if nothing. A network of `keras.applications` of which that is all gets `weights=none`, so
        that no weights are downloaded.
    """
    if _RANDOM not in spec.options:
        return spec, None
    options = {key: value for key, value in spec.options.items() if key != _RANDOM}
    if draws_all(spec) and spec.name.startswith("keras:"):
        options.setdefault("weights", None)
    return dataclasses.replace(spec, options=options), str(spec.options[_RANDOM])


def draws_all(spec: Spec) -> bool:
    """Tells whether a spec has every weight drawn anew."""
    return spec.options.get(_RANDOM) == _ALL


def draw_anew(backbone: Backbone, stages: str) -> None:
    """Draws weights by Keras' global seed, and makes the fingerprint that of the new ones.

    Kernels are drawn as He et al. 2015 have it, "Delving deep into rectifiers", embeddings with
    Keras' usual deviation of 0.05; scales and variances become one, the rest, such as biases and
    averages, zero. What is no float stays, and so does what a `Normalization` has of its data.

    Args:
        backbone: Any; under `tf.distribute`, in the scope that it was made in.
        stages: Their names, between semicolons; or `all` for every weight, even of a network that
            has no stages.

    Raises:
        UserError: If there is no stage of such a name, or none is named.
    """
    known = [stage.name for stage in backbone.stages]
    named = [name.strip() for name in stages.split(";") if name.strip()]
    weights = [w for stage in backbone.stages if stage.name in named for w in stage.weights]
    if stages == _ALL:
        weights = backbone.weights
    elif not named or set(named) - set(known):
        raise UserError(
            f"What is random in {backbone.source!r} must be all or stages, not {stages!r}",
            f"Its stages are {', '.join(known)}." if known else "It has no stages: give all.",
        )
    digest = hashlib.sha256(backbone.fingerprint.encode())
    for weight in weights:
        if keras.backend.is_float_dtype(weight.dtype) and weight.name not in _KEPT:
            weight.assign(_drawn(weight))
        digest.update(tf.convert_to_tensor(weight.value).numpy().tobytes())
    backbone.fingerprint = digest.hexdigest()


def _drawn(weight: keras.Variable) -> Any:
    """Draws values for a weight, by what its name and shape tell of it."""
    shape, dtype = tuple(weight.shape), weight.dtype
    if weight.name.endswith(_ONES):
        return keras.initializers.Ones()(shape, dtype)
    if not is_kernel(weight):
        return keras.initializers.Zeros()(shape, dtype)
    if "embed" in weight.path and not weight.name.endswith("kernel"):
        # Rows are looked up, not summed over: their size must not follow from their number.
        return keras.initializers.RandomNormal(stddev=0.05)(shape, dtype)
    if len(shape) > 2 and shape[-1] == 1:
        # A filter for each channel, which Keras would draw as if all channels went into each.
        apart = (*shape[:-2], 1, math.prod(shape[-2:]))
        return keras.ops.reshape(keras.initializers.HeNormal()(apart, dtype), shape)
    return keras.initializers.HeNormal()(shape, dtype)
