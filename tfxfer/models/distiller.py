"""`Distiller`: a student that learns what its teachers say."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import Stage
from tfxfer.losses.terms import Term
from tfxfer.models.labels import flat_weights, known_weights, labels_for_losses, read_labels
from tfxfer.models.loss_schedule import with_schedule
from tfxfer.models.loss_terms import check_student, places_of, temperature_of, terms_of
from tfxfer.models.outputs import LOGITS
from tfxfer.models.step import StepModel, gathered
from tfxfer.models.taps import FEATURES, Taps, check_tokens
from tfxfer.models.teachers import Teacher, Teachers
from tfxfer.task import SINGLE_LABEL

PROJECTORS = "projectors"
"""The name of the stage that brings features of the student to as many units as the teacher's."""

INPUTS, TEACHER = "inputs", "teacher"
"""Keys of a batch that brings along what the teachers say of it."""


@keras.saving.register_keras_serializable(package="tfxfer")
class Distiller(StepModel):
    """A student that learns the outputs of trained networks, beside labels or without any.

    The loss of an example is `alpha * label loss + sum of weight * loss(student, teacher)`, beside
    the student's own regularisers (Hinton et al. 2015, "Distilling the Knowledge in a Neural
    Network"). A plain Keras model, whose output is that of the student::

        distiller = Distiller(student, teacher, "0.9*kd(temperature=4)", alpha=0.1)
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distiller.fit(images, labels)
        distiller.student.save("student.keras")

    In a step each network runs once. Teachers run as in inference; they are no part of this model:
    their weights are neither trained nor saved nor exported, and a distiller that was loaded from a
    file trains again once it is given `teachers`. `evaluate` is that of the student, on labels.

    Labels may be missing: -1 for a class, zeros for one-hot ones, NaN for numbers. Such examples
    count with a label loss of 0, in `evaluate` too. Metrics that are to leave them out go into
    `weighted_metrics`. Without a loss in `compile`, `evaluate` tells the metrics alone.

    Under a strategy, losses over the batch, such as `rkd_distance`, are those of the whole batch,
    of which each replica must have as many examples: `fit` batches of a multiple of their number,
    made with `drop_remainder=True`.

    Args:
        student: Any Keras model from inputs to logits `[batch, units]`, built.
        teachers: A model or a `Teacher`, or several, from the same inputs; each prepares its inputs
            itself. May be set later, and count with the weights that they have when `compile` or
            `fit` is called.
        losses: Such as `kd(temperature=4)+0.5*hint(student=block2,teacher=conv3)`, the losses of
            `tfxfer.losses`; or a sequence of such terms, and of functions of `(student, teacher)`
            logits `[batch, units]` that return `[batch]`.
        weights: Weights of the losses, in place of those written before them.
        alpha: Weight of the label loss, the one that `compile` is given; at least 0.
        teacher_weights: Of the average of several teachers; see `Teachers`.
        task: What the outputs are: `single_label`, one class an example; `multi_label`, a logit
            for each of several that may be true; or `regression`, numbers.
        **kwargs: As for every `keras.Model`.

    Attributes:
        alpha: A variable; a schedule may assign it.
        loss_weights: A variable for each loss, by its text.
        temperatures: A variable for each loss that has one.

    Raises:
        UserError: If there is no such loss, or no layer of a name in student or teachers, or these
            cut texts into other tokens and a loss compares what they say of each.
        ValueError: If a number is out of range, the student is not a model that is built, or shares
            weights with a teacher or returns probabilities, a teacher has other outputs than the
            student, or student or losses are of another task.
    """

    def __init__(
        self,
        student: keras.Model,
        teachers: Any = (),
        losses: str | Sequence[str | Callable[..., tf.Tensor]] = "0.9*kd(temperature=4)",
        weights: Sequence[float] | None = None,
        *,
        alpha: float = 0.1,
        teacher_weights: Sequence[float] | None = None,
        task: str = SINGLE_LABEL,
        projections: Mapping[str, int] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not alpha >= 0:
            raise ValueError(f"Expected alpha of at least 0, received {alpha}.")
        if not (isinstance(student, keras.Model) and student.built):
            raise ValueError(
                f"Expected a student, a Keras model that is built, received {student!r}."
            )
        self.student, self.task = student, task
        self.terms = terms_of(losses, weights)
        check_student(student, task, self.terms)
        self._taps = Taps(student, places_of(self.terms, "student"), "The student")
        self._teacher_weights, self._teachers = teacher_weights, lambda: None
        self.alpha = self._number(alpha, "alpha")
        self.loss_weights = [self._number(term.weight, "weight") for term in self.terms]
        self.temperatures = {
            str(i): self._number(value, "temperature")
            for i, term in enumerate(self.terms)
            if (value := temperature_of(term)) is not None
        }
        self.projectors: list[keras.layers.Layer] = []
        self._projected: list[int] = []
        for number, units in (projections or {}).items():
            self._project(int(number), units)
        names = [term.name for term in self.terms]
        self._trackers = [
            keras.metrics.Mean(name=name if names.count(name) == 1 else f"{name}_{i + 1}")
            for i, name in enumerate(names)
        ]
        self.built = True
        if teachers != ():
            self._learn_from(teachers)

    def _number(self, value: float, name: str) -> keras.Variable:
        initial = keras.initializers.Constant(value)
        return self.add_weight((), initial, "float32", trainable=False, autocast=False, name=name)

    @property
    def teachers(self) -> Teachers | None:
        """The teachers, which are no part of the model; `None` if they are still to be given.

        May be set to a model, a `Teacher`, or several; or to the `teachers` of another distiller.
        """
        return self._teachers()

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets teachers, which Keras must not see, and all else as usual."""
        if name == "teachers":
            self._learn_from(value)
        else:
            super().__setattr__(name, value)

    def _learn_from(self, teachers: Any) -> None:
        if isinstance(teachers, Teachers):  # Those of another distiller.
            self._teacher_weights = self._teacher_weights or teachers.weights
            teachers = teachers.given
        given = teachers if isinstance(teachers, list | tuple) else [teachers]
        members = [each if isinstance(each, Teacher) else Teacher(each) for each in given]
        binary = any(term.name == "binary_kd" for term in self.terms)
        found = Teachers(
            members,
            self._teacher_weights,
            SINGLE_LABEL if binary else self.task,  # Its teachers tell one class an example.
            places_of(self.terms, "teacher"),
            compared=not all(term.of_features for term in self.terms),
        )
        compared = any(isinstance(term, Term) and not term.of_features for term in self.terms)
        found.check(self.student, same_units=compared)
        for number, term in enumerate(self.terms):
            check_tokens(term, self._taps.tokens, found.tokens)
            if term.needs_equal_units and number not in self._projected:
                units = found.channels[term.teacher or FEATURES]
                if units != self._taps.channels[term.student or FEATURES]:
                    self._project(number, units)
        # In a function, so that Keras does not take them for a part of the model.
        self._teachers = lambda: found
        self.train_function = None  # It was traced with the teachers before.
        self.supports_jit = found.supports_jit
        if self.compiled and not self.supports_jit:
            self.jit_compile = False

    def _project(self, number: int, units: int | None) -> None:
        """Brings what a loss sees of the student to so many units (Romero et al. 2015, FitNets)."""
        channels = self._taps.channels[self.terms[number].student or FEATURES]
        # On the last axis: a 1x1 convolution, for maps.
        layer = keras.layers.Dense(units, use_bias=False, name=f"projector_{number + 1}")
        layer.build((None, channels))
        self._projected.append(number)
        self.projectors.append(layer)

    @property
    def backbone(self) -> Any:
        """The backbone of the student, if it is on one."""
        return self.student.backbone

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the student, and `projectors` if there are some."""
        weights = tuple(weight for each in self.projectors for weight in each.weights)
        extra = (Stage(PROJECTORS, weights, ()),) if weights else ()
        return (*self.student.stages, *extra)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, input side first."""
        return tuple(stage.name for stage in self.stages)

    def unfreeze(self, stages: str | Collection[str], bn: str = "") -> None:
        """Makes exactly these stages trainable and freezes the others; then compile again.

        Args:
            stages: One name or several of `stage_names`.
            bn: As `FineTuner.unfreeze`.
        """
        stages = [stages] if isinstance(stages, str) else stages
        self.trainable = True
        for each in self.projectors:
            each.trainable = PROJECTORS in stages
        self.student.unfreeze([name for name in stages if name != PROJECTORS], bn)

    def call(self, inputs: Any, training: bool = False, features: bool = False) -> Any:
        """Computes the output of the student; with `features`, what the losses see too."""
        inputs, _ = _apart(inputs)
        if not features:
            return self.student(inputs, training=training)
        return self._taps(inputs, training)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configures training, of teachers as they are now; see `StepModel`.

        Raises:
            ValueError: If a number is out of range, a loss has a reduction that takes alpha out,
                or losses over the batch are to be computed in parts under a strategy.
        """
        super().compile(*args, **kwargs)
        relational = [term.name for term in self.terms if term.relational]
        if relational and self._parts > 1 and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                f"Expected gradient_accumulation_steps=1 under a strategy with {relational[0]}, a "
                f"loss over the batch, received {self._parts}."
            )
        reductions = [getattr(each, "reduction", "") for each in tf.nest.flatten(self.loss)]
        if "mean_with_sample_weight" in reductions:  # Alpha is such a weight.
            raise ValueError(
                "Expected a loss of another reduction, received 'mean_with_sample_weight', by "
                "which alpha makes no difference."
            )
        if self.teachers is not None:
            self.teachers.read()

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """Trains as Keras' `fit`; losses with a warm-up begin slowly.

        Raises:
            ValueError: If there are no teachers.
        """
        if self.teachers is None:
            raise ValueError("Expected teachers to learn from, received none: set `teachers`.")
        if self.teachers.read():
            self.train_function = None
        return super().fit(*args, callbacks=with_schedule(callbacks, self), **kwargs)

    def test_step(self, data: Any) -> Any:
        """Evaluates the student on labels."""
        logs = super().test_step(data)
        hidden = [each.name for each in self._trackers]
        hidden += ["loss"] if self.loss is None else []
        found = {name: value for name, value in logs.items() if name not in hidden}
        if not found:
            raise ValueError("Expected a loss or metrics to evaluate, received none in `compile`.")
        return found

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Computes the label loss and the regularisers; examples without a label weigh nothing."""
        if self.loss is None and not self.losses:
            return tf.constant(0.0)
        y, known = read_labels(y, self.task)
        weights = known_weights(known, sample_weight)
        return super().compute_loss(x, y, y_pred, weights, training=training)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Counts the metrics; examples without a label weigh nothing."""
        y, known = read_labels(y, self.task)
        return super().compute_metrics(x, y, y_pred, known_weights(known, sample_weight))

    def loss_terms(
        self, inputs: Any, targets: Any, sample_weight: Any = None
    ) -> dict[str, tf.Tensor]:
        """Computes each part of the loss of a batch by itself, in training.

        Args:
            inputs: Of the student; or what `taught` batches give.
            targets: Labels.
            sample_weight: `[batch]` or `[batch, 1]`, if examples weigh differently.

        Returns:
            Scalars with their weights applied: `labels`, with the regularisers of the student, if
            there is a label loss; and each loss by its text.
        """
        _, label, means = self._parts_of_loss(inputs, targets, sample_weight)
        found = {} if label is None else {"labels": label}
        for term, weight, mean in zip(self.terms, self.loss_weights, means, strict=True):
            name = str(term)
            found[name] = found.get(name, 0.0) + tf.convert_to_tensor(weight) * mean
        return found

    def _forward(self, inputs: Any, targets: Any, sample_weight: Any) -> tuple[Any, tf.Tensor]:
        """Runs each network once, and adds up the losses of this replica's share."""
        outputs, label, means = self._parts_of_loss(inputs, targets, sample_weight)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        loss = tf.constant(0.0) if label is None else label
        for weight, mean, tracker in zip(self.loss_weights, means, self._trackers, strict=True):
            tracker.update_state(mean, sample_weight=tf.shape(outputs)[0])
            loss += tf.convert_to_tensor(weight) * mean / replicas
        return outputs, loss

    def _parts_of_loss(
        self, inputs: Any, targets: Any, sample_weight: Any
    ) -> tuple[tf.Tensor, tf.Tensor | None, list[tf.Tensor]]:
        """Returns the student's output, the label loss, and the mean of each other loss."""
        answers = self._ask(inputs)
        outputs, features = self(inputs, training=True, features=True)
        label, weights = None, flat_weights(sample_weight)
        if self.loss is not None or self.losses:
            ones = tf.ones(tf.shape(outputs)[:1]) if weights is None else weights
            alphas = tf.convert_to_tensor(self.alpha) * ones
            label = self.compute_loss(inputs, targets, outputs, alphas, training=True)
        means = []
        for number, term in enumerate(self.terms):
            value = self._distilled(number, term, outputs, features, answers, targets)
            if weights is not None:
                every = gathered(weights) if term.relational else weights
                value = value * tf.cast(every, value.dtype)
            means.append(tf.cast(tf.reduce_mean(value), tf.float32))
        return outputs, label, means

    def _ask(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Asks the teachers, or reads what they have said before."""
        teachers = self.teachers
        if teachers is None:
            raise ValueError("Expected teachers to learn from, received none: set `teachers`.")
        inputs, told = _apart(inputs)
        return teachers(inputs) if told is None else teachers.unpacked(told, inputs)

    def _distilled(
        self,
        number: int,
        term: Any,
        outputs: tf.Tensor,
        features: Mapping[str, tf.Tensor],
        answers: Mapping[str, tf.Tensor],
        targets: Any,
    ) -> tf.Tensor:
        """Computes one of the losses, `[batch]`."""
        if term.of_features:
            student, teacher = features[term.student or FEATURES], answers[term.teacher or FEATURES]
            if number in self._projected:
                student = self.projectors[self._projected.index(number)](student)
        else:
            student, teacher = outputs, answers[LOGITS]
        options = dict(term.options)
        if str(number) in self.temperatures:
            options["temperature"] = tf.convert_to_tensor(self.temperatures[str(number)])
        if term.needs_labels:
            options["y_true"] = labels_for_losses(targets, self.task)
        if term.relational:
            student, teacher = gathered(student), gathered(teacher)
        return term.function(student, teacher, **options)

    def get_config(self) -> dict[str, Any]:
        """Returns the student, serialized, and how it learns; without its teachers."""
        if own := [term.name for term in self.terms if not isinstance(term, Term)]:
            raise ValueError(f"Expected losses by name, to be saved, received functions {own}.")
        return {
            **super().get_config(),
            "student": keras.saving.serialize_keras_object(self.student),
            "losses": [str(term) for term in self.terms],
            "alpha": float(np.asarray(self.alpha)),
            "teacher_weights": self._teacher_weights,
            "task": self.task,
            "projections": {
                str(number): layer.units
                for number, layer in zip(self._projected, self.projectors, strict=True)
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Distiller":
        """Makes the model again from `get_config`; it is to be given its `teachers`."""
        student = keras.saving.deserialize_keras_object(config["student"])
        return cls(**{**config, "student": student})


def _apart(inputs: Any) -> tuple[Any, tf.Tensor | None]:
    """Takes inputs and what the teachers say of them apart; `None` if they are yet to be asked."""
    if isinstance(inputs, Mapping) and set(inputs) == {INPUTS, TEACHER}:
        return inputs[INPUTS], inputs[TEACHER]
    return inputs, None
