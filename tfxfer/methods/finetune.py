"""`--mode=finetune`: pretrained weights as the start, unfrozen stage by stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfxfer import distribute, heads
from tfxfer.backbones import HEAD
from tfxfer.config import RunConfig
from tfxfer.data.base import DataSource
from tfxfer.data.parts import Part, Splits
from tfxfer.data.pipeline import batches, train_batches
from tfxfer.evaluate import AnyEvaluation, predict, score, summarise_folds
from tfxfer.feature_data import feature_batches, feature_part
from tfxfer.features import Features, covering, extract
from tfxfer.methods.data import configured_source, naming_bad_examples
from tfxfer.methods.exported import export
from tfxfer.methods.opening import Opened, config_for, opened
from tfxfer.models import FineTuner
from tfxfer.plan import Phase, check_plan, gradual
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.result import Result
from tfxfer.task import SINGLE_LABEL
from tfxfer.training.callbacks import MetricsLog
from tfxfer.training.loop import Data, PhaseResult, train
from tfxfer.training.objective import objective

_EPOCHS = 8


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
            raised, the workdir is left as it was.
    """
    source = source or configured_source(config)
    with naming_bad_examples(config, source):
        job = _Job(**vars(opened(config, source)), path=path, console=console)
        model = job.new_model(job.data.splits[0])
        plan = gradual(model.stage_names, config.epochs or _EPOCHS, config.learning_rate)
        check_plan(plan, model.stage_names)
        device = distribute.describe(job.strategy)
        console.start(config, job.data, job.backbone, plan, device)
        console.plan(plan, model)
        if config.dry_run:
            return None
        with workdir.run_in(path, config):
            result = (_cross_validate if config.folds else _train_one)(job, model, plan)
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
    """What the models of one run, such as those of folds, share."""

    path: Path
    console: Console

    def new_model(self, splits: Splits) -> FineTuner:
        with self.strategy.scope():
            return FineTuner(self.backbone, heads.linear(self.task, splits.train.labels))

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
        self,
        model: FineTuner,
        plan: Sequence[Phase],
        train_part: Part,
        validation_part: Part | None,
        name: str = "",
    ) -> tuple[PhaseResult, ...]:
        """Trains a model; without validation, every phase runs to its last epoch."""
        config, replicas = self.config, self.strategy.num_replicas_in_sync
        soft = config.mix != "none" and self.task.kind == SINGLE_LABEL
        chosen = {
            "seed": config.seed,
            "balance": config.balance,
            "replicas": replicas,
            "one_hot": soft,
        }
        images = Data(
            train_batches(
                train_part,
                config.batch_size,
                image_size=self.backbone.contract.size,
                augment=config.augment,
                mix=config.mix,
                **chosen,
            ),
            validation_part and self.evaluated(validation_part, replicas=replicas, one_hot=soft),
        )
        features = None
        if self._frozen_is_fixed and plan[0].stages == (HEAD,):
            features = Data(
                feature_batches(
                    self._features(train_part, config.augment),
                    train_part,
                    config.batch_size,
                    **chosen,
                ),
                validation_part
                and batches(
                    feature_part(self._features(validation_part, "none"), validation_part),
                    config.batch_size,
                    replicas=replicas,
                    one_hot=soft,
                ),
            )
        return train(
            model,
            plan,
            images,
            objective(self.task, train_part.labels, soft=soft),
            features=features,
            on_phase=self.console.phase,
            callbacks=lambda phase: [MetricsLog(self.path / workdir.METRICS, phase, name)],
            verbose=self.console.verbose,
        )

    @property
    def _frozen_is_fixed(self) -> bool:
        """Whether a frozen backbone gives the same features of an example in every epoch."""
        config = self.config
        fixed_images = config.augment == "none" or config.views > 0
        return fixed_images and config.mix == "none" and self.backbone.bn != "train"

    def _features(self, part: Part, augment: str) -> Features:
        """Returns features of the examples of a part and of all like it, folds and validation."""
        parts = [
            each
            for splits in self.data.splits
            for each in (splits.train, splits.validation)
            if each.split == part.split
        ]
        return extract(
            self.backbone,
            covering([part, *parts]),
            self.cache,
            augment=augment,
            views=1 if augment == "none" else self.config.views,
            seed=self.config.seed,
            strategy=self.strategy,
        )


def _train_one(job: _Job, model: FineTuner, plan: Sequence[Phase]) -> Result:
    """Trains, evaluates and exports one model."""
    splits, timed = job.data.splits[0], job.timed
    with timed("training"):
        pretrained = model.get_weights()
        phases = job.train(model, plan, splits.train, splits.validation)
        validation = score(job.task, *predict(model, job.evaluated(splits.validation)))
        if job.config.protocol == "vtab1k":
            model.set_weights(pretrained)
            both = _both(splits.train, splits.validation)
            job.console.refit(both)
            job.train(model, _as_long(plan, phases), both, None, "refit")
    with timed("evaluation"):
        outputs, y = predict(model, job.evaluated(splits.test))
        metrics = {"validation": validation, "test": score(job.task, outputs, y)}
    with timed("export"):
        check = export(model, splits.test, outputs, job.path)
    return job.result(model, metrics, phases=phases, export=check)


def _cross_validate(job: _Job, model: FineTuner, plan: Sequence[Phase]) -> Result:
    """Trains and scores a model for each fold, each from the same pretrained weights."""
    pretrained = job.backbone.get_weights()
    scores: dict[str, AnyEvaluation] = {}
    phases: tuple[PhaseResult, ...] = ()
    for number, splits in enumerate(job.data.splits, start=1):
        name = f"fold {number}"
        keras.utils.set_random_seed(job.config.seed)
        job.backbone.set_weights(pretrained)
        model = job.new_model(splits)
        with job.timed("training"):
            phases += job.train(model, plan, splits.train, splits.validation, name)
        with job.timed("evaluation"):
            scores[name] = score(job.task, *predict(model, job.evaluated(splits.test)))
        job.console.fold(number, scores[name])
    folds = summarise_folds(scores, job.data.splits)
    return job.result(model, scores, phases=phases, export=None, folds=folds)


def _both(train: Part, validation: Part) -> Part:
    """Takes training and validation examples of one split together."""
    rows = np.sort(np.concatenate([train.rows, validation.rows]))
    return replace(train, rows=rows, origin=f"{len(rows)} of {train.split}")


def _as_long(plan: Sequence[Phase], phases: Sequence[PhaseResult]) -> tuple[Phase, ...]:
    """Returns the phases that stood, each as long as to its best epoch."""
    return tuple(
        replace(phase, epochs=result.best_epoch)
        for phase, result in zip(plan, phases, strict=True)
        if result.kept
    )
