"""The students of one run: taught one after the other, trained beside, and compared."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer import distribute
from tfxfer.backbones import HEAD
from tfxfer.backbones.scratch import from_scratch
from tfxfer.config import RunConfig
from tfxfer.costs import ModelCost, summed
from tfxfer.data.base import DataSource
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import batches
from tfxfer.errors import UserError, first_line
from tfxfer.evaluate import predict, score
from tfxfer.methods import finetune
from tfxfer.methods.compared import ALONE, DISTILLED, Trained, transfer_card
from tfxfer.methods.exported import export
from tfxfer.methods.opening import Opened
from tfxfer.methods.preflight import Preflight, better_than_chance, preflight
from tfxfer.methods.serving import serving_cost
from tfxfer.methods.students import SELF, assistants, new_student
from tfxfer.methods.taught import TaughtData
from tfxfer.methods.teachers import load_teacher, split_teachers, teacher_parts
from tfxfer.methods.tuner import is_soft, training_objective, training_settings
from tfxfer.models import Distiller, FineTuner, LossSchedule, Staged, Teacher
from tfxfer.plan import Phase, with_schedule
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.distill_words import start_lines, student_line
from tfxfer.report.predictions import write_predictions
from tfxfer.report.result import Result
from tfxfer.training.callbacks import MetricsLog
from tfxfer.training.checkpoints import Checkpoints
from tfxfer.training.loop import LAST, Data, PhaseResult, train

_EPOCHS = 30
_SLOWER = 0.1  # Of the rate of the head: pretrained weights.
_LOOKED_AT = 4  # Batches before training.
# What a teacher that is fine-tuned first has from this run; the rest is as usual.
_OF_TEACHER = (
    *("dataset", "task", "data_dir", "download", "tfds_manual_dir", "shots", "max_examples"),
    *("group_column", "scan", "drop_leaks", "skip_bad", "balance", "cache_dir", "cache_gb"),
    *("backbone", "image_size", "value_range", "stages", "bn", "self_check", "seed"),
    *("batch_size", "precision", "checkpoint_seconds", "deterministic", "debug"),
    *("strategy", "num_logical_devices", "sync_bn"),
)


@dataclass(frozen=True)
class _Teachers:
    """Who teaches.

    Attributes:
        members: One or several.
        weights: Of their average; `None` if they count the same.
    """

    members: tuple[Teacher, ...]
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Teaching(Opened):
    """What the students of one run share.

    Attributes:
        path: The workdir.
        console: Where to say what happens.
        settings: The settings as they were given; those of `config` are of the student.
        terms: What is learned of the teachers.
        rest: Examples without labels.
        phases: What each training did, as they come.
        identity: What training depends on besides the settings, once it is checked.
    """

    path: Path
    console: Console
    settings: RunConfig
    terms: tuple[Any, ...]
    rest: Part | None
    phases: list[PhaseResult] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)

    def given_teachers(self) -> _Teachers:
        """Loads the teachers; where none is given, what is to be fine-tuned stands for it."""
        specs, weights = split_teachers(self.settings.teacher)
        if not specs:
            untrained = new_student(replace(self, config=self.settings), SELF, self.settings.seed)
            return _Teachers((Teacher(untrained, name="the teacher"),))
        with self.strategy.scope():
            members = tuple(load_teacher(spec, self.task) for spec in specs)
        return _Teachers(members, tuple(weights) if weights else None)

    def fine_tuned_teacher(self, source: DataSource) -> _Teachers:
        """Fine-tunes the backbone, unless a run that is gone on with has done so."""
        folder = self.path / workdir.TEACHER
        if not (folder / workdir.RESULTS).is_file():
            own = {name: getattr(self.settings, name) for name in _OF_TEACHER}
            tuned = RunConfig(mode="finetune", workdir=str(folder), **own)
            with self.timed("teacher"):
                finetune.run(tuned, folder, self.console, source)
        with self.strategy.scope():
            return _Teachers((load_teacher(str(folder), self.task, trusted=True),))

    def check(self, teachers: _Teachers) -> TaughtData:
        """Takes the losses of two examples for every student, before anyone waits for one.

        Returns:
            What the last student is to be trained on.
        """
        self.identity["data"] = self.data.source.fingerprint
        if self.rest is not None:
            rows = hashlib.sha256(self.rest.rows.tobytes()).hexdigest()
            self.identity["unlabeled"] = [self.rest.source.fingerprint, rows]
        for spec in self._between():
            student = new_student(self, spec, self.settings.seed)
            self._check_one(self._distiller(student, teachers))
            teachers = _Teachers((Teacher(student),))
        student = new_student(self, self.config.backbone, self.settings.seed)
        return self._check_one(self._distiller(student, teachers))

    def _check_one(self, distiller: Distiller) -> TaughtData:
        data = self._data(distiller)
        if self.settings.teacher:
            self.identity.setdefault("teacher", data.parts)  # Of those that are given.
        self._check_losses(distiller, data)
        return data

    def _check_losses(self, distiller: Distiller, data: TaughtData) -> None:
        relational = [term.name for term in self.terms if term.relational]
        replicas = self.strategy.num_replicas_in_sync
        if relational and replicas > 1 and self.config.accumulate > 1:
            raise UserError(
                f"The loss {relational[0]!r} is over the whole batch, of which --accumulate="
                f"{self.config.accumulate} makes parts on each of {replicas} devices",
                "Leave one of them out.",
            )
        few = data.labelled.pick(np.arange(min(2, data.labelled.examples)))
        (batch,) = self._evaluated(few, data.image_size, one_hot=data.soft).take(1)
        try:
            distiller.loss_terms(*batch)
        except UserError:
            raise
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            text = "+".join(map(str, self.terms))
            raise UserError(
                f"--loss={text} does not fit student and teacher: {first_line(error)}",
                "Name layers, as in attention_transfer(student=block2,teacher=block2), or choose "
                "other losses.",
            ) from error

    def start_lines(self, data: TaughtData) -> Iterator[str]:
        """Says what is about to run; `data` is what `check` returned."""
        return start_lines(
            self.settings,
            self.data,
            self.backbone,
            self.rest,
            loss="+".join(map(str, self.terms)),
            steps=data.steps,
            epochs=self.config.epochs or _EPOCHS,
            device=distribute.describe(self.strategy),
        )

    def run(self, teachers: _Teachers) -> Result:
        """Teaches the students between, then those of all seeds, and compares."""
        keras.utils.set_random_seed(self.settings.seed)
        looked: Preflight | None = None
        first: TaughtData | None = None  # Of the teachers that were given.
        for number, spec in enumerate(self._between(), start=1):
            data = self._data(self._distiller(new_student(self, spec, 0), teachers))
            name = f"assistant {number}" if self.settings.assistant else f"generation {number}"
            first = first or data
            looked = looked or self._preflight(data, spec)
            trained = self._distil(data, spec, self.settings.seed, name)
            self._say(name, trained)
            self._check_teaches(name, trained)
            teachers = _Teachers((Teacher(trained.model, name=f"the {name}"),))
        spec = self.config.backbone
        data = self._data(self._distiller(new_student(self, spec, 0), teachers))
        looked = looked or self._preflight(data, spec)
        distilled, alone = [], []
        for seed in range(self.settings.seed, self.settings.seed + self.settings.seeds):
            distilled.append(self._distil(data, spec, seed, f"seed {seed} {DISTILLED}"))
            alone.append(self._train_alone(data, spec, seed, f"seed {seed} {ALONE}"))
            self._say(f"seed {seed} {DISTILLED}", distilled[-1])
            self._say(f"seed {seed} {ALONE}", alone[-1])
        return self._result(first or data, looked, distilled, alone)

    def _check_teaches(self, name: str, trained: Trained) -> None:
        validation, student = self.data.splits[0].validation, trained.model
        found = predict(student, self._evaluated(validation, student.backbone.contract.size))
        if not better_than_chance(*found, self.task):
            raise UserError(
                f"The {name} must be better than chance to teach, and on {validation.examples} "
                "validation examples it is not",
                "Give it more --epochs, or another --learning_rate.",
            )

    def _say(self, name: str, trained: Trained) -> None:
        found = score(self.task, trained.best, trained.y)
        self.console.lines([student_line(name, found)])

    def _between(self) -> list[str]:
        """Returns the students that are taught before the last one."""
        own = self.settings.backbone
        between = [own if each == SELF else each for each in assistants(self.settings)]
        return [*between, *[self.config.backbone] * (self.settings.generations - 1)]

    def _data(self, distiller: Distiller) -> TaughtData:
        """Returns what students are trained on, as a distiller of that kind wants it."""
        teachers = distiller.teachers
        assert teachers is not None
        networks = [distiller.student, *(each.model for each in teachers.teachers)]
        contracts = [getattr(each, "backbone", each).contract for each in networks]
        # The largest, so that all see images in full.
        sizes = sorted({each.size for each in contracts if each.size}, key=math.prod)
        if self.config.jit and len(sizes) > 1:
            shown = " and ".join(f"{height}x{width}" for height, width in sizes)
            raise UserError(
                f"--jit must have images of one size, and student and teacher want {shown}",
                "Leave it out.",
            )
        return TaughtData(
            config=self.config,
            teachers=teachers,
            parts=teacher_parts(teachers),
            cache=self.cache,
            strategy=self.strategy,
            image_size=sizes[-1] if sizes else None,
            labelled=self.data.splits[0].train,
            unlabelled=self.rest,
            soft=is_soft(self),
            contract=contracts[0] if self.config.jit else None,
        )

    def _distiller(self, student: FineTuner, teachers: _Teachers) -> Distiller:
        with self.strategy.scope():
            distiller = Distiller(
                student,
                teachers.members,
                self.terms,
                alpha=self.settings.alpha,
                teacher_weights=teachers.weights,
                task=self.task.kind,
            )
            aim = replace(training_objective(self, self.data.splits[0].train), unlabelled=True)
            distiller.compile(loss=aim.loss(), metrics=aim.metrics())
        return distiller

    def _preflight(self, data: TaughtData, spec: str) -> Preflight:
        with self.timed("preflight"):
            student = new_student(self, spec, self.settings.seed)
            distiller = self._distiller(student, _of(data))
            part, count = data.labelled, _LOOKED_AT * self.config.batch_size
            # Of all of them, since folders come class by class.
            rows = np.linspace(0, part.examples - 1, min(count, part.examples)).astype(int)
            few = self._evaluated(part.pick(rows), data.image_size, one_hot=data.soft)
            found = preflight(distiller, few, self.task)
            self.console.lines(found.lines())
        return found

    def _distil(self, data: TaughtData, spec: str, seed: int, name: str) -> Trained:
        student = new_student(self, spec, seed)
        distiller = self._distiller(student, _of(data))
        with self.timed("distillation"):
            return self._train(distiller, student, spec, data.distilled(seed), data, name)

    def _train_alone(self, data: TaughtData, spec: str, seed: int, name: str) -> Trained:
        student = new_student(self, spec, seed)
        with self.timed("labels alone"):
            return self._train(student, student, spec, data.alone(seed), data, name)

    def _train(
        self, model: Staged, student: FineTuner, spec: str, train_data, data: TaughtData, name: str
    ) -> Trained:
        """Trains one student, and asks it of the test examples."""
        splits, distils = self.data.splits[0], isinstance(model, Distiller)
        size = student.backbone.contract.size
        aim = training_objective(self, data.labelled)
        if distils and data.unlabelled is not None:
            aim = replace(aim, unlabelled=True)
        checkpoints = Checkpoints(
            self.path / workdir.CHECKPOINTS / name.replace(" ", "-"),
            {**self.identity, "student": spec, **data.parts},
            self.config.checkpoint_seconds,
        )

        def log(phase: Phase) -> list[keras.callbacks.Callback]:
            found: list[keras.callbacks.Callback] = [LossSchedule()] if distils else []
            return [*found, MetricsLog(self.path / workdir.METRICS, phase, name)]

        self.console.lines([f"student {name}"])
        (phase,) = train(
            model,
            [self._phase(model, spec)],
            Data(train_data, self._evaluated(splits.validation, size, one_hot=data.soft)),
            aim,
            settings=replace(training_settings(self.config), keep_last=True),
            checkpoints=checkpoints,
            callbacks=log,
            verbose=self.console.verbose,
        )
        phase = replace(phase, name=name)
        self.phases.append(phase)
        test = self._evaluated(splits.test, size)
        best, y = predict(student, test)
        weights = model.get_weights()
        model.set_weights(checkpoints.read_weights(LAST))
        last, _ = predict(student, test)
        model.set_weights(weights)
        return Trained(student, phase, best, last, y)

    def _phase(self, model: Staged, spec: str) -> Phase:
        """Returns how a student is trained: whole, at a rate that rises and falls."""
        config = self.config
        slower = 1.0 if from_scratch(spec) else _SLOWER
        rates = tuple(
            config.learning_rate * (slower if name in self._own(model) else 1.0)
            for name in model.stage_names
        )
        usual = not config.given(("schedule", "warmup"))
        phase = Phase(
            "student",
            model.stage_names,
            config.epochs or _EPOCHS,
            rates,
            patience=0,  # So that both run the same number of steps.
            bn="train" if from_scratch(spec) else "",
        )
        schedule, warmup = ("cosine", 0.05) if usual else (config.schedule, config.warmup)
        return with_schedule([phase], schedule, warmup)[0]

    def _own(self, model: Staged) -> tuple[str, ...]:
        return tuple(stage.name for stage in model.backbone.stages if stage.name != HEAD)

    def _evaluated(self, part: Part, size: tuple[int, int] | None, one_hot: bool = False):
        return batches(part, self.config.batch_size, image_size=size, one_hot=one_hot)

    def _result(
        self,
        data: TaughtData,  # Of the teachers that students are compared with.
        looked: Preflight,
        distilled: Sequence[Trained],
        alone: Sequence[Trained],
    ) -> Result:
        splits, y = self.data.splits[0], distilled[0].y
        with self.timed("evaluation"):
            told = data.outputs(splits.test)
            validation = [each.phase.val_loss for each in distilled]
            chosen = distilled[int(np.argmin(np.array(validation, np.float64)))]
            size = chosen.model.backbone.contract.size
            guessed = predict(chosen.model, self._evaluated(splits.validation, size))
            said = {"validation": (splits.validation, *guessed)}
            said["test"] = (splits.test, chosen.best, y)
            write_predictions(self.path / workdir.PREDICTIONS, said)
            metrics = {
                "validation": score(self.task, *guessed),
                "test": score(self.task, chosen.best, y),
                "teacher": score(self.task, told, y),
            }
            steps = (self.config.epochs or _EPOCHS) * data.steps
            card = transfer_card(self.task, told, distilled, alone, steps)
            card = replace(card, costs=self._costs(data, chosen.model), notes=looked.notes)
        with self.timed("export"):
            check = export(chosen.model, splits.test, chosen.best, self.path)
        return replace(
            self.result(chosen.model, metrics, phases=tuple(self.phases), export=check, card=card),
            fingerprints={
                "data": self.data.source.fingerprint,
                "student": chosen.model.backbone.fingerprint,
                **data.parts,
            },
        )

    def _costs(self, data: TaughtData, student: FineTuner) -> dict[str, ModelCost]:
        test, size = self.data.splits[0].test, data.image_size
        teachers = [serving_cost(each.model, test, size) for each in data.teachers.teachers]
        return {"teacher": summed(teachers), "student": serving_cost(student, test, size)}


def _of(data: TaughtData) -> _Teachers:
    weights = data.teachers.weights
    return _Teachers(tuple(data.teachers.teachers), None if weights is None else tuple(weights))
