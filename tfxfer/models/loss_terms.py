"""What losses a `Distiller` is given: texts, terms, or functions."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf

from tfxfer.losses.terms import Term, parse_losses
from tfxfer.models.taps import FEATURES


@dataclass(frozen=True)
class OwnTerm:
    """A loss of logits that is given as a function, with what `Term` says of the others."""

    function: Callable[..., tf.Tensor]
    weight: float = 1.0
    options: Mapping[str, float] = field(default_factory=dict)
    warmup: float = 0.0
    student: str = ""
    teacher: str = ""
    of_features: bool = False
    relational: bool = False
    needs_equal_units: bool = False

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", "loss")

    def __str__(self) -> str:
        return self.name

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


def temperature_of(term: Any) -> float | None:
    """Returns the temperature of a loss, given or usual; `None` if it has none."""
    parameter = inspect.signature(term.function).parameters.get("temperature")
    return None if parameter is None else term.options.get("temperature", parameter.default)


def places_of(terms: Sequence[Any], side: str) -> set[str]:
    """Names the layers that losses see of the `student`, or of the `teacher`."""
    return {getattr(term, side) or FEATURES for term in terms if term.of_features}
