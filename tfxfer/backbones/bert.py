"""Preprocessing of BERT and its kin, as TF Hub publishes it: texts to ids, mask and types."""

import re
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones.contracts import TextContract
from tfxfer.backbones.hub import parsed, resolve
from tfxfer.backbones.loading import check_trusted, load_saved_model, resources_of
from tfxfer.backbones.packing import fingerprint_of, pack, unpack
from tfxfer.backbones.tokenizer import Tokenizer
from tfxfer.errors import UserError
from tfxfer.spec import Spec

MASK = "input_mask"
ENCODER_INPUTS = (MASK, "input_type_ids", "input_word_ids")
SEQUENCE_LENGTH = 128
PREPROCESSING = ("preprocess", "seq_length")
"""The options of a spec that `load_tokenizer` reads."""

_LEAST_LENGTH = 3
_ENDS = 1  # A token at the start, and one after each segment.


@keras.saving.register_keras_serializable(package="tfxfer")
class BertTokenizer(Tokenizer):
    """A preprocessing SavedModel as a Keras layer.

    Interface: https://www.tensorflow.org/hub/common_saved_model_apis/text, "Text embeddings with
    preprocessed inputs". Beside being called with texts, it may have `tokenize` and
    `bert_pack_inputs`, which other lengths and pairs of texts need.

    Args:
        folder: Of the SavedModel; not needed any more once the layer is made.
        source: What was asked for, such as a handle; the folder if empty.
        sequence_length: Tokens of a text that are read, at least 3; the rest is cut, in turn from
            both texts of a pair.
        fingerprint: That of the SavedModel; computed if empty.
        **kwargs: `name` and the like, as for every Keras layer.

    Input: strings `[batch]`, or pairs `[batch, 2]`.
    Output: `input_word_ids`, `input_mask` and `input_type_ids`, int32 `[batch, sequence_length]`.

    Attributes:
        vocabulary_size: How many different ids there are; 0 if it does not tell.

    Raises:
        UserError: If it has no such interface, or needs a package that is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        source: str = "",
        sequence_length: int = SEQUENCE_LENGTH,
        fingerprint: str = "",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        folder = Path(folder)
        self.source, self.sequence_length = source or str(folder), sequence_length
        # In a tuple in a plain object, which Keras does not track: an export takes what it needs.
        self._loaded = _Loaded(load_saved_model(folder, f"Preprocessing {self.source!r}"))
        self.fingerprint = fingerprint or fingerprint_of(folder, "")
        self.words = f"{self.source}, {sequence_length} tokens"
        self.counts = self._loaded.parts
        if not self._loaded.parts and not callable(self._loaded.module):
            raise UserError(
                f"Preprocessing {self.source!r} must take texts, and has no __call__",
                "Give the handle of the preprocessing that the encoder's page names.",
            )
        self.vocabulary_size = self._special().get("vocab_size", 0)
        self._packed = pack(folder, ())

    def call(self, inputs):
        """Tokenizes texts; see the class for shapes."""
        module = self._loaded.module
        segments = [inputs] if inputs.shape.rank == 1 else tf.unstack(inputs, axis=1)
        if self._loaded.parts:
            packed = module.bert_pack_inputs(
                [module.tokenize(each) for each in segments],
                seq_length=tf.constant(self.sequence_length),
            )
        elif len(segments) == 1:
            packed = module(inputs)
        else:
            raise ValueError(
                f"Expected single texts: {self.source!r} has no tokenize and bert_pack_inputs."
            )
        return {
            name: tf.ensure_shape(packed[name], [inputs.shape[0], self.sequence_length])
            for name in ENCODER_INPUTS
            if name in packed
        }

    def lengths(self, texts):
        """Counts tokens; see `Tokenizer`."""
        segments = [texts] if texts.shape.rank == 1 else tf.unstack(texts, axis=1)
        counts = [_count(self._loaded.module.tokenize(each)) for each in segments]
        return tf.add_n(counts) + _ENDS + len(segments)

    def _special(self) -> dict[str, int]:
        tokenize = getattr(self._loaded.module, "tokenize", None)
        tell = getattr(tokenize, "get_special_tokens_dict", None)
        return {} if tell is None else {name: int(value) for name, value in tell().items()}

    def resources(self) -> list[Any]:
        """Returns tables and vocabularies; see `Tokenizer`."""
        return resources_of(self._loaded.module)

    def get_config(self) -> dict[str, Any]:
        """Returns the SavedModel itself, beside the usual."""
        return {
            **super().get_config(),
            "source": self.source,
            "sequence_length": self.sequence_length,
            "fingerprint": self.fingerprint,
            "saved_model": self._packed,
        }

    @classmethod
    def from_config(cls, config):
        """Makes the layer again.

        Raises:
            ValueError: In Keras' safe mode, since a SavedModel is a program.
        """
        config = dict(config)
        packed = config.pop("saved_model")
        check_trusted(config["source"])
        folder = tempfile.mkdtemp(prefix="tfxfer-")
        try:
            unpack(packed, Path(folder))
            layer = cls(folder, **config)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # It stays as long as the layer: exporting that copies assets, such as vocabularies.
        weakref.finalize(layer, shutil.rmtree, folder, ignore_errors=True)
        layer._packed = packed
        return layer


def load_tokenizer(spec: Spec) -> BertTokenizer | None:
    """Loads the preprocessing that the spec of an encoder names.

    Args:
        spec: With `preprocess=HANDLE`, of whatever `resolve` finds, and `seq_length=N`.

    Returns:
        The layer; `None` if no preprocessing is named.

    Raises:
        UserError: If it cannot be loaded, or the length is none.
    """
    handle, length = spec.options.get(PREPROCESSING[0]), sequence_length(spec)
    if handle is None and length is not None:
        raise UserError(
            f"seq_length of {spec.text!r} is of the preprocessing, and none is named",
            "Give preprocess=HANDLE too.",
        )
    if handle is None:
        return None
    return BertTokenizer(resolve(str(handle)), str(handle), length or SEQUENCE_LENGTH)


def sequence_length(spec: Spec) -> int | None:
    """Reads `seq_length=N` of a spec; `None` if it has none.

    Raises:
        UserError: If it is no number of tokens, or fewer than stand around a text.
    """
    length = spec.options.get(PREPROCESSING[1])
    if length is not None and (type(length) is not int or length < _LEAST_LENGTH):
        raise UserError(
            f"seq_length of {spec.text!r} must be a number of tokens, at least {_LEAST_LENGTH}",
            f"Give seq_length={SEQUENCE_LENGTH} or the like.",
        )
    return length


def encoder_contract(inputs: Any, tokenizer: BertTokenizer | None, source: str) -> TextContract:
    """Checks that an encoder takes what its preprocessing gives."""
    named = sorted(inputs) if isinstance(inputs, dict) else []
    if named != list(ENCODER_INPUTS):
        taken = ", ".join(named) or inputs
        raise UserError(
            f"Backbone {source!r} with a preprocessing must take {', '.join(ENCODER_INPUTS)}, and "
            f"takes {taken}",
            "Choose a text encoder, such as BERT." if named else "Leave preprocess=... out.",
        )
    if tokenizer is None:
        raise UserError(
            f"Backbone {source!r} takes tokens, and needs the preprocessing that its page names",
            f"Write '{parsed(source).having(PREPROCESSING[0], _preprocessing_of(source)).text}'.",
        )
    return TextContract(tokenizer.sequence_length, pairs=tokenizer.counts)


def _preprocessing_of(source: str) -> str:
    """Names the preprocessing of the encoders of TF Hub, which is the same for all of a kind."""
    found = re.search(r"(bert|albert)_(en|zh|multi)_(uncased|cased|wwm_uncased|wwm_cased)", source)
    if found is None:
        return "HANDLE"
    cased = found[3].removeprefix("wwm_")
    return f"https://tfhub.dev/tensorflow/{found[1]}_{found[2]}_{cased}_preprocess/3"


class _Loaded:
    """What was loaded, and whether it has the parts that tokenize and pack."""

    def __init__(self, module: Any):
        self.module = module
        self.parts = hasattr(module, "tokenize") and hasattr(module, "bert_pack_inputs")


def _count(tokens: tf.RaggedTensor) -> tf.Tensor:
    """Counts the tokens of each text, which may be grouped by words."""
    while tokens.ragged_rank > 1:
        tokens = tokens.merge_dims(1, 2)
    return tf.cast(tokens.row_lengths(), tf.int32)
