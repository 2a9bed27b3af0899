"""What losses a `Distiller` is given: texts, terms, or functions."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import tensorflow as tf

from tfxfer.losses.terms import Term, parse_losses
from tfxfer.models.outputs import check_logits, units_of
from tfxfer.models.taps import FEATURES
from tfxfer.task import KINDS, MULTI_LABEL, REGRESSION, SINGLE_LABEL

_OF_OTHER_TASKS = {"multi_label_kd": MULTI_LABEL, "bounded_regression": REGRESSION}
_OF_EACH_OUTPUT = (*_OF_OTHER_TASKS, "logit_mse")  # All others are over the outputs of an example.


@dataclass(frozen=True)
class OwnTerm:
    """A loss of logits that is given as a function, with what `Term` says of the others.

    Raises:
        ValueError: If it takes `y_true` first, as Keras' losses do.
    """

    function: Callable[..., tf.Tensor]
    weight: float = 1.0
    options: Mapping[str, float] = field(default_factory=dict)
    warmup: float = 0.0
    student: str = ""
    teacher: str = ""
    of_features: bool = False
    relational: bool = False
    needs_equal_units: bool = False

    def __post_init__(self):
        if next(iter(inspect.signature(self.function).parameters), "") == "y_true":
            raise ValueError(
                f"Expected a function of (student, teacher) logits, received {self.name}, of "
                "(y_true, y_pred): give a function that calls it. The loss of labels goes to "
                "`compile`."
            )

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", "loss")

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.weight:g}*{self.name}"

    @property
    def needs_labels(self) -> bool:
        """Whether the function takes `y_true`."""
        return "y_true" in inspect.signature(self.function).parameters


def terms_of(losses: Any, weights: Sequence[float] | None) -> tuple[Any, ...]:
    """Reads losses, and gives them their weights.

    Args:
        losses: A text, a `Term` or a function; or a sequence of these.
        weights: In place of their own, if there are some.

    Raises:
        UserError: If a text names no loss.
        ValueError: If there is none, or not a weight for each.
    """
    if isinstance(losses, str | Term | OwnTerm) or callable(losses):
        losses = [losses]
    terms: list[Any] = []
    for each in losses:
        if isinstance(each, str):
            terms += parse_losses(each)
        else:
            terms.append(each if isinstance(each, Term | OwnTerm) else OwnTerm(each))
    if not terms:
        raise ValueError("Expected a loss at least, received none.")
    if weights is None:
        return tuple(terms)
    if len(weights) != len(terms):
        raise ValueError(f"Expected {len(terms)} weights, received {len(weights)}.")
    return tuple(replace(term, weight=w) for term, w in zip(terms, weights, strict=True))


def check_student(student: keras.Model, task: str, terms: Sequence[Any]) -> None:
    """Checks that a student and the losses that it is to learn by are of one task.

    Args:
        student: Any Keras model, built.
        task: A kind of `tfxfer.task`.
        terms: What `terms_of` returned.

    Raises:
        ValueError: If they are not, or the student returns probabilities where losses by name
            take logits.
    """
    if task not in KINDS:
        raise ValueError(f"Expected a task of {', '.join(KINDS)}, received {task!r}.")
    units = units_of(student)
    if task == SINGLE_LABEL and units == 1:
        raise ValueError(
            "Expected a student of two classes or more, received one output: say "
            f"task={REGRESSION!r} for a number, task={MULTI_LABEL!r} for yes or no."
        )
    named = [each for each in terms if isinstance(each, Term) and not each.of_features]
    for term in named:
        if task == SINGLE_LABEL and term.name in _OF_OTHER_TASKS:
            raise ValueError(
                f"Expected losses of one class an example, received {term.name!r}: say "
                f"task={_OF_OTHER_TASKS[term.name]!r}."
            )
        if units == 1 and term.name not in _OF_EACH_OUTPUT:
            raise ValueError(
                f"Expected one of {', '.join(_OF_EACH_OUTPUT)} for a student of one output, "
                f"received {term.name!r}, which compares several."
            )
    if named and task != REGRESSION:
        check_logits(student)


def temperature_of(term: Any) -> float | None:
    """Returns the temperature of a loss, given or usual; `None` if it has none."""
    parameter = inspect.signature(term.function).parameters.get("temperature")
    return None if parameter is None else term.options.get("temperature", parameter.default)


def places_of(terms: Sequence[Any], side: str) -> set[str]:
    """Names the layers that losses see of the `student`, or of the `teacher`."""
    return {getattr(term, side) or FEATURES for term in terms if term.of_features}
