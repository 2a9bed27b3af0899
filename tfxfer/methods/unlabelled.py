"""Examples to learn from without their labels: `--unlabeled`."""

from collections.abc import Mapping

import numpy as np

from tfxfer.config import RunConfig
from tfxfer.data.base import IMAGE, DataInfo, DataSource
from tfxfer.data.conformed import Conformed
from tfxfer.data.parts import Part, Splits
from tfxfer.data.rest import rest_of
from tfxfer.data.scan import duplicate_distance, near_duplicates, scan, stop_for_bad
from tfxfer.data.sources import open_unlabelled
from tfxfer.data.splits import TRAIN
from tfxfer.errors import UserError
from tfxfer.methods.data import looked_at
from tfxfer.methods.opening import Opened
from tfxfer.report.data_words import inputs


def unlabelled_part(
    config: RunConfig, shared: Opened, other: DataSource | None = None
) -> Part | None:
    """Finds the examples to learn from without their labels.

    Args:
        config: The settings.
        shared: The data that have labels.
        other: Where the examples are, if not where the config says.

    Returns:
        The examples, images in the shape of the labelled ones; unless `scan` is off, none that
        stands almost alike in validation or test. `None` if there are to be none.

    Raises:
        UserError: If they cannot be used.
    """
    data = shared.data
    if other is None and not config.unlabeled:
        return None
    if config.batch_size < 2 * shared.strategy.num_replicas_in_sync:
        raise UserError(
            f"--batch_size={config.batch_size} must have room for labelled and unlabelled examples",
            "Give a larger one.",
        )
    _, known = looked_at(config, data.source)  # Kept, of the look at the labelled ones.
    if other is None and config.unlabeled == "rest":
        part, hashes = rest_of(data.drawn_from[0], [data.splits[0].train]), known
    else:
        other = other or open_unlabelled(
            config.unlabeled,
            shared.task,
            config.data_dir,
            download=config.download,
            manual_dir=config.tfds_manual_dir,
            skip_bad=config.skip_bad,
        )
        part, hashes = _elsewhere(config, shared, other)
    if config.scan:
        part = part.keep(~_held_out(hashes[part.split][part.rows], known, data.splits[0]))
    if not part.examples:
        raise UserError(
            f"--unlabeled={config.unlabeled} must hold examples that validation and test do not, "
            "and holds none",
            "Choose other examples, or --noscan to learn from these.",
        )
    return part


def _elsewhere(
    config: RunConfig, shared: Opened, other: DataSource
) -> tuple[Part, Mapping[str, np.ndarray]]:
    """Returns the usable examples of another dataset, and hashes by split, if they are scanned."""
    info = shared.data.source.info
    stop_for_bad(other.bad, config.skip_bad)
    if not _fits(other.info, info):
        raise UserError(
            f"--unlabeled must hold {inputs(info)}, and {other.info.name} holds "
            f"{inputs(other.info)}",
            "Choose another dataset, or other columns.",
        )
    if other.info.shape != info.shape:
        other = Conformed(other, info.shape)
    examples, bad, hashes = other.info.examples, other.bad, {}
    split = TRAIN if examples.get(TRAIN) else max(examples, key=lambda name: examples[name])
    if config.scan:
        found = scan(other, [split], shared.cache)
        stop_for_bad(found.bad, config.skip_bad)
        bad, hashes = (*bad, *found.bad), found.hashes
    usable = np.ones(examples[split], bool)
    usable[[each.row for each in bad if each.split == split]] = False
    return Part(other, split, np.flatnonzero(usable), f"{other.info.name} {split}"), hashes


def _fits(other: DataInfo, info: DataInfo) -> bool:
    """Whether examples can stand beside others: images of any shape can."""
    return other.inputs == info.inputs and (info.inputs == IMAGE or other.shape == info.shape)


def _held_out(hashes: np.ndarray, known: Mapping[str, np.ndarray], splits: Splits) -> np.ndarray:
    """Tells which examples stand almost alike in validation or test: nothing may learn from them.

    The folder of the dataset itself holds its test images, for one.
    """
    parts = (splits.validation, splits.test)
    held = np.concatenate([known[part.split][part.rows] for part in parts])
    return near_duplicates(hashes, held, duplicate_distance(splits.test.source.info.inputs))
