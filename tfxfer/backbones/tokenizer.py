"""What stands between texts and a network that takes tokens."""

from typing import Any

import keras
import tensorflow as tf


class Tokenizer(keras.layers.Layer):
    """Texts to what a network takes of them; has no weights, and holds no state that changes.

    A subclass writes `call`, from strings `[batch]` or pairs `[batch, 2]` to what the network
    takes, and `lengths`.

    Attributes:
        sequence_length: Tokens that the network takes of a text; the rest is cut.
        words: What it does, in words, such as "WordPiece, 128 tokens".
        counts: Whether `lengths` can be asked.
        fingerprint: What tells it from others of the same `words`, such as a hash of its
            vocabulary; empty if these say all.
    """

    sequence_length: int
    words: str = ""
    counts: bool = True
    fingerprint: str = ""

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        self.built = True

    def lengths(self, texts: tf.Tensor) -> tf.Tensor:
        """Counts the tokens of texts before any are cut, those at the ends of a text too.

        Args:
            texts: As for `call`.

        Returns:
            int `[batch]`.
        """
        raise NotImplementedError

    def cuts(self, texts: tf.Tensor) -> tf.Tensor:
        """Tells which texts are cut, bool `[batch]`."""
        return self.lengths(texts) > self.sequence_length

    def mask(self, tokens: Any) -> tf.Tensor:
        """Tells tokens of a text from padding.

        Args:
            tokens: What `call` returned.

        Returns:
            bool `[batch, sequence_length]`.
        """
        if isinstance(tokens, dict):
            (name,) = [each for each in tokens if each.endswith("_mask")]
            return tf.cast(tokens[name], tf.bool)
        return tf.not_equal(tokens, 0)

    def resources(self) -> list[Any]:
        """Returns what an exported model must hold, such as lookup tables."""
        return []


def mean_of_tokens(features: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Averages tokens over those of the text: `[batch, n, units]` and `[batch, n]`."""
    weights = tf.cast(mask, features.dtype)[..., None]
    return tf.math.divide_no_nan(
        tf.reduce_sum(features * weights, axis=1), tf.reduce_sum(weights, axis=1)
    )
