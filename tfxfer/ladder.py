"""Is fine-tuning worth it? Ways to use a backbone, from the cheapest up, and which one suffices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfxfer.costs import ModelCost
from tfxfer.evaluate import AnyEvaluation
from tfxfer.intervals import paired_interval
from tfxfer.selection import beats

HELPS, NOTHING, NEGATIVE = "HELPS", "NO EVIDENCE", "NEGATIVE TRANSFER"


@dataclass(frozen=True)
class Rung:
    """One way to use a backbone, trained and tested.

    Attributes:
        name: `knn`, `probe`, `lp_ft`, `gradual`, `scratch` or `distilled`.
        meaning: What it is, in words.
        validation: Scores on the validation examples, which chose epochs and strengths too.
        test: Scores on the test examples.
        nll: Mean negative log-likelihood on these, in nats; `None` for a regression.
        calibration_error: Expected calibration error on these, in [0, 1]; `None` likewise.
        seconds: Wall time of its training, with what it stands on: features, teacher.
        cost: What the model costs where it serves.
        on_front: Whether it is on the front of latency and validation; see `pareto_front`.
        beaten_by: Rungs that are better on validation, beyond the interval of the difference.
    """

    name: str
    meaning: str
    validation: AnyEvaluation
    test: AnyEvaluation
    nll: float | None
    calibration_error: float | None
    seconds: float
    cost: ModelCost
    on_front: bool
    beaten_by: tuple[str, ...]


@dataclass(frozen=True)
class Pretraining:
    """What pretrained weights are worth, against the same network from random ones.

    Attributes:
        word: `HELPS`, `NO EVIDENCE` or `NEGATIVE TRANSFER`.
        rung: The fine-tuning that validates best, which is compared.
        difference: Its headline figure on test, less that of training from scratch.
        interval: 95% interval for it, paired by test example; `None` for one example.
    """

    word: str
    rung: str
    difference: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Ladder:
    """All rungs, and which one suffices.

    Attributes:
        metric: The headline figure: `accuracy`, `f1` or `rmse`.
        rungs: From the first to the last.
        recommended: The one with the shortest training of those that no other beats on validation;
            test examples have no say. Empty where none is better than chance.
        pretraining: What pretrained weights are worth; `None` for a backbone that has none, or
            that cannot be trained.
        notes: What a reader must know beside, in sentences.
    """

    metric: str
    rungs: tuple[Rung, ...]
    recommended: str
    pretraining: Pretraining | None
    notes: tuple[str, ...] = ()


def beaten(
    examples: Mapping[str, np.ndarray], higher_is_better: bool
) -> dict[str, tuple[str, ...]]:
    """Says by whom each is beaten, beyond the 95% interval of the paired difference.

    Args:
        examples: What each example adds to the headline figure, `[n]`, by rung; see
            `headline_scores`.
        higher_is_better: False for rmse.
    """
    return {
        name: tuple(
            other
            for other, theirs in examples.items()
            if other != name and beats(theirs, own, higher_is_better)
        )
        for name, own in examples.items()
    }


def sufficient(seconds: Mapping[str, float], beaten_by: Mapping[str, Sequence[str]]) -> str:
    """Returns the rung with the shortest training of those that are not beaten.

    Where each is beaten by some other, as may be since beating is not transitive, of those that
    are beaten by the fewest.

    Args:
        seconds: Of training, by rung.
        beaten_by: What `beaten` returned.
    """
    fewest = min(map(len, beaten_by.values()))
    return min(
        (name for name, others in beaten_by.items() if len(others) == fewest),
        key=seconds.__getitem__,
    )


def pretraining(
    rung: str,
    pretrained: np.ndarray,
    scratch: np.ndarray,
    higher_is_better: bool,
    unit: float = 0.0,
) -> Pretraining:
    """Compares fine-tuning with training the same network from random weights.

    Args:
        rung: Which fine-tuning it is.
        pretrained: What each test example adds to its headline figure, `[n]`.
        scratch: The same from random weights.
        higher_is_better: False for rmse.
        unit: As for `paired_interval`.
    """
    word = NOTHING
    if beats(pretrained, scratch, higher_is_better):
        word = HELPS
    elif beats(scratch, pretrained, higher_is_better):
        word = NEGATIVE
    difference = pretrained - scratch
    return Pretraining(word, rung, float(difference.mean()), paired_interval(difference, unit))
