"""How well features tell identities apart: by pairs, as in face recognition, and by retrieval."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata
from sklearn.metrics import roc_auc_score, roc_curve

from tfxfer.errors import UserError

_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Verification:
    """How well similarities tell pairs of one identity from pairs of two.

    Attributes:
        auc: Area under the ROC curve, in [0, 1]: how often a pair of one identity is more similar
            than a pair of two.
        auc_interval: 95% interval for it, by the method of `verify`.
        eer: The equal error rate, in [0, 1]: where as large a share of the pairs of two identities
            is accepted as of the pairs of one is rejected.
        threshold: The similarity from which on a pair is accepted at the equal error rate.
        tar_at_far: By false-accept rate, the largest true-accept rate that accepts no larger a
            share of the pairs of two identities; both in [0, 1]. `None` where there are too few
            such pairs to measure that rate: fewer than `1 / rate`.
        pairs: How many pairs that was counted on.
    """

    auc: float
    auc_interval: tuple[float, float]
    eer: float
    threshold: float
    tar_at_far: dict[float, float | None]
    pairs: int


@dataclass(frozen=True)
class Retrieval:
    """How well each example finds the others of its identity among all others.

    Attributes:
        recall_at: By k, the share of queries with their identity among the k most similar others,
            in [0, 1].
        mean_average_precision: Mean over the queries of their average precision, in [0, 1].
        queries: How many examples were asked for.
        left_out: How many were not, as nothing else has their identity; they can be found.
    """

    recall_at: dict[int, float]
    mean_average_precision: float
    queries: int
    left_out: int


def sample_pairs(
    identities: np.ndarray, pairs: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws pairs of examples, half of them of one identity, half of two.

    Each kind is drawn uniformly from all pairs of that kind; where there are fewer than its half,
    all are taken. No pair is drawn twice, and no example is paired with itself.

    Args:
        identities: Of each example, int `[n]`.
        pairs: How many to draw, at least 2; an odd one has two identities.
        seed: Of the draw.

    Returns:
        `left` and `right`, positions of the examples, int64 `[pairs]`; `same`, whether they have
        one identity, bool `[pairs]`, those that do first.

    Raises:
        UserError: If there are no pairs of one identity, or none of two.
        ValueError: If `pairs` is below 2.
    """
    if pairs < 2:
        raise ValueError(f"Expected at least 2 pairs, received {pairs}.")
    order, first, _ = _by_identity(identities)
    # In order of identity, an example makes a pair of one identity with each that stands before it
    # in its group, and a pair of two with each that stands before its group.
    before = np.arange(len(order)) - first
    if not before.any() or not first.any():
        raise UserError(
            f"Pairs to compare must be of one identity and of two, and {len(order)} examples of "
            f"{len(np.unique(first))} identities have none of "
            f"{'two' if before.any() else 'one'}",
            "Give two identities or more, and one of them two examples or more.",
        )
    rng = np.random.default_rng(seed)
    genuine = _draw(before, first, pairs // 2, rng)
    impostor = _draw(first, np.zeros_like(first), pairs - pairs // 2, rng)
    left, right = np.concatenate([genuine, impostor], axis=1)
    same = np.arange(len(left)) < genuine.shape[1]
    return order[left], order[right], same


def cosine_similarity(features: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Compares pairs of features by the cosine of the angle between them.

    Args:
        features: Of each example, `[n, d]`; may be memory-mapped.
        left: Positions of examples, int `[pairs]`.
        right: Likewise.

    Returns:
        The similarities in [-1, 1], float64 `[pairs]`; 0 where a feature is all zeros.
    """
    found = np.empty(len(left))
    for block in _blocks(len(left), 4 * features.shape[1] * 8):
        one, other = (features[side[block]].astype(np.float64) for side in (left, right))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        products = np.einsum("pd,pd->p", one, other)
        found[block] = products / np.where(lengths > 0, lengths, 1)
    return np.clip(found, -1, 1)


def verify(
    similarities: np.ndarray, same: np.ndarray, far: float | tuple[float, ...] = 1e-3
) -> Verification:
    """Measures how well similarities tell pairs of one identity from pairs of two.

    The interval of the area is that of DeLong et al. 1988, "Comparing the Areas under Two or More
    Correlated Receiver Operating Characteristic Curves", on the logit scale, where it stays within
    [0, 1]; its variance by the ranks of Sun and Xu 2014, "Fast Implementation of DeLong's
    Algorithm ...". Where that variance is 0, as if all pairs are told apart, or unknown, it is
    the wider one of Clopper and Pearson 1934 for as many comparisons as there are pairs of the
    rarer kind, each of another two. Both take pairs as independent: where they share examples,
    the area is less sure than the interval says.

    Args:
        similarities: Of each pair, the larger the more alike, `[pairs]`.
        same: Whether the pair is of one identity, bool `[pairs]`.
        far: False-accept rates in (0, 1] to give the true-accept rate at.

    Returns:
        The figures.

    Raises:
        ValueError: If a similarity is not finite, a rate is out of range, or there are no pairs
            of one identity, or none of two.
    """
    rates = far if isinstance(far, tuple) else (far,)
    same = np.asarray(same, bool)
    genuine, impostors = int(same.sum()), int((~same).sum())
    if not np.isfinite(similarities).all():
        raise ValueError("Expected finite similarities, received some that are not.")
    if not all(0 < rate <= 1 for rate in rates):
        raise ValueError(f"Expected false-accept rates in (0, 1], received {rates}.")
    if not genuine or not impostors:
        raise ValueError(
            f"Expected pairs of one identity and pairs of two, received {genuine} and {impostors}."
        )
    auc = float(roc_auc_score(same, similarities))
    accepted_wrongly, accepted_rightly, thresholds = roc_curve(
        same, similarities, drop_intermediate=False
    )
    thresholds[0] = thresholds[1]  # Else infinite: where nothing is accepted.
    # False accepts less false rejects: it grows from -1 to 1 along the curve.
    imbalance = accepted_wrongly - (1 - accepted_rightly)
    return Verification(
        auc=auc,
        auc_interval=_auc_interval(auc, similarities[same], similarities[~same]),
        eer=float(np.interp(0, imbalance, accepted_wrongly)),
        threshold=float(np.interp(0, imbalance, thresholds)),
        tar_at_far={
            rate: float(accepted_rightly[accepted_wrongly <= rate].max())
            if 1 / impostors <= rate
            else None
            for rate in rates
        },
        pairs=len(same),
    )


def retrieve(
    features: np.ndarray, identities: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> Retrieval:
    """Takes each example as a query for the others of its identity, by cosine similarity.

    Recall at k is that of Oh Song et al. 2016, "Deep Metric Learning via Lifted Structured Feature
    Embedding", section 6; average precision that of `sklearn.metrics.average_precision_score`.
    Among equally similar examples, those of other identities count as found first. Time grows
    with the square of `n`.

    Args:
        features: Of each example, `[n, d]`; may be memory-mapped. Similarities are computed a
            block of queries at a time.
        identities: Of each example, int `[n]`.
        ks: How many found examples to look at, each at least 1.

    Returns:
        The figures.

    Raises:
        UserError: If no two examples have one identity.
        ValueError: If a feature is not finite, or a k is below 1.
    """
    if min(ks) < 1:
        raise ValueError(f"Expected each k to be at least 1, received {tuple(ks)}.")
    order, first, size = _by_identity(identities)
    queries = np.flatnonzero(size > 1)  # Positions in `order`.
    if not len(queries):
        raise UserError(
            f"Retrieval must have two examples of one identity, and {len(order)} examples have "
            f"{len(order)} identities",
            "Give more examples of an identity.",
        )
    lengths = _lengths(features)
    ranks, precisions = np.empty(len(queries)), np.empty(len(queries))
    for block in _blocks(len(queries), len(order) * 4):
        found = queries[block]
        rows = order[found]
        similar = (features[rows] / lengths[rows, None]) @ features.T
        similar /= lengths
        similar[np.arange(len(rows)), rows] = -np.inf  # Nothing is asked for itself.
        own = [
            np.sort(row[order[start : start + count]])[1:]
            for row, start, count in zip(similar, first[found], size[found], strict=True)
        ]
        similar.sort(axis=1)
        scored = [_score_query(row, mine) for row, mine in zip(similar, own, strict=True)]
        ranks[block], precisions[block] = zip(*scored, strict=True)
    return Retrieval(
        recall_at={int(k): float(np.mean(ranks <= k)) for k in ks},
        mean_average_precision=float(precisions.mean()),
        queries=len(queries),
        left_out=len(order) - len(queries),
    )


def _score_query(similar: np.ndarray, own: np.ndarray) -> tuple[int, float]:
    """Returns the rank of the first example of the query's identity, and average precision.

    Args:
        similar: Similarities to all examples, increasing, `[n]`.
        own: Those of the query's identity, increasing, `[count]`.
    """
    right = len(own) - np.searchsorted(own, own)  # At least as similar, of the identity,
    found = len(similar) - np.searchsorted(similar, own)  # and of any.
    return int(found[-1] - right[-1]) + 1, float(np.mean(right / found))


def _by_identity(identities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orders examples by identity.

    Returns:
        The order, and for each place in it where its identity begins and how many examples that
        has; all int64 `[n]`.
    """
    _, group, counts = np.unique(identities, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    return order, np.repeat(np.cumsum(counts) - counts, counts), np.repeat(counts, counts)


def _draw(
    partners: np.ndarray, first: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws pairs of places, each pair at most once, without listing all of them.

    Place `i` makes pairs with the `partners[i]` places from `first[i]` on.

    Returns:
        The partners and their places, int64 `[2, count]`, or fewer if there are not so many.
    """
    ends = np.cumsum(partners)
    numbers = rng.choice(ends[-1], min(count, ends[-1]), replace=False)
    place = np.searchsorted(ends, numbers, side="right")
    partner = first[place] + numbers - (ends[place] - partners[place])
    return np.stack([partner, place])


def _auc_interval(auc: float, genuine: np.ndarray, impostor: np.ndarray) -> tuple[float, float]:
    """Returns the 95% interval that the docs of `verify` describe."""
    fewer = min(len(genuine), len(impostor))
    ranks = rankdata(np.concatenate([genuine, impostor]))
    # The share of the pairs of the other kind that each pair is on the right side of.
    above = (ranks[: len(genuine)] - rankdata(genuine)) / len(impostor)
    below = 1 - (ranks[len(genuine) :] - rankdata(impostor)) / len(genuine)
    if fewer > 1 and (above.std() > 0 or below.std() > 0):
        variance = above.var(ddof=1) / len(genuine) + below.var(ddof=1) / len(impostor)
        half = norm.ppf(0.975) * np.sqrt(variance) / (auc * (1 - auc))
        return float(expit(logit(auc) - half)), float(expit(logit(auc) + half))
    low, high = (
        binomtest(int(rounded), fewer).proportion_ci(0.95, method="exact")
        for rounded in (np.floor(auc * fewer), np.ceil(auc * fewer))
    )
    return float(low.low), float(high.high)


def _lengths(features: np.ndarray) -> np.ndarray:
    """Returns the Euclidean length of each feature, float32 `[n]`; 1 for those of all zeros."""
    lengths = np.empty(len(features), np.float32)
    for block in _blocks(len(features), features.shape[1] * 8):
        lengths[block] = np.linalg.norm(features[block].astype(np.float64), axis=1)
    if not np.isfinite(lengths).all():
        raise ValueError("Expected finite features, received some that are not.")
    return np.where(lengths > 0, lengths, np.float32(1))


def _blocks(rows: int, row_bytes: int) -> Iterator[slice]:
    """Cuts rows into slices that take no more than `_BLOCK_BYTES`, or a row each."""
    step = max(1, _BLOCK_BYTES // row_bytes)
    return (slice(start, start + step) for start in range(0, rows, step))
