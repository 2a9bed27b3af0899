"""What every mode does first with its data: open, check, split."""

from tfxfer.config import RunConfig
from tfxfer.data.base import DataInfo, DataSource
from tfxfer.data.leaks import Leaks, find_leaks
from tfxfer.data.ready import ReadyData
from tfxfer.data.scan import scan, stop_for_bad
from tfxfer.data.sources import open_dataset
from tfxfer.data.splits import TEST, TRAIN, VALIDATION, fold_data, split_data
from tfxfer.errors import UserError
from tfxfer.methods.cache import configured_cache
from tfxfer.task import MULTI_LABEL, REGRESSION


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
    if kind == REGRESSION and (config.mix == "cutmix" or config.balance != "none"):
        flag = "--mix=cutmix" if config.mix == "cutmix" else f"--balance={config.balance}"
        raise UserError(f"{flag} is for classes, and {info.name} is a regression", "Leave it out.")
    if kind == MULTI_LABEL and config.balance != "none":
        raise UserError(
            f"--balance={config.balance} is for one class an example, and {info.name} has several",
            "Leave it out.",
        )


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
    stop_for_bad(source.bad, config.skip_bad)  # Before a pass over all images.
    bad, hashes = source.bad, {}
    if config.scan:
        used = [name for name in (TRAIN, VALIDATION, TEST) if source.info.examples.get(name)]
        found = scan(source, used, configured_cache(config))
        stop_for_bad(found.bad, config.skip_bad)
        bad, hashes = (*bad, *found.bad), found.hashes
    chosen = {"bad": bad, "shots": config.shots, "max_examples": config.max_examples}
    if config.folds:
        parts = fold_data(source, config.folds, config.seed, **chosen)
    else:
        vtab = config.protocol == "vtab1k"
        parts = (split_data(source, config.seed, **chosen, vtab=vtab),)
    leaks: tuple[Leaks, ...] = ()
    if hashes:
        checked = [find_leaks(each, hashes, drop=config.drop_leaks) for each in parts]
        parts, leaks = (tuple(column) for column in zip(*checked, strict=True))
    return ReadyData(source, parts, bad, leaks)
