"""What a network wants of its inputs: images or texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tfxfer.errors import UserError

IMAGE, TEXT = "image", "text"
"""Kinds of inputs, in the words of `tfxfer.data`."""

_WORDS = 32
_COMMON = ("the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "with", "as")


@dataclass(frozen=True)
class ImageContract:
    """What a network wants of its images; the backbone brings them there itself.

    Attributes:
        size: Height and width in pixels; `None` if the network takes any size.
        channels: 1 or 3.
        value_range: Values of black and of white.
        dtype: `float32`, or `uint8` for values 0 to 255.
    """

    size: tuple[int, int] | None
    channels: int
    value_range: tuple[float, float] = (0.0, 1.0)
    dtype: str = "float32"

    inputs: ClassVar[str] = IMAGE

    def served(self, shape: Sequence[int | None]) -> tf.TensorSpec:
        """Tells what a served model takes where an image of the data has this shape."""
        return tf.TensorSpec([None, None, None, shape[-1] or self.channels], tf.uint8, "images")

    def noise(self, count: int, size: tuple[int, int] = (224, 224)) -> np.ndarray:
        """Draws images to measure or to try a network with.

        Args:
            count: How many.
            size: Height and width, where the contract leaves them open.

        Returns:
            uint8 `[count, height, width, channels]`, always the same.
        """
        shape = (count, *(self.size or size), self.channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        """Brings images to the size, channels, value range and dtype of the contract.

        Args:
            images: Values 0 to 255 of any dtype, `[batch, height, width, 1 or 3]`.

        Returns:
            `[batch, height, width, channels]` in the value range.

        Raises:
            ValueError: If `images` has another rank or another number of channels.
        """
        if len(images.shape) != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                f"Expected images [batch, height, width, 1 or 3], received {images.shape}."
            )
        images = self.resize(tf.cast(images, tf.float32))
        if self.channels == 3 and images.shape[-1] == 1:
            images = tf.image.grayscale_to_rgb(images)
        elif self.channels == 1 and images.shape[-1] == 3:
            images = tf.image.rgb_to_grayscale(images)
        if self.dtype == "uint8":
            return tf.cast(tf.round(images), tf.uint8)
        low, high = self.value_range
        if (low, high) != (0, 255):
            images = images * ((high - low) / 255.0) + low
        return tf.cast(images, self.dtype)

    def resize(self, images: tf.Tensor) -> tf.Tensor:
        """Brings images `[batch, height, width, channels]` to the size of the contract."""
        if self.size is None or tuple(images.shape[1:3]) == self.size:
            return images
        return tf.image.resize(images, self.size, antialias=True)

    def __str__(self) -> str:
        size = f"{self.size[0]}x{self.size[1]}" if self.size else "any size"
        low, high = self.value_range
        return f"{size}, {self.channels} channels, {self.dtype} from {low:g} to {high:g}"


@dataclass(frozen=True)
class TextContract:
    """What a network wants of its texts, which it takes as they are: UTF-8 strings.

    Attributes:
        sequence_length: Tokens of a text that are read, those at its ends that mark them too; the
            rest is cut. `None` if texts of any length are read.
        pairs: Whether pairs of texts are taken.
        singles: Whether single texts are taken.
    """

    sequence_length: int | None = None
    pairs: bool = False
    singles: bool = field(default=True, repr=False)

    inputs: ClassVar[str] = TEXT
    size: ClassVar[None] = None

    def served(self, shape: Sequence[int | None]) -> tf.TensorSpec:
        """Tells what a served model takes where a text of the data has this shape."""
        return tf.TensorSpec([None, *shape], tf.string, "texts")

    def noise(self, count: int, size: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Draws texts to measure or to try a network with, always the same.

        Args:
            count: How many.
            size: Of images.

        Returns:
            Bytes `[count]`; pairs `[count, 2]` if no others are taken.
        """
        del size
        words = min(self.sequence_length or _WORDS, _WORDS)
        drawn = np.random.default_rng(0).choice(_COMMON, (count, words))
        texts = np.array([" ".join(each).encode() for each in drawn], object)
        return texts if self.singles else np.stack([texts, texts], axis=1)

    def prepare(self, texts: tf.Tensor) -> tf.Tensor:
        """Checks texts, and leaves them as they are.

        Args:
            texts: Strings `[batch]`, or pairs of them `[batch, 2]`.

        Raises:
            ValueError: If they are none, or the network takes none such.
        """
        texts = tf.convert_to_tensor(texts)
        shape = texts.shape
        single = shape.rank == 1 and self.singles
        pairs = shape.rank == 2 and shape[1] == 2 and self.pairs
        if texts.dtype != tf.string or not (single or pairs):
            taken = ["texts [batch]"] * self.singles + ["pairs [batch, 2]"] * self.pairs
            wanted = " or ".join(taken)
            raise ValueError(f"Expected {wanted}, received {texts.dtype.name} {shape}.")
        return texts

    def __str__(self) -> str:
        length = self.sequence_length
        most = "of any length" if length is None else f"of up to {length} tokens"
        if self.pairs:
            return f"{most}, or pairs" if self.singles else f"{most}, in pairs"
        return most


Contract = ImageContract | TextContract


def contract_from(config: Mapping[str, Any]) -> Contract:
    """Makes a contract again from `dataclasses.asdict` of it, also after a pass through JSON."""
    if "pairs" in config:
        return TextContract(**config)
    size, value_range = config["size"], config["value_range"]
    pairs = {"size": size and tuple(size), "value_range": tuple(value_range)}
    return ImageContract(**{**config, **pairs})


def contract_of(
    inputs: Any,
    source: str,
    image_size: tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
) -> Contract:
    """Reads what a network wants of its images or texts from the tensor that it takes.

    Args:
        inputs: With a shape and a dtype.
        source: What the network was loaded from.
        image_size: Height and width, where the network leaves them open.
        value_range: Values of black and of white; 0 to 1, as TF Hub has it, if `None`.

    Returns:
        The contract.

    Raises:
        UserError: If the network takes anything else, or images not of that size.
    """
    shape = tf.TensorShape(getattr(inputs, "shape", None))
    dtype = tf.as_dtype(getattr(inputs, "dtype", tf.resource))
    columns = 1 if shape.rank in (None, 1) else shape[1] if shape.rank == 2 else 0
    if dtype == tf.string and columns in (1, 2):
        check_no_images(source, image_size, value_range)
        return TextContract(pairs=columns == 2, singles=columns == 1)
    if shape.rank != 4 or shape[-1] not in (1, 3) or not (dtype.is_floating or dtype == tf.uint8):
        raise UserError(
            f"Backbone {source!r} must take images [batch, height, width, 1 or 3], or texts "
            f"[batch] or pairs of them, and takes {inputs}",
            "Choose a network for images, channels last, or for texts.",
        )
    _, height, width, channels = shape
    size = (height, width) if height and width else None
    if size and image_size and size != image_size:
        raise UserError(
            f"Backbone {source!r} takes images of {height}x{width} pixels, "
            f"not of --image_size={image_size[0]}x{image_size[1]}",
            "Leave --image_size out.",
        )
    if dtype == tf.uint8 and value_range not in (None, (0.0, 255.0)):
        raise UserError(
            f"Backbone {source!r} takes bytes, which are 0 to 255", "Leave --value_range out."
        )
    if dtype == tf.uint8:
        return ImageContract(size or image_size, channels, (0.0, 255.0), "uint8")
    return ImageContract(size or image_size, channels, value_range or (0.0, 1.0), dtype.name)


def as_taken(inputs: tf.Tensor, shape: Any) -> tf.Tensor:
    """Makes texts `[batch]` a column `[batch, 1]` where a network takes them as that.

    Args:
        inputs: As the contract has them; all others stay as they are.
        shape: Of what the network takes.
    """
    column = inputs.shape.rank == 1 and tf.TensorShape(shape).rank == 2
    return inputs[:, None] if column else inputs


def check_no_images(
    source: str,
    image_size: tuple[int, int] | None,
    value_range: tuple[float, float] | None,
) -> None:
    """Checks that nothing is said of images where a network takes texts.

    Raises:
        UserError: If something is.
    """
    for name, value in (("image_size", image_size), ("value_range", value_range)):
        if value is not None:
            raise UserError(
                f"--{name} is of images, and backbone {source!r} takes texts", "Leave it out."
            )
