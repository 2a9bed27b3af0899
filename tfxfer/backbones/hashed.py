"""`bag` and `transformer`: small networks for texts without pretrained weights, for students."""

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tfxfer.backbones.bert import PREPROCESSING, load_tokenizer
from tfxfer.backbones.contracts import TextContract, check_no_images
from tfxfer.backbones.network import KerasBackbone
from tfxfer.backbones.tokenizer import Tokenizer
from tfxfer.errors import UserError
from tfxfer.spec import Spec

BAG, TRANSFORMER = "bag", "transformer"

_PADDING, _START, _SPECIAL = 0, 1, 2
_NO_LETTER = r"[^\pL\pM\pN']+"  # Marks too: vowels of Indic scripts are such.
_BETWEEN = "\x1f"  # Of a pair; a word of its own.
_DROPOUT = 0.1


@keras.saving.register_keras_serializable(package="tfxfer")
class HashedWords(Tokenizer):
    """Words in lower case as numbers by their hash, so that there is no vocabulary to keep.

    Several words may share a number (Weinberger et al. 2009, "Feature hashing for large scale
    multitask learning"). 0 is padding, and 1 stands before the words of every text.

    Args:
        buckets: How many different numbers there are, at least 3.
        sequence_length: Words of a text that are read, with what stands before them; the rest is
            cut, in turn from both texts of a pair.
        **kwargs: `name` and the like, as for every Keras layer.

    Input: strings `[batch]`, or pairs `[batch, 2]`.
    Output: int32 `[batch, sequence_length]`.
    """

    def __init__(self, buckets: int, sequence_length: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.buckets, self.sequence_length = buckets, sequence_length
        self.words = f"hashes of {sequence_length} words, {buckets} of them"

    def call(self, inputs):
        """Hashes words; see the class for shapes."""
        parts = self._words(inputs)
        if len(parts) == 2:
            between = tf.fill([tf.shape(inputs)[0], 1], _BETWEEN)
            # Another stands before them.
            first, second = _trimmed(parts, self.sequence_length - 2)
            parts = [first, between, second]
        words = tf.concat(parts, axis=1)
        kept = tf.strings.to_hash_bucket_fast(words.flat_values, self.buckets - _SPECIAL)
        ids = words.with_flat_values(tf.cast(kept, tf.int32) + _SPECIAL)
        starts = tf.fill([tf.shape(inputs)[0], 1], _START)
        ids = tf.concat([starts, ids], axis=1)
        ids = ids.to_tensor(_PADDING, shape=[None, self.sequence_length])
        return tf.ensure_shape(ids, [inputs.shape[0], self.sequence_length])

    def lengths(self, texts):
        """Counts words; see `Tokenizer`."""
        counts = [tf.cast(each.row_lengths(), tf.int32) for each in self._words(texts)]
        return tf.add_n(counts) + len(counts)  # With what stands before and between them.

    def _words(self, texts: tf.Tensor) -> list[tf.RaggedTensor]:
        """Splits texts, the first and the second of pairs apart."""
        texts = tf.strings.regex_replace(tf.strings.lower(texts, "utf-8"), _NO_LETTER, " ")
        parts = [texts] if texts.shape.rank == 1 else tf.unstack(texts, axis=1)
        return [tf.strings.split(each) for each in parts]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, beside the usual."""
        own = {"buckets": self.buckets, "sequence_length": self.sequence_length}
        return {**super().get_config(), **own}


def _trimmed(pair: list[tf.RaggedTensor], room: int) -> list[tf.RaggedTensor]:
    """Cuts pairs to so many words together: the longer one first, then both in turn."""
    a, b = (each.row_lengths() for each in pair)
    a = tf.minimum(a, tf.maximum(room - b, (room + 1) // 2))
    b = tf.minimum(b, room - a)
    return [
        tf.RaggedTensor.from_tensor(each.to_tensor(), lengths=length)
        for each, length in zip(pair, (a, b), strict=True)
    ]


def load_bag(spec: Spec, pattern: str = "", bn: str = "freeze", **images: Any) -> KerasBackbone:
    """Builds a mean of word vectors with random weights, as fastText has it (Joulin et al. 2017).

    Args:
        spec: `bag`, with `units=N` of a vector (16), `buckets=N` of hashed words (2,048) and
            `seq_length=N` words (256). As it is, it has 32,768 weights.
        pattern: Regular expressions of the stages; `embeddings` alone if empty.
        bn: As for every backbone; there is no batch normalization in it.
        **images: `image_size` and `value_range`, which must be `None`.

    Returns:
        The backbone, with weights drawn by Keras' global seed.

    Raises:
        UserError: If an option is not known or out of range.
    """
    check_no_images(spec.text, **images)
    numbers = _numbers(spec, {"units": 16, "buckets": 2048, "seq_length": 256})
    words = HashedWords(numbers["buckets"], numbers["seq_length"])
    ids = keras.Input((words.sequence_length,), dtype="int32")
    x = layers.Embedding(words.buckets, numbers["units"], name="embeddings")(ids)
    x = layers.GlobalAveragePooling1D(name="mean")(x, mask=ops.not_equal(ids, _PADDING))
    return _backbone(spec, keras.Model(ids, x, name=BAG), words, pattern, bn)


def load_transformer(
    spec: Spec, pattern: str = "", bn: str = "freeze", **images: Any
) -> KerasBackbone:
    """Builds a transformer encoder with random weights, normalized ahead of each part.

    Vaswani et al. 2017, "Attention is all you need"; Xiong et al. 2020, "On layer normalization in
    the transformer architecture". Features are the mean of the tokens.

    Args:
        spec: `transformer`, with `layers=N` (2), `units=N` (64) of a token, `heads=N` (2),
            `buckets=N` of hashed words (8,192) and `seq_length=N` (128). With
            `preprocess=HANDLE` it reads the tokens of an encoder such as BERT, so that a loss can
            compare what both say of each token; `buckets` is then the size of its vocabulary.
        pattern: Regular expressions of the stages; `embeddings`, `block0` and so on if empty.
        bn: As for every backbone; there is no batch normalization in it.
        **images: `image_size` and `value_range`, which must be `None`.

    Returns:
        The backbone, with weights drawn by Keras' global seed.

    Raises:
        UserError: If an option is not known or out of range.
    """
    check_no_images(spec.text, **images)
    usual = {"layers": 2, "units": 64, "heads": 2, "buckets": 8192, "seq_length": 128}
    numbers = _numbers(spec, usual, ("preprocess",))
    tokenizer = load_tokenizer(spec) if PREPROCESSING[0] in spec.options else None
    if tokenizer is None:
        tokenizer, names = HashedWords(numbers["buckets"], numbers["seq_length"]), ["ids"]
    else:
        names = ["input_word_ids", "input_mask", "input_type_ids"]
        if "buckets" not in spec.options:
            numbers["buckets"] = _vocabulary(spec, tokenizer.vocabulary_size)
    if numbers["units"] % numbers["heads"]:
        raise UserError(
            f"units of {spec.text!r} must be a multiple of heads, which is {numbers['heads']}",
            "Change one of them.",
        )
    length = tokenizer.sequence_length
    inputs = {name: keras.Input((length,), dtype="int32", name=name) for name in names}
    network = keras.Model(
        inputs if len(names) > 1 else inputs["ids"],
        _encoded(list(inputs.values()), numbers, length),
        name=TRANSFORMER,
    )
    return _backbone(spec, network, tokenizer, pattern, bn)


def _encoded(inputs: list[Any], numbers: dict[str, int], length: int) -> Any:
    ids, mask, types = [*inputs, ops.not_equal(inputs[0], _PADDING), None][:3]
    units = numbers["units"]
    places = ops.cumsum(ops.ones_like(ids), axis=1) - 1
    x = layers.Embedding(numbers["buckets"], units, name="token_embedding")(ids)
    x = x + layers.Embedding(length, units, name="position_embedding")(places)
    if types is not None:
        x = x + layers.Embedding(2, units, name="segment_embedding")(types)
        mask = ops.cast(mask, "bool")
    x = layers.Dropout(_DROPOUT, name="embedding_dropout")(x)
    for number in range(numbers["layers"]):
        x = _block(x, mask, f"block{number}", units, numbers["heads"])
    x = layers.LayerNormalization(name="final_norm")(x)
    return layers.GlobalAveragePooling1D(name="mean")(x, mask=mask)


def _block(x: Any, mask: Any, name: str, units: int, heads: int) -> Any:
    y = layers.LayerNormalization(name=f"{name}_attention_norm")(x)
    y = layers.MultiHeadAttention(
        heads, units // heads, dropout=_DROPOUT, name=f"{name}_attention"
    )(y, y, attention_mask=mask[:, None, :])
    x = layers.Add(name=f"{name}_attention_sum")([x, layers.Dropout(_DROPOUT)(y)])
    y = layers.LayerNormalization(name=f"{name}_dense_norm")(x)
    y = layers.Dense(4 * units, activation="gelu", name=f"{name}_dense")(y)
    y = layers.Dense(units, name=f"{name}_output")(y)
    return layers.Add(name=f"{name}_sum")([x, layers.Dropout(_DROPOUT)(y)])


def _backbone(
    spec: Spec, network: keras.Model, tokenizer: Tokenizer, pattern: str, bn: str
) -> KerasBackbone:
    return KerasBackbone(
        network,
        TextContract(tokenizer.sequence_length, pairs=True),
        source=spec.text,
        pattern=pattern,
        bn=bn,
        tokenizer=tokenizer,
    )


def _numbers(spec: Spec, usual: dict[str, int], others: tuple[str, ...] = ()) -> dict[str, int]:
    """Reads the numbers of a spec."""
    spec.only([*usual, *others])
    numbers = {name: spec.options.get(name, value) for name, value in usual.items()}
    for name, value in numbers.items():
        least = 3 if name in ("buckets", "seq_length") else 1
        if type(value) is not int or value < least:
            raise UserError(
                f"{name} of {spec.text!r} must be a whole number of at least {least}, not "
                f"{value!r}",
                f"Give {name}={usual[name]} or the like.",
            )
    return {name: int(value) for name, value in numbers.items()}


def _vocabulary(spec: Spec, told: int) -> int:
    if not told:
        raise UserError(
            f"The preprocessing of {spec.text!r} does not tell the size of its vocabulary",
            "Give it as buckets=30522 or the like.",
        )
    return told
