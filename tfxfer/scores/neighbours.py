"""Scores from how similar examples are to each other: kNN, PARC."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.metrics import r2_score

from tfxfer.scores.base import centred, data, expect, or_one, principal

_BLOCK = 2**23  # Similarities held at a time: 64 MiB.
_SHARPNESS = 0.07


def knn(features: ArrayLike, y: ArrayLike, regression: bool = False, k: int = 20) -> float:
    """How well the most similar other examples tell each example.

    See `knn_predictions`.

    Args:
        features: `[n, d]`.
        y: Classes, int `[n]`, or numbers, `[n]` or `[n, targets]`.
        regression: Whether `y` holds numbers.
        k: How many vote, at least 1; all the others, if there are fewer.

    Returns:
        Accuracy, from 0 to 1, or for numbers R squared, at most 1, the mean over targets.

    Raises:
        ValueError: As `knn_predictions` does.
    """
    told = knn_predictions(features, y, regression, k)
    return float(r2_score(np.reshape(y, told.shape), told) if regression else np.mean(told == y))


def knn_predictions(
    features: ArrayLike, y: ArrayLike, regression: bool = False, k: int = 20
) -> np.ndarray:
    """What the most similar other examples take each example for.

    The similarity is the cosine, and votes weigh `softmax(similarity / 0.07)` over the `k`. Time
    grows with the square of `n`; memory does not. Which of equally similar examples vote may
    depend on the order of the examples.

    Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers".

    Args:
        features: `[n, d]`.
        y: Classes, int `[n]`, or numbers, `[n]` or `[n, targets]`.
        regression: Whether `y` holds numbers.
        k: How many vote, at least 1; all the others, if there are fewer.

    Returns:
        Classes `[n]`, or numbers `[n, targets]`.

    Raises:
        ValueError: If these are not finite features and labels of the same examples, there is one
            class only or a target that is constant, or `k` is below 1.
    """
    classes = np.unique(y)
    x, y = data(features, y, regression)
    expect(k >= 1, "k of at least 1", k)
    k, x = min(k, len(x) - 1), _unit(x)
    told = []
    for rows in np.array_split(np.arange(len(x)), -(-(len(x) ** 2) // _BLOCK)):
        similar = x[rows] @ x.T
        similar[np.arange(len(rows)), rows] = -np.inf  # No example votes for itself.
        near = np.argpartition(similar, -k, axis=1)[:, -k:]
        votes = softmax(np.take_along_axis(similar, near, axis=1) / _SHARPNESS, axis=1)
        if regression:
            told.append(np.einsum("nk,nkt->nt", votes, y[near]))
        else:
            shares = np.zeros((len(rows), y.max() + 1))
            np.add.at(shares, (np.arange(len(rows))[:, None], y[near]), votes)
            told.append(shares.argmax(axis=1))
    found = np.concatenate(told)
    return found if regression else classes[found]


def parc(
    features: ArrayLike,
    y: ArrayLike,
    components: int = 32,
    max_examples: int = 2000,
    seed: int = 0,
) -> float:
    """Whether pairs of examples differ in features as they do in labels, times 100.

    Spearman's correlation of `1 - corr` of the features of pairs, in standardised principal
    components, and of `1 - corr` of their one-hot labels.

    Bolya et al. 2021, "Scalable Diverse Model Selection for Accessible Transfer Learning".

    Args:
        features: `[n, d]`.
        y: Classes, int `[n]`.
        components: The most principal components to keep, at least 1; with one, nothing correlates.
        max_examples: Of more examples, as many are drawn at random: time and memory grow with their
            square. At least 2; the authors take 500.
        seed: Of the draw, which depends on the order of the examples.

    Returns:
        From -100 to 100; 0 where features or labels tell no pair from another.

    Raises:
        ValueError: If these are not finite features and classes of the same examples, there is one
            class only, or a number is out of range.
    """
    x, y = data(features, y)
    expect(components >= 1, "at least 1 component", components)
    expect(max_examples >= 2, "max_examples of at least 2", max_examples)
    if len(x) > max_examples:
        rows = np.random.default_rng(seed).choice(len(x), max_examples, replace=False)
        x, y = x[rows], y[rows]
    z = principal(x)[:, :components]
    z = _unit(centred((z / or_one(z.std(axis=0))).T).T)
    pairs = np.triu_indices(len(z), 1)
    # Rounded, so that what is as far apart but for rounding has one rank. Correlations of one-hot
    # labels have two values, so that ranks do not order them better than numbers do.
    ranks = _unit(centred(rankdata(np.round(1 - (z @ z.T)[pairs], 10))[:, None]).T)
    differ = _unit(centred((y[:, None] != y)[pairs].astype(np.float64)[:, None]).T)
    return float(100 * np.sum(ranks * differ))


def _unit(x: np.ndarray) -> np.ndarray:
    """Returns rows `[n, d]` with norm 1, or 0 where all is 0."""
    x = x / or_one(np.abs(x).max(axis=1, keepdims=True))  # Else squares of small ones are 0.
    x /= or_one(np.linalg.norm(x, axis=1, keepdims=True))
    return x
