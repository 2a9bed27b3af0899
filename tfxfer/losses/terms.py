"""A loss as text: a weighted sum such as `kd(temperature=4)+0.5*hint(student=block2)`."""

import difflib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import tensorflow as tf

from tfxfer.errors import UserError
from tfxfer.losses import logits, maps, relations, target_class
from tfxfer.spec import Spec, parse_spec

_OF_OUTPUTS = (
    *(logits.kd, logits.hard_label, logits.logit_mse, logits.dist, logits.logit_standardised_kd),
    *(logits.binary_kd, logits.multi_label_kd, logits.bounded_regression),
    *(target_class.dkd, target_class.nkd, target_class.ofa),
)
_OF_EQUAL_UNITS = (maps.hint, maps.cosine, maps.hierarchical_context)
_OF_RELATIONS = (
    *(relations.rkd_distance, relations.rkd_angle),
    *(relations.similarity_preserving, relations.pkt),
)
_OF_FEATURES = (*_OF_EQUAL_UNITS, *_OF_RELATIONS, maps.attention_transfer, maps.nst)
_FUNCTIONS = {each.__name__: each for each in (*_OF_OUTPUTS, *_OF_FEATURES)}

_PLACES = ("student", "teacher")
_PLUS = re.compile(r"(?<![\d.][eE])\+(?![^()]*\))")  # Not that of 1e+3, nor between parentheses.


@dataclass(frozen=True)
class Term:
    """One loss of a sum.

    Attributes:
        name: Of a function of `tfxfer.losses`.
        weight: What the loss is multiplied by, at least 0.
        options: Numbers for the function, by name; those that are not given have its defaults.
        student: Layer or stage of the student, for a loss of features; its features if empty.
        teacher: Layer or stage of the teacher, for a loss of features; its features if empty.
        warmup: Epochs over which the weight rises from 0, linearly.

    Raises:
        UserError: If there is no such loss or option, or a number is out of range.
    """

    name: str
    weight: float = 1.0
    options: Mapping[str, float] = field(default_factory=dict, hash=False)
    student: str = ""
    teacher: str = ""
    warmup: float = 0.0

    def __post_init__(self):
        if self.name not in _FUNCTIONS:
            raise UserError(f"No loss is called {self.name!r}", _suggestion(self.name, _FUNCTIONS))
        layer = self.student or self.teacher
        if layer and not self.of_features:
            raise UserError(
                f"{self.name!r} is a loss of outputs, and takes no layer such as {layer!r}",
                "Leave 'student' and 'teacher' out.",
            )
        known = _option_names(self.function)
        for option in self.options:
            if option not in known:
                taken = (*known, *(_PLACES if self.of_features else ()), "warmup")
                raise UserError(
                    f"{self.name!r} has no option {option!r}", _suggestion(option, taken)
                )
        numbers = {"weight": self.weight, "warmup": self.warmup, **self.options}
        for option, value in numbers.items():
            self._check_number(option, value)

    def _check_number(self, option: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise UserError(
                f"{option!r} of {self.name!r} must be a number, not {value!r}", "Give one."
            )
        above = option in ("temperature", "eps")  # A divisor, and an exponent of what may be 0.
        if not 0 <= float(value) < math.inf or (above and not value):
            least = "above" if above else "at least"
            raise UserError(
                f"{option!r} of {self.name!r} must be {least} 0 and finite, not {value}",
                "Give another one.",
            )

    @property
    def function(self) -> Callable[..., tf.Tensor]:
        """The loss, of `(student, teacher, **options)`."""
        return _FUNCTIONS[self.name]

    @property
    def of_features(self) -> bool:
        """Whether it compares features or maps, and not outputs."""
        return self.function in _OF_FEATURES

    @property
    def needs_labels(self) -> bool:
        """Whether the function takes `y_true`."""
        return "y_true" in inspect.signature(self.function).parameters

    @property
    def relational(self) -> bool:
        """Whether the loss of an example depends on the others of its batch."""
        return self.function in (*_OF_RELATIONS, logits.dist)

    @property
    def needs_equal_units(self) -> bool:
        """Whether the features of both must have as many channels."""
        return self.function in _OF_EQUAL_UNITS

    def __str__(self) -> str:
        """Returns text that `parse_losses` reads as this term."""
        values = {name: _number_text(value) for name, value in self.options.items()}
        values |= {
            place: _quoted(getattr(self, place)) for place in _PLACES if getattr(self, place)
        }
        if self.warmup:
            values["warmup"] = _number_text(self.warmup)
        inside = ",".join(f"{name}={value}" for name, value in values.items())
        weight = "" if self.weight == 1 else f"{_number_text(self.weight)}*"
        return f"{weight}{self.name}({inside})" if inside else f"{weight}{self.name}"


def parse_losses(text: str) -> tuple[Term, ...]:
    """Reads a weighted sum of losses.

    Args:
        text: Losses by name between `+`, each with a weight before it if it is not 1, and with
            options in parentheses: `kd(temperature=4)+0.5*hint(student=block2,teacher=conv3)`. Each
            takes the numbers that its function has, and `warmup`, in epochs; losses of features
            take `student` and `teacher`, names of layers or stages.

    Returns:
        The terms, in the order given.

    Raises:
        UserError: If the text is not such a sum, if there is no such loss or option, if a number is
            out of range, or if a loss is given twice for the same layers.
    """
    terms = tuple(_term(part.strip()) for part in _PLUS.split(text))
    seen = [(term.name, term.student, term.teacher) for term in terms]
    for term, key in zip(terms, seen, strict=True):
        if seen.count(key) > 1:
            layers = " for the same layers" if term.of_features else ""
            raise UserError(f"{text!r} gives {term.name!r} twice{layers}", "Give it once.")
    return terms


def _term(text: str) -> Term:
    if not text:
        raise UserError(
            "A loss is missing", f"Give one of {', '.join(sorted(_FUNCTIONS))}, or several by '+'."
        )
    before, star, rest = text.partition("*")
    if not star or "(" in before:
        before, rest = "1", text
    spec = parse_spec(rest.strip().removesuffix("()"))
    if "(" in spec.name or ")" in spec.name:
        raise UserError(
            f"Options of a loss must be key=value in parentheses, and are not in {rest!r}",
            "Write them as in '0.9*kd(temperature=4)', a weight before the name.",
        )
    options = dict(spec.options)
    places = {place: _place(spec, place) for place in _PLACES if place in options}
    warmup = options.pop("warmup", 0.0)
    numbers = {name: value for name, value in options.items() if name not in places}
    return Term(spec.name, _weight(before, spec.name), numbers, **places, warmup=warmup)


def _weight(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"The weight of {name!r} must be a number, not {text.strip()!r}", "Give one."
        ) from None


def _place(spec: Spec, place: str) -> str:
    value = spec.options[place]
    if not isinstance(value, str) or not value:
        raise UserError(
            f"{place!r} of {spec.name!r} must be the name of a layer or stage, not {value!r}",
            "Put a name that reads as a number in quotes.",
        )
    return value


def _option_names(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(each.name for each in parameters if each.default is not each.empty)


def _suggestion(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"There are {', '.join(sorted(known))}."


def _number_text(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _quoted(name: str) -> str:
    """Returns a name as it must stand among options, in quotes where it would be read otherwise."""
    if parse_spec(f"loss(layer={name})").options.get("layer") == name:
        return name
    return f"'{name}'" if '"' in name else f'"{name}"'
