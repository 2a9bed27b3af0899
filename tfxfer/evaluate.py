"""What a trained model is worth on data that it has not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from scipy.special import log_softmax
from scipy.stats import t
from sklearn.metrics import average_precision_score, r2_score

from tfxfer.data.parts import Splits
from tfxfer.distribute import worker_count
from tfxfer.intervals import bootstrap_interval, proportion_interval
from tfxfer.task import MULTI_LABEL, SINGLE_LABEL, Task
from tfxfer.turns import Turns


@dataclass(frozen=True)
class Evaluation:
    """How a classifier did on one part of the data.

    Attributes:
        accuracy: Share of right answers, in [0, 1].
        accuracy_interval: Wilson's 95% interval for it.
        loss: Mean negative log-likelihood, in nats.
        examples: How many examples that was counted on: every one, once.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    loss: float
    examples: int


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """How a classifier of several labels an example did on one part of the data.

    Attributes:
        f1: Harmonic mean of precision and recall over all decisions at a probability of 0.5, in
            [0, 1].
        f1_interval: 95% interval for it, by bootstrap over examples.
        mean_average_precision: Mean over the classes that occur of the area under precision and
            recall, in [0, 1].
        exact: Share of examples with every label right, in [0, 1].
        loss: Mean negative log-likelihood of a label, in nats.
        examples: How many examples that was counted on: every one, once.
    """

    f1: float
    f1_interval: tuple[float, float]
    mean_average_precision: float
    exact: float
    loss: float
    examples: int


@dataclass(frozen=True)
class RegressionEvaluation:
    """How well numbers were told on one part of the data.

    Attributes:
        rmse: Root of the mean squared error, in the units of the target; over all targets.
        rmse_interval: 95% interval for it, by bootstrap over examples.
        mae: Mean absolute error, in the units of the target.
        r2: Share of the variance that is told, 1 at best; the mean over the targets. `None` for
            one example, which has no variance.
        loss: Mean squared error, in squared units of the target.
        examples: How many examples that was counted on: every one, once.
    """

    rmse: float
    rmse_interval: tuple[float, float]
    mae: float
    r2: float | None
    loss: float
    examples: int


AnyEvaluation = Evaluation | MultiLabelEvaluation | RegressionEvaluation

HEADLINE = {Evaluation: "accuracy", MultiLabelEvaluation: "f1", RegressionEvaluation: "rmse"}
"""The figure of each kind that has an interval, and that folds are compared by."""


@dataclass(frozen=True)
class FoldSummary:
    """A figure over the folds of a cross-validation.

    Attributes:
        name: Of the figure, such as `accuracy`.
        values: Of each fold.
        mean: Of the values.
        interval: 95% interval for the mean.
    """

    name: str
    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float]


def inference(model: keras.Model, data: tf.data.Dataset) -> Turns:
    """Traces a model as in inference, for the batches of `data`, of whatever size."""
    strategy = model.distribute_strategy
    if worker_count(strategy) == 1:  # One device then does what is little beside training.
        strategy = tf.distribute.get_strategy()
    return Turns(lambda batch: model(batch, training=False), data, strategy)


def predict(
    model: keras.Model, data: tf.data.Dataset, turns: Turns | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Runs a model over all of `data`, once: on one device, or shared by several workers.

    Args:
        model: From inputs to `[batch, units]`, such as logits.
        data: Batches `(x, y)` in a stable order.
        turns: What `inference` returned, so that the model is not traced again.

    Returns:
        Outputs `[examples, units]` and `y` `[examples, ...]`, in the order of `data`.
    """
    turns = turns or inference(model, data)
    outputs, y = zip(*turns.run(data), strict=True)
    return np.concatenate(outputs), np.concatenate(y)


def example_losses(task: Task, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the loss of each example, float64 `[examples]`.

    Args:
        task: What `y` is.
        outputs: Logits, or numbers of a regression, `[examples, units]`.
        y: As the task has it; of one class, shares of each `[examples, classes]` too.

    Returns:
        The negative log-likelihood in nats, for several labels their mean; or the squared error.
    """
    outputs = outputs.astype(np.float64)
    if task.kind == SINGLE_LABEL and y.ndim == 2:
        return -np.sum(y * log_softmax(outputs, axis=-1), axis=-1)
    if task.kind == SINGLE_LABEL:
        return -log_softmax(outputs, axis=-1)[np.arange(len(y)), y]
    if task.kind == MULTI_LABEL:
        return np.mean(np.logaddexp(0, outputs) - y * outputs, axis=-1)
    return np.mean((outputs - y) ** 2, axis=-1)


def score(task: Task, outputs: np.ndarray, y: np.ndarray) -> AnyEvaluation:
    """Scores what a model says against what is true.

    Args:
        task: What `y` is.
        outputs: Logits, or numbers of a regression, `[examples, units]`, at least one example.
        y: As the task has it.

    Returns:
        The evaluation.

    Raises:
        ValueError: If an output is not finite, or a class is none of the task's.
    """
    if not np.isfinite(outputs).all():
        raise ValueError("Expected finite outputs, received some that are not.")
    loss = float(np.mean(example_losses(task, outputs, _in_range(task, y))))
    if task.kind == SINGLE_LABEL:
        return _score_classes(outputs, y, loss)
    if task.kind == MULTI_LABEL:
        return _score_labels(outputs, y, loss)
    return _score_numbers(outputs, y, loss)


def _in_range(task: Task, y: np.ndarray) -> np.ndarray:
    if task.kind == SINGLE_LABEL and (y.min() < 0 or y.max() >= task.units):
        raise ValueError(
            f"Expected labels from 0 to {task.units - 1}, received {y.min()} to {y.max()}."
        )
    return y


def _score_classes(logits: np.ndarray, labels: np.ndarray, loss: float) -> Evaluation:
    right = int(np.sum(np.argmax(logits, axis=-1) == labels))
    return Evaluation(
        accuracy=right / len(labels),
        accuracy_interval=proportion_interval(right, len(labels)),
        loss=loss,
        examples=len(labels),
    )


def _score_labels(logits: np.ndarray, y: np.ndarray, loss: float) -> MultiLabelEvaluation:
    said, true = logits > 0, y > 0.5
    hits, wrong = np.sum(said & true, -1), np.sum(said ^ true, -1)

    def f1(hits, wrong, axis=-1):
        twice = 2 * np.sum(hits, axis)
        return twice / np.maximum(twice + np.sum(wrong, axis), 1)

    occurring = true.any(axis=0)
    precision = (
        float(average_precision_score(true[:, occurring], logits[:, occurring], average="macro"))
        if occurring.any()
        else 0.0
    )
    return MultiLabelEvaluation(
        f1=float(f1(hits, wrong)),
        f1_interval=bootstrap_interval((hits, wrong), f1),
        mean_average_precision=precision,
        exact=float(np.mean(wrong == 0)),
        loss=loss,
        examples=len(y),
    )


def _score_numbers(outputs: np.ndarray, y: np.ndarray, loss: float) -> RegressionEvaluation:
    squares = np.mean((outputs.astype(np.float64) - y) ** 2, axis=-1)

    def root(squares, axis=-1):
        return np.sqrt(np.mean(squares, axis))

    return RegressionEvaluation(
        rmse=float(root(squares)),
        rmse_interval=bootstrap_interval((squares,), root),
        mae=float(np.mean(np.abs(outputs.astype(np.float64) - y))),
        r2=float(r2_score(y, outputs)) if len(y) > 1 else None,
        loss=loss,
        examples=len(y),
    )


def summarise_folds(scores: Mapping[str, AnyEvaluation], splits: Sequence[Splits]) -> FoldSummary:
    """Takes the folds of a cross-validation together.

    Folds share training examples, so that their scores are not independent. The variance is
    corrected for it as in Nadeau and Bengio 2003, "Inference for the Generalization Error":
    `(1/k + test/train) s^2`, with Student's t for `k - 1` degrees of freedom.

    Args:
        scores: One a fold, all of one kind, at least two.
        splits: The parts of each fold.

    Returns:
        The headline figure of each fold, their mean and its interval.
    """
    evaluations = list(scores.values())
    name = HEADLINE[type(evaluations[0])]
    values = np.array([getattr(each, name) for each in evaluations])
    folds = len(values)
    test_share = np.mean([fold.test.examples / fold.train.examples for fold in splits])
    spread = np.sqrt((1 / folds + test_share) * values.var(ddof=1))
    half = float(t.ppf(0.975, folds - 1) * spread)
    mean = float(values.mean())
    most = np.inf if name == "rmse" else 1.0  # Student's t knows no bounds.
    interval = (max(mean - half, 0.0), min(mean + half, most))
    return FoldSummary(name, tuple(map(float, values)), mean, interval)
