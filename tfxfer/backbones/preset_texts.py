"""Text encoders of KerasHub, with the tokenizer that their preset holds."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones.bert import SEQUENCE_LENGTH
from tfxfer.backbones.contracts import TextContract
from tfxfer.backbones.loading import resources_of
from tfxfer.backbones.network import KerasBackbone
from tfxfer.backbones.tokenizer import Tokenizer
from tfxfer.errors import UserError, first_line

IDS, MASK = "token_ids", "padding_mask"
_POOLED, _TOKENS = "pooled_output", "sequence_output"
_NO_ENCODER = "Choose an encoder, such as a preset of BERT, RoBERTa, DistilBERT or ALBERT."


@keras.saving.register_keras_serializable(package="tfxfer")
class PresetTokenizer(Tokenizer):
    """The preprocessing of a KerasHub text classifier as one layer.

    Args:
        preprocessor: A `keras_hub.models.TextClassifierPreprocessor`; its vocabulary is saved with
            this layer.
        source: The preset.
        fingerprint: That of the vocabulary; computed if empty.
        **kwargs: `name` and the like, as for every Keras layer.

    Input: strings `[batch]`, or pairs `[batch, 2]`.
    Output: `token_ids`, `padding_mask` and what else the encoder takes, int32
        `[batch, sequence_length]`.
    """

    def __init__(self, preprocessor: Any, source: str, fingerprint: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.preprocessor, self.source = preprocessor, source
        self.sequence_length = preprocessor.sequence_length
        self.words = f"the tokenizer of {source}, {self.sequence_length} tokens"
        self.fingerprint = fingerprint or _fingerprint(preprocessor.tokenizer)
        # Traced once for all graphs that call it: byte pairs take seconds. And never called
        # eagerly, where it returns lists.
        self._pack = tf.function(preprocessor, autograph=False, reduce_retracing=True)
        self._cut = tf.function(preprocessor.tokenizer, autograph=False, reduce_retracing=True)

    def call(self, inputs):
        """Tokenizes texts; see the class for shapes."""
        packed = self._pack(tuple(_segments(inputs)) if inputs.shape.rank == 2 else inputs)
        shape = [inputs.shape[0], self.sequence_length]
        return {k: tf.ensure_shape(tf.cast(x, tf.int32), shape) for k, x in packed.items()}

    def lengths(self, texts):
        """Counts tokens; see `Tokenizer`."""
        segments = _segments(texts)
        empty = tf.fill([1, 2] if len(segments) > 1 else [1], "")
        # What stands around and between texts, which each family of encoders has its own way of.
        around = tf.reduce_sum(tf.cast(self.mask(self(empty)), tf.int32))
        counts = [self._cut(each).row_lengths() for each in segments]
        return tf.cast(tf.add_n(counts), tf.int32) + around

    def resources(self) -> list[Any]:
        """Returns tables of the vocabulary; see `Tokenizer`."""
        return resources_of(self.preprocessor)

    def get_config(self) -> dict[str, Any]:
        """Returns the preprocessing, serialized, beside the usual."""
        return {
            **super().get_config(),
            "preprocessor": keras.saving.serialize_keras_object(self.preprocessor),
            "source": self.source,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_config(cls, config):
        """Makes the layer again; its vocabulary comes after, as weights do."""
        preprocessor = keras.saving.deserialize_keras_object(config["preprocessor"])
        return cls(**{**config, "preprocessor": preprocessor})


def load_encoder(
    keras_hub: Any,
    network: keras.Model,
    preset: str,
    source: str,
    length: int | None,
    **stages: Any,
) -> KerasBackbone:
    """Makes a backbone of a text encoder of KerasHub.

    Features are its `pooled_output`, or, where it has none, the mean of its tokens without padding.

    Args:
        keras_hub: The package.
        network: From tokens to outputs.
        preset: A folder or a handle.
        source: What was asked for.
        length: Tokens of a text that are read; 128, or what the encoder takes at most, if `None`.
        **stages: `pattern` and `bn`, as for every backbone.

    Raises:
        UserError: If it is no encoder, takes fewer tokens, or has no tokenizer.
    """
    names = {each.name for each in network.inputs}
    if not {IDS, MASK} <= names:
        raise UserError(
            f"Backbone {source!r} must take images, or texts as {IDS} and {MASK}, and takes "
            f"{', '.join(sorted(names))}",
            _NO_ENCODER,
        )
    most = getattr(network, "max_sequence_length", None)
    if length and most and length > most:
        raise UserError(
            f"Backbone {source!r} takes {most} tokens at most, not seq_length={length}",
            f"Give seq_length={most} or less.",
        )
    length = length or min(SEQUENCE_LENGTH, most or SEQUENCE_LENGTH)
    try:
        preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
            preset, sequence_length=length
        )
    except ImportError as error:
        raise UserError(
            f"Backbone {source!r} needs the package tensorflow-text, which is not installed",
            "Install it with pip install 'tfxfer[text]'.",
        ) from error
    except Exception as error:  # Files fail in whichever layer meets them first.
        raise UserError(
            f"Backbone {source!r} has no tokenizer that classifies texts: {first_line(error)}",
            _NO_ENCODER,
        ) from error
    return KerasBackbone(
        keras.Model(network.input, _features(network, source)),
        TextContract(length, pairs=True),
        source=source,
        tokenizer=PresetTokenizer(preprocessor, source),
        **stages,
    )


def _features(network: keras.Model, source: str) -> Any:
    outputs: Any = network.output
    if isinstance(outputs, dict):
        if _POOLED in outputs:
            return outputs[_POOLED]
        if _TOKENS not in outputs:
            raise UserError(
                f"Backbone {source!r} must return {_POOLED} or {_TOKENS}, and returns "
                f"{', '.join(outputs)}",
                _NO_ENCODER,
            )
        outputs = outputs[_TOKENS]
    mask = keras.ops.cast(network.input[MASK], "bool")
    return keras.layers.GlobalAveragePooling1D(name="mean")(outputs, mask=mask)


def _segments(texts: tf.Tensor) -> list[tf.Tensor]:
    return tf.unstack(texts, axis=1) if texts.shape.rank == 2 else [texts]


def _fingerprint(tokenizer: Any) -> str:
    """Hashes the files of a vocabulary."""
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_assets(folder)
        for path in sorted(Path(folder).iterdir()):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()
