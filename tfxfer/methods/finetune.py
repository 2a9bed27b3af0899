"""`--mode=finetune`: pretrained weights as the start, unfrozen stage by stage."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfxfer import distribute
from tfxfer.backbones import HEAD
from tfxfer.backbones.adapters import merge, merging
from tfxfer.config import RunConfig
from tfxfer.data.base import DataSource
from tfxfer.data.parts import Part, Splits
from tfxfer.data.pipeline import batches
from tfxfer.evaluate import (
    AnyEvaluation,
    inference,
    predict,
    score,
    summarise_folds,
)
from tfxfer.methods.backbone import with_usual
from tfxfer.methods.data import configured_source, naming_bad_examples
from tfxfer.methods.exported import export
from tfxfer.methods.opening import Opened, config_for, opened
from tfxfer.methods.preflight import better_than_chance
from tfxfer.methods.tuner import (
    check_devices,
    is_soft,
    new_model,
    plan_of,
    ruled,
    share_unfinished,
    solve_head,
    training_batches,
    training_objective,
    training_settings,
    with_recipe,
)
from tfxfer.models import FineTuner
from tfxfer.plan import Phase, Plan, write_plan
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.data_words import counted
from tfxfer.report.plots import phase_curves
from tfxfer.report.predictions import write_predictions
from tfxfer.report.result import Result
from tfxfer.training.averaging import Averaged, greedy_soup, wise_ft
from tfxfer.training.boundary import BoundaryCache, Choice, places
from tfxfer.training.callbacks import MetricsLog
from tfxfer.training.checkpoints import Checkpoints, read_weights
from tfxfer.training.forward_time import forward_seconds
from tfxfer.training.loop import START, Data, PhaseResult, of_phase, train

_ROUNDING = 1e-6  # Of a loss, where low-rank additions are merged.


def run(
    config: RunConfig, path: Path, console: Console, source: DataSource | None = None
) -> Result | None:
    """Fine-tunes, evaluates, exports, and checks what was exported.

    With `folds`, each fold is trained and scored by itself, and nothing is exported.

    Args:
        config: The settings.
        path: The folder to write to, as `workdir.choose_workdir` returned it.
        console: Where to say what happens.
        source: The data, if not what the config names.

    Returns:
        The result, as written to `results.json`; `None` for a dry run, which writes no files of
        a run, though it prepares the dataset.

    Raises:
        UserError: If dataset or backbone cannot be used, or training diverges. Whatever is
            raised, the workdir is left as it was, unless there are checkpoints to go on from.
    """
    source = source or configured_source(config)
    given, config = config, ruled(with_usual(config, source.info.inputs), source.info)
    with naming_bad_examples(config, source):
        shared = with_recipe(opened(config, source))
        # All variables, since seeds of dropout are no weights.
        pretrained = [(each, each.numpy()) for each in shared.backbone.variables]
        model = new_model(shared, shared.data.splits[0].train)
        plan = plan_of(shared, model)
        check_devices(shared)
        share_unfinished(shared, path, given)
        identity = {
            "plan": dataclasses.asdict(plan),
            "data": shared.data.source.fingerprint,
            "backbone": shared.backbone.fingerprint,
        }
        job = _Job(
            **vars(shared), path=path, console=console, pretrained=pretrained, identity=identity
        )
        before = workdir.places_before(path, given)
        kept = job.boundaries(model, job.data.splits[0])
        choices = kept.choose(plan.phases, config.batch_size, before)
        if distribute.worker_count(shared.strategy) > 1:  # Each has measured for itself.
            before = distribute.agreed(shared.strategy, places(choices))
            choices = kept.choose(plan.phases, config.batch_size, before)
        job.places.update(places(choices))
        _show(job, model, plan, choices)
        if config.dry_run:
            return None
        console.workdir(path, workdir.goes_on(path, given))
        with workdir.run_in(path, given, identity):
            write_plan(plan, path / workdir.PLAN)
            (path / workdir.CHECKPOINTS).mkdir(exist_ok=True)
            workdir.write_json(path / workdir.PLACES, job.places)
            result = (_cross_validate if config.folds else _train_one)(job, model, plan)
            if (path / workdir.METRICS).is_file():  # Not if the head was solved, and that was all.
                lines = (path / workdir.METRICS).read_text(encoding="utf-8").splitlines()
                undone = [(name, each.name) for name, each in job.undone]
                phase_curves(list(map(json.loads, lines)), path / workdir.CURVES, undone)
            workdir.write_json(path / workdir.RESULTS, result.to_dict())
        console.close(result, path)
    return result


def finetune(source: DataSource, **settings: Any) -> Result | None:
    """Does in Python what `--mode=finetune` does, on data that Python holds.

    Args:
        source: What `open_dataset` returned, for example of arrays.
        **settings: Those of `RunConfig`, such as `backbone="glyphs", epochs=2, workdir="runs/1"`.

    Returns:
        The result, as written to `results.json`; `None` with `dry_run=True`.

    Raises:
        UserError: As `run`; or if the source is none, or a setting is one of `open_dataset`.
    """
    config = config_for("finetune", source, settings)
    return run(config, workdir.choose_workdir(config), Console(), source)


@dataclass(frozen=True)
class _Job(Opened):
    """What the models of one run, such as those of folds, share.

    Attributes:
        path: The workdir.
        console: Where to say what happens.
        pretrained: Variables of the backbone and their values before training.
        identity: What training depends on besides the settings.
        places: Where frozen stages end whose outputs are kept, by phase; the same after a kill.
        undone: Names of models and phases that were undone, as they come.
        averages: What was averaged, as it comes.
    """

    path: Path
    console: Console
    pretrained: list[tuple[keras.Variable, np.ndarray]]
    identity: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)
    undone: list[tuple[str, PhaseResult]] = field(default_factory=list)
    averages: list[Averaged] = field(default_factory=list)

    def new_model(self, splits: Splits) -> FineTuner:
        """Makes another model, which starts as the first one did."""
        keras.utils.set_random_seed(self.config.seed)
        for variable, value in self.pretrained:
            variable.assign(value)
        return new_model(self, splits.train)

    def boundaries(self, model: FineTuner, splits: Splits) -> BoundaryCache:
        """Returns what keeps the outputs of frozen stages."""
        config = self.config
        return BoundaryCache(
            model=model,
            cache=self.cache,
            train=splits.train,
            validation=splits.validation,
            sharing=self.data.splits,
            mode=config.boundary_cache,
            augment=config.augment,
            views=config.views,
            mix=config.mix,
            seed=config.seed,
        )

    def evaluated(self, part: Part, *, replicas: int = 1, one_hot: bool = False):
        """Returns batches to evaluate on."""
        return batches(
            part,
            self.config.batch_size,
            image_size=self.backbone.contract.size,
            replicas=replicas,
            one_hot=one_hot,
        )

    def train(
        self, model: FineTuner, plan: Plan, splits: Splits, name: str = ""
    ) -> tuple[PhaseResult, ...]:
        """Trains a model on one of the splits; low-rank additions are merged at the end."""
        checkpoints = self._checkpoints(name)
        plain = merging(self.backbone, model.weights)
        phases = self._train(model, plan.phases, splits, name, checkpoints)
        merge(self.backbone)
        if self.config.average != "none":
            averaged = self._average(model, splits, plan.phases, checkpoints, plain)
            self.averages.extend(filter(None, [averaged]))
            self.console.averaged(averaged)
        self.undone.extend((name, phase) for phase in phases if not phase.kept)
        return phases

    def train_again(self, model: FineTuner, plan: Sequence[Phase], part: Part) -> None:
        """Trains a model for as long as phases say, on all that may be trained on."""
        name = "refit"
        checkpoints = self._checkpoints(name)
        self._train(model, plan, self.data.splits[0], name, checkpoints, part)
        merge(self.backbone)

    def _train(
        self,
        model: FineTuner,
        plan: Sequence[Phase],
        splits: Splits,
        name: str,
        checkpoints: Checkpoints,
        whole: Part | None = None,
    ) -> tuple[PhaseResult, ...]:
        train_part, validation = whole or splits.train, None if whole else splits.validation
        config, replicas = self.config, self.strategy.num_replicas_in_sync
        soft = is_soft(self)
        kept = replace(
            self.boundaries(model, self.data.splits[0]), train=train_part, validation=validation
        )
        choices = kept.choose(plan, config.batch_size, self.places)
        return train(
            model,
            plan,
            Data(
                training_batches(self, train_part),
                validation and self.evaluated(validation, one_hot=soft),
            ),
            training_objective(self, train_part),
            settings=training_settings(config),
            shortcut=kept.shortcut(
                choices,
                config.batch_size,
                balance=config.balance,
                replicas=replicas,
                one_hot=soft,
            ),
            solve_head=lambda model: solve_head(self, model, splits, whole),
            checkpoints=checkpoints,
            on_phase=self.console.phase,
            callbacks=lambda phase: [MetricsLog(self.path / workdir.METRICS, phase, name)],
            verbose=self.console.verbose,
        )

    def _checkpoints(self, name: str) -> Checkpoints:
        folder = self.path / workdir.CHECKPOINTS / (name.replace(" ", "-") or "model")
        return Checkpoints(folder, self.identity, self.config.checkpoint_seconds)

    def _average(
        self,
        model: FineTuner,
        splits: Splits,
        plan: Sequence[Phase],
        checkpoints: Checkpoints,
        plain: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    ) -> Averaged | None:
        """Averages weights that training left on the disk; validation judges.

        `plain` merges low-rank additions that are among them. Where the best epochs are of a phase
        that was undone, or there are none, as of a head that is solved, weights stay.
        """
        data = self.evaluated(splits.validation)
        step, aim = inference(model, data), training_objective(self, splits.train)

        def loss_of(model: keras.Model) -> float:
            return float(aim.example_losses(*predict(model, data, step)).mean())

        trained = model.get_weights()
        if self.config.average == "soup":
            done = checkpoints.finished()
            assert done is not None  # Training is done.
            kept = filter(checkpoints.has_weights, done["top"])
            best = [checkpoints.weights_file(name) for name in kept]
            before = loss_of(model)
            if best:
                soup = greedy_soup(model, best, loss_of, lambda path: plain(read_weights(path)))
                if soup.val_loss <= before * (1 + _ROUNDING):
                    return soup
            model.set_weights(trained)
            return None
        # A head that was drawn at random says nothing: the line starts where the head is trained.
        alone = plan[0].stages == (HEAD,) and len(plan) > 1
        start = plain(checkpoints.read_weights(of_phase(0) if alone else START))
        return wise_ft(model, start, trained, loss_of)


def _show(job: _Job, model: FineTuner, plan: Plan, choices: Mapping[str, Choice]) -> None:
    config = job.config
    job.console.start(
        config, job.data, job.backbone, plan.phases, distribute.describe(job.strategy)
    )
    seconds = None
    if config.dry_run:  # Not worth its time where the answer comes by itself.
        examples = job.data.splits[0].train.examples
        seconds = examples * forward_seconds(job.backbone, min(config.batch_size, examples))
    cached = {name: choice.where for name, choice in choices.items() if choice.where}
    job.console.plan(plan.phases, model, epoch_seconds=seconds, cached=cached)


def _train_one(job: _Job, model: FineTuner, plan: Plan) -> Result:
    """Trains, evaluates and exports one model."""
    splits, timed = job.data.splits[0], job.timed
    with timed("training"):
        start = model.get_weights()
        phases = job.train(model, plan, splits)
        guessed = predict(model, job.evaluated(splits.validation))
        validation = score(job.task, *guessed)
        if job.config.protocol == "vtab1k":
            model = job.new_model(splits)
            model.set_weights(start)
            both = _both(splits.train, splits.validation)
            job.console.refit(both)
            job.train_again(model, _as_long(plan.phases, phases), both)
    with timed("evaluation"):
        outputs, y = predict(model, job.evaluated(splits.test))
        metrics = {"validation": validation, "test": score(job.task, outputs, y)}
        told = {"validation": (splits.validation, *guessed), "test": (splits.test, outputs, y)}
        write_predictions(job.path / workdir.PREDICTIONS, told)
    if not better_than_chance(*guessed, job.task):
        count = counted(len(guessed[1]), "validation example")
        job.console.lines(
            [
                f"NOT SHOWN TO BE BETTER THAN CHANCE on {count}: more of them, another "
                "--learning_rate or another --backbone may help"
            ]
        )
    with timed("export"):
        check = export(model, splits.test, outputs, job.path)
    return job.result(model, metrics, phases=phases, export=check, averages=tuple(job.averages))


def _cross_validate(job: _Job, model: FineTuner, plan: Plan) -> Result:
    """Trains and scores a model for each fold, each from the same pretrained weights."""
    scores: dict[str, AnyEvaluation] = {}
    phases: tuple[PhaseResult, ...] = ()
    for number, splits in enumerate(job.data.splits, start=1):
        name = f"fold {number}"
        if number > 1:
            model = job.new_model(splits)
        with job.timed("training"):
            phases += job.train(model, plan, splits, name)
        with job.timed("evaluation"):
            scores[name] = score(job.task, *predict(model, job.evaluated(splits.test)))
        job.console.fold(number, scores[name])
    return job.result(
        model,
        scores,
        phases=phases,
        export=None,
        folds=summarise_folds(scores, job.data.splits),
        averages=tuple(job.averages),
    )


def _both(train: Part, validation: Part) -> Part:
    """Takes training and validation examples of one split together."""
    rows = np.sort(np.concatenate([train.rows, validation.rows]))
    return replace(train, rows=rows, origin=f"{len(rows)} of {train.split}")


def _as_long(plan: Sequence[Phase], phases: Sequence[PhaseResult]) -> tuple[Phase, ...]:
    """Returns the phases that stood, each as long as to its best epoch."""
    return tuple(
        phase if phase.solved else replace(phase, epochs=result.best_epoch, steps=0, patience=0)
        for phase, result in zip(plan, phases, strict=True)
        if result.kept
    )
