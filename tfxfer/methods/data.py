"""What every mode does first with its data: open, check, split."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfxfer.config import RunConfig
from tfxfer.data.base import IMAGE, BadExample, DataInfo, DataSource
from tfxfer.data.draw import draw_fewer
from tfxfer.data.leaks import Leaks, find_leaks
from tfxfer.data.ready import ReadyData
from tfxfer.data.scan import scan, stop_for_bad
from tfxfer.data.sources import open_dataset
from tfxfer.data.splits import TEST, TRAIN, VALIDATION, fold_data, split_data
from tfxfer.errors import UserError
from tfxfer.methods.cache import configured_cache
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL


def configured_source(config: RunConfig) -> DataSource:
    """Opens the dataset of a config.

    Raises:
        UserError: If it cannot be opened.
    """
    return open_dataset(
        config.dataset,
        config.data_dir,
        task="" if config.task == "auto" else config.task,
        group_column=config.group_column,
        download=config.download,
        manual_dir=config.tfds_manual_dir,
    )


def _check_settings(config: RunConfig, info: DataInfo) -> None:
    kind = info.task.kind
    for flag, value in (("augment", config.augment), ("mix", config.mix)):
        if value != "none" and info.inputs != IMAGE:
            raise UserError(
                f"--{flag}={value} is for images, and {info.name} holds {info.inputs} inputs",
                "Leave it out.",
            )
    if kind == REGRESSION and (config.mix == "cutmix" or config.balance != "none"):
        flag = "--mix=cutmix" if config.mix == "cutmix" else f"--balance={config.balance}"
        raise UserError(f"{flag} is for classes, and {info.name} is a regression", "Leave it out.")
    if kind == REGRESSION and config.label_smoothing:
        raise UserError(
            f"--label_smoothing={config.label_smoothing:g} is for classes, and {info.name} is a "
            "regression",
            "Leave it out.",
        )
    if kind == MULTI_LABEL and config.balance != "none":
        raise UserError(
            f"--balance={config.balance} is for one class an example, and {info.name} has several",
            "Leave it out.",
        )


def looked_at(
    config: RunConfig, source: DataSource
) -> tuple[tuple[BadExample, ...], Mapping[str, np.ndarray]]:
    """Finds examples that cannot be used, and hashes that are alike for examples that are.

    Args:
        config: The settings.
        source: What `configured_source` returned.

    Returns:
        What cannot be used; a hash of each example by split, empty with `scan` off.

    Raises:
        UserError: If an example cannot be used and `skip_bad` is off.
    """
    stop_for_bad(source.bad, config.skip_bad)  # Before a pass over all images.
    if not config.scan:
        return source.bad, {}
    found = scan(source, _used(source), configured_cache(config))
    stop_for_bad(found.bad, config.skip_bad)
    bad = (*source.bad, *found.bad)
    return (*bad, *_without_class(source, bad)), found.hashes


@contextlib.contextmanager
def naming_bad_examples(config: RunConfig, source: DataSource) -> Iterator[None]:
    """Says which example ended a run that did not look at all of them first.

    Raises:
        UserError: If an example cannot be decoded in the `with` block.
    """
    try:
        yield
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.NotFoundError,
        tf.errors.DataLossError,
    ) as error:
        if not config.scan and (bad := scan(source, _used(source)).bad):
            raise UserError(
                f"{bad[0].where} {bad[0].reason}",
                "Correct the data, or leave --noscan out and add --skip_bad.",
            ) from error
        raise


def _used(source: DataSource) -> list[str]:
    return [name for name in (TRAIN, VALIDATION, TEST) if source.info.examples.get(name)]


def _without_class(source: DataSource, bad: Sequence[BadExample]) -> list[BadExample]:
    """Finds examples of classes of which no usable one is left to train on."""
    if source.info.task.kind != SINGLE_LABEL or not source.info.examples.get(TRAIN):
        return []
    used = np.ones(source.info.examples[TRAIN], bool)
    used[[each.row for each in bad if each.split == TRAIN and each.row >= 0]] = False
    labels, names = source.labels(TRAIN), source.info.task.names
    known = {(each.split, each.row) for each in bad}
    lost = np.setdiff1d(labels[~used & (labels >= 0)], labels[used])
    return [
        BadExample(
            source.where(split, int(row)),
            f"is of class {names[source.labels(split)[row]]!r}, which has no usable example in "
            "train",
            split,
            int(row),
        )
        for split in (VALIDATION, TEST)
        if source.info.examples.get(split)
        for row in np.flatnonzero(np.isin(source.labels(split), lost))
        if (split, int(row)) not in known
    ]


def ready_data(config: RunConfig, source: DataSource) -> ReadyData:
    """Checks a dataset and splits it.

    Args:
        config: The settings.
        source: What `configured_source` returned.

    Returns:
        Parts that hold no bad example.

    Raises:
        UserError: If an example cannot be used and `skip_bad` is off, if the data cannot be split,
            or if its task does not go with the settings.
    """
    _check_settings(config, source.info)
    bad, hashes = looked_at(config, source)
    if config.drop_leaks and not hashes:
        raise UserError(
            f"--drop_leaks compares examples, and those of {source.info.name} are not looked at",
            "Leave it out." if config.scan else "Leave --noscan out.",
        )
    if config.folds:
        parts = fold_data(source, config.folds, config.seed, bad=bad)
    else:
        vtab = config.protocol == "vtab1k"
        parts = (split_data(source, config.seed, bad=bad, vtab=vtab),)
    leaks: tuple[Leaks, ...] = ()
    if config.drop_leaks:  # First, so that as many are drawn as were asked for.
        checked = [find_leaks(each, hashes, drop=True) for each in parts]
        parts, leaks = (tuple(column) for column in zip(*checked, strict=True))
    drawn_from = tuple(each.train for each in parts)
    parts = tuple(
        draw_fewer(each, config.shots, config.max_examples, config.seed) for each in parts
    )
    if hashes and not config.drop_leaks:
        leaks = tuple(find_leaks(each, hashes)[1] for each in parts)
    return ReadyData(source, parts, bad, leaks, drawn_from)
