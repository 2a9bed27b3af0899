"""What students learn of their teachers: `--loss`, for the task at hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer import losses
from tfxfer.errors import UserError
from tfxfer.heads import target_scale
from tfxfer.losses.terms import Term, parse_losses
from tfxfer.models.loss_terms import OwnTerm, terms_of
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

_USUAL = {
    SINGLE_LABEL: "0.9*kd(temperature=4)",
    MULTI_LABEL: "0.9*multi_label_kd(temperature=2)",
    REGRESSION: "0.9*logit_mse",
}
# Losses of outputs; all others are for one class an example.
_OF_TASK = {
    MULTI_LABEL: ("multi_label_kd", "logit_mse"),
    REGRESSION: ("bounded_regression", "logit_mse"),
}
_NOT_OF_CLASSES = ("multi_label_kd", "bounded_regression")


def losses_for(text: str, task: Task, train_labels: Any) -> tuple[Term | OwnTerm, ...]:
    """Reads the losses of a distillation.

    Args:
        text: As for `parse_losses`, or `auto`: logits for classes, the squared error for numbers,
            which then counts in standard deviations of each target, as the label loss does.
        task: What is learned.
        train_labels: `y` of the training examples.

    Returns:
        The terms.

    Raises:
        UserError: If a loss is none, or is of another kind of task.
    """
    if text == "auto" and task.kind == REGRESSION:
        _, spread = target_scale(train_labels)
        return terms_of(_in_deviations(spread), [0.9])
    terms = parse_losses(_USUAL[task.kind] if text == "auto" else text)
    for term in terms:
        if not term.of_features and not _is_for(term.name, task.kind):
            fitting = _OF_TASK.get(task.kind) or ("kd", "dkd", "dist", "logit_mse")
            raise UserError(
                f"The loss {term.name!r} is not for data of {task}",
                f"Choose {', '.join(fitting[:-1])} or {fitting[-1]}, or a loss of features.",
            )
    return terms


def _is_for(name: str, kind: str) -> bool:
    return name in _OF_TASK[kind] if kind in _OF_TASK else name not in _NOT_OF_CLASSES


def _in_deviations(spread: np.ndarray) -> Callable[..., tf.Tensor]:
    scale = tf.constant(spread, tf.float32)

    def logit_mse(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
        return losses.logit_mse(student / scale, teacher / scale)

    return logit_mse
