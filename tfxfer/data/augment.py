"""Images changed at random, the same way whenever the same key is given.

Keras' layers draw from generators whose state moves with every call, so that a parallel `map`
gives other images in every run. Here the states are replaced, for one call, by what the caller's
key says: an image is then a function of its key alone.
"""

import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfxfer.config import AUGMENT as AUGMENTS
from tfxfer.config import MIX as MIXES
from tfxfer.errors import UserError

NONE, LIGHT, RANDAUGMENT = AUGMENTS
_, MIXUP, CUTMIX = MIXES

MARGIN = 1.125
"""How much larger an image is before it is cropped: 252 for 224."""
MIXUP_ALPHA = 0.2


def augmenter(
    policy: str, size: tuple[int, int], channels: int | None, margin: float = MARGIN
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Builds an augmentation of one image.

    *   `none`: only brought to size.
    *   `light`: mirrored left to right in half the cases; resized to `margin` times the size, and
        cropped at random.
    *   `randaugment`: mirrored in half the cases; then two of RandAugment's eleven changes of
        geometry and colour, at up to half of their strength (Cubuk et al. 2020,
        https://arxiv.org/abs/1909.13719).

    Args:
        policy: One of `AUGMENTS`.
        size: Height and width that images get.
        channels: 1 or 3.
        margin: Of `light`, at least 1.

    Returns:
        A TensorFlow function of an image `[height, width, channels]` with values 0 to 255, of any
        size and number type, and a key, integer `[2]`; it returns float32 `[*size, channels]` in
        the same range. The same image and key always give the same.

    Raises:
        UserError: If there is no such policy, or it does not take so many channels.
    """
    check_name("augmentation", policy, AUGMENTS)
    if channels not in (1, 3):
        raise UserError(
            f"Images to augment must have 1 or 3 channels, not {channels}", "Use no augmentation."
        )
    # Stated, so that a policy of mixed precision for the model does not reach the images.
    options = {"data_format": "channels_last", "dtype": "float32"}
    layers, before = [], size
    if policy != NONE:
        layers.append(keras.layers.RandomFlip("horizontal", **options))
    if policy == LIGHT:
        before = (math.ceil(margin * size[0]), math.ceil(margin * size[1]))
        layers.append(keras.layers.RandomCrop(*size, **options))
    if policy == RANDAUGMENT:
        layers.append(keras.layers.RandAugment(value_range=(0, 255), **options))
    states = _states(layers)

    def augment(image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        image = resize(image, before)
        # RandAugment's changes of colour need three channels; three equal ones stay equal.
        grey = policy == RANDAUGMENT and channels == 1
        image = tf.tile(image, (1, 1, 3)) if grey else image
        with _keyed(states, key):
            for layer in layers:
                image = layer(image, training=True)
        image = image[..., :1] if grey else image
        return tf.ensure_shape(tf.clip_by_value(image, 0.0, 255.0), (*size, channels))

    return augment


def mixer(
    mix: str, alpha: float = MIXUP_ALPHA
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Builds a mixture of each image of a batch with another one of it.

    *   `mixup`: a weighted mean of two images and of their labels, the weight drawn from
        Beta(alpha, alpha) (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).
    *   `cutmix`: a rectangle of the other image is pasted in, its share of the area drawn
        uniformly; labels are mixed by the pixels that were pasted (Yun et al. 2019,
        https://arxiv.org/abs/1905.04899).

    Args:
        mix: `mixup` or `cutmix`.
        alpha: Of `mixup`, above 0.

    Returns:
        A TensorFlow function of images `[batch, height, width, channels]`, labels
        `[batch, units]` and a key, integer `[2]`; it returns both mixed, float32, of the same
        shapes. The same batch and key always give the same; a single example is mixed with itself.

    Raises:
        UserError: If there is no such mixture.
    """
    check_name("mixture", mix, MIXES[1:])
    options = {"data_format": "channels_last", "dtype": "float32"}
    layer = (
        keras.layers.MixUp(alpha, **options)
        if mix == MIXUP
        # Beta(1, 1), as in the paper; Keras' default draws the parameter, too, from [0, 1].
        else keras.layers.CutMix((1.0, 1.0), **options)
    )
    states = _states([layer])

    def mixed(images: tf.Tensor, y: tf.Tensor, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, y = tf.cast(images, tf.float32), tf.cast(y, tf.float32)
        with _keyed(states, key):
            drawn = layer.get_random_transformation({"images": images, "labels": y})
            if mix == CUTMIX:
                # Keras takes the rectangle's area before it is rounded to pixels.
                pasted = tf.cast(drawn["batch_masks"][..., 0], tf.float32)
                drawn["mix_weight"] = 1.0 - tf.reduce_mean(pasted, axis=(1, 2))
            return layer.transform_images(images, drawn), layer.transform_labels(y, drawn)

    return mixed


def resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Brings an image to a size, as a backbone itself does, so that a served one looks the same.

    Args:
        image: `[height, width, channels]`.
        size: Height and width.

    Returns:
        Float32 `[*size, channels]`.
    """
    return tf.image.resize(image, size, antialias=True)


def check_name(what: str, name: str, known: Sequence[str]) -> None:
    """Checks that a name is one of those known.

    Args:
        what: It names.
        name: To check.
        known: All that are right.

    Raises:
        UserError: If it is not.
    """
    if name not in known:
        raise UserError(
            f"The {what} must be one of {', '.join(known)}, not {name!r}", "Choose one of them."
        )


def _states(layers: Sequence[keras.layers.Layer]) -> list[keras.Variable]:
    """Returns the state of every generator in the layers, which have no other variables."""
    return [variable for layer in layers for variable in layer.variables]


def _keyed(states: Sequence[keras.Variable], key: tf.Tensor) -> keras.StatelessScope:
    """Returns a scope in which generators start from the key, each from a number of its own."""
    return keras.StatelessScope(
        state_mapping=[
            (state, tf.cast(tf.random.experimental.stateless_fold_in(key, i), state.dtype))
            for i, state in enumerate(states)
        ]
    )
