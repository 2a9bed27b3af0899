"""Which backbone suits: what features tell of labels, what is a tie, and who is worth training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import weightedtau
from threadpoolctl import threadpool_limits

from tfxfer import scores
from tfxfer.costs import ModelCost
from tfxfer.evaluate import AnyEvaluation
from tfxfer.intervals import bootstrap_interval, paired_interval, proportion_interval
from tfxfer.scores.base import decomposed
from tfxfer.scores.neighbours import knn_predictions
from tfxfer.scores.probe import linear_probe_predictions
from tfxfer.task import MULTI_LABEL, SINGLE_LABEL, Task
from tfxfer.transfer import headline_scores

_LOOKED_AT = 500  # Examples that the slow scores look at, as the authors of PARC do,
_OF_A_CLASS = 10  # or more, where that would be fewer of each class,
_MOST = 2000  # but not so many that it takes minutes.
_OF_CLASSES = (
    "logme",
    "h_score",
    "regularized_h_score",
    "transrate",
    "gbc",
    "parc",
    "nleep",
)
KNN, PROBE, PARAMETERS = "knn", "linear_probe", "parameters"
"""The two that are measured with intervals, and the one that knows nothing of the data."""


@dataclass(frozen=True)
class Figure:
    """The headline figure of the task: accuracy, f1 or rmse.

    Attributes:
        value: What it is.
        interval: 95% interval for it: of accuracy Wilson's, else by bootstrap over examples.
    """

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Told:
    """What features tell of labels, each example told from all others.

    Attributes:
        knn: What each example adds to the headline figure of nearest neighbours, `[n]`; see
            `headline_scores`.
        probe: The same of a linear probe.
        scores: Of `tfxfer.scores`, by name; larger is better. Where features are probabilities of
            source classes `leep` and `nce` are among them.
        looked_at: Examples that `scores` are of.
    """

    knn: np.ndarray
    probe: np.ndarray
    scores: Mapping[str, float]
    looked_at: int


@dataclass(frozen=True)
class FineTuned:
    """A short fine-tuning of a backbone.

    Attributes:
        round: Of successive halving, from 1.
        epochs: Most epochs that it had.
        validation: Scores on the validation examples, which also chose the epoch.
        seconds: Wall time.
    """

    round: int
    epochs: int
    validation: AnyEvaluation
    seconds: float


@dataclass(frozen=True)
class Candidate:
    """What one backbone is worth on the data.

    Attributes:
        name: Its spec.
        rank: From 1, by the linear probe: one more than there are backbones that are better
            beyond the interval of the difference, so that ties have one rank.
        knn: Of nearest neighbours, each example told from all others of train.
        probe: Of a linear probe, likewise.
        scores: Of `tfxfer.scores`, and `parameters`, the static baseline.
        cost: Of the backbone with a linear head.
        on_front: Whether it is on the front of latency and the probe; see `pareto_front`.
        feature_seconds: Wall time of its features, or of finding them in the cache.
        score_seconds: Wall time of all scores.
        fine_tuned: The rounds that it was in, in order.
        failed: Why the round after these gave nothing, such as a loss that is not finite; empty if
            none failed.
    """

    name: str
    rank: int
    knn: Figure
    probe: Figure
    scores: Mapping[str, float]
    cost: ModelCost
    on_front: bool
    feature_seconds: float
    score_seconds: float
    fine_tuned: tuple[FineTuned, ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class Round:
    """A round of successive halving.

    Attributes:
        candidates: How many are trained.
        epochs: Most epochs of each.
    """

    candidates: int
    epochs: int


@dataclass(frozen=True)
class Selection:
    """Which backbones suit.

    Attributes:
        metric: The headline figure: `accuracy`, `f1` or `rmse`.
        examples: Training examples that features were judged on.
        looked_at: How many of these the slow scores looked at.
        candidates: By rank, within a rank the better probe first.
        correlations: Weighted tau of each score with what the fine-tunings of the first round,
            all alike, reached on validation; `None` where one of the two is the same for all.
        correlated: Backbones that the correlation is over; 0 if nothing was fine-tuned.
        compared: Those of the last round, or all if nothing was fine-tuned.
        best: Those of `compared` that are not beaten beyond the interval, on validation or else by
            the probe; first the better of those that are about as fast as the fastest.
    """

    metric: str
    examples: int
    looked_at: int
    candidates: tuple[Candidate, ...]
    correlations: Mapping[str, float | None]
    correlated: int
    compared: tuple[str, ...]
    best: tuple[str, ...]


def told_by(task: Task, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Told:
    """Judges features without training on them.

    Args:
        task: What `y` is.
        x: Features, `[n, units]`, finite, of at least two examples.
        y: As the task has it.
        seed: Of the examples that the slow scores look at.

    Returns:
        What they tell.

    Raises:
        ValueError: If there is one class only, or every target is constant.
    """
    with threadpool_limits(1):  # Beside other work, several would wait for one another.
        rows = _looked_at(y, seed)
        return Told(
            knn=headline_scores(task, _outputs(knn_predictions, task, x, y), y),
            probe=headline_scores(task, _outputs(linear_probe_predictions, task, x, y), y),
            scores=_slow_scores(task, np.asarray(x[rows], np.float64), y[rows]),
            looked_at=len(rows),
        )


def _outputs(predictions, task: Task, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns what is told of each example as outputs that `headline_scores` takes."""
    if task.kind == SINGLE_LABEL:
        return np.eye(task.units)[predictions(x, y)]
    outputs = np.array(y, np.float64)  # A target that is always the same is told.
    varies = np.ptp(y, axis=0) > 0
    if varies.any():
        outputs[:, varies] = predictions(x, y[:, varies], regression=True)
    return outputs - 0.5 if task.kind == MULTI_LABEL else outputs


def _looked_at(y: np.ndarray, seed: int) -> np.ndarray:
    """Draws examples, two of each class first, so that there are several classes."""
    _, classes = np.unique(y, axis=0, return_inverse=True)
    rows = np.random.default_rng(seed).permutation(len(y))
    by_class = rows[np.argsort(classes[rows], kind="stable")]
    _, starts, sizes = np.unique(classes[by_class], return_index=True, return_counts=True)
    place = np.empty(len(y), int)  # Of each example among those of its class.
    place[by_class] = np.arange(len(y)) - np.repeat(starts, sizes)
    count = min(max(_LOOKED_AT, _OF_A_CLASS * len(starts)), _MOST, len(y))
    return np.sort(rows[np.argsort(place[rows] > 1, kind="stable")][:count])


def _slow_scores(task: Task, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Computes all scores; in fewer coordinates where that changes nothing but time."""
    shorter = x
    if x.shape[1] > len(x):
        u, s, _ = decomposed(x)
        shorter = u * s if len(s) else x[:, :1]
    if task.kind != SINGLE_LABEL:
        varies = np.ptp(y, axis=0) > 0
        return (
            {"logme": scores.logme(shorter, y[:, varies], regression=True)} if varies.any() else {}
        )
    # Shrinkage goes by the number of features, and PARC by the signs of principal directions.
    full = ("regularized_h_score", "parc")
    found = {name: getattr(scores, name)(x if name in full else shorter, y) for name in _OF_CLASSES}
    if _are_probabilities(x):
        found |= {"leep": scores.leep(x, y), "nce": scores.nce(x.argmax(axis=1), y)}
    return found


def _are_probabilities(x: np.ndarray) -> bool:
    return bool(x.shape[1] > 1 and x.min() >= 0 and np.abs(x.sum(axis=1) - 1).max() <= 1e-3)


def figure(task: Task, examples: np.ndarray) -> Figure:
    """Returns the mean of what examples add to the headline figure, and its interval.

    Args:
        task: Whose figure it is.
        examples: `[n]`, as `headline_scores` returns them.
    """
    if task.kind == SINGLE_LABEL:
        interval = proportion_interval(int(examples.sum()), len(examples))
    else:
        interval = bootstrap_interval((examples,), np.mean)
    return Figure(float(examples.mean()), interval)


def beats(one: np.ndarray, other: np.ndarray, higher_is_better: bool = True) -> bool:
    """Whether one is better than the other beyond the 95% interval of their paired difference.

    Args:
        one: What each example adds to the headline figure, `[n]`; see `headline_scores`.
        other: The same of the same examples.
        higher_is_better: False for rmse.
    """
    low, high = paired_interval(one - other) or (0.0, 0.0)
    return low > 0 if higher_is_better else high < 0


def ranks(examples: Sequence[np.ndarray], higher_is_better: bool = True) -> list[int]:
    """Ranks by a figure, from 1: one more than there are that are better beyond the interval.

    Args:
        examples: Of each, as for `beats`.
        higher_is_better: False for rmse.
    """
    return [1 + sum(beats(other, one, higher_is_better) for other in examples) for one in examples]


def halving(candidates: int, budget: int) -> tuple[Round, ...]:
    """Spends a budget by successive halving.

    Each of `ceil(log2(n))` rounds has an equal share of the epochs, and the better half of one
    round is trained anew, for twice as long, in the next (Jamieson and Talwalkar 2016,
    "Non-stochastic Best Arm Identification and Hyperparameter Optimization", figure 3). If the
    budget is too small for an epoch of each, fewer enter: those that features speak for.

    Args:
        candidates: How many there are, at least 1.
        budget: Epochs in all, at least 1.

    Returns:
        The rounds; of one candidate one round, as long as the budget.
    """
    if candidates == 1 or budget < 2:
        return (Round(1, budget),)
    count = math.ceil(math.log2(candidates))
    if candidates * count > budget:
        return halving(candidates - 1, budget)
    rounds = []
    for _ in range(count):
        rounds.append(Round(candidates, budget // (count * candidates)))
        candidates = -(-candidates // 2)
    return tuple(rounds)


def correlation(score: Sequence[float], reached: Sequence[float]) -> float | None:
    """Returns the weighted Kendall tau of a score and what was reached, in [-1, 1].

    Vigna 2015, "A Weighted Correlation Index for Rankings with Ties": errors among the best count
    most. `None` for fewer than two, or where one of the two is the same for all.

    Args:
        score: One a backbone, larger where more is promised.
        reached: Larger is better, in the same order.
    """
    if min(len(set(score)), len(set(reached))) < 2:
        return None
    found: Any = weightedtau(score, reached)
    return float(found.statistic)


def correlations(
    candidates: Sequence[Candidate], reached: Sequence[float], higher_is_better: bool
) -> dict[str, float | None]:
    """Returns the correlation of every score, kNN and the probe among them, with what was reached.

    Args:
        candidates: Backbones.
        reached: The headline figure of each after fine-tuning.
        higher_is_better: False for rmse.
    """
    sign = 1 if higher_is_better else -1
    columns = {
        KNN: [sign * each.knn.value for each in candidates],
        PROBE: [sign * each.probe.value for each in candidates],
    }
    for name in dict.fromkeys(name for each in candidates for name in each.scores):
        if all(name in each.scores for each in candidates):
            columns[name] = [each.scores[name] for each in candidates]
    up = [sign * value for value in reached]
    return {name: correlation(column, up) for name, column in columns.items()}
