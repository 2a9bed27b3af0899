"""SavedModels for texts, made by the tests to the interfaces that TF Hub publishes.

https://www.tensorflow.org/hub/common_signatures/text and
https://www.tensorflow.org/hub/common_saved_model_apis/text.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

GOOD = ["good", "great", "fine", "happy", "lovely", "brilliant", "warm", "charming"]
BAD = ["bad", "awful", "poor", "sad", "dreadful", "dull", "cold", "boring"]
OTHER = ["the", "a", "film", "story", "actor", "was", "and", "very", "it", "end", "scene", "plot"]
WORDS = [*GOOD, *BAD, *OTHER]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def reviews(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Texts of two kinds, which differ in a few of their words."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    texts = []
    for label in labels:
        words = [*rng.choice(OTHER, rng.integers(4, 9)), *rng.choice((BAD, GOOD)[label], 2)]
        rng.shuffle(words)
        texts.append(" ".join(words))
    return np.array(texts, object), labels


def write_reviews(path: Path, count: int = 240) -> Path:
    texts, labels = reviews(count)
    lines = [f"{text},{('negative', 'positive')[y]}" for text, y in zip(texts, labels, strict=True)]
    path.write_text("\n".join(["review,sentiment", *lines]) + "\n")
    return path


class TextEmbedding(tf.Module):
    """A mean of word vectors, as NNLM: a vocabulary file, a table, and buckets for other words."""

    def __init__(self, vocabulary: Path, units: int = 8):
        super().__init__()
        vocabulary.write_text("\n".join(WORDS) + "\n")
        initializer = tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        self._table = tf.lookup.StaticVocabularyTable(initializer, num_oov_buckets=2)
        values = np.random.default_rng(0).normal(size=(len(WORDS) + 2, units))
        values[: len(GOOD), 0] += 4  # As pretraining sets them apart.
        values[len(GOOD) : len(GOOD + BAD), 0] -= 4
        self.embeddings = tf.Variable(values, dtype=tf.float32, name="embeddings/table")
        self.variables_list = [self.embeddings]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts):
        words = tf.strings.split(texts)
        vectors = tf.ragged.map_flat_values(
            lambda ids: tf.gather(self.embeddings, ids),
            words.with_flat_values(self._table.lookup(words.flat_values)),
        )
        return tf.math.divide_no_nan(
            tf.reduce_sum(vectors, axis=1),
            tf.cast(words.row_lengths(), tf.float32)[:, None],
        )


def save_text_embedding(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    module = TextEmbedding(folder.parent / "words.txt")
    wrapped = _Reusable(module)
    tf.saved_model.save(wrapped, str(folder))
    (folder.parent / "words.txt").unlink()  # The SavedModel has its own.
    return folder


class _Reusable(tf.Module):
    variables = None
    trainable_variables = None

    def __init__(self, inner: TextEmbedding):
        super().__init__()
        self._inner = inner
        self.variables = [inner.embeddings]
        self.trainable_variables = [inner.embeddings]
        self.regularization_losses = []

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts):
        return self._inner(texts)


class _Tokenize(tf.Module):
    """`tokenize` of a BERT preprocessing: texts to ragged `[batch, words, pieces]`."""

    def __init__(self, vocabulary: Path):
        super().__init__()
        import tensorflow_text

        self._tokenizer = tensorflow_text.BertTokenizer(
            str(vocabulary), token_out_type=tf.int32, lower_case=True
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts):
        return self._tokenizer.tokenize(texts)

    @tf.function(input_signature=[])
    def get_special_tokens_dict(self):
        return {
            "vocab_size": tf.constant(len(SPECIAL) + len(WORDS)),
            "padding_id": tf.constant(0),
            "start_of_sequence_id": tf.constant(2),
            "end_of_segment_id": tf.constant(3),
            "mask_id": tf.constant(4),
        }


class _Pack(tf.Module):
    """`bert_pack_inputs`: one or two segments of tokens to the three inputs of an encoder."""

    def __init__(self):
        super().__init__()
        for rank in (1, 2):
            for segments in (1, 2):
                spec = tf.RaggedTensorSpec([None] * (rank + 1), tf.int32)
                self.__call__.get_concrete_function(
                    [spec] * segments, seq_length=tf.TensorSpec([], tf.int32)
                )

    @tf.function
    def __call__(self, inputs, seq_length=128):
        import tensorflow_text

        segments = [each.merge_dims(1, -1) if each.ragged_rank > 1 else each for each in inputs]
        trimmed = tensorflow_text.RoundRobinTrimmer(seq_length - len(segments) - 1).trim(segments)
        combined, types = tensorflow_text.combine_segments(trimmed, 2, 3)
        ids, mask = tensorflow_text.pad_model_inputs(combined, seq_length)
        types, _ = tensorflow_text.pad_model_inputs(types, seq_length)
        return {"input_word_ids": ids, "input_mask": mask, "input_type_ids": types}


class _Preprocess(tf.Module):
    def __init__(self, vocabulary: Path):
        super().__init__()
        vocabulary.write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
        self.tokenize = _Tokenize(vocabulary)
        self.bert_pack_inputs = _Pack()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts):
        return self.bert_pack_inputs([self.tokenize(texts)], seq_length=tf.constant(128))


def save_preprocess(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = folder.parent / "vocab.txt"
    tf.saved_model.save(_Preprocess(vocabulary), str(folder))
    vocabulary.unlink()
    return folder


class _Encoder(tf.Module):
    """A BERT encoder with the names of variables that those on TF Hub have."""

    variables = None
    trainable_variables = None

    def __init__(self, layers: int, units: int, heads: int, length: int, seed: int):
        super().__init__()
        self._heads, self._layers = heads, layers
        rng = np.random.default_rng(seed)
        self._w: dict[str, tf.Variable] = {}

        def add(name, *shape, ones=False):
            value = np.ones(shape) if ones else rng.normal(size=shape) * shape[0] ** -0.5
            self._w[name] = tf.Variable(value, dtype=tf.float32, name=name)

        def norm(name):
            add(f"{name}/gamma", units, ones=True)
            add(f"{name}/beta", units)

        add("word_embeddings/embeddings", len(SPECIAL) + len(WORDS), units)
        self._know(rng.normal(size=units))
        add("position_embedding/embeddings", length, units)
        add("type_embeddings/embeddings", 2, units)
        norm("embeddings/layer_norm")
        for i in range(layers):
            root = f"transformer/layer_{i}"
            for part in ("query", "key", "value"):
                add(f"{root}/self_attention/{part}/kernel", units, heads, units // heads)
                add(f"{root}/self_attention/{part}/bias", heads, units // heads)
            add(f"{root}/self_attention/attention_output/kernel", heads, units // heads, units)
            add(f"{root}/self_attention/attention_output/bias", units)
            norm(f"{root}/self_attention_layer_norm")
            add(f"{root}/intermediate/kernel", units, 2 * units)
            add(f"{root}/intermediate/bias", 2 * units)
            add(f"{root}/output/kernel", 2 * units, units)
            add(f"{root}/output/bias", units)
            norm(f"{root}/output_layer_norm")
        add("pooler_transform/kernel", units, units)
        add("pooler_transform/bias", units)
        # Sorted by name, as a checkpoint has them: their order says nothing of the graph.
        self.variables = [self._w[name] for name in sorted(self._w)]
        self.trainable_variables = self.variables
        self.regularization_losses = []
        spec = {
            name: tf.TensorSpec([None, None], tf.int32, name)
            for name in ("input_word_ids", "input_mask", "input_type_ids")
        }
        for training in (False, True):
            self.__call__.get_concrete_function(spec, training=training)

    def _know(self, direction):
        """Sets good words apart from bad ones, as pretraining would."""
        embeddings = self._w["word_embeddings/embeddings"]
        known = np.zeros(len(SPECIAL) + len(WORDS))
        known[len(SPECIAL) :][: len(GOOD)] = 1
        known[len(SPECIAL) + len(GOOD) :][: len(BAD)] = -1
        embeddings.assign_add(tf.cast(known[:, None] * direction, tf.float32))

    def _norm(self, x, name):
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        x = (x - mean) * tf.math.rsqrt(variance + 1e-6)
        return x * self._w[f"{name}/gamma"] + self._w[f"{name}/beta"]

    @tf.function
    def __call__(self, inputs, training=False):
        w, drop = self._w, (lambda x: tf.nn.dropout(x, 0.1)) if training else (lambda x: x)
        ids, mask, types = (
            inputs["input_word_ids"],
            inputs["input_mask"],
            inputs["input_type_ids"],
        )
        x = tf.gather(w["word_embeddings/embeddings"], ids)
        x += w["position_embedding/embeddings"][: tf.shape(ids)[1]]
        x += tf.gather(w["type_embeddings/embeddings"], types)
        x = drop(self._norm(x, "embeddings/layer_norm"))
        outputs = []
        for i in range(self._layers):
            root = f"transformer/layer_{i}"
            q, k, v = (
                tf.einsum("btd,dhk->bthk", x, w[f"{root}/self_attention/{part}/kernel"])
                + w[f"{root}/self_attention/{part}/bias"]
                for part in ("query", "key", "value")
            )
            scores = tf.einsum("bqhk,bthk->bhqt", q, k) / np.sqrt(q.shape[-1])
            scores -= 1e9 * (1.0 - tf.cast(mask, tf.float32)[:, None, None, :])
            mixed = tf.einsum("bhqt,bthk->bqhk", drop(tf.nn.softmax(scores)), v)
            mixed = tf.einsum(
                "bqhk,hkd->bqd", mixed, w[f"{root}/self_attention/attention_output/kernel"]
            )
            mixed += w[f"{root}/self_attention/attention_output/bias"]
            x = self._norm(x + drop(mixed), f"{root}/self_attention_layer_norm")
            inner = tf.nn.gelu(
                tf.einsum("btd,df->btf", x, w[f"{root}/intermediate/kernel"])
                + w[f"{root}/intermediate/bias"]
            )
            inner = tf.einsum("btf,fd->btd", inner, w[f"{root}/output/kernel"])
            x = self._norm(x + drop(inner + w[f"{root}/output/bias"]), f"{root}/output_layer_norm")
            outputs.append(x)
        pooled = tf.tanh(x[:, 0] @ w["pooler_transform/kernel"] + w["pooler_transform/bias"])
        return {
            "pooled_output": pooled,
            "sequence_output": x,
            "encoder_outputs": outputs,
            "default": pooled,
        }


def save_encoder(
    folder: Path, layers: int = 3, units: int = 16, heads: int = 2, length: int = 32, seed: int = 0
) -> Path:
    tf.saved_model.save(_Encoder(layers, units, heads, length, seed), str(folder))
    return folder
