"""`--mode=distill`: a student learns what a teacher says, beside one that learns labels alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfxfer import distribute
from tfxfer.backbones import HEAD
from tfxfer.config import RunConfig
from tfxfer.costs import ModelCost, model_cost, summed
from tfxfer.data.base import DataSource
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import batches
from tfxfer.evaluate import predict, score
from tfxfer.files import written_whole
from tfxfer.methods import finetune
from tfxfer.methods.compared import ALONE, DISTILLED, Trained, transfer_card
from tfxfer.methods.data import configured_source, naming_bad_examples
from tfxfer.methods.exported import export
from tfxfer.methods.opening import Opened, config_for, opened
from tfxfer.methods.preflight import Preflight, preflight
from tfxfer.methods.students import from_scratch, new_student
from tfxfer.methods.taught import TaughtData
from tfxfer.methods.teachers import load_teacher, split_teachers, teacher_parts
from tfxfer.methods.tuner import check_devices, is_soft, training_objective, training_settings
from tfxfer.methods.unlabelled import unlabelled_part
from tfxfer.models import Distiller, FineTuner, LossSchedule, Staged, Teacher
from tfxfer.plan import Phase
from tfxfer.report import workdir
from tfxfer.report.card import card_markdown
from tfxfer.report.console import Console
from tfxfer.report.distill_words import start_lines, student_line
from tfxfer.report.result import Result
from tfxfer.task import MULTI_LABEL, REGRESSION
from tfxfer.training.callbacks import MetricsLog
from tfxfer.training.checkpoints import Checkpoints
from tfxfer.training.loop import LAST, Data, PhaseResult, train

_EPOCHS = 30
_SLOWER = 0.1  # Of the rate of the head: pretrained weights.
_LOOKED_AT = 4  # Batches before training.
_LOSSES = {REGRESSION: "0.9*logit_mse", MULTI_LABEL: "0.9*multi_label_kd(temperature=2)"}
_USUAL_LOSS = "0.9*kd(temperature=4)"
# What a teacher that is fine-tuned first has from this run; the rest is as usual.
_OF_TEACHER = (
    *("dataset", "task", "data_dir", "download", "tfds_manual_dir", "shots", "max_examples"),
    *("group_column", "scan", "drop_leaks", "skip_bad", "balance", "cache_dir", "cache_gb"),
    *("backbone", "image_size", "value_range", "stages", "bn", "self_check", "seed"),
    *("batch_size", "precision", "checkpoint_seconds", "deterministic", "debug"),
)


def run(
    config: RunConfig, path: Path, console: Console, source: DataSource | None = None
) -> Result | None:
    """Distils, compares with labels alone, exports the student, and checks what was exported.

    Of the students of all seeds, the one with the least validation loss is exported.

    Args:
        config: The settings.
        path: The folder to write to, as `workdir.choose_workdir` returned it.
        console: Where to say what happens.
        source: The data, if not what the config names.

    Returns:
        The result, as written to `results.json`; `None` for a dry run.

    Raises:
        UserError: If dataset, teacher or student cannot be used, or training diverges. Whatever is
            raised, the workdir is left as it was, unless there is something to go on from.
    """
    source = source or configured_source(config)
    with naming_bad_examples(config, source):
        shared = opened(_for_student(config), source)
        check_devices(shared)
        rest = unlabelled_part(config, shared)
        device = distribute.describe(shared.strategy)
        console.lines(start_lines(config, shared.data, shared.backbone, rest, device))
        if config.dry_run:
            return None
        if workdir.goes_on(path, config):
            console.goes_on(path)
        with workdir.run_in(path, config):
            teachers = _teachers(config, shared, path, console, source)
            job = _Job(**vars(shared), path=path, console=console, settings=config, rest=rest)
            result = job.run(teachers)
            assert result.card is not None
            with written_whole(path / workdir.CARD) as unfinished:
                unfinished.write_text(card_markdown(result.card), encoding="utf-8")
            workdir.write_json(path / workdir.RESULTS, result.to_dict())
        console.close(result, path)
    return result


def distill(source: DataSource, **settings: Any) -> Result | None:
    """Does in Python what `--mode=distill` does, on data that Python holds.

    Args:
        source: What `open_dataset` returned, for example of arrays.
        **settings: Those of `RunConfig`, such as `teacher="runs/1", student="tiny", epochs=50`.

    Returns:
        The result, as written to `results.json`; `None` with `dry_run=True`.

    Raises:
        UserError: As `run`; or if the source is none, or a setting is one of `open_dataset`.
    """
    config = config_for("distill", source, settings)
    return run(config, workdir.choose_workdir(config), Console(), source)


def _for_student(config: RunConfig) -> RunConfig:
    """Returns the settings with the student for a backbone."""
    if config.student == "self":
        return config
    bn = "train" if from_scratch(config.student) else config.bn
    return config.replace(backbone=config.student, bn=bn, stages="", value_range="")


def _teachers(
    config: RunConfig, shared: Opened, path: Path, console: Console, source: DataSource
) -> tuple[list[Teacher], list[float] | None]:
    """Loads the teachers, or fine-tunes one, and says how much each weighs."""
    specs, weights = split_teachers(config.teacher)
    if not specs:
        specs, folder = (str(path / workdir.TEACHER),), path / workdir.TEACHER
        if not (folder / workdir.RESULTS).is_file():
            given = {name: getattr(config, name) for name in _OF_TEACHER}
            tuned = RunConfig(mode="finetune", workdir=str(folder), **given)
            with shared.timed("teacher"):
                finetune.run(tuned, folder, console, source)
        keras.utils.set_random_seed(config.seed)
    with shared.strategy.scope():
        return [load_teacher(spec, shared.task) for spec in specs], weights


@dataclass(frozen=True)
class _Job(Opened):
    """What the students of one run share.

    Attributes:
        path: The workdir.
        console: Where to say what happens.
        settings: The settings as they were given; those of `config` are of the student.
        rest: Examples without labels.
        phases: What each training did, as they come.
    """

    path: Path
    console: Console
    settings: RunConfig
    rest: Part | None
    phases: list[PhaseResult] = field(default_factory=list)

    def run(self, given: tuple[list[Teacher], list[float] | None]) -> Result:
        """Teaches the students between, then those of all seeds, and compares."""
        members, weights = given
        looked: Preflight | None = None
        first: TaughtData | None = None  # Of the teachers that were given.
        for number, spec in enumerate(self._between(), start=1):
            data = self._data(members, weights, spec)
            name = f"assistant {number}" if self.settings.assistant else f"generation {number}"
            first = first or data
            looked = looked or self._preflight(data, spec)
            trained = self._distil(data, spec, self.settings.seed, name)
            self._say(name, trained)
            members, weights = [Teacher(trained.model, name=f"the {name}")], None
        spec = self.config.backbone
        data = self._data(members, weights, spec)
        looked = looked or self._preflight(data, spec)
        distilled, alone = [], []
        for seed in range(self.settings.seed, self.settings.seed + self.settings.seeds):
            distilled.append(self._distil(data, spec, seed, f"seed {seed} {DISTILLED}"))
            alone.append(self._train_alone(data, spec, seed, f"seed {seed} {ALONE}"))
            self._say(f"seed {seed} {DISTILLED}", distilled[-1])
            self._say(f"seed {seed} {ALONE}", alone[-1])
        return self._result(first or data, looked, distilled, alone)

    def _say(self, name: str, trained: Trained) -> None:
        found = score(self.task, trained.best, trained.y)
        self.console.lines([student_line(name, found)])

    def _between(self) -> list[str]:
        """Returns the students that are taught before the last one."""
        assistants = [each.strip() for each in self.settings.assistant.split(";")]
        return [
            *filter(None, assistants),
            *[self.config.backbone] * (self.settings.generations - 1),
        ]

    def _data(
        self, members: Sequence[Teacher], weights: Sequence[float] | None, spec: str
    ) -> TaughtData:
        # Asked of a student that is not used, for the names of the layers that losses see.
        teachers = self._distiller(new_student(self, spec, 0), members, weights).teachers
        assert teachers is not None
        return TaughtData(
            config=self.config,
            teachers=teachers,
            parts=teacher_parts(teachers),
            cache=self.cache,
            strategy=self.strategy,
            image_size=self._image_size(members),
            labelled=self.data.splits[0].train,
            unlabelled=self.rest,
            soft=is_soft(self),
        )

    def _image_size(self, members: Sequence[Teacher]) -> tuple[int, int] | None:
        """Returns the largest size that one of the networks wants, so that all see it in full."""
        contracts = [self.backbone.contract]
        for member in members:
            network = getattr(member.model, "backbone", member.model)
            contracts += [network.contract] if hasattr(network, "contract") else []
        sizes = [contract.size for contract in contracts if contract.size]
        return max(sizes, key=lambda size: size[0] * size[1], default=None)

    def _distiller(
        self, student: FineTuner, teachers: Any, weights: Sequence[float] | None = None
    ) -> Distiller:
        loss = self.settings.loss
        if loss == "auto":
            loss = _LOSSES.get(self.task.kind, _USUAL_LOSS)
        with self.strategy.scope():
            return Distiller(
                student,
                teachers,
                loss,
                alpha=self.settings.alpha,
                teacher_weights=weights,
                task=self.task.kind,
            )

    def _preflight(self, data: TaughtData, spec: str) -> Preflight:
        with self.timed("preflight"):
            student = new_student(self, spec, self.settings.seed)
            distiller = self._distiller(student, data.teachers.teachers, data.teachers.weights)
            aim = replace(training_objective(self, data.labelled), unlabelled=True)
            with self.strategy.scope():
                distiller.compile(loss=aim.loss(), metrics=aim.metrics())
            part, count = data.labelled, _LOOKED_AT * self.config.batch_size
            # Of all of them, since folders come class by class.
            rows = np.linspace(0, part.examples - 1, min(count, part.examples)).astype(int)
            few = self._evaluated(part.pick(rows), data, one_hot=data.soft)
            found = preflight(distiller, few, self.task)
            self.console.lines(found.lines())
        return found

    def _distil(self, data: TaughtData, spec: str, seed: int, name: str) -> Trained:
        student = new_student(self, spec, seed)
        distiller = self._distiller(student, data.teachers.teachers, data.teachers.weights)
        with self.timed("distillation"):
            return self._train(distiller, student, spec, data.distilled(seed), data, name)

    def _train_alone(self, data: TaughtData, spec: str, seed: int, name: str) -> Trained:
        student = new_student(self, spec, seed)
        steps = data.distilled(seed).steps
        with self.timed("labels alone"):
            return self._train(student, student, spec, data.alone(seed, steps), data, name)

    def _train(
        self, model: Staged, student: FineTuner, spec: str, train_data, data: TaughtData, name: str
    ) -> Trained:
        """Trains one student, and asks it of the test examples."""
        splits, distils = self.data.splits[0], isinstance(model, Distiller)
        aim = training_objective(self, data.labelled)
        if distils and data.unlabelled is not None:
            aim = replace(aim, unlabelled=True)
        checkpoints = Checkpoints(
            self.path / workdir.CHECKPOINTS / name.replace(" ", "-"),
            {"data": self.data.source.fingerprint, "student": spec, **data.parts},
            self.config.checkpoint_seconds,
        )

        def log(phase: Phase) -> list[keras.callbacks.Callback]:
            found: list[keras.callbacks.Callback] = [LossSchedule()] if distils else []
            return [*found, MetricsLog(self.path / workdir.METRICS, phase, name)]

        self.console.lines([f"student {name}"])
        (phase,) = train(
            model,
            [self._phase(model, spec)],
            Data(train_data, self._evaluated(splits.validation, data, one_hot=data.soft)),
            aim,
            settings=replace(training_settings(self.config), keep_last=True),
            checkpoints=checkpoints,
            callbacks=log,
            verbose=self.console.verbose,
        )
        phase = replace(phase, name=name)
        self.phases.append(phase)
        test = self._evaluated(splits.test, data)
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
        return Phase(
            "student",
            model.stage_names,
            config.epochs or _EPOCHS,
            rates,
            schedule="cosine" if usual else config.schedule,
            warmup=0.05 if usual else config.warmup,
            patience=0,  # So that both run the same number of steps.
            bn="train" if from_scratch(spec) else "",
        )

    def _own(self, model: Staged) -> tuple[str, ...]:
        return tuple(stage.name for stage in model.backbone.stages if stage.name != HEAD)

    def _evaluated(self, part: Part, data: TaughtData, one_hot: bool = False):
        return batches(part, self.config.batch_size, image_size=data.image_size, one_hot=one_hot)

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
            outputs = predict(chosen.model, self._evaluated(splits.validation, data))
            metrics = {
                "validation": score(self.task, *outputs),
                "test": score(self.task, chosen.best, y),
                "teacher": score(self.task, told, y),
            }
            steps = (self.config.epochs or _EPOCHS) * data.distilled(self.settings.seed).steps
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
        shape = self.data.source.info.shape
        height, width = data.image_size or shape[:2]
        size = (height, width, shape[-1] or 3)
        teachers = [model_cost(each.model, size) for each in data.teachers.teachers]
        return {"teacher": summed(teachers), "student": model_cost(student, size)}
