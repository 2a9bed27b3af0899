"""What a distillation must show on a few batches before anyone waits for it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import binomtest, ttest_1samp
from sklearn.metrics import r2_score

from tfxfer.backbones import ImageContract
from tfxfer.errors import UserError
from tfxfer.losses.terms import Term
from tfxfer.models import Distiller
from tfxfer.models.base import BackboneModel
from tfxfer.models.teachers import LOGITS, SIGMOID, SOFTMAX, Teacher
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

LABELS = "labels"
"""What the label loss is called among the losses."""

_LEAST = 20  # Labelled examples that say something about a teacher.
_ERROR = 0.05  # One-sided: how often a teacher that only guesses passes.
_FAR = 100.0  # Times the gradient of another loss.
_SUM = 1e-2  # Rounding of probabilities, in half precision too.
_NOTHING = 1e-6  # Of the largest gradient: what rounding leaves of one that is zero.
_WEAK = 0.6  # Accuracy of a teacher on training examples that makes one wonder.
_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # Values of black and white that are usual.
_METRICS = {SINGLE_LABEL: "accuracy", MULTI_LABEL: "accuracy of decisions", REGRESSION: "R2"}


@dataclass(frozen=True)
class Preflight:
    """What a few batches show before training.

    Attributes:
        examples: Labelled examples that were looked at.
        metric: What teacher and student are measured by: `accuracy`, for several labels that of
            all decisions, for numbers `R2`.
        teacher: That of the teachers together; `None` without labelled examples.
        student: The same of the student, before training.
        gradients: By loss, `labels` among them: the norm of its gradient for all weights of the
            student, with its weight, at the start; the mean over the batches.
        notes: What is no mistake, and may be one.
    """

    examples: int
    metric: str
    teacher: float | None
    student: float | None
    gradients: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Says it to a person."""
        scores = "no labelled examples"
        if self.teacher is not None and self.student is not None:
            scores = (
                f"{self.metric} on {self.examples} training examples: teacher "
                f"{self.teacher:.3f}, student {self.student:.3f} before training"
            )
        norms = ", ".join(f"{name} {norm:.3g}" for name, norm in self.gradients.items())
        lines = [scores, f"gradients of the losses: {norms}", *self.notes]
        return [f"{'' if i else 'preflight':10}{line}" for i, line in enumerate(lines)]


def preflight(
    distiller: Distiller, batches: Iterable[Any], task: Task, force: bool = False
) -> Preflight:
    """Looks at teachers, student and losses on a few batches, as training will see them.

    Nothing is trained, and the student is left as it was.

    Args:
        distiller: Compiled, with teachers.
        batches: A few batches `(x, y)` or `(x, y, weight)`. Labels may be missing, as for a
            `Distiller`; those of one class may be shares of each.
        task: What `y` is.
        force: Whether to go on with a teacher that only guesses, and with roles that look swapped.

    Returns:
        What was measured.

    Raises:
        UserError: If a teacher says what is not finite, or what is not of the kind that it is said
            to be; if it is no better than chance, by a one-sided test at 95%; if the student is the
            larger one, and better by as much; if a loss has a gradient that is not finite, or all
            have one that is zero.
        ValueError: If there is no batch, or there are no teachers.
    """
    batches = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
    if not batches or distiller.teachers is None:
        raise ValueError("Expected at least one batch, and teachers, received none.")
    inputs = [x for x, _, _ in batches]
    teachers = distiller.teachers.teachers
    each = []
    for teacher in teachers:
        outputs = _answers(lambda x, model=teacher.model: model(x, training=False), inputs)
        _check_outputs(teacher, outputs, task)
        each.append(np.asarray(teacher.logits(tf.constant(outputs))))
    several = distiller.teachers
    told = each[0] if len(each) == 1 else _answers(lambda x: several(x)[LOGITS], inputs)
    guessed = _answers(lambda x: distiller(x, training=False), inputs)
    y, known = _labels(np.concatenate([np.asarray(y) for _, y, _ in batches]), task)
    y, told, guessed, *each = (array[known] for array in (y, told, guessed, *each))
    if len(y) >= _LEAST and not force:
        for teacher, outputs in zip(teachers, each, strict=True):
            _check_knows(teacher, outputs, y, task)
        _check_roles(distiller, told, guessed, y, task)
    gradients = _gradients(distiller, batches)
    notes = _notes(gradients, _weights(distiller))
    if len(y) >= _LEAST:
        for teacher, outputs in zip(teachers, each, strict=True):
            notes += (*_doubts(teacher, outputs, inputs, y, known, task),)
    return Preflight(
        examples=len(y),
        metric=_METRICS[task.kind],
        teacher=_score(told, y, task),
        student=_score(guessed, y, task),
        gradients=gradients,
        notes=notes,
    )


def better_than_chance(outputs: np.ndarray, y: np.ndarray, task: Task) -> bool:
    """Tells answers from guesses, by a one-sided test at 95%.

    Classes must be right more often than the same answers given to other examples; of several
    labels, more must be said of a label where it is true; numbers must be closer than the mean.

    Args:
        outputs: Logits, or numbers of a regression, `[examples, units]`.
        y: As the task has it: classes `[examples]`, else `[examples, units]`.
        task: What `y` is.

    Returns:
        Whether they are better. Also true where nobody could tell: of fewer than 20 examples, or
        where `y` is the same for so many that right answers would show nothing.
    """
    if len(y) < _LEAST:
        return True
    if task.kind == SINGLE_LABEL:
        said, units = outputs.argmax(axis=-1), outputs.shape[-1]
        return _guesses(y, y, units) or not _guesses(said, y, units)
    apart = y - y.mean(axis=0)
    if not apart.any():
        return True
    if task.kind == MULTI_LABEL:  # Together over the labels.
        return _above_zero(np.sum((outputs - outputs.mean(axis=0)) * apart, axis=-1))
    mean = np.broadcast_to(y.mean(axis=0), y.shape)
    return _above_zero(_worth(outputs, y, task) - _worth(mean, y, task))


def _answers(network: Callable[[Any], tf.Tensor], inputs: list[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(tf.cast(network(x), tf.float32)) for x in inputs])


def _check_outputs(teacher: Teacher, outputs: np.ndarray, task: Task) -> None:
    """Tells logits from probabilities, as far as the numbers show it."""
    if not np.isfinite(outputs).all():
        share = np.mean(~np.isfinite(outputs))
        raise UserError(
            f"The outputs of {teacher.name} must be finite, and {share:.0%} of them are not",
            "Its weights are damaged, or it wants another value_range.",
        )
    if task.kind == REGRESSION:
        return
    shares = outputs.min() >= 0 and outputs.max() <= 1 + _SUM and outputs.any()
    sums = np.abs(outputs.sum(axis=-1) - 1).max() <= _SUM
    each = task.kind == MULTI_LABEL or outputs.shape[-1] == 1
    if teacher.outputs == LOGITS and shares and (sums or each):
        kind = SOFTMAX if sums else SIGMOID
        raise UserError(
            f"The outputs of {teacher.name} must be logits, and look like probabilities: all are "
            f"from 0 to 1{' and add up to 1' if sums else ''}",
            f"Say outputs={kind}.",
        )
    if teacher.outputs != LOGITS and not shares:
        raise UserError(
            f"The outputs of {teacher.name} must be probabilities ({teacher.outputs}), and are "
            f"from {outputs.min():.3g} to {outputs.max():.3g}",
            "Say outputs=logits.",
        )
    if teacher.outputs == SOFTMAX and not sums:
        raise UserError(
            f"The outputs of {teacher.name} must add up to 1 (softmax), and do not",
            "Say outputs=sigmoid, or outputs=logits.",
        )


def _labels(y: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels as the task has them, and which are there, bool `[examples]`."""
    if task.kind != SINGLE_LABEL:
        y = y.reshape(len(y), -1)
        return y, np.asarray(np.isfinite(y).all(axis=-1))
    if y.ndim == 2 and y.shape[-1] > 1:
        return y.argmax(axis=-1), y.max(axis=-1) > 0
    y = y.reshape(-1)
    return y, y >= 0


def _worth(outputs: np.ndarray, y: np.ndarray, task: Task) -> np.ndarray:
    """Returns how well each example is told, `[examples]`: more is better."""
    if task.kind == SINGLE_LABEL:
        return (outputs.argmax(axis=-1) == y).astype(np.float64)
    if task.kind == MULTI_LABEL:
        return np.mean((outputs > 0) == (y > 0.5), axis=-1)
    spread = y.std(axis=0)
    return -np.mean(((outputs - y) / np.where(spread > 0, spread, 1.0)) ** 2, axis=-1)


def _score(outputs: np.ndarray, y: np.ndarray, task: Task) -> float | None:
    if len(y) < 1 + (task.kind == REGRESSION):
        return None
    if task.kind == REGRESSION:
        return float(r2_score(y, outputs))
    return float(np.mean(_worth(outputs, y, task)))


def _check_knows(teacher: Teacher, outputs: np.ndarray, y: np.ndarray, task: Task) -> None:
    if not better_than_chance(outputs, y, task):
        raise UserError(
            f"The answers of {teacher.name} must be better than chance, and on {len(y)} training "
            f"examples they are not: {_METRICS[task.kind]} {_score(outputs, y, task):.3f}",
            "Images may have to be prepared otherwise (value_range, preprocessing, image_size), or "
            "its outputs be in another order (labels=FILE).",
        )


def _doubts(
    teacher: Teacher,
    said: np.ndarray,
    inputs: list[Any],
    y: np.ndarray,
    known: np.ndarray,
    task: Task,
) -> Iterator[str]:
    """Says if a teacher does better with images in another range, or is weak."""
    worth, found = _worth(said, y, task), f"{_METRICS[task.kind]} {_score(said, y, task):.3f}"
    asked = {name: answers[known] for name, answers in _in_other_ranges(teacher, inputs)}
    better = [name for name in asked if _above_zero(_worth(asked[name], y, task) - worth)]
    if better:
        best = max(better, key=lambda name: _worth(asked[name], y, task).mean())
        yield (
            f"{teacher.name} does better with value_range={best}: {found} on {len(y)} training "
            f"examples becomes {_score(asked[best], y, task):.3f}"
        )
    elif task.kind == SINGLE_LABEL and worth.mean() < _WEAK:
        yield (
            f"{teacher.name} is right on {worth.mean():.0%} of {len(y)} training examples: are "
            "labels=FILE and, for images, value_range, preprocessing and image_size right?"
        )


def _in_other_ranges(teacher: Teacher, inputs: list[Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Asks a teacher with images in each other usual range, if it tells what its own is."""
    contract = getattr(getattr(teacher.model, "backbone", teacher.model), "contract", None)
    if not isinstance(contract, ImageContract) or contract.dtype == "uint8":
        return
    black, white = contract.value_range
    for low, high in (each for each in _RANGES if each != (black, white)):
        # What its own preparation, from 0 and 255 to its range, makes values of the other range.
        scale, shift = (high - low) / (white - black), 255 * (low - black) / (white - black)
        images = [scale * tf.cast(x, tf.float32) + shift for x in inputs]
        outputs = _answers(lambda x: teacher.model(x, training=False), images)
        yield f"{low:g},{high:g}", np.asarray(teacher.logits(tf.constant(outputs)))


def _guesses(said: np.ndarray, y: np.ndarray, units: int) -> bool:
    """Whether answers are no better than the same ones given to other examples.

    These would be right as often as Cohen 1960, "A Coefficient of Agreement for Nominal Scales",
    expects by chance; the test is binomial.
    """
    shares = [np.bincount(each, minlength=units) / len(y) for each in (said, y)]
    chance = min(float(shares[0] @ shares[1]), 1.0)
    right = int(np.sum(said == y))
    return bool(binomtest(right, len(y), chance, alternative="greater").pvalue > _ERROR)


def _above_zero(values: np.ndarray) -> bool:
    """Whether the mean is above 0, by a one-sided t-test."""
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        return bool(values[0] > 0)
    found: Any = ttest_1samp(values, 0.0, alternative="greater")
    return bool(found.pvalue <= _ERROR)


def _check_roles(
    distiller: Distiller, told: np.ndarray, guessed: np.ndarray, y: np.ndarray, task: Task
) -> None:
    assert distiller.teachers is not None
    sizes = _size(distiller.student), sum(_size(t.model) for t in distiller.teachers.teachers)
    more = _worth(guessed, y, task) - _worth(told, y, task)
    if sizes[0] > sizes[1] and _above_zero(more):
        raise UserError(
            f"The student must learn of the teacher, and is larger ({sizes[0]:,} parameters, not "
            f"{sizes[1]:,}) and better already: {_METRICS[task.kind]} "
            f"{_score(guessed, y, task):.3f}, not {_score(told, y, task):.3f}",
            "Swap --teacher and --student.",
        )


def _size(model: Any) -> int:
    return sum(int(np.prod(weight.shape)) for weight in getattr(model, "weights", ()))


def _gradients(distiller: Distiller, batches: list[Any]) -> dict[str, float]:
    """Measures the gradient of each loss for the student, and refuses what cannot be learned of.

    One may be zero at the start, as of features of a student with the weights of its teacher.
    """
    student, norms = distiller.student, []
    with _whole(student):
        weights = list(student.trainable_weights)
        for x, y, sample_weight in batches:
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                for weight in weights:
                    tape.watch(weight.value)
                losses = distiller.loss_terms(x, y, sample_weight)
            norms.append({name: _norm(tape, loss, weights) for name, loss in losses.items()})
    found = {name: float(np.mean([each[name] for each in norms])) for name in norms[0]}
    learned = _weights(distiller)
    for name in learned:
        if not np.isfinite(found[name]):
            raise UserError(
                f"The loss {name} must have a gradient for the student, and it is not finite",
                "Leave that loss out, or let it see other layers.",
            )
    if learned and not any(found[name] for name in learned):
        raise UserError(
            f"A loss must have a gradient for the student, and it is zero: {', '.join(learned)}",
            "Add another loss, or let these see other layers.",
        )
    return found


def _norm(tape: tf.GradientTape, loss: tf.Tensor, weights: list[keras.Variable]) -> float:
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    present = [
        np.asarray(tf.convert_to_tensor(each), np.float64) for each in gradients if each is not None
    ]
    return float(np.sqrt(sum(np.sum(each**2) for each in present)))


@contextlib.contextmanager
def _whole(student: Any) -> Iterator[None]:
    """Lets all of a student train, and puts everything back, statistics too."""
    values = [np.array(variable) for variable in student.variables]
    staged = isinstance(student, BackboneModel)
    stages: Any = student.stages if staged else ()
    before = [stage.name for stage in stages if any(w.trainable for w in stage.learned)]
    if staged:
        student.unfreeze(student.stage_names)
    try:
        yield
    finally:
        if staged:
            student.unfreeze(before)
        for variable, value in zip(student.variables, values, strict=True):
            variable.assign(value)


def _weights(distiller: Distiller) -> dict[str, Any]:
    """Returns what is learned at all, by loss: the weight of the label loss, or the term."""
    learned: dict[str, Any] = {}
    if distiller.loss is not None and float(np.asarray(distiller.alpha)) > 0:
        learned[LABELS] = float(np.asarray(distiller.alpha))
    return learned | {str(term): term for term in distiller.terms if term.weight > 0}


def _notes(gradients: Mapping[str, float], weights: Mapping[str, Any]) -> tuple[str, ...]:
    """Says if one loss hardly counts beside another, or not at all at the start."""
    if not weights:
        return ()
    strong = max(weights, key=gradients.__getitem__)
    nothing = [
        name
        for name, each in weights.items()
        if gradients[name] <= _NOTHING * gradients[strong] * min(getattr(each, "weight", each), 1)
    ]
    zero = tuple(
        f"the gradient of {name} is zero at the start; what others teach may change that"
        for name in nothing
    )
    weak = min((name for name in weights if name not in nothing), key=gradients.__getitem__)
    ratio = gradients[strong] / gradients[weak]
    if ratio <= _FAR:
        return zero
    # Of the two, a loss that was asked for rather than that of the labels.
    of_weak = isinstance(weights[weak], Term)
    term, factor = (weights[weak], ratio) if of_weak else (weights[strong], 1 / ratio)
    advice = ""
    if isinstance(term, Term):
        even = replace(term, weight=float(f"{term.weight * factor:.1g}"))
        advice = f"; with {even} they are about equal"
    found = f"the gradient of {strong} is {ratio:.0f} times that of {weak}"
    return (*zero, f"{found}, which hardly counts{advice}")
