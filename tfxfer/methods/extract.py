"""`--mode=extract`: the backbone runs once over each example; a head is fitted on its features."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer import distribute, heads
from tfxfer.config import RunConfig
from tfxfer.data.base import DataSource
from tfxfer.data.parts import Part, Splits
from tfxfer.data.pipeline import batches
from tfxfer.errors import UserError
from tfxfer.evaluate import AnyEvaluation, predict, score, summarise_folds
from tfxfer.feature_data import feature_batches, feature_part
from tfxfer.features import Features, covering
from tfxfer.features import extract as compute_features
from tfxfer.methods.backbone import with_usual
from tfxfer.methods.data import configured_source, naming_bad_examples
from tfxfer.methods.exported import export
from tfxfer.methods.opening import Opened, config_for, opened
from tfxfer.models import FeatureExtractor
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.predictions import write_predictions
from tfxfer.report.result import HeadResult, Result
from tfxfer.task import REGRESSION
from tfxfer.training.objective import objective

_EPOCHS = 100
_PATIENCE = 10
_BY_GRADIENT = ("linear", "mlp")


def run(
    config: RunConfig, path: Path, console: Console, source: DataSource | None = None
) -> Result | None:
    """Computes features, fits a head, evaluates, exports, and checks what was exported.

    With `folds`, each fold has a head of its own, and nothing is exported.

    Args:
        config: The settings.
        path: The folder to write to, as `workdir.choose_workdir` returned it.
        console: Where to say what happens.
        source: The data, if not what the config names.

    Returns:
        The result, as written to `results.json`; `None` for a dry run.

    Raises:
        UserError: If dataset, backbone or head cannot be used. Whatever is raised, the workdir is
            left as it was.
    """
    source = source or configured_source(config)
    config = with_usual(config, source.info.inputs)
    if config.head == "auto":
        numbers = source.info.task.kind == REGRESSION
        config = config.replace(head="ridge" if numbers else "logistic")
    _check_settings(config)
    with naming_bad_examples(config, source):
        shared = opened(config, source)
        device = distribute.describe(shared.strategy)
        console.start(config, shared.data, shared.backbone, None, device)
        if config.dry_run:
            return None
        with workdir.run_in(path, config):
            with shared.timed("features"):
                job = _Job(**vars(shared), features=_features(shared))
            examples = sum(found.part.examples for found in job.features.values())
            console.extracted(examples, shared.timed.seconds["features"])
            result = _cross_validate(job, console) if config.folds else _fit_one(job, path)
            workdir.write_json(path / workdir.RESULTS, result.to_dict())
        console.close(result, path)
    return result


def extract(source: DataSource, **settings: Any) -> Result | None:
    """Does in Python what `--mode=extract` does, on data that Python holds.

    Args:
        source: What `open_dataset` returned, for example of arrays.
        **settings: Those of `RunConfig`, such as `backbone="glyphs", head="knn"`.

    Returns:
        The result, as written to `results.json`; `None` with `dry_run=True`.

    Raises:
        UserError: As `run`; or if the source is none, or a setting is one of `open_dataset`.
    """
    config = config_for("extract", source, settings)
    return run(config, workdir.choose_workdir(config), Console(), source)


def _check_settings(config: RunConfig) -> None:
    name = config.head
    if config.mix != "none":
        raise UserError(
            f"--mix={config.mix} mixes images as they are trained on, and --mode=extract runs the "
            "backbone once",
            "Leave it out, or use --mode=finetune.",
        )
    if config.augment != "none" and not (config.views and name in _BY_GRADIENT):
        raise UserError(
            f"--augment={config.augment} needs --views=K, and --head=linear or mlp, which learn "
            f"from K versions of each image in turn; the head is {name}",
            "Give these, or leave --augment out.",
        )
    if config.balance != "none" and name not in _BY_GRADIENT:
        raise UserError(
            f"--balance={config.balance} is for heads that learn in batches, and {name} does not",
            "Give --head=linear or mlp.",
        )


@dataclass(frozen=True)
class _Job(Opened):
    """What the heads of one run, such as those of folds, share.

    Attributes:
        features: By split and augmentation.
    """

    features: dict[tuple[str, str], Features]

    def arrays(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Returns features `[n, units]` and `y` of a part."""
        features = self.features[part.split, "none"]
        rows = features.positions(part)
        if len(rows) == features.part.examples:
            return features.first, features.y
        return features.first[rows], features.y[rows]

    def batched(self, part: Part) -> tf.data.Dataset:
        """Returns batches of features to evaluate on."""
        features = self.features[part.split, "none"]
        return batches(feature_part(features, part), self.config.batch_size)

    def fit(self, splits: Splits) -> tuple[FeatureExtractor, HeadResult]:
        """Fits a head on train; validation chooses its strength, or the epoch."""
        name = self.config.head
        if name in _BY_GRADIENT:
            return self._train(name, splits)
        train, validation = self.arrays(splits.train), self.arrays(splits.validation)
        fitted = heads.fit_head(name, self.task, train, validation)
        if self.config.protocol == "vtab1k":
            x, y = (np.concatenate(pair) for pair in zip(train, validation, strict=True))
            again = heads.fit_head(name, self.task, (x, y), validation, strength=fitted.strength)
            fitted = replace(again, sweep=fitted.sweep)
        distribute.share_weights(self.strategy, fitted.layer)
        result = HeadResult(name, fitted.strength, fitted.sweep)
        return FeatureExtractor(self.backbone, fitted.layer), result

    def _train(self, name: str, splits: Splits) -> tuple[FeatureExtractor, HeadResult]:
        config, labels = self.config, splits.train.labels
        layer = (heads.linear if name == "linear" else heads.mlp)(self.task, labels)
        x, _ = self.arrays(splits.train)
        # So that one rate does for the features of every backbone.
        scaled = keras.layers.Normalization(mean=x.mean(axis=0), variance=x.var(axis=0))
        model = FeatureExtractor(self.backbone, keras.Sequential([scaled, layer], name="head"))
        aim = objective(self.task, labels)
        model.compile(
            keras.optimizers.Adam(config.learning_rate), loss=aim.loss(), metrics=aim.metrics()
        )
        features = self.features[splits.train.split, config.augment]
        data = feature_batches(
            features, splits.train, config.batch_size, seed=config.seed, balance=config.balance
        )
        history = keras.Model.fit(
            model,
            data.epochs(),
            steps_per_epoch=data.steps,
            validation_data=self.batched(splits.validation),
            epochs=config.epochs or _EPOCHS,
            shuffle=False,
            verbose=0,
            callbacks=[
                keras.callbacks.EarlyStopping(patience=_PATIENCE, restore_best_weights=True),
                keras.callbacks.TerminateOnNaN(),
            ],
        ).history
        if not np.isfinite(history["loss"] + history["val_loss"]).all():
            raise UserError(
                f"Head {name!r} must have a finite loss, and it is {history['loss'][-1]}",
                f"Choose a learning rate below {config.learning_rate:g}.",
            )
        sweep = tuple((epoch + 1.0, float(loss)) for epoch, loss in enumerate(history["val_loss"]))
        return model, HeadResult(name, None, sweep)


def _features(shared: Opened) -> dict[tuple[str, str], Features]:
    """Computes the features of every split that is used, once for all folds."""
    config = shared.config
    parts: dict[tuple[str, str], list[Part]] = {}
    for splits in shared.data.splits:
        for part in (splits.train, splits.validation, splits.test):
            parts.setdefault((part.split, "none"), []).append(part)
        if config.augment != "none":
            parts.setdefault((splits.train.split, config.augment), []).append(splits.train)
    return {
        (split, augment): compute_features(
            shared.backbone,
            covering(members),
            shared.cache,
            augment=augment,
            views=1 if augment == "none" else config.views,
            seed=config.seed,
            strategy=shared.strategy,
        )
        for (split, augment), members in parts.items()
    }


def _fit_one(job: _Job, path: Path) -> Result:
    splits = job.data.splits[0]
    with job.timed("head"):
        model, head = job.fit(splits)
    with job.timed("evaluation"):
        guessed = predict(model, job.batched(splits.validation))
        validation = score(job.task, *guessed)
        outputs, y = predict(model, job.batched(splits.test))
        metrics = {"validation": validation, "test": score(job.task, outputs, y)}
        told = {"validation": (splits.validation, *guessed), "test": (splits.test, outputs, y)}
        write_predictions(path / workdir.PREDICTIONS, told)
    with job.timed("export"):
        check = export(model, splits.test, outputs, path)
    return job.result(model, metrics, phases=(), export=check, head=head)


def _cross_validate(job: _Job, console: Console) -> Result:
    scores: dict[str, AnyEvaluation] = {}
    fitted = []
    for number, splits in enumerate(job.data.splits, start=1):
        with job.timed("head"):
            fitted.append(job.fit(splits))
        model, _ = fitted[-1]
        with job.timed("evaluation"):
            test = score(job.task, *predict(model, job.batched(splits.test)))
        scores[f"fold {number}"] = test
        console.fold(number, test)
    model, head = fitted[-1]
    folds = summarise_folds(scores, job.data.splits)
    return job.result(model, scores, phases=(), export=None, head=head, folds=folds)
