"""`--mode=finetune`: pretrained weights as the start, unfrozen stage by stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.special import expit, softmax

from tfxfer import distribute, heads
from tfxfer.backbones import HEAD
from tfxfer.backbones.base import Backbone
from tfxfer.cache import Cache
from tfxfer.config import RunConfig
from tfxfer.data.base import IMAGE, DataSource
from tfxfer.data.pipeline import batches, train_batches
from tfxfer.data.ready import ReadyData
from tfxfer.data.splits import Part, Splits
from tfxfer.errors import UserError
from tfxfer.evaluate import AnyEvaluation, predict, score, summarise_folds
from tfxfer.export import save_keras_model, save_predictor, served_outputs
from tfxfer.features import Features, extract, feature_batches, feature_part
from tfxfer.methods.backbone import check_backbone, configured_backbone
from tfxfer.methods.cache import configured_cache
from tfxfer.methods.data import configured_source, ready_data
from tfxfer.models import FineTuner
from tfxfer.plan import Phase, check_plan, gradual
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.result import ExportCheck, Result
from tfxfer.task import MULTI_LABEL, SINGLE_LABEL, Task
from tfxfer.timing import Stopwatch
from tfxfer.training.callbacks import MetricsLog
from tfxfer.training.loop import Data, PhaseResult, train
from tfxfer.training.objective import objective

# A SavedModel may run fused kernels where the trained model did not, and round differently; more
# than this is another model.
_EXPORT_TOLERANCE = 1e-3
_EXPORT_EXAMPLES = 1000


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
    timed = Stopwatch()
    with timed("loading"):
        strategy = distribute.pick_strategy()
        source = source or configured_source(config)
        _check_images(source)
        with strategy.scope():
            backbone = configured_backbone(config, source.info)
        data = ready_data(config, source)
        # Only now: what preparing a dataset takes from the global generators must not matter.
        keras.utils.set_random_seed(config.seed)
        job = _Job(config, strategy, backbone, data, configured_cache(config), console)
        model = job.new_model(data.splits[0])
        plan = gradual(model.stage_names, config.epochs, config.learning_rate)
        check_plan(plan, model.stage_names)
        if config.self_check:
            check_backbone(backbone, job.evaluated(data.splits[0].train))
    console.start(config, data, backbone, plan, distribute.describe(strategy))
    console.plan(plan, model)
    if config.dry_run:
        return None

    with workdir.run_in(path, config):
        if config.folds:
            result = _cross_validate(job, model, plan, path, timed)
        else:
            result = _train_one(job, model, plan, path, timed)
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
        UserError: As `run`.
    """
    config = RunConfig(**{**settings, "mode": "finetune", "dataset": source.info.name})
    return run(config, workdir.choose_workdir(config), Console(), source)


def _check_images(source: DataSource) -> None:
    if source.info.inputs != IMAGE:
        raise UserError(
            f"--mode=finetune takes images, and {source.info.name} holds {source.info.inputs} "
            "inputs",
            "--mode=inspect shows such a dataset; a backbone for it is not here yet.",
        )


@dataclass(frozen=True)
class _Job:
    """What all that is trained in one run shares."""

    config: RunConfig
    strategy: tf.distribute.Strategy
    backbone: Backbone
    data: ReadyData
    cache: Cache
    console: Console

    @property
    def task(self) -> Task:
        return self.data.source.info.task

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
        path: Path,
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
            trained = self._features(train_part, config.augment)
            features = Data(
                feature_batches(trained, train_part, config.batch_size, **chosen),
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
            callbacks=lambda phase: [MetricsLog(path / workdir.METRICS, phase)],
            verbose=self.console.verbose,
        )

    @property
    def _frozen_is_fixed(self) -> bool:
        """Whether a frozen backbone gives the same features of an example in every epoch."""
        config = self.config
        fixed_images = config.augment == "none" or config.views > 0
        return fixed_images and config.mix == "none" and self.backbone.bn != "train"

    def _features(self, part: Part, augment: str) -> Features:
        config = self.config
        return extract(
            self.backbone,
            part,
            self.cache,
            augment=augment,
            views=1 if augment == "none" else config.views,
            seed=config.seed,
        )


def _train_one(
    job: _Job, model: FineTuner, plan: Sequence[Phase], path: Path, timed: Stopwatch
) -> Result:
    """Trains, evaluates and exports one model."""
    splits, info, task = job.data.splits[0], job.data.source.info, job.task
    with timed("training"):
        pretrained = model.get_weights()
        phases = job.train(model, plan, splits.train, splits.validation, path)
        validation = score(task, *predict(model, job.evaluated(splits.validation)))
        if job.config.protocol == "vtab1k":
            model.set_weights(pretrained)
            both = _both(splits.train, splits.validation)
            job.console.refit(both)
            job.train(model, _as_long(plan, phases), both, None, path)
    with timed("evaluation"):
        outputs, y = predict(model, job.evaluated(splits.test))
        test = score(task, outputs, y)
    with timed("export"):
        served = path / workdir.SAVED_MODEL / "1"
        save_predictor(model, served, task, info.shape[-1] or 3)
        save_keras_model(model, path / workdir.KERAS_MODEL)
        check = _check_export(served, splits.test, task, outputs)
    return _result(job, model, {"validation": validation, "test": test}, phases, timed, check)


def _cross_validate(
    job: _Job, model: FineTuner, plan: Sequence[Phase], path: Path, timed: Stopwatch
) -> Result:
    """Trains and scores a model for each fold, each from the same pretrained weights."""
    pretrained = job.backbone.get_weights()
    scores: list[AnyEvaluation] = []
    phases: tuple[PhaseResult, ...] = ()
    for number, splits in enumerate(job.data.splits, start=1):
        keras.utils.set_random_seed(job.config.seed)
        job.backbone.set_weights(pretrained)
        model = job.new_model(splits)
        with timed("training"):
            phases += job.train(model, plan, splits.train, splits.validation, path)
        with timed("evaluation"):
            scores.append(score(job.task, *predict(model, job.evaluated(splits.test))))
        job.console.fold(number, scores[-1])
    first = job.data.splits[0]
    summary = summarise_folds(scores, first.test.examples / first.train.examples)
    result = _result(
        job, model, {f"fold {i}": each for i, each in enumerate(scores, 1)}, phases, timed, None
    )
    return replace(result, folds=summary)


def _result(
    job: _Job,
    model: FineTuner,
    metrics: dict[str, AnyEvaluation],
    phases: tuple[PhaseResult, ...],
    timed: Stopwatch,
    check: ExportCheck | None,
) -> Result:
    source = job.data.source
    return Result(
        task=job.task.kind,
        label_names=job.task.names,
        metrics=metrics,
        phases=phases,
        export=check,
        parameters={
            "total": model.count_params(),
            "backbone": job.backbone.count_params(),
            "head": model.head.count_params(),
        },
        timings=timed.seconds,
        fingerprints={"data": source.fingerprint, "backbone": job.backbone.fingerprint},
        skipped=job.data.bad,
        leaks=job.data.leaks,
    )


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


def _check_export(served: Path, test: Part, task: Task, outputs: np.ndarray) -> ExportCheck:
    """Gives the exported model test inputs as they are, and compares with the trained model."""
    examples = min(test.examples, _EXPORT_EXAMPLES)
    images = test.dataset.take(examples).map(lambda example_id, image, y: image)
    images = images.batch(1 if None in test.source.info.shape else 32)
    expected = _answers(task, outputs[:examples].astype(np.float64))
    difference = np.abs(served_outputs(served, images) - expected)
    if task.kind not in (SINGLE_LABEL, MULTI_LABEL):
        difference /= np.maximum(np.abs(expected).max(), 1e-12)
    return ExportCheck(float(difference.max()), _EXPORT_TOLERANCE, examples)


def _answers(task: Task, outputs: np.ndarray) -> np.ndarray:
    """Returns what a served model says where the trained one says `outputs`."""
    if task.kind == SINGLE_LABEL:
        return softmax(outputs, axis=-1)
    return expit(outputs) if task.kind == MULTI_LABEL else outputs
