"""Scores of how far the classes lie apart: H-scores, TransRate, GBC."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist
from sklearn.covariance import ledoit_wolf_shrinkage

from tfxfer.scores.base import by_class, centred, data, decomposed, expect, principal


def h_score(features: ArrayLike, y: ArrayLike) -> float:
    """Variance of the features between classes, relative to their variance.

    `tr(cov(f)^+ cov(E[f | y]))`. With as many features as examples it is about always the largest
    value there is; `regularized_h_score` is not.

    Bao et al. 2019, "An Information-Theoretic Approach to Transferability in Task Transfer
    Learning".

    Args:
        features: `[n, d]`.
        y: Classes, int `[n]`.

    Returns:
        From 0 to the smaller of `d` and the number of classes less 1; the same for every
        invertible linear map of the features.

    Raises:
        ValueError: If these are not finite features and classes of the same examples, or there is
            one class only.
    """
    x, y = data(features, y)
    u, _, _ = decomposed(centred(x))
    return float(_between(u, y).sum())


def regularized_h_score(features: ArrayLike, y: ArrayLike) -> float:
    """The H-score with the covariance of the features shrunk toward a multiple of the identity.

    `(1 - a) tr(C_a^-1 cov(E[f | y]))`, with `C_a = (1 - a) cov(f) + a tr(cov(f)) / d` and `a` the
    shrinkage of Ledoit and Wolf 2004.

    Ibrahim et al. 2022, "Newer is not always better: Rethinking transferability metrics, their
    peculiarities, stability and performance".

    Args:
        features: `[n, d]`.
        y: Classes, int `[n]`.

    Returns:
        At least 0; the same for every scale of the features.

    Raises:
        ValueError: As `h_score` does.
    """
    x, y = data(features, y)
    x = centred(x)
    u, s, _ = decomposed(x)
    if not len(s):
        return 0.0
    a = ledoit_wolf_shrinkage(x / s[0], assume_centered=True)
    variance = (s / s[0]) ** 2
    shrunk = (1 - a) * variance + a * variance.sum() / x.shape[1]
    # The covariance is over n, the one between classes over n - 1, as in the authors' code.
    return float((1 - a) * np.sum(_between(u, y) * variance / shrunk) * len(x) / (len(x) - 1))


def transrate(features: ArrayLike, y: ArrayLike, eps: float = 1e-4) -> float:
    """Coding rate of the features, less the mean over classes of that of the class.

    `R(F) - mean_c R(F_c)`, `R(F) = 1/2 log det(I + F'F / (n eps))`, with `F` centred, but not `F_c`
    again; every class counts the same, as in the code.

    Huang et al. 2022, "Frustratingly Easy Transferability Estimation".

    Args:
        features: `[n, d]`; their scale matters.
        y: Classes, int `[n]`.
        eps: Squared distortion of the code, above 0.

    Returns:
        Any number, in nats.

    Raises:
        ValueError: If these are not finite features and classes of the same examples, there is one
            class only, or `eps` is not above 0.
    """
    x, y = data(features, y)
    expect(eps > 0, "an eps above 0", eps)
    x = centred(x)
    return _rate(x, eps) - float(np.mean([_rate(own, eps) for own in by_class(x, y)]))


def gbc(features: ArrayLike, y: ArrayLike, components: int = 64) -> float:
    """Minus how much Gaussians of the classes overlap, the Bhattacharyya coefficient of each pair.

    `-sum exp(-B_ij)` over `i != j`, both orders, `B = |m_i - m_j|^2 / (8 v) + p/2 log(v / sqrt(v_i
    v_j))`, `v = (v_i + v_j) / 2`: means and variances in `p` principal components, spherical, each
    variance at least 1e-4. The authors' code has no `p` in the second term; the density has.

    Pándy et al. 2022, "Transferability Estimation Using Bhattacharyya Class Separability".

    Args:
        features: `[n, d]`.
        y: Classes, int `[n]`.
        components: The most principal components to keep, at least 1.

    Returns:
        From minus the number of pairs, `classes * (classes - 1)`, to 0.

    Raises:
        ValueError: If these are not finite features and classes of the same examples, there is one
            class only, or no component is to be kept.
    """
    x, y = data(features, y)
    expect(components >= 1, "at least 1 component", components)
    z = principal(x)[:, :components]
    own = by_class(z, y)
    means = np.stack([each.mean(axis=0) for each in own])
    v = np.array([np.maximum(each.var(axis=0), 1e-4).mean() for each in own])
    mean, log = (v[:, None] + v) / 2, np.log(v)
    distance = cdist(means, means, "sqeuclidean") / (8 * mean)
    distance += z.shape[1] / 2 * (np.log(mean) - (log[:, None] + log) / 2)
    return 0.0 - float(np.exp(-distance)[~np.eye(len(v), dtype=bool)].sum())


def _between(u: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the variance between classes along directions of variance 1 and mean 0, `[rank]`."""
    return np.sum([own.sum(axis=0) ** 2 / len(own) for own in by_class(u, y)], axis=0)


def _rate(x: np.ndarray, eps: float) -> float:
    s = np.linalg.svd(x, compute_uv=False)
    s = s[s > 0]
    return float(np.logaddexp(0, 2 * np.log(s) - np.log(len(x) * eps)).sum() / 2)
