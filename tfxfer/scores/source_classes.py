"""Scores from the classes that a source model tells: LEEP, NLEEP, NCE."""

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlogy
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from tfxfer.scores.base import by_class, data, expect, integers, or_one, principal


def leep(probabilities: ArrayLike, y: ArrayLike) -> float:
    """Mean log-likelihood of labels, told from the classes that the source model predicts.

    `mean log sum_z p(y | z) p(z | x)`, `p(y | z)` from the mean over examples of `p(z | x)`.

    Nguyen et al. 2020, "LEEP: A New Measure to Evaluate Transferability of Learned
    Representations", equation 2.

    Args:
        probabilities: Of the source classes, `[n, source classes]`, at least 0; rows add up to 1
            within 1%, as in low precision, and are divided by their sums.
        y: Classes, int `[n]`.

    Returns:
        From minus the entropy of `y` to 0, in nats, but for rounding.

    Raises:
        ValueError: If these are not probabilities and classes of the same examples, or there is
            one class only.
    """
    theta, y = data(probabilities, y)
    expect(theta.min() >= 0, "probabilities of at least 0", theta.min())
    totals = theta.sum(axis=1, keepdims=True)
    worst = totals.flat[np.abs(totals - 1).argmax()]
    expect(abs(worst - 1) <= 0.01, "probabilities that add up to 1", f"a sum of {worst:g}")
    theta = theta / totals
    joint = np.stack([own.sum(axis=0) for own in by_class(theta, y)])
    conditional = joint / or_one(joint.sum(axis=0))  # Classes that nothing is taken for give 0.
    return float(np.mean(np.log(np.einsum("nz,nz->n", theta, conditional[y]))))


def nleep(
    features: ArrayLike,
    y: ArrayLike,
    energy: float = 0.8,
    components_per_class: int = 5,
    seed: int = 0,
) -> float:
    """The LEEP of features, with components of a mixture of Gaussians for source classes.

    Features are taken along the principal directions that hold `energy` of their variance, scaled
    so that the first has variance 1. Time grows with the components and the square of directions.

    Li et al. 2021, "Ranking Neural Checkpoints".

    Args:
        features: `[n, d]`.
        y: Classes, int `[n]`.
        energy: Share of the variance to keep, in (0, 1].
        components_per_class: Of the mixture, at least 1; half as many as examples are the most.
        seed: Where the mixture starts from.

    Returns:
        From about minus the entropy of `y` to 0, in nats; near 0 for any features, where components
        have few examples each.

    Raises:
        ValueError: If these are not finite features and classes of the same examples, there is one
            class only, or a number is out of range.
    """
    x, y = data(features, y)
    expect(0 < energy <= 1, "an energy in (0, 1]", energy)
    expect(components_per_class >= 1, "at least 1 component per class", components_per_class)
    z = principal(x)
    share = np.cumsum(z.var(axis=0))
    z = z[:, : np.searchsorted(share, energy * share[-1]) + 1] / or_one(z[:, 0].std())
    order = np.lexsort(z.T[::-1])  # The start of the mixture depends on the order of its examples.
    components = min(components_per_class * (y.max() + 1), len(z) // 2)
    with threadpool_limits(1), warnings.catch_warnings():
        # Close to the best mixture is good enough; fewer points than components are no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture = GaussianMixture(components, random_state=seed).fit(z[order])
    return leep(mixture.predict_proba(z), y)


def nce(source_labels: ArrayLike, y: ArrayLike) -> float:
    """Negative conditional entropy of labels, given source classes.

    `-H(Y | Z) = sum p(z, y) log p(y | z)`.

    Tran et al. 2019, "Transferability and Hardness of Supervised Classification Tasks".

    Args:
        source_labels: What the source model takes each example for, int `[n]`.
        y: Classes, int `[n]`.

    Returns:
        From minus the entropy of `y` to 0, in nats.

    Raises:
        ValueError: If these are not classes of the same examples, or `y` holds one class only.
    """
    y, z = integers(y, fewest=2), integers(source_labels, fewest=1)
    expect(len(z) == len(y), f"{len(y)} source labels", len(z))
    classes = y.max() + 1
    joint = np.bincount(z * classes + y, minlength=(z.max() + 1) * classes).reshape(-1, classes)
    total = joint.sum(axis=1, keepdims=True)
    return float(xlogy(joint, joint / total).sum() / len(y))
