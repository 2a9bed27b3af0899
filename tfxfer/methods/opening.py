"""What every mode that trains does first: data and backbone, opened and checked."""

import dataclasses
import difflib
import numbers
import os
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfxfer import distribute
from tfxfer.backbones.base import Backbone
from tfxfer.backbones.precision import set_precision
from tfxfer.cache import Cache
from tfxfer.config import RunConfig
from tfxfer.data.base import DataSource
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import batches
from tfxfer.data.ready import ReadyData
from tfxfer.errors import UserError
from tfxfer.evaluate import AnyEvaluation
from tfxfer.methods.backbone import check_backbone, configured_backbone, count_cut
from tfxfer.methods.cache import configured_cache
from tfxfer.methods.data import ready_data
from tfxfer.models.base import BackboneModel
from tfxfer.report.result import Result
from tfxfer.task import Task
from tfxfer.timing import Stopwatch

# Settings that say which data to open, and how; who has data open has no use for them.
_OF_SOURCE = ["mode", "dataset", "task", "data_dir", "download", "tfds_manual_dir", "group_column"]


@dataclasses.dataclass(frozen=True)
class Opened:
    """What all that is trained in one run shares.

    Attributes:
        config: The settings.
        strategy: The devices.
        backbone: Frozen, with its pretrained weights.
        data: Checked and split.
        cache: Of features.
        timed: The stopwatch of the run.
    """

    config: RunConfig
    strategy: tf.distribute.Strategy
    backbone: Backbone
    data: ReadyData
    cache: Cache
    timed: Stopwatch

    @property
    def task(self) -> Task:
        """What is to be learned."""
        return self.data.source.info.task

    def sharing(self, split: str) -> list[Part]:
        """Returns all training and validation parts of a split, those of all folds."""
        return [
            part
            for splits in self.data.splits
            for part in (splits.train, splits.validation)
            if part.split == split
        ]

    def result(
        self, model: BackboneModel, metrics: Mapping[str, AnyEvaluation], **more: Any
    ) -> Result:
        """Puts together what a run found out."""
        source = self.data.source
        return Result(
            task=self.task.kind,
            label_names=self.task.names,
            metrics=metrics,
            parameters={
                "total": model.count_params(),
                "backbone": self.backbone.count_params(),
                "head": model.head.count_params(),
            },
            timings=self.timed.seconds,
            fingerprints={"data": source.fingerprint, "backbone": self.backbone.fingerprint},
            skipped=self.data.bad,
            leaks=self.data.leaks,
            cut=self.data.cut,
            **more,
        )


def opened(config: RunConfig, source: DataSource) -> Opened:
    """Loads the backbone of a config, checks the data and splits it.

    Args:
        config: The settings.
        source: The data.

    Returns:
        What is shared from here on. Keras' generators are seeded.

    Raises:
        UserError: If data or backbone cannot be used.
    """
    timed = Stopwatch()
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    with timed("loading"):
        strategy = distribute.pick_strategy(config.strategy, config.num_logical_devices)
        with strategy.scope():
            backbone = configured_backbone(config, source.info)
            set_precision(backbone, config.precision)
        data = ready_data(config, source)
        return _checked(Opened(config, strategy, backbone, data, configured_cache(config), timed))


def with_backbone(shared: Opened, config: RunConfig) -> Opened:
    """Loads another backbone for the same data.

    Args:
        shared: What `opened` returned.
        config: Settings that differ in what is of the backbone alone.

    Returns:
        The same but for backbone and settings.

    Raises:
        UserError: If the backbone cannot be used.
    """
    with shared.timed("loading"):
        with shared.strategy.scope():
            backbone = configured_backbone(config, shared.data.source.info)
            set_precision(backbone, config.precision)
        return _checked(dataclasses.replace(shared, config=config, backbone=backbone))


def _checked(shared: Opened) -> Opened:
    """Looks at the first images or texts, counts what is cut, and seeds Keras' generators."""
    config, backbone, (splits, *_) = shared.config, shared.backbone, shared.data.splits
    cut = count_cut(backbone, splits)
    if config.self_check:
        size = backbone.contract.size
        check_backbone(backbone, batches(splits.train, config.batch_size, image_size=size))
    # Only now: what preparing a dataset takes from the global generators must not matter.
    keras.utils.set_random_seed(config.seed)
    return dataclasses.replace(shared, data=dataclasses.replace(shared.data, cut=cut))


def check_one_machine(shared: Opened) -> None:
    """Checks that a mode which chooses among runs has one machine for them.

    Raises:
        UserError: If there are several workers.
    """
    if (count := distribute.worker_count(shared.strategy)) > 1:
        raise UserError(
            f"--mode=select and compare run on one machine, and there are {count} workers",
            "Start it on one of them, without TF_CONFIG.",
        )


def config_for(mode: str, source: DataSource, settings: Mapping[str, Any]) -> RunConfig:
    """Makes the config of a run on data that Python holds.

    Args:
        mode: Of the run.
        source: What `open_dataset` returned.
        settings: Those of `RunConfig`.

    Raises:
        UserError: If the source is none, or a setting is one of `open_dataset`.
    """
    if not isinstance(source, DataSource):
        raise UserError(
            f"{mode} must be given a data source, not {type(source).__name__}",
            "Give what open_dataset returns, such as open_dataset((images, labels)).",
        )
    if others := sorted(set(settings) & set(_OF_SOURCE)):
        raise UserError(
            f"{mode} takes an opened dataset and has no setting {others[0]!r}",
            "Give it to open_dataset, or leave it out.",
        )
    known = {field.name: type(field.default) for field in dataclasses.fields(RunConfig)}
    if unknown := sorted(set(settings) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise UserError(
            f"{mode} has no setting {unknown[0]!r}",
            f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}.",
        )
    given = {name: _as_given(name, value, known[name]) for name, value in settings.items()}
    return RunConfig(**given, mode=mode, dataset=source.info.name)


def _as_given(name: str, value: Any, kind: type) -> Any:
    """Checks the type of a setting; paths and whole numbers are taken for text and floats."""
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if not isinstance(value, kind):
        model = isinstance(value, keras.Model)
        raise UserError(
            f"The setting {name} must be {kind.__name__}, not {type(value).__name__}",
            "Save it, and give the path of its file." if model else "Give one.",
        )
    return value
