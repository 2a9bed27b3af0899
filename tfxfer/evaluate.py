"""What a classifier is worth on data that it has not seen."""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from scipy.special import log_softmax
from scipy.stats import binomtest


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


def predict(model: keras.Model, data: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Runs a classifier over all of `data`, once, on one device.

    Args:
        model: From images to logits `[batch, classes]`.
        data: Batches `(images, labels)` in a stable order, labels int `[batch]`.

    Returns:
        Logits `[examples, classes]` and labels `[examples]`, in the order of `data`.
    """
    images, _ = data.element_spec
    step = tf.function(lambda batch: model(batch, training=False), input_signature=[images])
    answers = [(step(batch).numpy(), labels.numpy()) for batch, labels in data]
    logits, labels = zip(*answers, strict=True)
    return np.concatenate(logits), np.concatenate(labels)


def example_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the negative log-likelihood of each label, float64 `[examples]`, in nats.

    Args:
        logits: Float `[examples, classes]`.
        labels: Int `[examples]`, from 0 to `classes - 1`.
    """
    return -log_softmax(logits.astype(np.float64), axis=-1)[np.arange(len(labels)), labels]


def score(logits: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Scores logits against labels.

    The interval is that of Wilson 1927, "Probable Inference, the Law of Succession, and
    Statistical Inference".

    Args:
        logits: Float `[examples, classes]`, at least one example.
        labels: Int `[examples]`, from 0 to `classes - 1`.

    Returns:
        The evaluation.

    Raises:
        ValueError: If a logit is not finite, or a label is none of the classes.
    """
    if not np.isfinite(logits).all():
        raise ValueError("Expected finite logits, received some that are not.")
    if labels.min() < 0 or labels.max() >= logits.shape[-1]:
        raise ValueError(
            f"Expected labels from 0 to {logits.shape[-1] - 1}, "
            f"received {labels.min()} to {labels.max()}."
        )
    right = int(np.sum(np.argmax(logits, axis=-1) == labels))
    interval = binomtest(right, len(labels)).proportion_ci(0.95, method="wilson")
    return Evaluation(
        accuracy=right / len(labels),
        accuracy_interval=(float(interval.low), float(interval.high)),
        loss=float(np.mean(example_losses(logits, labels))),
        examples=len(labels),
    )
