"""What the inputs in arrays are, and whether their values are what they should be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.data.base import IMAGE, TABLE, TEXT
from tfxfer.errors import UserError


@dataclass(frozen=True)
class InputForm:
    """What the inputs are, and the shape that models get them in.

    Attributes:
        inputs: `image`, `text` or `table`.
        shape: Of one; see `DataInfo`.
    """

    inputs: str
    shape: tuple[int | None, ...]

    def decode(self, raw: tf.Tensor) -> tf.Tensor:
        """Brings an input to that type and shape; a TensorFlow function."""
        if self.inputs == TEXT:
            return raw
        if self.inputs == TABLE:
            return tf.ensure_shape(tf.cast(raw, tf.float32), self.shape)
        image = raw if raw.dtype.is_integer else tf.round(raw)
        image = image if raw.shape.rank == 3 else image[..., None]
        return tf.ensure_shape(tf.cast(image, tf.uint8), self.shape)


def input_form(dtype: np.dtype, shape: tuple[int | None, ...], name: str) -> InputForm:
    """Returns the form of inputs of a type and shape.

    Args:
        dtype: Of the array.
        shape: Of one input, `None` where it varies.
        name: Of the inputs, for errors.

    Raises:
        UserError: If they are no images, texts, pairs of texts or rows of numbers.
    """
    if _is_text(dtype) and shape in ((), (2,)):
        return InputForm(TEXT, shape)
    if dtype.kind in "uif":
        if len(shape) == 1 and shape[0]:
            return InputForm(TABLE, shape)
        if len(shape) == 2:
            return InputForm(IMAGE, (*shape, 1))
        if len(shape) == 3 and shape[2] in (1, 3):
            return InputForm(IMAGE, shape)
    described = ", ".join("?" if dim is None else str(dim) for dim in shape)
    raise UserError(
        f"{name} must be images [h, w] or [h, w, 1 or 3], texts, pairs of texts [2], or rows of "
        f"numbers; each is {dtype} [{described}]",
        "Bring it to one of these shapes.",
    )


def common_form(forms: Mapping[str, InputForm], name: str) -> InputForm:
    """Returns the form that covers those of all splits.

    Args:
        forms: By split.
        name: Of the data, for errors.

    Raises:
        UserError: If they differ in more than the sizes of images.
    """
    first = forms["train"]
    for split, form in forms.items():
        if form.inputs != first.inputs or (first.inputs != IMAGE and form != first):
            raise UserError(
                f"{name} must have the same inputs in every split, and has "
                f"{first.inputs} {first.shape} in train and {form.inputs} {form.shape} in {split}",
                "Give all splits in the same form.",
            )
        if first.inputs == IMAGE and form.shape[2] != first.shape[2]:
            raise UserError(
                f"Images of {name} must have the same number of channels in every split, and have "
                f"{first.shape[2]} in train and {form.shape[2]} in {split}",
                "Repeat the one channel, or take the mean of three.",
            )
    if first.inputs != IMAGE:
        return first
    sizes = [{form.shape[axis] for form in forms.values()} for axis in (0, 1)]
    height, width = (found.pop() if len(found) == 1 else None for found in sizes)
    return InputForm(IMAGE, (height, width, first.shape[2]))


def check_inputs(
    form: InputForm, blocks: Iterator[tuple[int, np.ndarray]], digest: Any, name: str
) -> dict[int, str]:
    """Hashes inputs, and finds numbers that are not finite and texts that are no strings.

    Args:
        form: Of the inputs.
        blocks: The position of the first of each block, and its values.
        digest: To which they are added.
        name: Of the inputs, for errors.

    Returns:
        What is wrong, by position.

    Raises:
        UserError: If images have values that are not in [0, 255], or floats in [0, 1].
    """
    wrong: dict[int, str] = {}
    low, high, whole = np.inf, -np.inf, True
    for start, block in blocks:
        if form.inputs == TEXT:
            for text in encoded(block).flat:
                digest.update(len(text).to_bytes(8, "little") + text)
            strings = np.array([isinstance(text, str | bytes) for text in block.flat])
            rows = start + np.flatnonzero(~strings.reshape(len(block), -1).all(axis=1))
            wrong |= dict.fromkeys(rows.tolist(), "has a text that is no string")
            continue
        digest.update(repr((block.dtype.str, block.shape[1:])).encode())
        digest.update(np.ascontiguousarray(block))
        if block.dtype == np.uint8:
            continue
        finite = np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
        rows = start + np.flatnonzero(~finite)
        wrong |= dict.fromkeys(rows.tolist(), "has an input that is not finite")
        if form.inputs == IMAGE and finite.any():
            low, high = min(low, block[finite].min()), max(high, block[finite].max())
            whole = whole and block.dtype.kind in "ui"
    if form.inputs == IMAGE and low <= high:
        if low < 0 or high > 255:
            raise UserError(
                f"{name} must be images of values in [0, 255], and has {low:g} to {high:g}",
                "Bring them to that range; the backbone scales them itself.",
            )
        if high <= 1 and not whole:
            raise UserError(
                f"{name} must be images of values in [0, 255], and has floats of at most 1",
                "Multiply them by 255; the backbone scales them itself.",
            )
    return wrong


def item_bytes(x: np.ndarray) -> int:
    """Returns about how many bytes one of some inputs takes."""
    return max(1, x[:1].nbytes) if x.dtype.kind != "O" else 200


def encoded(block: np.ndarray) -> np.ndarray:
    """Returns texts as bytes, and other inputs as they are."""
    if not _is_text(block.dtype):
        return block
    # What is not UTF-8 stays so, and is found with the bytes that are not.
    texts = [
        text if isinstance(text, bytes) else str(text).encode(errors="surrogatepass")
        for text in block.flat
    ]
    return np.array(texts, object).reshape(block.shape)


def _is_text(dtype: np.dtype) -> bool:
    return dtype.kind in "USOT"
