"""One small network of every kind that takes texts."""

from pathlib import Path

import keras
import tensorflow as tf

from tests.backbone_sources import Source
from tests.text_modules import (
    BAD,
    GOOD,
    SPECIAL,
    WORDS,
    save_encoder,
    save_preprocess,
    save_text_embedding,
)

LENGTH = 16
"""Tokens that the encoders of the tests read."""


def embedding(folder: Path) -> str:
    return str(save_text_embedding(folder / "embedding"))


def tf1_embedding(folder: Path) -> str:
    """A text embedding in TF Hub's TF1 format, with a table that is initialized by its graph."""
    v1 = tf.compat.v1
    path, vocabulary = folder / "tf1", folder / "words.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    with tf.Graph().as_default(), v1.Session() as session:
        texts = v1.placeholder(tf.string, (None,))
        asset = tf.constant(str(vocabulary))
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        table = tf.lookup.StaticVocabularyTable(
            tf.lookup.TextFileInitializer(asset, tf.string, -2, tf.int64, -1), num_oov_buckets=1
        )
        vectors = v1.get_variable("embeddings", (len(WORDS) + 1, 6), use_resource=True)
        words = tf.strings.split(texts)
        ids = words.with_flat_values(table.lookup(words.flat_values))
        features = tf.nn.safe_embedding_lookup_sparse(vectors, ids.to_sparse(), combiner="mean")
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        signature = v1.saved_model.signature_def_utils.build_signature_def(
            {"text": v1.saved_model.utils.build_tensor_info(texts)},
            {"default": v1.saved_model.utils.build_tensor_info(features)},
            "tensorflow/serving/predict",
        )
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            [],
            {"default": signature},
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer(),
        )
        builder.save()
    vocabulary.unlink()
    (path / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return str(path)


def bert(folder: Path, options: str = "") -> str:
    preprocess = save_preprocess(folder / "preprocess")
    encoder = save_encoder(folder / "encoder")
    return f"{encoder}(preprocess={preprocess}, seq_length={LENGTH}{options})"


def transformer(folder: Path) -> str:
    preprocess = save_preprocess(folder / "preprocess")
    return f"transformer(preprocess={preprocess}, seq_length={LENGTH}, units=8)"


def keras_hub_bert(folder: Path) -> str:
    import keras_hub

    words = [*SPECIAL, *WORDS]
    network = keras_hub.models.BertBackbone(
        vocabulary_size=len(words),
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=LENGTH,
    )
    tokenizer = keras_hub.tokenizers.BertTokenizer(vocabulary=words, lowercase=True)
    return _preset(network, keras_hub.models.BertTextClassifierPreprocessor(tokenizer), folder)


def keras_hub_roberta(folder: Path) -> str:
    """Byte pairs, and no pooled output."""
    import keras_hub

    # As GPT-2 has it: a space before a word is Ġ.
    letters = [chr(i) for i in range(33, 127)] + ["Ġ"]
    merges = ["g o", "go o", "goo d", "Ġ good", "b a", "ba d", "Ġ bad"]
    known = ["<s>", "<pad>", "</s>", "<unk>", *letters, *(m.replace(" ", "") for m in merges)]
    vocabulary = {word: i for i, word in enumerate([*known, "<mask>"])}
    network = keras_hub.models.RobertaBackbone(
        vocabulary_size=len(vocabulary),
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=LENGTH,
    )
    tokenizer = keras_hub.tokenizers.RobertaTokenizer(vocabulary=vocabulary, merges=merges)
    return _preset(network, keras_hub.models.RobertaTextClassifierPreprocessor(tokenizer), folder)


def _preset(network, preprocessor, folder: Path) -> str:
    network.save_to_preset(str(folder / "preset"))
    preprocessor.save_to_preset(str(folder / "preset"))
    return f"keras_hub:{folder / 'preset'}"


def keras_file(folder: Path) -> str:
    """A classifier with a vocabulary of its own."""
    network = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            keras.layers.TextVectorization(
                vocabulary=WORDS, output_sequence_length=LENGTH, name="words"
            ),
            keras.layers.Embedding(len(WORDS) + 2, 6, name="embeddings"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2, name="classes"),
        ]
    )
    network.save(folder / "texts.keras")
    return str(folder / "texts.keras")


TEXTS = {
    "words": Source(lambda folder: "words", inputs="text"),
    "text embedding": Source(embedding, safe=False, inputs="text"),
    # Its table is a resource of one CPU; several GPUs would share that.
    "text embedding in TF1 format": Source(
        tf1_embedding, trains=False, safe=False, inputs="text", replicas=False
    ),
    "BERT": Source(bert, safe=False, inputs="text"),
    "BERT's tokens": Source(
        lambda folder: bert(folder, ", output=sequence_output"), safe=False, inputs="text"
    ),
    "KerasHub BERT": Source(keras_hub_bert, inputs="text"),
    "KerasHub RoBERTa": Source(keras_hub_roberta, inputs="text"),
    "Keras file of texts": Source(keras_file, inputs="text"),
    "bag": Source(lambda folder: "bag", inputs="text"),
    "transformer": Source(lambda folder: "transformer(seq_length=16)", inputs="text"),
    "transformer on BERT's tokens": Source(transformer, safe=False, inputs="text"),
}

EXAMPLES = [f"the film was {word}" for word in (*GOOD[:4], *BAD[:4])]
