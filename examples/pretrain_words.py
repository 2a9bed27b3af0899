r"""Pretrains the backbone `words`, an embedding of texts, on the manuals of Python and TensorFlow.

The texts come with Python and with packages that are installed: docstrings of the standard library,
of TensorFlow and of others that the dataset `docstrings` is not made of, the help topics of Python,
and the descriptions of datasets in TensorFlow Datasets. No label is used, nothing is downloaded,
and what `docstrings` holds is left out.

Words get their vectors in closed form: the positive pointwise mutual information of words and their
neighbors, with smoothed contexts, is factorized by a truncated SVD (Levy and Goldberg 2014, "Neural
Word Embedding as Implicit Matrix Factorization"; Levy, Goldberg and Dagan 2015, "Improving
Distributional Similarity with Lessons Learned from Word Embeddings"). A text is the mean of its
words' vectors, weighed by their rarity and without the component that all texts have in common, as
Arora, Liang and Ma 2017 have it, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings".
Both are linear, so that they are part of the table of vectors.

    python examples/pretrain_words.py --output=words

What is saved is a TF2 SavedModel in TensorFlow Hub's format. It takes two minutes on two CPU cores.
The same versions of the packages give the same table on the same CPU.
"""

import collections
import importlib.util
import pathlib
import pydoc_data.topics
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import tensorflow as tf
from absl import app, flags

from tfxfer.data import docstrings

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the SavedModel.", required=True)

# TensorFlow's copies of Keras and NumPy say what `docstrings` says.
PACKAGES = ("tensorflow", "tensorflow_datasets", "tensorflow_hub", "absl", "h5py", "PIL", "rich")
SKIPPED = {"test", "tests", "site-packages", "dist-packages", "keras", "numpy_ops"}

UNITS = 64
WORDS = 5000
BUCKETS = 64  # For all other words, by their hash.
WINDOW = 10  # Words on either side that are neighbors.
SMOOTHING = 0.75  # Of the frequencies of contexts.
RARE = 1e-3  # SIF's a: words as frequent as this weigh half.


def read_texts() -> list[str]:
    """Returns the texts to learn from, none of which is in the dataset `docstrings`."""
    held_out = {docstrings.fold(example["text"]) for example in docstrings.collect()}
    texts = list(pydoc_data.topics.topics.values())
    for folder in [sysconfig.get_path("stdlib"), *map(package_folder, PACKAGES)]:
        for text in texts_of(pathlib.Path(folder)):
            if docstrings.fold(docstrings.summary(text)) not in held_out:
                texts.append(text)
    return texts


def package_folder(package: str) -> str:
    """Returns where a package is, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"Expected package {package!r} to be installed.")
    return spec.submodule_search_locations[0]


def texts_of(folder: pathlib.Path) -> Iterator[str]:
    """Gives the docstrings and the README.md files in a folder."""
    for path in sorted(folder.rglob("*")):
        if SKIPPED.isdisjoint(path.relative_to(folder).parts[:-1]):
            if path.suffix == ".py":
                yield from docstrings.docstrings_of(path.read_text("utf-8"), private=True)
            elif path.name == "README.md":
                yield path.read_text("utf-8")


def split_words(texts: tf.Tensor) -> tf.RaggedTensor:
    """Splits texts `[batch]` into runs of letters in lower case; `GaussianNoise` is two."""
    texts = tf.strings.regex_replace(texts, r"(\p{Ll})(\p{Lu})", r"\1 \2")
    texts = tf.strings.lower(texts, "utf-8")
    return tf.strings.split(tf.strings.regex_replace(texts, r"[^\p{L}]+", " "))


def choose_words(texts: Sequence[str], most: int) -> list[str]:
    """Returns the most frequent words, at most so many, the most frequent first."""
    words = split_words(tf.constant(texts)).flat_values.numpy()
    counts = collections.Counter(words.tolist())
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [word.decode() for word in ranked[:most]]


class Words(tf.Module):
    """A table of vectors behind TF Hub's interface for embeddings of texts.

    Args:
        vocabulary: File of the words that have a vector of their own, one a line.
        units: Length of the vectors.
        buckets: Vectors that all other words share, by their hash.
    """

    # Hides the properties of tf.Module, which are not saved.
    variables = None
    trainable_variables = None

    def __init__(self, vocabulary: pathlib.Path, units: int, buckets: int):
        super().__init__()
        size = len(vocabulary.read_text("utf-8").split()) + buckets
        initializer = tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        self._rows = tf.lookup.StaticVocabularyTable(initializer, buckets)
        table = tf.Variable(tf.zeros([size, units]), name="table/embeddings")
        self.table = table
        self.variables = [table]
        self.trainable_variables = [table]
        self.regularization_losses = []

    def rows(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Returns the rows of the table that the words of texts `[batch]` have."""
        return tf.ragged.map_flat_values(self._rows.lookup, split_words(texts))

    @tf.function
    def __call__(self, texts, training=False):
        """Returns the features of texts, string `[batch]`, as float32 `[batch, units]`."""
        del training  # It makes no difference.
        rows = self.rows(texts)
        sums = tf.reduce_sum(tf.gather(self.table, rows), axis=1)
        words = tf.maximum(rows.row_lengths(), 1)[:, None]  # So that no words give zeros.
        return sums / tf.cast(words, tf.float32)


def count_neighbors(rows: Iterable[np.ndarray], size: int, window: int) -> scipy.sparse.csr_matrix:
    """Counts how often one word is near another: nearest ones weigh 1, the farthest 1 / window."""
    padding = np.full(window, -1)
    line = np.concatenate([part for text in rows for part in (text, padding)])
    counts = scipy.sparse.csr_matrix((size, size))
    for distance in range(1, window + 1):
        left, right = line[:-distance], line[distance:]
        both = (left >= 0) & (right >= 0)
        weights = np.full(both.sum(), 1 - (distance - 1) / window)
        counts += scipy.sparse.csr_matrix((weights, (left[both], right[both])), (size, size))
    return counts + counts.T


def factorize(counts: scipy.sparse.csr_matrix, units: int) -> np.ndarray:
    """Returns vectors from the positive pointwise mutual information of words and neighbors."""
    pairs = counts.tocoo()
    words = np.asarray(counts.sum(axis=1)).ravel()
    contexts = words**SMOOTHING
    expected = words[pairs.row] * contexts[pairs.col] / contexts.sum()
    information = np.maximum(np.log(pairs.data / expected), 0)
    matrix = scipy.sparse.csr_matrix((information, (pairs.row, pairs.col)), counts.shape)
    start = np.ones(len(words)) / len(words) ** 0.5
    left, values, _ = scipy.sparse.linalg.svds(matrix, units, v0=start)
    return left * values


def weigh(vectors: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Weighs vectors by the rarity of their words, and takes out what all texts have in common.

    Features of the texts have a standard deviation of 1 then.
    """
    counts = np.bincount(np.concatenate(rows), minlength=len(vectors))
    vectors = vectors * (RARE / (RARE + counts / counts.sum()))[:, None]
    features = average(vectors, rows)
    common = np.linalg.svd(features.T @ features)[0][:, 0]
    vectors = vectors - np.outer(vectors @ common, common)
    return (vectors / average(vectors, rows).std()).astype(np.float32)


def average(vectors: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the features of texts, as `Words` does."""
    return np.stack([vectors[text].sum(axis=0) / max(len(text), 1) for text in rows])


def pretrain(texts: Sequence[str], vocabulary: pathlib.Path, words=WORDS, units=UNITS) -> Words:
    """Returns an embedding that is learned from texts without labels; writes its vocabulary."""
    vocabulary.write_text("".join(f"{word}\n" for word in choose_words(texts, words)), "utf-8")
    module = Words(vocabulary, units, BUCKETS)
    found = module.rows(tf.constant(texts))
    rows = np.split(found.flat_values.numpy(), found.row_splits.numpy()[1:-1])
    vectors = factorize(count_neighbors(rows, module.table.shape[0], WINDOW), units)
    module.table.assign(weigh(vectors, rows))
    return module


def save(module: Words, path: str) -> None:
    """Saves an embedding as a TF2 reusable SavedModel, the format of TensorFlow Hub."""
    texts = tf.TensorSpec([None], tf.string, name="inputs")
    for training in (False, True):
        module.__call__.get_concrete_function(texts, training=training)

    @tf.function(input_signature=[texts])
    def serve(inputs):
        return {"outputs": module(inputs, training=False)}

    tf.saved_model.save(module, path, signatures=serve)


def main(argv):
    """Reads the texts, makes the table, and saves the embedding."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    texts = read_texts()
    print(f"{len(texts)} texts")
    with tempfile.TemporaryDirectory() as folder:
        save(pretrain(texts, pathlib.Path(folder) / "words.txt"), _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
