"""`Teacher` and `Teachers`: trained networks, of which a student learns."""

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones.constants import Constants
from tfxfer.errors import UserError
from tfxfer.models.outputs import LOGITS, SIGMOID, SOFTMAX, activation_of, units_of
from tfxfer.models.taps import AmbiguousName, Taps
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL


class Teacher:
    """A trained network, seen as logits of the classes of a student.

    It is only ever run as in inference, and nothing of it is changed, `trainable` neither.

    Args:
        model: A Keras model, or anything that is called with inputs and `training`, from the
            inputs of the student to `[batch, units]`. It prepares its images itself.
        outputs: `logits`, or `softmax` or `sigmoid` for probabilities. If empty, what the graph of
            a functional or Sequential model ends in; else the last layer, if there is one. Say it
            of a model that shows neither, such as one with a softmax in its own `call`.
        columns: Which of its outputs are the classes of the student, in the order of the student;
            all of them, in their order, if `None`.
        name: What it is called in messages.

    Attributes:
        units: How many outputs the student gets to see; `None` if the model does not tell.

    Raises:
        ValueError: If the model cannot be called, `outputs` is none of these, or there is no such
            column.
    """

    def __init__(
        self,
        model: Any,
        outputs: str = "",
        columns: Sequence[int] | None = None,
        name: str = "the teacher",
    ):
        if not callable(model):
            raise ValueError(
                f"Expected a model to learn from, received {model!r}: load it first, a .keras file "
                "with tfxfer.load_model."
            )
        if outputs not in ("", LOGITS, SOFTMAX, SIGMOID):
            raise ValueError(f"Expected logits, softmax or sigmoid, received {outputs!r}.")
        self.model, self.name = model, name
        self.outputs = outputs or activation_of(model, guess=True)
        self.columns = None if columns is None else tuple(columns)
        units = units_of(model)
        if self.columns is not None:
            _check_columns(self.columns, units)
        self.units = units if self.columns is None else len(self.columns)

    def seen_for(self, task: str) -> "Teacher":
        """Returns this teacher as one of a task, a kind of `tfxfer.task`.

        Numbers of a regression are no probabilities, whatever they end in. Where several labels may
        be true, each class of a softmax is true or not, by itself.
        """
        seen = copy.copy(self)
        if task == REGRESSION:
            seen.outputs = LOGITS
        elif task == MULTI_LABEL and self.outputs == SOFTMAX:
            seen.outputs = SIGMOID
        return seen

    def logits(self, outputs: tf.Tensor) -> tf.Tensor:
        """Makes logits of the student's classes of what the model returned, at least float32."""
        if outputs.dtype != tf.float64:
            outputs = tf.cast(outputs, tf.float32)
        if self.columns is not None:
            _check_columns(self.columns, outputs.shape[-1])
            outputs = tf.gather(outputs, self.columns, axis=-1)
        if self.outputs == LOGITS:
            return outputs
        least = np.finfo(outputs.dtype.as_numpy_dtype).tiny
        logs = tf.math.log(tf.maximum(outputs, least))
        if self.outputs == SOFTMAX:
            return logs
        return logs - tf.math.log(tf.maximum(1.0 - outputs, least))


class Teachers:
    """One teacher or several, asked once a batch, with the weights that they have now.

    Graphs that are traced keep these weights as constants; see `read`.

    Several are averaged in the space of probabilities (Hinton et al. 2015, section 1), those of a
    regression in that of its numbers.

    Args:
        teachers: One at least.
        weights: Of the average, each above 0; equal if `None`. Only their ratios count.
        task: What the outputs are: one of the kinds of `tfxfer.task`.
        names: Of layers whose outputs are wanted besides; each is taken of the first teacher that
            has it.
        compared: Whether their outputs are compared with those of a student. If not, each may have
            others, and nobody asks what they say together.

    Raises:
        UserError: If no teacher has a layer of a name.
        ValueError: If there is no teacher, or the weights do not fit.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weights: Sequence[float] | None = None,
        task: str = SINGLE_LABEL,
        names: Collection[str] = (),
        compared: bool = True,
    ):
        if not teachers:
            raise ValueError("Expected a teacher at least, received none.")
        shares = np.ones(len(teachers)) if weights is None else np.asarray(weights, np.float64)
        if shares.shape != (len(teachers),) or not (shares > 0).all():
            raise ValueError(
                f"Expected a weight above 0 for each of {len(teachers)} teachers, "
                f"received {weights}."
            )
        self.given = tuple(teachers)
        self.teachers = tuple(each.seen_for(task) for each in teachers)
        self.weights, self._compared = weights, compared
        self.shares, self.task = shares / shares.sum(), task
        self._taps = self._find(set(names))
        self.names = tuple(sorted(names))
        weights = [each for member in teachers for each in getattr(member.model, "weights", ())]
        # Those of Keras 2 or of TensorFlow Hub are tf.Variables, and are read as they are.
        held = {id(each): each for each in weights if isinstance(each, keras.Variable)}
        self._constants = Constants(list(held.values()))
        self.channels: Mapping[str, int | None] = {
            name: taps.channels[name] for taps in self._taps for name in taps.channels
        }
        self.tokens = {name: told for taps in self._taps for name, told in taps.tokens.items()}

    def read(self) -> bool:
        """Reads the weights again, for graphs that are traced from now on.

        Returns:
            Whether some have changed since.
        """
        return self._constants.read()

    @property
    def supports_jit(self) -> bool:
        """Whether XLA can compile all of them, as far as they tell."""
        models: list[Any] = [each.model for each in self.teachers]
        layers = [each for each in models if isinstance(each, keras.layers.Layer)]
        return all(inner.supports_jit for each in layers for inner in each._flatten_layers())

    def check(self, student: keras.Model, same_units: bool) -> None:
        """Looks whether a student can learn from them.

        Args:
            student: Any Keras model, built.
            same_units: Whether their outputs are compared, one by one.

        Raises:
            ValueError: If it shares weights with one, or one has more outputs or fewer.
        """
        own, units = {id(weight) for weight in student.weights}, units_of(student)
        for teacher in self.teachers:
            if not own.isdisjoint(id(weight) for weight in getattr(teacher.model, "weights", ())):
                raise ValueError(
                    f"Expected a teacher with weights of its own, received {teacher.name!r}, which "
                    "shares some with the student: clone it."
                )
            if same_units and None not in (units, teacher.units) and units != teacher.units:
                raise ValueError(
                    f"Expected a teacher of {units} outputs, as the student has, received "
                    f"{teacher.units} of {teacher.name!r}: choose its `columns`."
                )

    def _find(self, names: set[str]) -> list[Taps]:
        """Gives each name to the first teacher that has it; the last one says what is lacking."""
        taps = []
        for teacher in self.teachers:
            last = teacher is self.teachers[-1]
            found = names if last else {name for name in names if _has(teacher, name)}
            taps.append(Taps(teacher.model, found, teacher.name))
            names = names - found
        return taps

    def __call__(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Runs each teacher once, as in inference.

        Args:
            inputs: As the student takes them.

        Returns:
            `logits`, `[batch, units]`, at least float32, unless they differ in units and are not
            `compared`; and what was wanted by name.
        """
        told, found = [], {}
        for teacher, taps in zip(self.teachers, self._taps, strict=True):
            with self._constants.used():
                outputs, features = taps(inputs, training=False)
            told.append(teacher.logits(outputs))
            found |= {name: value for name, value in features.items() if name not in found}
        answers = {name: found[name] for name in self.names}
        if self._compared or len({each.shape[-1] for each in told}) == 1:
            answers = {LOGITS: self._together(told), **answers}
        return {name: tf.stop_gradient(each) for name, each in answers.items()}

    def _together(self, logits: Sequence[tf.Tensor]) -> tf.Tensor:
        if len(logits) == 1:
            return logits[0]
        stacked = tf.stack(logits)
        shares = tf.cast(self.shares, stacked.dtype)[:, None, None]
        if self.task == REGRESSION:
            return tf.reduce_sum(shares * stacked, axis=0)
        if self.task == MULTI_LABEL:
            right = tf.reduce_logsumexp(tf.math.log(shares) + tf.math.log_sigmoid(stacked), axis=0)
            wrong = tf.reduce_logsumexp(tf.math.log(shares) + tf.math.log_sigmoid(-stacked), axis=0)
            return right - wrong
        return tf.reduce_logsumexp(tf.math.log(shares) + tf.nn.log_softmax(stacked), axis=0)

    def packed(self, inputs: Any) -> tf.Tensor:
        """Puts all answers into one tensor `[batch, numbers]`, float32, to be kept for later.

        Args:
            inputs: As the student takes them.
        """
        answers = self(inputs)
        if not self.names:
            return tf.cast(answers[LOGITS], tf.float32)
        batch = tf.shape(next(iter(answers.values())))[0]
        flat = [
            tf.reshape(tf.cast(each, tf.float32), [batch, math.prod(each.shape[1:])])
            for each in answers.values()
        ]
        return tf.concat(flat, axis=-1)

    def unpacked(self, packed: tf.Tensor, inputs: Any) -> dict[str, tf.Tensor]:
        """Takes apart what `packed` put together.

        Args:
            packed: `[batch, numbers]`.
            inputs: What it was computed from; only their shapes matter.
        """
        if not self.names:
            return {LOGITS: packed}
        with tf.init_scope():  # Shapes alone: nothing runs.
            specs = tf.nest.map_structure(
                lambda each: tf.TensorSpec([None, *each.shape[1:]], each.dtype), inputs
            )
            traced: Any = tf.function(self.__call__, autograph=False).get_concrete_function(specs)
        shapes = {name: each.shape[1:] for name, each in traced.structured_outputs.items()}
        # As `packed` orders them; a function that is traced sorts its answers by name.
        names = [name for name in (LOGITS, *self.names) if name in shapes]
        sizes = [math.prod(shapes[name]) for name in names]
        parts = tf.split(packed, sizes, axis=-1)
        return {
            name: tf.reshape(part, [-1, *shapes[name]])
            for name, part in zip(names, parts, strict=True)
        }


def _has(teacher: Teacher, name: str) -> bool:
    try:
        Taps(teacher.model, [name], teacher.name)
    except AmbiguousName:
        return True  # Which is told when it is taken.
    except UserError:
        return False
    return True


def _check_columns(columns: tuple[int, ...], units: int | None) -> None:
    if not columns or min(columns) < 0 or (units is not None and max(columns) >= units):
        below = "" if units is None else f" and below {units}"
        raise ValueError(f"Expected columns of at least 0{below}, received {list(columns)}.")
