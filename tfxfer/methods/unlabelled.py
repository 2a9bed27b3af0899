"""Examples to learn from without their labels: `--unlabeled`."""

import numpy as np

from tfxfer.config import RunConfig
from tfxfer.data.base import DataSource
from tfxfer.data.conformed import Conformed
from tfxfer.data.kinds import FOLDER, kind_of
from tfxfer.data.loose_images import LooseImages
from tfxfer.data.parts import Part
from tfxfer.data.rest import rest_of
from tfxfer.data.scan import duplicate_distance, near_duplicates, scan, stop_for_bad
from tfxfer.data.sources import open_dataset
from tfxfer.data.splits import TRAIN
from tfxfer.errors import UserError
from tfxfer.methods.opening import Opened
from tfxfer.spec import parse_spec


def unlabelled_part(config: RunConfig, shared: Opened) -> Part | None:
    """Finds the examples to learn from without their labels.

    Args:
        config: The settings.
        shared: The data that have labels.

    Returns:
        The examples, images in the shape of the labelled ones, and none that stands almost alike
        in validation or test; `None` if there are to be none.

    Raises:
        UserError: If they cannot be used.
    """
    data = shared.data
    if not config.unlabeled:
        return None
    if config.batch_size < 2 * shared.strategy.num_replicas_in_sync:
        raise UserError(
            f"--batch_size={config.batch_size} must have room for labelled and unlabelled examples",
            "Give a larger one.",
        )
    if config.unlabeled == "rest":
        return rest_of(data.drawn_from[0], [data.splits[0].train])
    spec = parse_spec(config.unlabeled)
    if kind_of(spec) == FOLDER:  # Whatever folders the images are in.
        spec.only(())
        folder = spec.name.removeprefix(f"{FOLDER}:")
        other: DataSource = LooseImages(folder, shared.task, config.skip_bad)
    else:
        other = open_dataset(config.unlabeled, config.data_dir, download=config.download)
        stop_for_bad(other.bad, config.skip_bad)
    if other.info.inputs != data.source.info.inputs:
        raise UserError(
            f"--unlabeled must hold {data.source.info.inputs} inputs, and {other.info.name} holds "
            f"{other.info.inputs}",
            "Choose another dataset.",
        )
    if other.info.shape != data.source.info.shape:
        other = Conformed(other, data.source.info.shape)
    examples = other.info.examples
    split = TRAIN if examples.get(TRAIN) else max(examples, key=lambda name: examples[name])
    found = scan(other, [split], shared.cache)
    stop_for_bad(found.bad, config.skip_bad)
    usable = np.ones(examples[split], bool)
    usable[[each.row for each in (*other.bad, *found.bad) if each.split == split]] = False
    usable &= ~_held_out(found.hashes[split], shared)
    if not usable.any():
        raise UserError(
            f"--unlabeled={config.unlabeled} must hold images that validation and test do not, and "
            "holds none",
            "Choose another dataset, or rest with --shots or --max_examples.",
        )
    return Part(other, split, np.flatnonzero(usable), f"{other.info.name} {split}")


def _held_out(hashes: np.ndarray, shared: Opened) -> np.ndarray:
    """Tells which examples stand almost alike in validation or test: nothing may learn from them.

    The folder of the dataset itself holds its test images, for one.
    """
    source, splits = shared.data.source, shared.data.splits[0]
    parts = (splits.validation, splits.test)
    known = scan(source, sorted({part.split for part in parts}), shared.cache).hashes
    held = np.concatenate([known[part.split][part.rows] for part in parts])
    return near_duplicates(hashes, held, duplicate_distance(source.info.inputs))
