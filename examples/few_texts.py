"""What the embedding `words` is worth with few labelled texts, and with all.

    python examples/few_texts.py

A logistic regression, its strength chosen by cross-validation, tells from which library a docstring
is: on the frozen features of `words`; on those of the same table with random vectors; and on
counts of hashed words, which know nothing ahead. It prints test accuracy, the mean over draws of
the labels.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV

from tfxfer import load_backbone, open_dataset

_DRAWS = flags.DEFINE_integer("draws", 5, "Draws of the labels.")
_SHOTS = (10, 20)
_BATCH = 256


def texts_and_labels(source, name: str) -> tuple[list[str], np.ndarray]:
    """Reads a split."""
    texts = [text.decode() for _, text, _ in source.split(name).as_numpy_iterator()]
    return texts, np.ravel(source.labels(name))


def words(*, random: bool) -> Callable[[list[str]], np.ndarray]:
    """Gives what makes features of texts: the mean of the vectors of their words."""
    backbone = load_backbone("words")
    if random:
        rng = np.random.default_rng(0)
        for weight in backbone.weights:
            weight.assign(rng.normal(size=weight.shape))

    def features(texts: list[str]) -> np.ndarray:
        batches = tf.data.Dataset.from_tensor_slices(texts).batch(_BATCH)
        return np.concatenate([backbone.infer(batch).numpy() for batch in batches])

    return features


def drawn(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Draws rows, so many of each class."""
    rng = np.random.default_rng(seed)
    each = [rng.choice(np.flatnonzero(labels == k), shots, False) for k in np.unique(labels)]
    return np.concatenate(each)


def accuracy(train, test, rows: np.ndarray | slice) -> float:
    """Fits on some rows of train, and scores on test."""
    strengths = {"C": np.logspace(-2, 3, 6)}
    model = GridSearchCV(LogisticRegression(max_iter=2000), strengths, cv=5)
    (x, y), (test_x, test_y) = train, test
    return accuracy_score(test_y, model.fit(x[rows], y[rows]).predict(test_x))


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    logging.set_verbosity(logging.ERROR)
    source = open_dataset("docstrings")
    (train, y), (test, test_y) = (texts_and_labels(source, name) for name in ("train", "test"))
    kinds = {
        "words": words(random=False),
        "random vectors": words(random=True),
        "hashed counts": HashingVectorizer(n_features=4096, alternate_sign=False).transform,
    }
    columns = (*(f"{shots} a class" for shots in _SHOTS), f"all {len(y)}")
    print(f"{'features':16}" + "".join(f"{column:>14}" for column in columns))
    for name, features in kinds.items():
        known = (features(train), y), (features(test), test_y)
        means: list[float] = []
        for shots in _SHOTS:
            draws = [drawn(y, shots, seed) for seed in range(_DRAWS.value)]
            means.append(float(np.mean([accuracy(*known, rows) for rows in draws])))
        means.append(accuracy(*known, slice(None)))
        print(f"{name:16}" + "".join(f"{mean:>14.1%}" for mean in means))


if __name__ == "__main__":
    app.run(main)
