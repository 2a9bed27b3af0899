"""What distillation was worth: a student against the same student trained on labels alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax

from tfxfer.costs import ModelCost
from tfxfer.evaluate import HEADLINE, AnyEvaluation, score
from tfxfer.intervals import mean_interval, paired_interval
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

HELPED = "HELPED"
NO_EVIDENCE = "NO EVIDENCE"
HURT = "HURT"


@dataclass(frozen=True)
class ModelScores:
    """How a model did on the test examples.

    Attributes:
        evaluation: The figures of the task, with their intervals.
        nll: Mean negative log-likelihood, in nats, of a label where there are several; `None` for
            a regression.
        calibration_error: Expected calibration error, in [0, 1]; `None` for a regression.
    """

    evaluation: AnyEvaluation
    nll: float | None
    calibration_error: float | None

    @property
    def headline(self) -> float:
        """The figure that models are compared by: accuracy, f1 or rmse."""
        return getattr(self.evaluation, HEADLINE[type(self.evaluation)])


@dataclass(frozen=True)
class StudentScores(ModelScores):
    """How a student did on the test examples: one seed, one moment of its training.

    Attributes:
        agreement: Share of the examples on which it decides as the teacher does, in [0, 1]; `None`
            for a regression.
        divergence: How far it is from the teacher; see `divergence`.
    """

    agreement: float | None
    divergence: float


@dataclass(frozen=True)
class Arm:
    """One way to train the student, from each of several seeds.

    Attributes:
        name: `distilled` or `labels alone`.
        best: Scores of the epoch that was best on validation, one a seed.
        last: Scores of the last epoch, one a seed, in the same order.
        steps: Training steps of each seed.
        seconds: Mean wall time that training took, of a seed.
        unfinished: In how many seeds the validation loss was least in the last epoch.
        at_chance: Whether no seed is better than chance on the test examples.
    """

    name: str
    best: tuple[StudentScores, ...]
    last: tuple[StudentScores, ...]
    steps: int
    seconds: float
    unfinished: int = 0
    at_chance: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether distillation helped.

    Attributes:
        word: `HELPED`, `NO EVIDENCE` or `HURT`.
        difference: Mean headline figure of the distilled students, less that of those trained on
            labels alone.
        interval: 95% interval for it; `None` where there is one seed and one test example.
        by: What the interval goes over: `seeds` or `examples`.
        count: How many of these.
    """

    word: str
    difference: float
    interval: tuple[float, float] | None
    by: str
    count: int


@dataclass(frozen=True)
class TransferCard:
    """What a distillation was worth, and what it saves.

    Attributes:
        teacher: Scores of the teacher.
        distilled: The student taught by it.
        alone: The same student, trained as long on labels alone.
        verdict: Of the epochs that were best on validation.
        verdict_last: Of the last epochs.
        costs: Of the `teacher` and of the `student`.
        notes: What a reader must know beside, in sentences.
    """

    teacher: ModelScores
    distilled: Arm
    alone: Arm
    verdict: Verdict
    verdict_last: Verdict
    costs: Mapping[str, ModelCost]
    notes: tuple[str, ...] = ()


def model_scores(task: Task, outputs: np.ndarray, y: np.ndarray) -> ModelScores:
    """Scores a model on test examples.

    Args:
        task: What `y` is.
        outputs: Logits, or numbers of a regression, `[examples, units]`, at least one example.
        y: As the task has it.

    Returns:
        The scores.

    Raises:
        ValueError: If an output is not finite, or a class is none of the task's.
    """
    evaluation = score(task, outputs, y)
    if task.kind == REGRESSION:
        return ModelScores(evaluation, None, None)
    to_probabilities = expit if task.kind == MULTI_LABEL else _softmax
    error = expected_calibration_error(to_probabilities(outputs.astype(np.float64)), y)
    return ModelScores(evaluation, evaluation.loss, error)


def student_scores(
    task: Task, outputs: np.ndarray, teacher_outputs: np.ndarray, y: np.ndarray
) -> StudentScores:
    """Scores a student on test examples, against what is true and against its teacher.

    Args:
        task: What `y` is.
        outputs: Logits, or numbers of a regression, `[examples, units]`, at least one example.
        teacher_outputs: The teacher's, likewise.
        y: As the task has it.

    Returns:
        The scores.

    Raises:
        ValueError: If an output is not finite, shapes differ, or a class is none of the task's.
    """
    scores = model_scores(task, outputs, y)
    return StudentScores(
        evaluation=scores.evaluation,
        nll=scores.nll,
        calibration_error=scores.calibration_error,
        agreement=agreement(outputs, teacher_outputs, task),
        divergence=divergence(outputs, teacher_outputs, task),
    )


def expected_calibration_error(probabilities: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """Measures how far confidence is from the share of right answers.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3: decisions go by their
    confidence into bins of equal width, each with its upper edge; the error is the mean over all
    decisions of `|share right - mean confidence|` of their bin.

    Args:
        probabilities: Of one class each, `[n, classes]`; or of several labels, `[n, labels]`.
        y: Classes `[n]`; or labels of 0 and 1, `[n, labels]`, where each label of each example is
            a decision, and the probability of the answer that is given, at least 0.5, is its
            confidence.
        bins: How many.

    Returns:
        The error, in [0, 1].

    Raises:
        ValueError: If a probability is not in [0, 1], or `bins` is below 1.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if bins < 1:
        raise ValueError(f"Expected at least 1 bin, received {bins}.")
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-6)).all():
        raise ValueError(
            "Expected probabilities in [0, 1], received values from "
            f"{probabilities.min():g} to {probabilities.max():g}."
        )
    if np.ndim(y) == 2:
        confidence = np.maximum(probabilities, 1 - probabilities).ravel()
        right = ((probabilities > 0.5) == (np.asarray(y) > 0.5)).ravel()
    else:
        confidence = probabilities.max(axis=-1)
        right = probabilities.argmax(axis=-1) == y
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    gaps = np.bincount(np.digitize(confidence, edges, right=True), weights=right - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def agreement(outputs: np.ndarray, teacher_outputs: np.ndarray, task: Task) -> float | None:
    """Counts how often a student decides as its teacher does.

    Args:
        outputs: The student's logits, `[n, units]`.
        teacher_outputs: The teacher's, likewise.
        task: What they are logits of.

    Returns:
        The share of the examples with the same class, or with every label the same, in [0, 1];
        `None` for a regression, which decides nothing.

    Raises:
        ValueError: If shapes differ.
    """
    _check_alike(outputs, teacher_outputs)
    if task.kind == REGRESSION:
        return None
    if task.kind == MULTI_LABEL:
        same = np.all((outputs > 0) == (teacher_outputs > 0), axis=-1)
    else:
        same = outputs.argmax(axis=-1) == teacher_outputs.argmax(axis=-1)
    return float(np.mean(same))


def divergence(outputs: np.ndarray, teacher_outputs: np.ndarray, task: Task) -> float:
    """Measures how far a student is from its teacher.

    Args:
        outputs: The student's logits, or numbers of a regression, `[n, units]`.
        teacher_outputs: The teacher's, likewise.
        task: What they are logits or numbers of.

    Returns:
        The mean of `KL(teacher || student)` in nats, at a temperature of 1; for several labels
        that of a label, between Bernoulli distributions; for a regression the mean squared
        difference. At least 0.

    Raises:
        ValueError: If shapes differ.
    """
    _check_alike(outputs, teacher_outputs)
    student, teacher = outputs.astype(np.float64), teacher_outputs.astype(np.float64)
    if task.kind == REGRESSION:
        return float(np.mean((student - teacher) ** 2))
    if task.kind == MULTI_LABEL:
        ratios = expit(teacher) * (log_expit(teacher) - log_expit(student))
        ratios += expit(-teacher) * (log_expit(-teacher) - log_expit(-student))
    else:
        gaps = log_softmax(teacher, axis=-1) - log_softmax(student, axis=-1)
        ratios = np.sum(_softmax(teacher) * gaps, axis=-1)
    return max(float(np.mean(ratios)), 0.0)  # Rounding may leave a little less than nothing.


def headline_scores(task: Task, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spreads the headline figure over the examples, so that models can be compared in pairs.

    The mean is the figure itself. Accuracy is a mean of right and wrong. F1 and rmse are functions
    of means `m` of what each example adds, `x_i`, and get `f(m) + gradient(f, m) . (x_i - m)`,
    whose spread is that of the figure for many examples: the infinitesimal jackknife (Efron 1982,
    "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 6).

    Args:
        task: What `y` is.
        outputs: Logits, or numbers of a regression, `[examples, units]`.
        y: As the task has it.

    Returns:
        One number an example, float64 `[examples]`.
    """
    if task.kind == SINGLE_LABEL:
        return (outputs.argmax(axis=-1) == y).astype(np.float64)
    if task.kind == MULTI_LABEL:
        said, true = outputs > 0, y > 0.5
        twice_hits = 2.0 * np.sum(said & true, axis=-1)
        both = twice_hits + np.sum(said ^ true, axis=-1)
        whole = both.mean()
        if whole == 0:  # No label is true, and none was said.
            return np.zeros(len(y))
        f1 = twice_hits.mean() / whole
        return f1 + (twice_hits - f1 * both) / whole
    squares = np.mean((outputs.astype(np.float64) - y) ** 2, axis=-1)
    rmse = np.sqrt(squares.mean())
    return squares if rmse == 0 else (rmse + squares / rmse) / 2


def headline_unit(task: Task) -> float:
    """Returns the `unit` of `paired_interval` for differences of `headline_scores`."""
    return 1.0 if task.kind == SINGLE_LABEL else 0.0


def verdict(
    distilled_headline: Sequence[float] | np.ndarray,
    alone_headline: Sequence[float] | np.ndarray,
    distilled_examples: Sequence[float] | np.ndarray = (),
    alone_examples: Sequence[float] | np.ndarray = (),
    higher_is_better: bool = True,
    unit: float = 0.0,
) -> Verdict:
    """Says whether distillation helped, by a 95% interval for the difference that it made.

    With two seeds or more it is the wider of two: Student's t interval of the differences paired
    by seed, and `paired_interval` of those paired by test example; with one seed it is the latter.
    Distillation `HELPED` if the whole interval lies on the better side of 0, it `HURT` if on the
    worse, else, and if the interval is one point, there is `NO EVIDENCE`. Few seeds alone would
    not do: with two, differences of accuracy are the same by chance as often as one time in ten.

    What it does not cover: seeds share, but for its draw, their training data. With one seed the
    interval is for these two trained students: another seed may come out otherwise.

    Args:
        distilled_headline: Headline figures of the distilled students, one a seed.
        alone_headline: Those of the students trained on labels alone, of the same seeds.
        distilled_examples: What `headline_scores` returns for the distilled student, the mean over
            seeds; needed with one seed.
        alone_examples: Likewise for the other student, of the same examples.
        higher_is_better: Whether a higher figure is better: false for rmse.
        unit: As for `paired_interval`.

    Returns:
        The verdict.

    Raises:
        ValueError: If there is nothing to compare, or what is to be paired differs in number.
    """
    if not len(distilled_headline) or len(distilled_headline) != len(alone_headline):
        raise ValueError(
            "Expected one figure a seed of both students, received "
            f"{len(distilled_headline)} and {len(alone_headline)}."
        )
    seeds, examples = len(distilled_headline), len(distilled_examples)
    if examples != len(alone_examples) or not (examples or seeds > 1):
        raise ValueError(
            "Expected one score an example of both students, received "
            f"{examples} and {len(alone_examples)}."
        )
    by_seed = np.subtract(distilled_headline, alone_headline, dtype=np.float64)
    over_seeds = mean_interval(by_seed)
    over_examples = paired_interval(
        np.subtract(distilled_examples, alone_examples, dtype=np.float64), unit
    )
    interval, by, count = over_examples, "examples", examples
    if over_seeds and (over_examples is None or np.ptp(over_seeds) > np.ptp(over_examples)):
        interval, by, count = over_seeds, "seeds", seeds
    low, high = interval or (0.0, 0.0)
    word = NO_EVIDENCE
    if low < high and (low > 0 or high < 0):
        word = HELPED if (low > 0) == higher_is_better else HURT
    return Verdict(word, float(by_seed.mean()), interval, by, count)


def _softmax(logits: np.ndarray) -> np.ndarray:
    return softmax(logits, axis=-1)


def _check_alike(outputs: np.ndarray, teacher_outputs: np.ndarray) -> None:
    if outputs.shape != teacher_outputs.shape:
        raise ValueError(
            "Expected outputs of one shape, received "
            f"{outputs.shape} of the student and {teacher_outputs.shape} of the teacher."
        )
