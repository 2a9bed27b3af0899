"""What stands on a backbone's features: small Keras layers from features to what a task wants.

`fit_head` finds one without gradient steps of TensorFlow, in seconds; `linear` and `mlp` return
layers for a training loop to train. A head takes features `[batch, d]` and gives float32
`[batch, task.units]`: logits of the classes, or numbers in the units of the targets.
"""

import numpy as np

from tfxfer.config import HEADS
from tfxfer.errors import UserError
from tfxfer.heads import logistic, neighbours, prototypes, ridge
from tfxfer.heads.fitted import Data, FittedHead
from tfxfer.heads.gradient import assign_linear, linear, mlp, target_scale
from tfxfer.heads.prototypes import Prototypes, with_class
from tfxfer.task import SINGLE_LABEL, Task

__all__ = [
    "FittedHead",
    "Prototypes",
    "assign_linear",
    "fit_head",
    "linear",
    "mlp",
    "target_scale",
    "with_class",
]


def fit_head(
    name: str, task: Task, train: Data, validation: Data, *, strength: float | None = None
) -> FittedHead:
    """Fits a head to features; the same features give the same head.

    Args:
        name: `logistic`, `ridge`, `knn`, `cosine` or `prototype`.
        task: What the head is to tell.
        train: Features, float32 `[n, d]`, memory-mapped or not, and `y` as the task has it.
        validation: The same of the examples that choose the strength, and how sure the head is.
            Those of a class that is not in `train` are passed over.
        strength: The one to take; the best on `validation` of those that are usual if `None`.
            Inverse of the penalty for `logistic`, above 0; the penalty for `ridge`, above 0; number
            of neighbours for `knn`, at least 1; the others have none.

    Returns:
        The head, with what was tried.

    Raises:
        UserError: If there is no such head, if it is not for such a task, if it cannot have such a
            strength, or if no class of `train` is in `validation`.
        ValueError: If `name` is trained by gradient, or the arrays do not go together.
    """
    if name not in HEADS:
        raise UserError(f"A head must be one of {', '.join(HEADS)}, not {name!r}", "Choose one.")
    if name in ("linear", "mlp"):
        raise ValueError(f"Expected a head that is fitted, received {name!r}; build it and train.")
    for x, y in (train, validation):
        if x.ndim != 2 or x.shape[1] != train[0].shape[1] or len(x) != len(y) or not len(x):
            raise ValueError(f"Expected x [n, d] and y [n, ...], received {x.shape}, {y.shape}.")
    if task.kind == SINGLE_LABEL:
        validation = _of_known_classes(train, validation)
    if name == "logistic":
        return logistic.fit(task, train, validation, strength)
    if name == "ridge":
        return ridge.fit(task, train, validation, strength)
    if name == "knn":
        return neighbours.fit(task, train, validation, strength)
    return prototypes.fit(name, task, train, validation, strength)


def _of_known_classes(train: Data, validation: Data) -> Data:
    """Leaves out what no head can tell, which would only speak for the least sure of them."""
    x, y = validation
    known = np.isin(y, train[1])
    if not known.any():
        raise UserError(
            "Validation must have examples of the classes in train, and has none",
            "Give more examples, or a validation part with the same classes.",
        )
    return (x, y) if known.all() else (x[known], y[known])
